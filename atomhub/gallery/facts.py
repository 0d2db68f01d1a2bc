"""What the pages of a gallery say: of every set, in tables of comparable results, in pictures of points."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from markupsafe import escape

from atomhub.gallery.gather import Entry
from atomhub.manifest import Manifest
from atomhub.preview import layout
from atomhub.recipe import Recipe
from atomhub.results import REVISION, Measurement
from atomhub.storage import formats, verified
from atomhub.storage.cards import result_tables
from atomhub.text import plain
from atomhub.training.protocols import PROTOCOLS, column

_KINDS = {"random": "random real images", "herding": "herding", "whole": "whole training set"}
_LOAD = """import atomhub

distilled = atomhub.load("{}")
for images, labels in distilled.loader():
    ...
"""


def assets() -> Any:
    """Return the folder of templates, style, script and published figures."""
    return files("atomhub.cards").joinpath("gallery")


def card_of(entry: Entry) -> dict[str, Any]:
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
    labels = f"{p.stored.epochs} epochs by {p.stored.teacher}, {_bytes(p.stored.size)}" if p.stored else ""
    return [
        ("recipe", p.recipe.describe() if isinstance(p.recipe, Recipe) else p.method), ("command", p.command),
        ("seed", p.seed), ("device", p.device), ("seconds", f"{p.seconds:.0f}" if p.seconds else ""),
        ("made", p.created), ("versions", ", ".join(f"{k} {v}" for k, v in p.versions.items())),
        ("source", p.source_id + revision), ("licence of the source", p.license),
        ("images", f"{f.size}x{f.size}, {f.pixels}, {_bytes(f.bytes)} in all"),
        ("stored labels", labels),
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
    """Return the results of one protocol and norm, a row for each network."""
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


def boards_of(entries: Iterable[Entry], cards: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
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
    return [boards[key] for key in sorted(boards, key=lambda key: (natural(key[0]), key[1:]))]


@cache
def _papers() -> list[dict[str, Any]]:
    return list(tomllib.loads(assets().joinpath("published.toml").read_text(encoding="utf-8"))["row"])


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


def plot_of(board: dict[str, Any]) -> dict[str, Any] | None:
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
    """Return a size in words: 3.07 kB."""
    for unit, size in (("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"


def natural(name: str) -> list[Any]:
    """Return a key by which ipc2 comes before ipc10."""
    parts = re.split("([0-9]{1,9})", name.lower())
    return [(0, int(part), "") if part.isascii() and part.isdigit() else (1, 0, part) for part in parts]
