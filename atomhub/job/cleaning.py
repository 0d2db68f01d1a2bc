"""What atomhub keeps on this machine besides sets: how much it is, and how to be rid of it."""

import json
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from atomhub.data.real import kept_folder, kept_metas
from atomhub.errors import AtomhubError
from atomhub.files import home, leftovers, locked, sweep
from atomhub.job.checkpoints import RECORD, clear
from atomhub.storage import store

Kind = Literal["decoded", "networks", "runs", "evaluations", "leftovers"]


@dataclass(frozen=True)
class Removable:
    """Something that can be made again, or continued.

    Attributes:
        kind: ``decoded`` images of a source, trained ``networks`` of a bank, unfinished or finished ``runs``,
            unfinished ``evaluations``, or ``leftovers`` of processes that were killed.
        name: What of.
        path: Where.
        size: In bytes.
    """

    kind: Kind
    name: str
    path: Path
    size: int


@dataclass(frozen=True)
class Unfinished:
    """A run that can be continued: its name, how far it is, of how many iterations, and where it is."""

    name: str
    iteration: int
    iterations: int
    path: Path


def unfinished() -> list[Unfinished]:
    """Return the runs of this machine that can be continued, by name."""
    found = []
    for folder in sorted(_inside(home() / "runs")):
        if points := sorted(folder.glob("iteration-*")):
            with suppress(OSError, ValueError, KeyError, TypeError):
                record = json.loads((points[-1] / RECORD).read_text(encoding="utf-8"))
                total = int(record["identity"]["recipe"]["iterations"])
                found.append(Unfinished(folder.name, int(record["iteration"]), total, folder))
    return found


def removable() -> list[Removable]:
    """Return all that :func:`clean` could delete."""
    names = {folder: meta.info.id for folder, meta in kept_metas()}
    decoded = [Removable("decoded", names.get(p, p.name), p, _size(p)) for p in sorted(_inside(kept_folder()))]
    networks = [
        Removable("networks", p.stem, p, _size(p)) for p in sorted((home() / "banks").glob("[!.]*.safetensors"))
    ]
    open_ = {run.path: f"{run.name}, unfinished: {run.iteration} of {run.iterations}" for run in unfinished()}
    runs = [Removable("runs", open_.get(p, p.name), p, _size(p)) for p in sorted(_inside(home() / "runs"))]
    begun = [Removable("evaluations", p.stem, p, _size(p)) for p in sorted((home() / "evaluations").glob("[!.]*.*"))]
    places = [home() / name for name in ("banks", "evaluations", "runs")]
    places += [store.sets(), kept_folder(), *_inside(home() / "runs")]
    dead = [Removable("leftovers", p.name, p, _size(p)) for place in places for p in leftovers(place)]
    return [*decoded, *networks, *runs, *begun, *dead]


def clean(things: Iterable[Removable]) -> list[AtomhubError]:
    """Delete things, and return why some stay: a run that goes on, say."""
    failed = []
    for thing in things:
        try:
            if thing.kind == "runs":
                with locked(thing.path, wait=0, doing="distilling in"):
                    clear(thing.path)
            elif thing.kind == "leftovers":
                sweep(thing.path.parent)  # which knows what has to be put back
            elif thing.path.is_dir() and not thing.path.is_symlink():
                shutil.rmtree(thing.path)
            else:
                thing.path.unlink()
        except (AtomhubError, OSError) as error:
            failed.append(error if isinstance(error, AtomhubError) else AtomhubError(f"{thing.path} stays: {error}."))
    return failed


def _inside(folder: Path) -> list[Path]:
    with suppress(OSError):
        return [p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")]
    return []


def _size(path: Path) -> int:
    with suppress(OSError):
        files = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
        return sum(p.stat().st_size for p in files)
    return 0
