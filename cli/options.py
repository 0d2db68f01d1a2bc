"""Options that several commands have."""

from collections.abc import Callable
from functools import reduce
from typing import Any

import click

from . import complete

as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
device = click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda|mps",
                      help="Device to compute on.")  # fmt: skip
seed = click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Seed of all random draws.")
source = click.option("--source", metavar="PATH", help="Place of the real images, for sets made from a local folder.")
yes = click.option("--yes", "-y", is_flag=True, help="Do not ask.")
labels = click.option("--labels", type=click.Choice(["hard", "soft", "stored"]), default="hard", show_default=True,
                      help="Labels to train on: classes, the set's soft labels, or its stored ones.")  # fmt: skip
teacher = click.option("--teacher", metavar="NETWORK",
                       help="Network that labels batches under rded.  [default: as in the recipe rded]")  # fmt: skip
private = click.option("--private/--public", default=None,
                       help="Whether a new repository is private.  [default: your account's setting]")  # fmt: skip


def publishing(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of commands that publish: visibility, tags, message."""
    tag = click.option("--tag", "tags", multiple=True, metavar="v1", help="Tag for the commit. Repeatable.")
    message = click.option("--message", "commit_message", metavar="TEXT", help="Message of the commit.")
    return private(tag(message(command)))


def protocol(default: str = "dm") -> Callable[..., Any]:
    """Return the option that chooses how networks are trained."""
    return click.option("--protocol", default=default, show_default=True, metavar="|".join(complete.PROTOCOLS),
                        shell_complete=complete.protocols, help="Training protocol.")  # fmt: skip


def training(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of commands that train networks: seed, device, source, yes, JSON."""
    return seed(device(source(yes(as_json(command)))))


READING = (
    click.option("--size", type=int, metavar="PIXELS", help="Side to which the real images are resized."),
    click.option("--image-column", metavar="NAME", help="Column of the images."),
    click.option("--label-column", metavar="NAME", help="Column of the classes."),
    click.option("--train-split", metavar="NAME", help="Split or folder of the training images."),
    click.option("--test-split", metavar="NAME", help="Split or folder of the test images."),
    click.option("--test-fraction", type=float, metavar="F", help="Share of a single split to set aside for tests."),
    click.option("--config", metavar="NAME", help="Configuration of a dataset on the Hub."),
    click.option("--revision", metavar="REV", help="Branch, tag or commit of a dataset on the Hub."),
    click.option("--skip-unreadable", is_flag=True, help="Leave out images that cannot be read."),
    click.option("--flip/--no-flip", default=None, help="Whether a mirrored image keeps its class."),
)


def reading(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of commands that read a source."""
    return reduce(lambda made, option: option(made), reversed(READING), command)
