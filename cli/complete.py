"""What the shell may complete; nothing here loads torch, as nobody waits long for a key."""

import json
from contextlib import suppress
from pathlib import Path

from click import Context, Parameter
from click.shell_completion import CompletionItem

import atomhub
from atomhub.files import home
from atomhub.presets import PRESETS

PROTOCOLS = ("dm", "datadam", "idc", "dance", "ncfm", "rded", "quick")
"""As in :data:`atomhub.training.protocols.PROTOCOLS`, which loads torch; a test compares them."""


def _items(names: list[str], incomplete: str, kind: str = "") -> list[CompletionItem]:
    """Return the names that begin so; ``kind``: ``dir`` or ``file`` for paths as well."""
    found = [CompletionItem(name) for name in sorted(set(names)) if name.startswith(incomplete)]
    return found + ([CompletionItem(incomplete, type=kind)] if kind else [])


def sets(_: Context, __: Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the name of a set on this machine or in the index, or a folder."""
    starter = Path(str(atomhub.__file__)).parent / "starter"
    found = [path.parent.name for root in (home() / "sets", starter) for path in root.glob("[!.]*/manifest.json")]
    for index in (home() / "index.json", Path(str(atomhub.__file__)).parent / "hub" / "index.json"):
        with suppress(OSError, ValueError, TypeError, KeyError):
            found += json.loads(index.read_bytes())["sets"]
    return _items(found, incomplete, "dir")


def sources(_: Context, __: Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the name of a source of real images, or a folder."""
    from atomhub.data.places import ALIASES

    return _items(["digits", *ALIASES], incomplete, "dir")


def recipes(_: Context, __: Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the name of a recipe, or a file."""
    return _items(list(PRESETS), incomplete, "file")


def protocols(_: Context, __: Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the name of a protocol."""
    return _items(list(PROTOCOLS), incomplete)
