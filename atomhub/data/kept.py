"""The copy of every source that was decoded, kept in the cache."""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from atomhub.data.real import RealData, SourceOptions, Split
from atomhub.files import home
from atomhub.provenance import SourceInfo


def folder() -> Path:
    """Return where the copies are."""
    return home() / "real"


def metas() -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield folder and ``meta.json`` of all that was decoded, newest first; damaged ones are passed over."""
    files = [(path.stat().st_mtime, path) for path in folder().glob("[!.]*/meta.json")]
    for _, path in sorted(files, reverse=True):
        with suppress(OSError, ValueError):
            yield path.parent, json.loads(path.read_text())


def decoded_before(name: str, options: SourceOptions) -> str | None:
    """Return the commit of the newest decoded copy of a Hub source under the same options."""
    for _, meta in metas():
        if meta["info"]["id"] == name and meta["info"]["kind"] == "hub" and meta["options"] == asdict(options):
            return str(meta["info"]["revision"])
    return None


def open_kept(folder: Path) -> RealData | None:
    """Open decoded images; None where there are none, or damaged ones."""

    def split(name: str) -> Split:
        return Split(np.load(folder / f"{name}.npy", mmap_mode="r"), np.load(folder / f"{name}_labels.npy"))

    try:
        meta = json.loads((folder / "meta.json").read_text())
        info, options = SourceInfo.model_validate(meta["info"]), SourceOptions(**meta["options"])
        train, test = split("train"), split("test") if info.test_images else None
    except (OSError, ValueError, EOFError, KeyError, TypeError):
        return None
    return RealData(
        re.sub(r"[^a-z0-9._-]+", "-", re.split(r"[:/]", info.id)[-1].lower()).strip("-._") or "images",
        info,
        tuple(meta["class_names"]),
        train,
        test,
        tuple(meta["mean"]),
        tuple(meta["std"]),
        options,
    )
