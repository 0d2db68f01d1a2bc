"""Options that several commands have."""

from collections.abc import Callable
from typing import Any

import click

as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
device = click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda",
                      help="Device to compute on.")  # fmt: skip
seed = click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Seed of all random draws.")
source = click.option("--source", metavar="PATH", help="Place of the real images, for sets made from a local folder.")
labels = click.option("--labels", type=click.Choice(["hard", "soft"]), default="hard", show_default=True,
                      help="Labels to train on: classes, or the set's soft labels.")  # fmt: skip
private = click.option("--private/--public", default=None,
                       help="Whether a new repository is private.  [default: your account's setting]")  # fmt: skip


def protocol(default: str = "dm") -> Callable[..., Any]:
    """Return the option that chooses how networks are trained."""
    return click.option("--protocol", default=default, show_default=True, metavar="dm|datadam|mix|quick",
                        help="Training protocol.")  # fmt: skip


def training(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of commands that train networks: seed, device, source, JSON."""
    return seed(device(source(as_json(command))))
