"""Refresh the index of names from the Hub, and propose an entry for it."""

import warnings
from datetime import UTC, datetime, timedelta
from pathlib import Path

from atomhub import limits
from atomhub.errors import AtomhubWarning, NotFoundError, UsageError
from atomhub.files import locked
from atomhub.hub import names
from atomhub.hub.find import Claim
from atomhub.hub.pull import download, snapshot
from atomhub.manifest import check_name
from atomhub.requests import call_hub, hub_api
from atomhub.results import claimed
from atomhub.storage import formats, store

FILE = "index.json"


def fetch(token: str | None = None) -> names.Index:
    """Return the index as it is on the Hub now; errors as :func:`refresh`."""
    return download(
        "dataset", names.place(), None, {FILE: range(limits.MANIFEST + 1)},
        read=lambda folder: names.read(folder / FILE), token=token, what="an index of names", now=True,
    )  # fmt: skip


def refresh(token: str | None = None) -> dict[str, str]:
    """Fetch the index of names, which counts from then on; return the names that changed, and how.

    Args:
        token: None: the one you are logged in with.

    Raises:
        IntegrityError: what is there is no index; what is known stays.
        AtomhubError: the Hub cannot be reached; NotFoundError: it has no index.
    """
    new = fetch(token)
    with locked(names.refreshed()), warnings.catch_warnings():
        warnings.simplefilter("ignore", AtomhubWarning)  # that the old one is damaged is no news
        old = names.known()
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
        file: The file; where there is none, it begins as the index that is on the Hub now.
        name: What the set is to be called; None: the name of the repository.
        token: None: the one you are logged in with.

    Returns:
        The name, and its entry.

    Raises:
        UsageError: a bare ``repo``, a private one, an impossible name, or one that means another set.
        IntegrityError, NotFoundError, AtomhubError: as :func:`atomhub.load`; or the file is no index.
    """
    if "/" not in repo:
        raise UsageError(f"{repo!r} is not on the Hub.", "Sets there are called user/name.")
    bare = repo.partition("@")[0]
    name, path = check_name(bare.split("/")[1] if name is None else name), Path(file)
    if call_hub(lambda: hub_api(token=token).dataset_info(bare, expand=["private"]).private, bare, token):
        raise UsageError(f"{bare} is private: its name would mean nothing to others.", "Make it public first.")
    try:
        there = fetch(token)
    except NotFoundError:  # there is none yet
        there = names.known()
    found = snapshot(repo, token=token, now=True)
    m, folder = found.manifest, Path(str(found.path))
    entry = names.Entry(
        repo=bare, commit=folder.name, manifest=names.manifest_digest(folder), source=m.provenance.source_id,
        ipc=m.format.ipc, claims=tuple(Claim(**c) for c in claimed(m.results.measured)),
    )  # fmt: skip
    if name in store.starters() and formats.read_manifest(store.STARTER / name).tensors != m.tensors:
        raise UsageError(f"The name {name!r} means a set that comes with atomhub.", "Choose another one: `name`.")
    with locked(path):
        index = names.read(path) if path.exists() else there
        for known in (there, index):
            if name in known.sets and known.sets[name].repo != bare:
                raise UsageError(
                    f"The name {name!r} means {known.sets[name].repo} already.", "Choose another one: `name`."
                )
        updated = max(datetime.now(UTC).replace(microsecond=0), index.updated + timedelta(seconds=1))
        names.write(index.model_copy(update={"updated": updated, "sets": {**index.sets, name: entry}}), path)
    return name, entry
