"""The local store of distilled sets, and how a name becomes a set."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from atomhub.distilled import DistilledDataset
from atomhub.errors import AtomhubError, NotFoundError, closest
from atomhub.files import cannot_write, home
from atomhub.hub import layout
from atomhub.manifest import Manifest, check_name

STARTER = Path(__file__).resolve().parents[1] / "starter"
"""The sets that come with atomhub: only read, never written."""


def sets() -> Path:
    """Return the folder of the local store."""
    return home() / "sets"


def place(name: str) -> Path:
    """Return where the store keeps a set; UsageError for an impossible name."""
    return sets() / check_name(name)


def load(
    name_or_path: str | Path, revision: str | None = None, token: str | None = None, local_files_only: bool = False
) -> DistilledDataset:
    """Load a distilled set and verify it.

    Args:
        name_or_path: A folder in format v1; the name of a set in the local store, or of one that comes with atomhub
            (:func:`starters`); or a set on the Hub, ``user/name`` or ``user/name@revision``, which is downloaded once.
            Any other bare name means ``$ATOMHUB_NAMESPACE/name``, where that is set. The first that is there counts.
        revision: Branch, tag or commit on the Hub.
        token: For private sets on the Hub; None: the one you are logged in with.
        local_files_only: Use what was downloaded before; the Hub is not asked.

    Raises:
        NotFoundError: there is no such set.
        IntegrityError: the set was tampered with or is incomplete; nothing of it is used.
        AtomhubError: the Hub cannot be reached and nothing was downloaded before.
    """
    if revision is None and (folder := _here(name_or_path)):
        return layout.read(folder)
    name = str(name_or_path)
    if revision is None and name in starters():
        return layout.read(STARTER / name)
    bare = re.fullmatch(r"[\w.-]+(@[\w./-]+)?", name)
    if isinstance(name_or_path, Path) or not (
        re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", name) or (bare and os.environ.get("ATOMHUB_NAMESPACE"))
    ):
        find(name_or_path)  # says what is missing
    from atomhub.hub import remote

    return remote.pull(name, revision, token=token, local_files_only=local_files_only)


def find(name_or_path: str | Path) -> Path:
    """Return the folder of a set: a path that exists, else a name in the store; NotFoundError otherwise."""
    if folder := _here(name_or_path):
        return folder
    name = str(name_or_path)
    if name in starters():
        return STARTER / name
    hint = closest(name, [*names(), *starters()])
    raise NotFoundError(f"There is no distilled set {name!r} on this machine.", hint)


def _here(name_or_path: str | Path) -> Path | None:
    path = Path(name_or_path).expanduser()
    if path.is_dir() and (isinstance(name_or_path, Path) or (path / layout.MANIFEST).exists() or os.sep in str(path)):
        return path
    name = str(name_or_path)
    stored = sets() / name
    if name == stored.name and (stored / layout.MANIFEST).exists():
        return stored
    return None


def names() -> list[str]:
    """Return the names in the store, sorted."""
    return sorted(p.parent.name for p in sets().glob(f"*/{layout.MANIFEST}") if not p.parent.name.startswith("."))


def starters() -> list[str]:
    """Return the names of the sets that come with atomhub, sorted."""
    return sorted(path.parent.name for path in STARTER.glob(f"*/{layout.MANIFEST}"))


def keeps_results(distilled: DistilledDataset) -> bool:
    """Whether results may be written beside a set: not in the Hub's cache, nor in the installed package."""
    return distilled.path is not None and not distilled.path.resolve().is_relative_to(STARTER)


def manifests() -> tuple[dict[Path, Manifest], list[AtomhubError]]:
    """Return the manifests of the sets in the store by folder, tensors unopened, and what is wrong with others."""
    good: dict[Path, Manifest] = {}
    bad: list[AtomhubError] = []
    for folder in (sets() / name for name in names()):
        try:
            good[folder] = layout.read_manifest(folder)
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
            shutil.rmtree(folder.rename(folder.with_name(f".{name}.{os.getpid()}")))
    except OSError as error:
        raise cannot_write(folder, error) from error
