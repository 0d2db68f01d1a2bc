"""Distilled sets on the Hugging Face Hub: push in one commit, pull and verify, search."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    hf_hub_download,
    scan_cache_dir,
    snapshot_download,
)
from huggingface_hub.errors import (
    LocalEntryNotFoundError,
)

from atomhub.distilled import DistilledDataset
from atomhub.errors import AtomhubError, AtomhubWarning, IntegrityError, NotFoundError, UsageError
from atomhub.files import home, replace_file
from atomhub.hub import cards, layout
from atomhub.hub.client import TRIES, Unreachable, explained, passing, told, wait
from atomhub.manifest import Manifest

_REVISIONS = "pulled.json"


@dataclass(frozen=True)
class Pushed:
    """What a push did, or would do.

    Attributes:
        repo_id: ``user/name``.
        url: Where to look at it.
        commit: Commit that holds the set now; None for a dry run.
        changed: Whether there was anything to upload.
        files: Size in bytes of every file of the set.
        card: The dataset card.
    """

    repo_id: str
    url: str
    commit: str | None
    changed: bool
    files: dict[str, int]
    card: str


@dataclass(frozen=True)
class Listed:
    """A distilled set on the Hub as its card claims it to be; nothing of it was verified.

    Attributes:
        name: ``user/name``.
        source, ipc, recipe: From its tags.
        claim: ``mean``, ``std`` and ``protocol`` of its first result, if it has one.
        size: Bytes of the set.
        downloads: As the Hub counts them.
        modified: Date of the last change, ISO 8601.
    """

    name: str
    source: str
    ipc: int
    recipe: str
    claim: dict[str, Any] | None
    size: int | None
    downloads: int
    modified: str


def push(
    distilled: DistilledDataset,
    repo_id: str | None = None,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
    tags: Sequence[str] = (),
    dry_run: bool = False,
) -> Pushed:
    """Publish a set: create the repository if need be, upload all files in one commit, tag it.

    Unchanged content makes no new commit. The owner's edits of the card on the Hub are kept.

    Args:
        distilled: The set; one that is not on disk yet is written to a temporary folder.
        repo_id: ``user/name``; None: the set's name under your own account.
        private: Of a new repository; None: the account's default.
        token: None: the one you are logged in with.
        revision: Branch to commit to.
        commit_message: None: says what is pushed.
        create_pr: Open a pull request instead of committing.
        tags: Tags to give to the commit.
        dry_run: Change nothing.

    Raises:
        UsageError: an impossible id, a tag that names another commit.
        NotFoundError: no such repository to open a pull request on.
        AtomhubError: not logged in, not allowed, the repository holds something else, the Hub cannot be reached.
        IntegrityError: the set on disk is not what its manifest says.
    """
    with tempfile.TemporaryDirectory() as temporary:
        if distilled.path is None:
            distilled = layout.write(replace(distilled, checkpoints=None), Path(temporary) / distilled.name)
        folder = Path(str(distilled.path))
        whole = layout.read(folder)  # nothing broken is published
        layout.check_parquet(whole, folder)
        manifest = whole.manifest
        api = HfApi(token=token)
        account = told(lambda: api.whoami()["name"], repo_id or "the Hub", token)
        name = repo_id or f"{account}/{manifest.name}"
        if not dry_run and not create_pr:
            name = told(lambda: api.create_repo(name, repo_type="dataset", private=private, exist_ok=True).repo_id,
                         name, token, account)  # fmt: skip
        for attempt in range(TRIES):
            plan = _plan(api, folder, manifest, name, revision, token, account, new=dry_run)
            for tag in tags:
                if plan.tags.get(tag) not in (None, plan.head) or (tag in plan.tags and plan.operations):
                    raise UsageError(f"{name} has a tag {tag!r} already, of another commit.", "Choose another --tag.")
            url = f"{api.endpoint}/datasets/{name}"
            if dry_run:
                return Pushed(name, url, None, bool(plan.operations), plan.sizes, plan.card)
            commit = plan.head
            if plan.operations:
                message = commit_message or f"Publish {manifest.name} (atomhub)"
                try:
                    made = api.create_commit(
                        name, plan.operations, commit_message=message, repo_type="dataset", revision=revision,
                        create_pr=create_pr, parent_commit=plan.head,
                    )  # fmt: skip
                except Exception as error:
                    # a lost answer may have been a commit, and another client may have been faster: look again
                    if attempt + 1 < TRIES and passing(error, conflict=True):
                        wait(error, attempt)
                        continue
                    raise explained(error, name, token, account) from None
                commit, url = made.oid, made.pr_url or url
            for tag in tags:
                if plan.tags.get(tag) != commit:
                    _tag(api, name, tag, commit, token, account)
            return Pushed(name, url, commit, bool(plan.operations), plan.sizes, plan.card)
    raise AssertionError("the loop returns or raises")


def _tag(api: HfApi, name: str, tag: str, commit: str | None, token: str | None, account: str) -> None:
    told(lambda: api.create_tag(name, tag=tag, revision=commit, repo_type="dataset"), name, token, account)


def check_account(repo_id: str | None = None, token: str | None = None) -> str:
    """Return the account that would push, before long work is done; AtomhubError if it may not.

    Args:
        repo_id: Where to.
        token: None: the one you are logged in with.
    """
    who = told(lambda: HfApi(token=token).whoami(), repo_id or "the Hub", token)
    name = str(who["name"])
    role = (who.get("auth") or {}).get("accessToken", {}).get("role")
    spaces = {name, *(org["name"] for org in who.get("orgs") or [])}
    if role == "read" or (repo_id and "/" in repo_id and repo_id.split("/")[0] not in spaces):
        why = "this token can only read" if role == "read" else f"{repo_id} belongs to another account"
        raise AtomhubError(f"You are {name!r}, and {why}.", "Use a token with write access: hf auth login")
    return name


@dataclass(frozen=True)
class _Plan:
    head: str | None
    operations: list[CommitOperationAdd | CommitOperationDelete]
    tags: dict[str, str]
    sizes: dict[str, int]
    card: str


def _plan(
    api: HfApi,
    folder: Path,
    manifest: Manifest,
    name: str,
    revision: str | None,
    token: str | None,
    account: str,
    new: bool,
) -> _Plan:
    """Compare a set with what the repository holds, and say what to upload."""
    content: dict[str, bytes | Path] = {path: folder / path for path in (*layout.digested(manifest), layout.MANIFEST)}
    theirs: dict[str, Any] = {}
    head, tags = None, {}
    try:
        info = told(lambda: api.dataset_info(name, revision=revision), name, token, account)
    except NotFoundError:
        if not new:
            raise
    else:
        head = info.sha
        paths = [s.rfilename for s in info.siblings or []]
        if layout.MANIFEST not in paths and set(paths) - {".gitattributes", layout.CARD}:
            raise AtomhubError(
                f"{name} is not a distilled set: it holds {', '.join(sorted(set(paths))[:4])}.",
                "Name another repository.",
            )
        if paths:
            found = told(lambda: api.get_paths_info(name, paths, repo_type="dataset", revision=head), name, token)
            theirs = {f.path: f for f in found if hasattr(f, "blob_id")}
        refs = told(lambda: api.list_repo_refs(name, repo_type="dataset"), name, token)
        tags = {t.name: t.target_commit for t in refs.tags}
    own = (folder / layout.CARD).read_text(encoding="utf-8") if (folder / layout.CARD).exists() else None
    there = None
    if layout.CARD in theirs and layout.MANIFEST in theirs:
        there = told(lambda: hf_hub_download(name, layout.CARD, repo_type="dataset", revision=head, token=token),
                      name, token)  # fmt: skip
    card = cards.merged(own, Path(there).read_text(encoding="utf-8") if there else None, manifest, name)
    content[layout.CARD] = card.encode()
    stale = [path for path in (layout.WHITENING, layout.VIEWS) if path in theirs and path not in content]
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(path, data)
        for path, data in content.items()
        if not _same(theirs.get(path), data if isinstance(data, bytes) else data.read_bytes())
    ]
    operations += [CommitOperationDelete(path) for path in stale]
    sizes = {path: len(data) if isinstance(data, bytes) else data.stat().st_size for path, data in content.items()}
    return _Plan(head, operations, tags, sizes, card)


def _same(there: Any, content: bytes) -> bool:
    """Whether a file of the Hub has this content, by its digest."""
    if there is None:
        return False
    if there.lfs is not None:
        return bool(there.lfs["sha256"] == hashlib.sha256(content).hexdigest())
    return bool(there.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest())


def pull(
    name: str, revision: str | None = None, *, token: str | None = None, local_files_only: bool = False
) -> DistilledDataset:
    """Download a set, verify it, and return it; afterwards it loads without a network as well.

    Only the files of format v1 are fetched, and none that is larger than its manifest can explain.

    Args:
        name: ``user/name``, ``user/name@revision``, or a bare name under ``ATOMHUB_NAMESPACE``.
        revision: Branch, tag or commit.
        token: For private repositories; None: the one you are logged in with.
        local_files_only: Use what was downloaded before.

    Raises:
        NotFoundError: no such repository or revision, or it is not a distilled set.
        IntegrityError: it was tampered with; nothing of it is used.
        AtomhubError: the Hub cannot be reached and nothing was downloaded before.
    """
    repo, revision = _split(name, revision)
    sha = None if local_files_only or _offline() else _head(repo, revision, token)
    if sha is None:
        sha = _cached_revision(repo, revision, reached=local_files_only or _offline())
    manifest_file = Path(_file(repo, layout.MANIFEST, sha, token))
    manifest = layout.read_manifest(manifest_file.parent)
    for path in layout.digested(manifest):
        _file(repo, path, sha, token, layout.largest(path, manifest))
    found = layout.read(manifest_file.parent)
    layout.check_parquet(found, manifest_file.parent)
    found.repo = repo
    found.path = None  # the cache is huggingface_hub's: nothing is written there
    known = _revisions()
    if known.get(repo, {}).get(revision or "main") != sha:
        known.setdefault(repo, {})[revision or "main"] = sha
        replace_file(home() / _REVISIONS, json.dumps(known, indent=1).encode())
    return found


def _revisions() -> dict[str, dict[str, str]]:
    """Return the commits behind the branches and tags that were pulled, by repository."""
    try:
        known = json.loads((home() / _REVISIONS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _split(name: str, revision: str | None) -> tuple[str, str | None]:
    """Return repository and revision; UsageError for a bare name without a namespace."""
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


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _head(repo: str, revision: str | None, token: str | None) -> str | None:
    """Return the commit behind a revision; None, with a note, if the Hub cannot be reached."""
    try:
        return told(lambda: HfApi(token=token).dataset_info(repo, revision=revision).sha, repo, token)
    except Unreachable as error:
        if _cached(repo, revision) is None:
            raise
        warnings.warn(f"{error.message} Using what was downloaded before.", AtomhubWarning, stacklevel=4)
        return None


def _cached_revision(repo: str, revision: str | None, reached: bool) -> str:
    found = _cached(repo, revision)
    if found is None:
        why = "and no network is to be used" if reached else "and the Hub cannot be reached"
        at = f" at {revision!r}" if revision else ""
        raise NotFoundError(f"{repo}{at} was not downloaded before, {why}.", f"With network: atomhub pull {repo}")
    return found


def _cached(repo: str, revision: str | None) -> str | None:
    """Return the commit of a revision, if it was downloaded."""
    commit = _revisions().get(repo, {}).get(revision or "main", revision)
    return commit if any(found.repo == repo and found.commit == commit for found in pulled()) else None


@dataclass(frozen=True)
class Pulled:
    """A set in huggingface_hub's cache.

    Attributes:
        repo: ``user/name``.
        commit: What was downloaded.
        manifest: Its manifest; not verified.
    """

    repo: str
    commit: str
    manifest: Manifest


def pulled() -> list[Pulled]:
    """Return the sets that were downloaded, newest first."""
    from huggingface_hub.errors import CacheNotFound

    try:
        repos = scan_cache_dir().repos
    except CacheNotFound:
        return []
    found = []
    for repo in repos:
        for revision in sorted(repo.revisions, key=lambda r: -r.last_modified):
            names = {f.file_name for f in revision.files}
            if repo.repo_type == "dataset" and layout.MANIFEST in names and layout.TENSORS in names:
                try:
                    manifest = layout.read_manifest(revision.snapshot_path)
                except AtomhubError:
                    continue
                found.append(Pulled(repo.repo_id, revision.commit_hash, manifest))
    return found


def _file(repo: str, path: str, sha: str, token: str | None, limit: int = 2**24) -> str:
    """Download one file of a commit, unless it is larger than it may be or the repository has no such file."""
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(repo, path, revision=sha, repo_type="dataset")
    if isinstance(cached, str):
        return cached
    try:
        (there,) = told(
            lambda: HfApi(token=token).get_paths_info(repo, [path], repo_type="dataset", revision=sha), repo, token
        )
    except ValueError:
        raise NotFoundError(f"{repo} is not a distilled set: it has no {path}.") from None
    size = getattr(there, "size", 0)
    if size > limit:
        raise IntegrityError(
            f"{repo}: {path} has {size} bytes, more than its manifest can explain.", "It was not downloaded."
        )
    return told(lambda: hf_hub_download(repo, path, repo_type="dataset", revision=sha, token=token), repo, token)


def snapshot(
    name: str, paths: Sequence[str], limits: Mapping[str, int], revision: str | None, token: str | None
) -> Path:
    """Download the files ``paths`` of a model repository, none larger than its limit in bytes; return their folder.

    Raises:
        NotFoundError: no such repository, revision or file.
        IntegrityError: a file is larger than it may be.
        AtomhubError: the Hub cannot be reached, and they were not downloaded before.
    """
    repo, revision = _split(name, revision)
    api, local = HfApi(token=token), _offline()
    if not local:
        try:
            found = told(lambda: api.get_paths_info(repo, list(paths), revision=revision), repo, token)
        except Unreachable as error:
            warnings.warn(f"{error.message} Using what was downloaded before.", AtomhubWarning, stacklevel=3)
            local = True
        else:
            sizes = {f.path: getattr(f, "size", 0) for f in found}
            for path in paths:
                if path not in sizes:
                    raise NotFoundError(f"{repo} is not a network trained by atomhub: it has no {path}.")
                if sizes[path] > limits[path]:
                    why = f"{repo}: {path} has {sizes[path]} bytes, more than it may."
                    raise IntegrityError(why, "It was not downloaded.")
    try:
        fetch = partial(snapshot_download, repo, revision=revision, token=token, allow_patterns=list(paths))
        folder = Path(fetch(local_files_only=True) if local else told(fetch, repo, token))
        if not all((folder / path).exists() for path in paths):
            raise LocalEntryNotFoundError("not all files")
    except LocalEntryNotFoundError:
        raise NotFoundError(
            f"{repo} was not downloaded before, and the Hub cannot be reached.",
            f"With network: atomhub.load_model({repo!r})",
        ) from None
    return folder


def search(
    author: str | None = None,
    source: str | None = None,
    ipc: int | None = None,
    sort: Literal["accuracy", "downloads", "recent"] = "downloads",
    token: str | None = None,
) -> list[Listed]:
    """Return the distilled sets on the Hub, by their tags.

    Args:
        author: User or organisation.
        source: Such as ``cifar10``.
        ipc: Images per class.
        sort: By claimed accuracy, downloads, or date of the last change.
        token: To see private ones.
    """
    wanted = ["atomhub", "dataset-distillation"]
    wanted += [f"source:{cards.slug(source)}"] if source else []
    wanted += [f"ipc:{ipc}"] if ipc else []
    api = HfApi(token=token)
    expand: Any = ["tags", "downloads", "lastModified", "cardData"]
    found = told(lambda: list(api.list_datasets(filter=wanted, author=author, expand=expand)), "the Hub", token)
    listed = [_listed(info) for info in found]
    keys: dict[str, Callable[[Listed], Any]] = {
        "accuracy": lambda item: (item.claim or {}).get("mean", -1.0),
        "downloads": lambda item: item.downloads,
        "recent": lambda item: item.modified,
    }
    return sorted(listed, key=keys[sort], reverse=True)


def _listed(info: Any) -> Listed:
    tags = dict(tag.split(":", 1) for tag in info.tags or [] if ":" in tag)
    card = info.card_data.to_dict() if info.card_data else {}
    ours: Any = card.get("atomhub")
    ours = ours if isinstance(ours, dict) else {}
    result: Any = ours.get("result")
    numbers = isinstance(result, dict) and all(isinstance(result.get(k), int | float) for k in ("mean", "std"))
    return Listed(
        name=info.id,
        source=tags.get("source", "?"),
        ipc=int(tags["ipc"]) if tags.get("ipc", "").isdecimal() else 0,
        recipe=tags.get("recipe", "?"),
        claim={"mean": result["mean"], "std": result["std"], "protocol": str(result.get("protocol"))}
        if numbers
        else None,
        size=ours.get("size") if isinstance(ours.get("size"), int) else None,
        downloads=info.downloads or 0,
        modified=info.last_modified.isoformat() if info.last_modified else "",
    )
