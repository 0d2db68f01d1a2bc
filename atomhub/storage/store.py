"""The local store of distilled sets, and the sets that come with atomhub, by name."""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from atomhub.dataset import DistilledDataset
from atomhub.errors import AtomhubError, NotFoundError, closest
from atomhub.files import cannot_write, home, locked, put_back, snapshot_of, temporary_folder, user_path
from atomhub.manifest import Manifest, check_name
from atomhub.storage import formats

STARTER = Path(__file__).resolve().parents[1] / "starter"
"""The sets that come with atomhub: only read, never written."""


def sets() -> Path:
    """Return the folder of the local store."""
    return home() / "sets"


def place(name: str) -> Path:
    """Return where the store keeps a set; UsageError for an impossible name."""
    return sets() / check_name(name)


def save(distilled: DistilledDataset, folder: str | Path | None = None, overwrite: bool = False) -> DistilledDataset:
    """Write a set to a folder, or to its place in the store; see :meth:`DistilledDataset.save`."""
    return formats.write(distilled, Path(folder) if folder is not None else place(distilled.name), overwrite)


def find(name_or_path: str | Path) -> Path | None:
    """Return the folder of a set on this machine: a path that exists, else a name in the store, else a starter set."""
    name, path = str(name_or_path), user_path(name_or_path)
    marked = (path / formats.MANIFEST).exists()
    if path.is_dir() and (isinstance(name_or_path, Path) or marked or os.sep in str(path)):
        return path
    if name != Path(name).name:
        return None
    put_back(sets() / name)
    return next((root / name for root in (sets(), STARTER) if (root / name / formats.MANIFEST).exists()), None)


def names(root: Path | None = None) -> list[str]:
    """Return the names of the sets in the store, or in another folder, sorted."""
    found = (root or sets()).glob(f"*/{formats.MANIFEST}")
    return sorted(path.parent.name for path in found if not path.parent.name.startswith("."))


def starters() -> list[str]:
    """Return the names of the sets that come with atomhub, sorted."""
    return names(STARTER)


def missing(name: str, others: Iterable[str] = ()) -> NotFoundError:
    """Return the error for a set that is not on this machine; ``others``: names that are known besides."""
    here = {*names(), *starters()}
    if name in here:
        return NotFoundError(f"{name!r} is a set on this machine, and none of the Hub.", "It needs no download.")
    hint = closest(name, {*here, *others})
    return NotFoundError(f"There is no distilled set {name!r} on this machine.", hint)


def keeps_results(distilled: DistilledDataset) -> bool:
    """Whether results may be written beside a set: not in the Hub's cache, nor in the installed package."""
    path = distilled.path
    return path is not None and not path.resolve().is_relative_to(STARTER) and snapshot_of(path) is None


def manifests() -> tuple[dict[Path, Manifest], list[AtomhubError]]:
    """Return the manifests of the sets in the store by folder, tensors unopened, and what is wrong with others."""
    good: dict[Path, Manifest] = {}
    bad: list[AtomhubError] = []
    for folder in (sets() / name for name in names()):
        try:
            good[folder] = formats.read_manifest(folder)
        except AtomhubError as error:
            bad.append(error)
    return good, bad


def check_stored(name: str) -> Path:
    """Return the folder of a set in the store; NotFoundError if it is not there."""
    folder = place(name)
    if not folder.is_dir() and name in starters():
        raise NotFoundError(f"The set {name!r} comes with atomhub: it is not in the store, and stays.")
    if not folder.is_dir():
        raise NotFoundError(f"There is no distilled set {name!r} in the store.", closest(name, names() or ["none"]))
    return folder


def remove(name: str) -> None:
    """Delete a set from the store; NotFoundError if it is not there."""
    folder = check_stored(name)
    try:
        if folder.is_symlink():
            folder.unlink()
        else:
            gone = temporary_folder(folder)
            with locked(folder):
                folder.rename(gone / "gone")
            shutil.rmtree(gone)
    except OSError as error:
        raise cannot_write(folder, error) from error
