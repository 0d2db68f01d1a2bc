"""The pages of a gallery, written from the templates in ``cards/gallery`` and published as a static Space."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atomhub import limits
from atomhub.errors import first_line
from atomhub.files import check_target, new_folder
from atomhub.gallery.facts import assets, boards_of, card_of, natural, plot_of
from atomhub.gallery.gather import Broken, Entry
from atomhub.hub.push import publish
from atomhub.text import plain
from atomhub.training.protocols import PROTOCOLS
from atomhub.version import __version__

if TYPE_CHECKING:
    from jinja2 import Environment

MARKER = ".atomhub-gallery"
"""The file that tells a gallery from any other folder."""
INDEX = "index.html"


def write_gallery(
    entries: Sequence[Entry], broken: Sequence[Broken], folder: str | Path, overwrite: bool = False
) -> Path:
    """Write the pages, all or nothing; they need no server, and ask nobody for anything.

    Args:
        entries: The sets.
        broken: Those that cannot be shown.
        folder: Where.
        overwrite: Replace a gallery.

    Returns:
        Its ``index.html``.

    Raises:
        AtomhubError: the folder exists, or cannot be written.
    """
    target = Path(folder).expanduser().absolute()
    cards, good, broken = [], [], list(broken)
    for entry in sorted(entries, key=lambda e: natural(e.name)):
        try:
            cards.append(card_of(entry))
            good.append(entry)
        except Exception as error:  # whatever a stranger's manifest makes of it, the others are shown
            broken.append(Broken(entry.name, first_line(error)))
    shared = {"version": __version__, "made": f"{datetime.now(UTC):%Y-%m-%d}"}
    check_target(target, overwrite, MARKER)
    with new_folder(target, overwrite) as temporary:
        (temporary / MARKER).touch()
        for sub in ("sets", "pictures"):
            (temporary / sub).mkdir()
        for card, entry in zip(cards, good, strict=True):
            for path, content in entry.pictures.items():
                (temporary / "pictures" / f"{card['slug']}-{path}").write_bytes(content)
            _render("set.html.j2", temporary / card["href"], root="../", page="sets", c=card, **shared)
        scores = [score for card in cards for score in card["scores"]]
        _render(
            "index.html.j2", temporary / INDEX, root="", page="sets", cards=cards, broken=broken,
            sources=sorted({c["source"] for c in cards}), ipcs=sorted({c["ipc"] for c in cards}),
            protocols=[p for p in PROTOCOLS if any(s["protocol"] == p for s in scores)],
            networks=sorted({s["network"] for s in scores}), **shared,
        )  # fmt: skip
        boards = boards_of(good, {card["name"]: card for card in cards})
        _render(
            "leaderboard.html.j2", temporary / "leaderboard.html", root="", page="leaderboard", boards=boards,
            plots=[plot for board in boards if (plot := plot_of(board))], **shared,
        )  # fmt: skip
        for asset in ("style.css", "gallery.js"):
            (temporary / asset).write_bytes(assets().joinpath(asset).read_bytes())
    return target / INDEX


_SPACE = """---
title: Distilled datasets
sdk: static
pinned: false
tags:
- atomhub
- dataset-distillation
---

The pages of `atomhub gallery`.
"""


def publish_gallery(folder: Path, space: str | None = None, token: str | None = None) -> str:
    """Publish the pages of a folder as a static Space in one commit, and return its address.

    Args:
        folder: Where :func:`write_gallery` wrote them.
        space: ``user/name``; None: ``atomhub-gallery`` under your own account.
        token: None: the one you are logged in with.

    Raises:
        AtomhubError: not logged in, not allowed, the Space holds something else, the Hub cannot be reached.
    """
    pages = {str(p.relative_to(folder).as_posix()): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    return publish(
        "space", "atomhub-gallery", pages, MARKER, lambda repo, old: old or _SPACE, space, token=token, stale=None,
        version=None, harmless=("index.html", "style.css"),  # which the Hub puts into a new one
    ).url  # fmt: skip


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("atomhub.cards", ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, finalize=lambda value: plain(value, limits.CARD) if type(value) is str else value,
    )  # fmt: skip


def _render(template: str, path: Path, **values: Any) -> None:
    path.write_text(_environment().get_template(f"gallery/{template}").render(**values), encoding="utf-8")
