"""Static pages about distilled sets: what there is, how good it is, how to load it. Nothing they say is trusted."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import escape

from atomhub import limits
from atomhub.errors import AtomhubError, first_line
from atomhub.files import check_target, new_folder
from atomhub.hub.find import search
from atomhub.hub.pull import download
from atomhub.hub.push import publish
from atomhub.manifest import Manifest
from atomhub.preview import layout
from atomhub.recipe import Recipe
from atomhub.results import REVISION, Measurement
from atomhub.storage import formats, store, verified
from atomhub.storage.cards import result_tables
from atomhub.text import plain
from atomhub.training.protocols import PROTOCOLS, column
from atomhub.version import __version__

if TYPE_CHECKING:
    from jinja2 import Environment

MARKER = ".atomhub-gallery"
"""The file that tells a gallery from any other folder."""
INDEX = "index.html"
_PICTURES = (formats.PREVIEW, formats.CURVE)
_KINDS = {"random": "random real images", "herding": "herding", "whole": "whole training set"}


@dataclass(frozen=True)
class Entry:
    """A set as the gallery shows it.

    Attributes:
        name: What :func:`atomhub.load` takes.
        manifest: What it says of itself.
        pictures: Of ``preview.png`` and ``curve.png`` those that there are.
        verdicts: Of those who measured it anew.
        url: Where it lies on the Hub.
    """

    name: str
    manifest: Manifest
    pictures: dict[str, bytes]
    verdicts: list[verified.Verification]
    url: str | None = None


@dataclass(frozen=True)
class Broken:
    """A set that cannot be shown, and why."""

    name: str
    reason: str


def local_sets() -> tuple[list[Entry], list[Broken]]:
    """Return the sets of the store and those that come with atomhub, without tensors, and what is wrong with others."""
    found, broken = [], []
    own = store.names()
    folders = [store.place(name) for name in own] + [store.STARTER / n for n in store.starters() if n not in own]
    for folder in folders:
        try:
            found.append(_entry(folder.name, folder))
        except AtomhubError as error:
            broken.append(Broken(folder.name, error.message))
    return found, broken


def remote_sets(
    author: str | None = None, token: str | None = None,
    progress: Callable[[int, int, str], None] = lambda done, total, name: None,
) -> tuple[list[Entry], list[Broken]]:  # fmt: skip
    """Return the sets on the Hub that are tagged ``atomhub``: of each its manifest and pictures alone are fetched.

    Args:
        author: User or organisation; None: all.
        token: To see private ones.
        progress: Called with sets done, sets in all, and the name of one.
    """
    from huggingface_hub import constants

    def pictures(folder: Path) -> dict[str, range]:
        given = formats.read_manifest(folder).files
        return {
            p: range(given[p].size, given[p].size + 1) for p in _PICTURES if p in given and given[p].size < _LARGEST
        }

    found, broken = [], []
    there = search(author, token=token)
    for done, listed in enumerate(there):
        progress(done, len(there), listed.name)
        try:
            entry = download(
                "dataset", listed.name, None, {formats.MANIFEST: range(limits.MANIFEST + 1)}, pictures,
                read=lambda folder: _entry("", folder), token=token, what="a distilled set",
                perhaps={verified.VERIFIED: range(limits.MANIFEST + 1)},
            )  # fmt: skip
            found.append(replace(entry, name=listed.name, url=f"{constants.ENDPOINT}/datasets/{listed.name}"))
        except AtomhubError as error:
            broken.append(Broken(listed.name, error.message))
    return found, broken


_LOAD = """import atomhub

distilled = atomhub.load("{}")
for images, labels in distilled.loader():
    ...
"""
_LARGEST = 8 * 2**20
"""Bytes of a picture that is fetched."""


def _entry(name: str, folder: Path) -> Entry:
    manifest = formats.read_manifest(folder)
    pictures = {}
    for path in _PICTURES:
        if path in manifest.files and manifest.files[path].size < _LARGEST:
            content = formats.read_checked(folder, path, manifest)
            if content.startswith(b"\x89PNG\r\n\x1a\n"):
                pictures[path] = content
    return Entry(name, manifest, pictures, verified.read(folder, manifest))


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
    for entry in sorted(entries, key=lambda e: _natural(e.name)):
        try:
            cards.append(_card(entry))
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
        boards = _boards(good, {card["name"]: card for card in cards})
        _render(
            "leaderboard.html.j2", temporary / "leaderboard.html", root="", page="leaderboard", boards=boards,
            plots=[plot for board in boards if (plot := _plot(board))], **shared,
        )  # fmt: skip
        for asset in ("style.css", "gallery.js"):
            (temporary / asset).write_bytes(_assets().joinpath(asset).read_bytes())
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


def _card(entry: Entry) -> dict[str, Any]:
    """Return what the pages say of a set."""
    m, p, f = entry.manifest, entry.manifest.provenance, entry.manifest.format
    slug = re.sub(r"[^A-Za-z0-9._-]+", "--", entry.name)
    shown = [r for r in m.results.measured if r.revision == REVISION]
    scores = [
        {"protocol": r.protocol, "network": r.network, "mean": r.score.mean, "text": r.score.text, "label": _label(r)}
        for r in sorted(shown, key=lambda r: -r.score.runs) if r.labels == "hard"
    ]  # fmt: skip
    card = {
        "name": entry.name, "slug": slug, "href": f"sets/{slug}.html", "url": entry.url, "source": p.source_id,
        "ipc": f.ipc, "recipe": p.method, "bytes_per_class": f.bytes_per_class, "bytes_text": _bytes(f.bytes_per_class),
        "created": p.created, "scores": scores, "best": next(iter(scores), None),
        "verified": "; ".join(_verdict(v) for v in entry.verdicts if v.holds),
        "doubted": "; ".join(_verdict(v) for v in entry.verdicts if not v.holds),
        "images": f.shape[0], "classes": f.class_names, "train_images": p.source.train_images if p.source else 0,
        "load": escape(_LOAD.format(plain(entry.name))),
        "tables": [_table(title, rows) for title, rows in result_tables(m.results.measured)],
        "boxes": [], "width": None, "height": None,
        "preview": f"pictures/{slug}-{formats.PREVIEW}" if formats.PREVIEW in entry.pictures else None,
        "curve": f"pictures/{slug}-{formats.CURVE}" if formats.CURVE in entry.pictures else None,
        "made": [(key, value) for key, value in _made(m) if value not in (None, "")],
    }  # fmt: skip
    return card | (_hover(entry) if card["preview"] else {})


def _made(m: Manifest) -> list[tuple[str, Any]]:
    """Return how a set was made, as names and values."""
    p, f = m.provenance, m.format
    revision = f", revision {p.source.revision}" if p.source and p.source.revision else ""
    return [
        ("recipe", p.recipe.describe() if isinstance(p.recipe, Recipe) else p.method), ("command", p.command),
        ("seed", p.seed), ("device", p.device), ("seconds", f"{p.seconds:.0f}" if p.seconds else ""),
        ("made", p.created), ("versions", ", ".join(f"{k} {v}" for k, v in p.versions.items())),
        ("source", p.source_id + revision), ("licence of the source", p.license),
        ("images", f"{f.size}x{f.size}, {f.pixels}, {_bytes(f.bytes)} in all"),
    ]  # fmt: skip


def _hover(entry: Entry) -> dict[str, Any]:
    """Return the size of a preview, and in percent where each class lies, if it is as this version draws it."""
    f = entry.manifest.format
    head = entry.pictures[formats.PREVIEW][16:24]  # PNG, section 11.2.2: width and height
    size = int.from_bytes(head[:4]), int.from_bytes(head[4:])
    places = layout((len(f.class_names), f.ipc, f.channels, f.size, f.size), f.class_names, f.formation)
    if places.size != size:
        return {"width": min(size[0], 10**5), "height": min(size[1], 10**5)}
    boxes = [
        {"name": name, "left": 100 * x / size[0], "top": 100 * y / size[1], "width": 100 * w / size[0],
         "height": 100 * h / size[1]}
        for name, (x, y, w, h) in zip(f.class_names, places.boxes, strict=False)
    ]  # fmt: skip
    return {"width": size[0], "height": size[1], "boxes": boxes}


def _table(title: str, rows: Sequence[Measurement]) -> dict[str, Any]:
    kinds = [kind for kind in _KINDS if any(kind in r.baseline for r in rows)]

    def bars(r: Measurement) -> list[dict[str, Any]]:
        found = [("distilled", r.score), *((k, r.baseline[k]) for k in ("random", "whole") if k in r.baseline)]
        return [{"kind": kind, "mean": round(score.mean, 1), "text": score.text} for kind, score in found]

    return {
        "title": f"Protocol {title}", "kinds": [_KINDS[kind] for kind in kinds],
        "rows": [{
            "network": r.network, "text": r.score.text, "bars": bars(r),
            "classes": [] if not r.score.confusion else [r.score.of_class(k) for k in range(len(r.score.confusion))],
            "interval": f"± {r.score.interval:.1f}" if r.score.runs > 1 else "–",
            "baselines": [r.baseline[kind].text if kind in r.baseline else "–" for kind in kinds],
        } for r in rows],
    }  # fmt: skip


def _boards(entries: Iterable[Entry], cards: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a table for every source, ipc and column of results, the best first, and what papers published there."""
    boards: dict[tuple[str, int, str], dict[str, Any]] = {}
    for entry in entries:
        card = cards[entry.name]
        verdicts = [v for v in entry.verdicts if v.labels == "hard"]
        holding, doubted = ({(v.protocol, v.network) for v in verdicts if v.holds is kind} for kind in (True, False))
        for r in entry.manifest.results.measured:
            name = column(r.protocol, r.network) if r.labels == "hard" and r.revision == REVISION else None
            if name is None:
                continue
            key = (card["source"], card["ipc"], name)
            board = boards.setdefault(key, {
                "title": f"{card['source']}, {card['ipc']} per class: {name}", "rows": [],
                "published": _published(*key[:2], r.protocol, r.network),
            })  # fmt: skip
            random = r.baseline.get("random")
            board["rows"].append({
                "name": entry.name, "href": card["href"],
                "verified": card["verified"] if (r.protocol, r.network) in holding - doubted else "",
                "doubted": card["doubted"] if (r.protocol, r.network) in doubted else "",
                "mean": r.score.mean,
                "text": r.score.text, "runs": r.score.runs, "random": random.text if random else "–",
                "ior": "–" if r.ior is None else f"{r.ior:.1f}", "hlr": "–" if r.hlr is None else f"{r.hlr:.1f}",
                "bytes": card["bytes_per_class"], "bytes_text": card["bytes_text"],
            })  # fmt: skip
    for board in boards.values():
        board["rows"].sort(key=lambda row: -row["mean"])
    return [boards[key] for key in sorted(boards, key=lambda key: (_natural(key[0]), key[1:]))]


@cache
def _papers() -> list[dict[str, Any]]:
    return list(tomllib.loads(_assets().joinpath("published.toml").read_text(encoding="utf-8"))["row"])


def _published(source: str, ipc: int, protocol: str, network: str) -> list[dict[str, Any]]:
    """Return the published figures that a table may have beside it: those of its protocol and that one's network."""
    usual = PROTOCOLS[protocol].usual if protocol in PROTOCOLS else None
    if usual is None or not network.startswith("convnet:width=128,norm="):
        return []
    own = [(row, row["figures"].get(source, {}).get(str(ipc))) for row in _papers() if row["protocol"] == protocol]
    found = sorted(((row, value) for row, value in own if value is not None), key=lambda pair: -pair[1])
    notes = {True: "best epoch on the test images", False: ""}
    return [
        {"method": row["method"], "source": row["source"], "text": f"{value:.1f}",
         "note": notes[row.get("best", False)]}
        for row, value in found
    ]  # fmt: skip


def _plot(board: dict[str, Any]) -> dict[str, Any] | None:
    """Return a board's points, bytes along x on a scale of logarithms; None for a single one."""
    rows = [row for row in board["rows"] if row["bytes"]]
    if len(rows) < 2:
        return None
    logs = [math.log10(row["bytes"]) for row in rows]
    left, right = math.floor(min(logs) * 2) / 2, math.ceil(max(logs) * 2) / 2
    right += left == right
    low, high = (10 * f(edge / 10) for f, edge in ((math.floor, min(r["mean"] for r in rows)),
                                                  (math.ceil, max(r["mean"] for r in rows))))  # fmt: skip
    high += 10 * (low == high)

    def x(value: float) -> float:
        return round(44 + 366 * (value - left) / (right - left), 1)

    def y(value: float) -> float:
        return round(220 - 206 * (value - low) / (high - low), 1)

    ticks = [left + i / 2 for i in range(int(2 * (right - left)) + 1)]
    step = 10 if high - low > 20 else 5
    return {
        "title": board["title"],
        "dots": [row | {"x": x(log), "y": y(row["mean"])} for row, log in zip(rows, logs, strict=True)],
        "x": [{"at": x(t), "label": _bytes(round(10**t))} for t in ticks],
        "y": [{"at": y(v), "label": str(v)} for v in range(int(low), int(high) + 1, step)],
    }


def _verdict(v: verified.Verification) -> str:
    """Return what somebody measured anew, in words."""
    where = column(v.protocol, v.network) or f"{v.protocol}, {v.network}"
    return f"{where}: {v.score.text} by {v.by}, {v.date[:10]}"


def _label(r: Measurement) -> str:
    """Return protocol and network of a result, in words where it has a column of its own."""
    return column(r.protocol, r.network) or f"{r.protocol}, {r.network}"


def _bytes(count: int) -> str:
    for unit, size in (("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"


def _natural(name: str) -> list[Any]:
    """Return a key by which ipc2 comes before ipc10."""
    parts = re.split("([0-9]{1,9})", name.lower())
    return [(0, int(part), "") if part.isascii() and part.isdigit() else (1, 0, part) for part in parts]


def _assets() -> Any:
    return files("atomhub.cards").joinpath("gallery")


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("atomhub.cards", ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, finalize=lambda value: plain(value, limits.CARD) if type(value) is str else value,
    )  # fmt: skip


def _render(template: str, path: Path, **values: Any) -> None:
    path.write_text(_environment().get_template(f"gallery/{template}").render(**values), encoding="utf-8")
