"""Download from the Hugging Face Hub: files of one commit, none larger than it may be."""

import os
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from huggingface_hub import constants, hf_hub_download, scan_cache_dir, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import CacheNotFound, HFValidationError, LocalEntryNotFoundError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.hf_api import RepoFile

from atomhub import limits
from atomhub.dataset import DistilledDataset
from atomhub.errors import AtomhubError, AtomhubWarning, IntegrityError, NotFoundError, UsageError
from atomhub.files import replace_file
from atomhub.hub import names
from atomhub.hub.push import Kind
from atomhub.manifest import Manifest
from atomhub.requests import WHO, Unreachable, at_most, call_hub, hub_api
from atomhub.storage import formats
from atomhub.storage.parquet import check_parquet

_FILES = 10_000
"""Most files of a repository that are looked at."""
T = TypeVar("T")


def pull(
    name: str, revision: str | None = None, *, token: str | None = None, local_files_only: bool = False,
    labels: bool = False,
) -> DistilledDataset:  # fmt: skip
    """Download a set, verify it, and return it; afterwards it loads without a network as well.

    Only the files of the format are fetched, and each only if it has the size that the manifest says.

    Args:
        name: ``user/name``, ``user/name@revision``, or a bare name: of the index (:mod:`atomhub.hub.names`), or under
            ``ATOMHUB_NAMESPACE`` where that is set.
        revision: Branch, tag or commit.
        token: For private repositories; None: the one you are logged in with.
        local_files_only: Use what was downloaded before.
        labels: Download the set's stored labels as well.

    Raises:
        NotFoundError: no such repository or revision, or it holds no distilled set, or no stored labels.
        IntegrityError: it was tampered with; nothing of it is used.
        AtomhubError: the Hub cannot be reached and nothing was downloaded before.
    """
    found = snapshot(name, revision, token=token, local_files_only=local_files_only, labels=labels)
    found.path = None  # the cache is huggingface_hub's: nothing is written there
    return found


def snapshot(name: str, revision: str | None = None, *, labels: bool = False, **how: Any) -> DistilledDataset:
    """Do what :func:`pull` does, and let ``path`` be the folder of the commit in huggingface_hub's cache."""
    bare, _, given = name.partition("@")
    entry = names.find(bare)
    if entry and (revision or given):
        raise UsageError(
            f"The name {bare!r} means one commit of {entry.repo}.",
            f"For another revision: {entry.repo}@{revision or given}",
        )
    repo, revision = (entry.repo, entry.commit) if entry else split_name(name, revision)

    def read(folder: Path) -> DistilledDataset:
        found = formats.read(folder)
        check_parquet(found, folder)
        return found

    def sizes(folder: Path) -> dict[str, range]:
        if entry:
            entry.check(folder)
        return _exact_sizes(folder, labels)

    try:
        found = download(
            "dataset", repo, revision, {formats.MANIFEST: range(limits.MANIFEST + 1)}, sizes, read=read,
            what="a distilled set", **how,
        )  # fmt: skip
    except NotFoundError as error:
        if entry is None:
            raise
        raise NotFoundError(
            f"The name {bare!r} means {repo} at {entry.commit[:8]}. {error.message}",
            f"With a network: atomhub pull {bare}. The newest index of names: atomhub list --update",
        ) from error
    found.repo = repo
    return found


def _exact_sizes(folder: Path, labels: bool) -> dict[str, range]:
    """Return the sizes that a manifest allows for the other files of a set, those of stored labels where asked for."""
    manifest = formats.read_manifest(folder)
    sizes = {path: f.size for path, f in manifest.files.items()}
    if labels:
        if manifest.provenance.stored is None:
            raise NotFoundError(f"{manifest.name!r} has no stored labels.", "Make a set that has: atomhub label")
        sizes[formats.LABELS] = manifest.provenance.stored.size
    return {path: range(size, size + 1) for path, size in sizes.items()}


def download(
    kind: Kind, repo: str, revision: str | None, first: Mapping[str, range],
    more: Callable[[Path], Mapping[str, range]] = lambda folder: {}, *, read: Callable[[Path], T], token: str | None,
    local_files_only: bool = False, what: str, perhaps: Mapping[str, range] = {}, now: bool = False,
) -> T:  # fmt: skip
    """Download some files of one commit into huggingface_hub's cache, and read them there.

    What was downloaded before and cannot be read is downloaded once more.

    Args:
        kind: ``dataset`` or ``model``.
        repo: ``user/name``.
        revision: Branch, tag or commit.
        first: Path of each file to fetch first, and the sizes in bytes that it may have.
        more: From the folder with those to further files and their sizes.
        read: Reads and verifies the folder.
        token: None: the one you are logged in with.
        local_files_only: Use what was downloaded before.
        what: What the repository should hold, for errors.
        perhaps: Files to fetch where they are there and have such a size.
        now: What was downloaded before is no answer: the Hub is asked, or an error says why not.

    Raises:
        NotFoundError: no such repository, revision or file; or not downloaded before, and no network.
        IntegrityError: a file has another size than it may have, and is not downloaded; or what ``read`` raises.
        AtomhubError: the Hub cannot be reached.
    """
    before = partial(_refused if now else _downloaded, kind, repo, revision, first, more)
    if local_files_only or constants.HF_HUB_OFFLINE:
        return read(before())
    api: Any = hub_api(token=token)

    def ask() -> tuple[str, dict[str, int]]:
        # never the card's YAML, which huggingface_hub reads and may fail at
        sha = api.repo_info(repo, repo_type=kind, revision=revision, expand=["sha"]).sha
        files = api.list_repo_tree(repo, repo_type=kind, revision=sha, recursive=True)
        return str(sha), {f.path: f.size for f in islice(files, _FILES) if isinstance(f, RepoFile)}

    try:
        sha, sizes = call_hub(ask, repo, token)
    except Unreachable as error:
        try:
            folder = before()
        except NotFoundError:
            raise error from None
        warnings.warn(f"{error.message} Using what was downloaded before.", AtomhubWarning, stacklevel=5)
        return read(folder)

    def fetch(files: Mapping[str, range], again: bool) -> Path:
        folder = Path()
        for path, allowed in files.items():
            if path not in sizes:
                raise NotFoundError(f"{repo} is not {what}: it has no {path}.")
            if sizes[path] not in allowed:
                raise IntegrityError(
                    f"{repo}: {path} has {sizes[path]} bytes, and may have {allowed[-1]}.", "It was not downloaded."
                )
            get = partial(
                hf_hub_download, repo, path, repo_type=kind, revision=sha, force_download=again, token=token, **WHO
            )
            with at_most(sizes[path]):
                found = Path(call_hub(get, f"{repo}/{path}", token))
            folder = found.parents[path.count("/")]
        return folder

    def fetched(again: bool) -> T:
        folder = fetch(first, again)
        wanted = {**more(folder), **{path: allowed for path, allowed in perhaps.items() if sizes.get(path) in allowed}}
        return read(fetch(wanted, again) if wanted else folder)

    there = all(isinstance(try_to_load_from_cache(repo, p, revision=sha, repo_type=kind), str) for p in first)
    try:
        found = fetched(again=False)
    except IntegrityError as error:
        if not there:
            raise
        note = f"What was downloaded before is damaged, and is downloaded again: {error.message}"
        warnings.warn(note, AtomhubWarning, stacklevel=5)
        found = fetched(again=True)
    _remember(kind, repo, revision, sha)
    return found


def _remember(kind: Kind, repo: str, revision: str | None, sha: str) -> None:
    """Let huggingface_hub's cache know which commit a branch or tag is, as its own downloads by name do."""
    if (revision or "main") != sha:
        reference = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type=kind) / "refs"
        with suppress(AtomhubError):
            replace_file(reference / (revision or "main"), sha.encode())


def _downloaded(
    kind: Kind, repo: str, revision: str | None, first: Mapping[str, range], more: Callable[[Path], Mapping[str, range]]
) -> Path:
    """Return the folder of a revision in huggingface_hub's cache; NotFoundError if not all of it was downloaded."""
    get = partial(snapshot_download, repo, repo_type=kind, revision=revision, allow_patterns=list(first))
    with suppress(LocalEntryNotFoundError, HFValidationError):
        folder = Path(get(local_files_only=True))
        if all((folder / path).exists() for path in first) and all((folder / path).exists() for path in more(folder)):
            return folder
    at = f" at {revision!r}" if revision else ""
    how = f"atomhub pull {repo}" if kind == "dataset" else f"atomhub.load_model({repo!r})"
    raise NotFoundError(f"{repo}{at} was not downloaded before, and no network is to be used.", f"With one: {how}")


def _refused(kind: Kind, repo: str, *_: object) -> Path:
    raise NotFoundError(
        f"{repo} was not asked for, as no network is to be used, and what was downloaded before may be old.",
        "Unset HF_HUB_OFFLINE.",
    )


def split_name(name: str, revision: str | None) -> tuple[str, str | None]:
    """Return repository and revision of ``user/name@revision``; NotFoundError for a bare name without a namespace."""
    repo, _, given = name.partition("@")
    for text in (given, revision or ""):
        if text.startswith("/") or ".." in text.split("/"):
            raise UsageError(f"{text!r} cannot be a revision.", "Branches, tags and commits are revisions.")
    if given and revision and given != revision:
        raise UsageError(f"{name!r} names the revision {given!r}, and {revision!r} was asked for.", "Give one of them.")
    if "/" not in repo:
        namespace = os.environ.get("ATOMHUB_NAMESPACE")
        if not namespace:
            raise names.unknown(repo)
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
            files = {f.file_name for f in revision.files}
            if repo.repo_type == "dataset" and {formats.MANIFEST, formats.TENSORS} <= files:
                try:
                    manifest = formats.read_manifest(revision.snapshot_path)
                except AtomhubError:
                    continue
                found.append(Pulled(repo.repo_id, revision.commit_hash, manifest))
    return found
