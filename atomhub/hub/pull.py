"""Download from the Hugging Face Hub: files of one commit, none larger than it may be."""

import os
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import HfApi, constants, scan_cache_dir, snapshot_download
from huggingface_hub.errors import CacheNotFound, LocalEntryNotFoundError

from atomhub.dataset import DistilledDataset
from atomhub.errors import AtomhubError, AtomhubWarning, IntegrityError, NotFoundError, UsageError
from atomhub.hub.push import Kind
from atomhub.hub.requests import Unreachable, call_hub
from atomhub.manifest import Manifest
from atomhub.storage import format_v1

_LARGEST_MANIFEST = 2**24
"""Most bytes of a manifest that are downloaded."""


def pull(
    name: str, revision: str | None = None, *, token: str | None = None, local_files_only: bool = False
) -> DistilledDataset:
    """Download a set, verify it, and return it; afterwards it loads without a network as well.

    Only the files of format v1 are fetched, and each only if it has the size that the manifest says.

    Args:
        name: ``user/name``, ``user/name@revision``, or a bare name under ``ATOMHUB_NAMESPACE``.
        revision: Branch, tag or commit.
        token: For private repositories; None: the one you are logged in with.
        local_files_only: Use what was downloaded before.

    Raises:
        NotFoundError: no such repository or revision, or it holds no distilled set.
        IntegrityError: it was tampered with; nothing of it is used.
        AtomhubError: the Hub cannot be reached and nothing was downloaded before.
    """
    repo, revision = split_name(name, revision)
    folder = download(
        "dataset", repo, revision, {format_v1.MANIFEST: range(_LARGEST_MANIFEST + 1)}, _exact_sizes, token=token,
        local_files_only=local_files_only, what="a distilled set",
    )  # fmt: skip
    found = format_v1.read(folder)
    format_v1.check_parquet(found, folder)
    found.repo = repo
    found.path = None  # the cache is huggingface_hub's: nothing is written there
    return found


def _exact_sizes(folder: Path) -> dict[str, range]:
    """Return the sizes that a manifest allows for the other files of a set."""
    return {path: range(f.size, f.size + 1) for path, f in format_v1.read_manifest(folder).files.items()}


def download(
    kind: Kind, repo: str, revision: str | None, first: Mapping[str, range],
    more: Callable[[Path], Mapping[str, range]] = lambda folder: {}, *, token: str | None,
    local_files_only: bool = False, what: str,
) -> Path:  # fmt: skip
    """Download some files of one commit into huggingface_hub's cache; return their folder.

    Args:
        kind: ``dataset`` or ``model``.
        repo: ``user/name``.
        revision: Branch, tag or commit.
        first: Path of each file to fetch first, and the sizes in bytes that it may have.
        more: From the folder with those to further files and their sizes.
        token: None: the one you are logged in with.
        local_files_only: Use what was downloaded before.
        what: What the repository should hold, for errors.

    Raises:
        NotFoundError: no such repository, revision or file; or not downloaded before, and no network.
        IntegrityError: a file has another size than it may have; it is not downloaded.
        AtomhubError: the Hub cannot be reached.
    """
    if local_files_only or constants.HF_HUB_OFFLINE:
        return _downloaded(kind, repo, revision, first, more)
    api = HfApi(token=token)
    try:
        info = call_hub(
            lambda: api.repo_info(repo, repo_type=kind, revision=revision, files_metadata=True), repo, token
        )
    except Unreachable as error:
        try:
            folder = _downloaded(kind, repo, revision, first, more)
        except NotFoundError:
            raise error from None
        warnings.warn(f"{error.message} Using what was downloaded before.", AtomhubWarning, stacklevel=4)
        return folder
    sizes = {s.rfilename: s.size or 0 for s in getattr(info, "siblings", None) or []}

    def fetch(revision: str | None, files: Mapping[str, range]) -> Path:
        for path, allowed in files.items():
            if path not in sizes:
                raise NotFoundError(f"{repo} is not {what}: it has no {path}.")
            if sizes[path] not in allowed:
                raise IntegrityError(
                    f"{repo}: {path} has {sizes[path]} bytes, and may have {allowed[-1]}.", "It was not downloaded."
                )
        get = partial(snapshot_download, repo, repo_type=kind, revision=revision, allow_patterns=list(files))
        return Path(call_hub(lambda: get(token=token), repo, token))

    folder = fetch(revision, first)  # by its name, so that the cache learns which commit that is
    if folder.name != info.sha:
        raise AtomhubError(f"{repo} was changed while it was downloaded.", "Try again.")
    wanted = more(folder)
    return fetch(info.sha, wanted) if wanted else folder


def _downloaded(
    kind: Kind, repo: str, revision: str | None, first: Mapping[str, range], more: Callable[[Path], Mapping[str, range]]
) -> Path:
    """Return the folder of a revision in huggingface_hub's cache; NotFoundError if not all of it was downloaded."""
    get = partial(snapshot_download, repo, repo_type=kind, revision=revision, allow_patterns=list(first))
    with suppress(LocalEntryNotFoundError):
        folder = Path(get(local_files_only=True))
        if all((folder / path).exists() for path in first) and all((folder / path).exists() for path in more(folder)):
            return folder
    at = f" at {revision!r}" if revision else ""
    how = f"atomhub pull {repo}" if kind == "dataset" else f"atomhub.load_model({repo!r})"
    raise NotFoundError(f"{repo}{at} was not downloaded before, and no network is to be used.", f"With one: {how}")


def split_name(name: str, revision: str | None) -> tuple[str, str | None]:
    """Return repository and revision of ``user/name@revision``; NotFoundError for a bare name without a namespace."""
    repo, _, given = name.partition("@")
    if given and revision and given != revision:
        raise UsageError(f"{name!r} names the revision {given!r}, and {revision!r} was asked for.", "Give one of them.")
    if "/" not in repo:
        namespace = os.environ.get("ATOMHUB_NAMESPACE")
        if not namespace:
            raise NotFoundError(
                f"There is no distilled set {repo!r} on this machine.",
                f"On the Hub sets are called user/name; set ATOMHUB_NAMESPACE to let {repo!r} mean yours.",
            )
        repo = f"{namespace}/{repo}"
    return repo, given or revision


class Pulled(NamedTuple):
    """A set in huggingface_hub's cache: ``user/name``, the commit, and its manifest, which is not verified."""

    repo: str
    commit: str
    manifest: Manifest


def pulled() -> list[Pulled]:
    """Return the sets that were downloaded, newest first."""
    try:
        repos = scan_cache_dir().repos
    except CacheNotFound:
        return []
    found = []
    for repo in repos:
        for revision in sorted(repo.revisions, key=lambda r: -r.last_modified):
            names = {f.file_name for f in revision.files}
            if repo.repo_type == "dataset" and {format_v1.MANIFEST, format_v1.TENSORS} <= names:
                try:
                    manifest = format_v1.read_manifest(revision.snapshot_path)
                except AtomhubError:
                    continue
                found.append(Pulled(repo.repo_id, revision.commit_hash, manifest))
    return found
