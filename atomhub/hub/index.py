"""Refresh the index of names from the Hub, and propose an entry for it."""

import os
from datetime import UTC, datetime
from pathlib import Path

from atomhub import limits
from atomhub.errors import AtomhubError, UsageError
from atomhub.hub import names
from atomhub.hub.find import Claim
from atomhub.hub.pull import download, snapshot
from atomhub.manifest import check_name
from atomhub.results import claimed

FILE = "index.json"


def place() -> str:
    """Return the repository on the Hub that holds the index: ``ATOMHUB_INDEX``, else the project's."""
    return os.environ.get("ATOMHUB_INDEX") or "atomhub/index"


def refresh(token: str | None = None) -> dict[str, str]:
    """Fetch the index of names, which counts from then on; return the names that changed, and how.

    Args:
        token: None: the one you are logged in with.

    Raises:
        IntegrityError: what is there is no index, or an older one than is known; what is known stays.
        AtomhubError: the Hub cannot be reached; NotFoundError: it has no index.
    """
    old = names.known()
    new = download(
        "dataset", place(), None, {FILE: range(limits.MANIFEST + 1)}, read=lambda folder: names.read(folder / FILE),
        token=token, what="an index of names",
    )  # fmt: skip
    if new.updated < old.updated:
        raise AtomhubError(
            f"The index in {place()} is of {new.updated:%Y-%m-%d %H:%M}, older than the one that is known.",
            "Nothing was changed.",
        )
    names.write(new, names.refreshed())
    changes = {}
    for name in sorted(old.sets.keys() | new.sets.keys()):
        before, after = old.sets.get(name), new.sets.get(name)
        if before != after:
            changes[name] = "removed" if after is None else f"{after.repo} at {after.commit[:8]}"
            changes[name] += f" in place of {before.repo} at {before.commit[:8]}" if before and after else ""
    return changes


def add(repo: str, file: str | Path, name: str | None = None, token: str | None = None) -> tuple[str, names.Entry]:
    """Pull a set, verify its files, and enter its newest commit into a file of the index.

    Args:
        repo: ``user/name`` or ``user/name@revision``.
        file: The file; where there is none, it begins as the index that is known.
        name: What the set is to be called; None: the name of the repository.
        token: None: the one you are logged in with.

    Returns:
        The name, and its entry.

    Raises:
        UsageError: a bare ``repo``, an impossible name, or one that belongs to another repository.
        IntegrityError, NotFoundError, AtomhubError: as :func:`atomhub.load`; or the file is no index.
    """
    if "/" not in repo:
        raise UsageError(f"{repo!r} is not on the Hub.", "Sets there are called user/name.")
    path = Path(file)
    index = names.read(path) if path.exists() else names.known()
    found = snapshot(repo, token=token)
    name = check_name(name or str(found.repo).split("/")[1])
    owner = index.sets[name].repo if name in index.sets else found.repo
    if owner != found.repo:
        raise UsageError(f"The name {name!r} means {owner} already.", "Choose another one with --name.")
    m = found.manifest
    folder = Path(str(found.path))
    entry = names.Entry(
        repo=str(found.repo), commit=folder.name, manifest=names.manifest_digest(folder), source=m.provenance.source_id,
        ipc=m.format.ipc, claims=tuple(Claim(**c) for c in claimed(m.results.measured)),
    )  # fmt: skip
    updated = datetime.now(UTC).replace(microsecond=0)
    names.write(index.model_copy(update={"updated": updated, "sets": {**index.sets, name: entry}}), path)
    return name, entry
