"""What the shell may complete; nothing here loads torch, as nobody waits long for a key."""

import json
from contextlib import suppress
from pathlib import Path

from click import Context, Parameter
from click.shell_completion import CompletionItem

import atomhub
from atomhub.files import home, read_regular
from atomhub.presets import PRESETS

_LARGEST = 2**22
"""Most bytes of an index, as :data:`atomhub.limits.MANIFEST`, whose module takes long to import."""
_PACKAGE = Path(str(atomhub.__file__)).parent
PROTOCOLS = ("dm", "datadam", "idc", "dance", "ncfm", "rded", "quick", "probe")
"""As in :data:`atomhub.training.protocols.PROTOCOLS`, which loads torch; a test compares them."""


def _items(names: list[str], incomplete: str, kind: str = "") -> list[CompletionItem]:
    """Return the names that begin so; ``kind``: ``dir`` or ``file`` for paths as well."""
    found = [CompletionItem(name) for name in sorted(set(names)) if name.startswith(incomplete)]
    return found + ([CompletionItem(incomplete, type=kind)] if kind else [])


def sets(_: Context, __: Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the name of a set on this machine or in the index, or a folder."""
    return _items(_folders(home() / "sets") + _folders(_PACKAGE / "starter") + _named(), incomplete, "dir")


def stored(_: Context, __: Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the name of a set in the store."""
    return _items(_folders(home() / "sets"), incomplete)


def names(_: Context, __: Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete a name of the index."""
    return _items(_named(), incomplete)


def _folders(root: Path) -> list[str]:
    return [path.parent.name for path in root.glob("[!.]*/manifest.json")]


def _named() -> list[str]:
    """Return the names of the indexes, those that can be read."""
    found: list[str] = []
    for path in (*(home() / "indexes").glob("[!.]*.json"), _PACKAGE / "hub" / "index.json"):
        with suppress(OSError, ValueError, RecursionError):
            content = json.loads(read_regular(path, _LARGEST))
            sets = content.get("sets") if isinstance(content, dict) else None
            found += sets if isinstance(sets, dict) else ()
    return found


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
