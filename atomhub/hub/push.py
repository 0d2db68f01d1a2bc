"""Publish on the Hugging Face Hub: what changed, in one commit."""

import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.hf_api import RepoFile

from atomhub import limits
from atomhub.dataset import DistilledDataset
from atomhub.errors import AtomhubError, NotFoundError, UsageError, check_installed
from atomhub.requests import at_most, call_hub, hub_api
from atomhub.storage import cards, formats, verified
from atomhub.storage.parquet import check_parquet
from atomhub.storage.verified import VERIFIED

Kind = Literal["dataset", "model", "space"]


@dataclass(frozen=True)
class Pushed:
    """What a push did, or would do.

    Attributes:
        repo_id: ``user/name``.
        url: Where to look at it.
        commit: Commit that holds the files now; None for a dry run.
        changed: Whether there was anything to upload.
        tagged: Tags that the commit did not have before.
        files: Size in bytes of every file.
        card: The card.
    """

    repo_id: str
    url: str
    commit: str | None
    changed: bool
    tagged: tuple[str, ...]
    files: dict[str, int]
    card: str


def push(distilled: DistilledDataset, repo_id: str | None = None, **options: Any) -> Pushed:
    """Publish a set, as :func:`publish` does; one that is not on disk yet is written to a temporary folder.

    Args:
        distilled: The set.
        repo_id: ``user/name``; None: the set's name under your own account.
        options: Those of :func:`publish`, whose errors it raises as well.

    Raises:
        IntegrityError: the set on disk is not what its manifest says.
        NotFoundError: its stored labels were not downloaded.
    """
    if distilled.manifest.provenance.stored:
        distilled.stored_labels()  # a set that says it has them is not published without
    with tempfile.TemporaryDirectory() as temporary:
        if distilled.path is None:
            if distilled.manifest.provenance.history:  # or the picture that is there would go
                check_installed("Publishing a set that is not on disk", "distill", "matplotlib")
            distilled = formats.write(distilled, Path(temporary) / distilled.name)
        folder = Path(str(distilled.path))
        whole = formats.read(folder)  # nothing broken is published
        check_parquet(whole, folder)
        manifest = whole.manifest
        own = formats.read_card(folder)
        files = {path: _content(folder, path) for path in (*manifest.files, formats.MANIFEST)}
        if whole.stored is not None:
            files[formats.LABELS] = _content(folder, formats.LABELS)
        verdicts = {VERIFIED: _content(folder, VERIFIED)} if verified.read(folder, manifest) else {}
        if any(hashlib.sha256(files[path]).hexdigest() != file.sha256 for path, file in manifest.files.items()):
            raise AtomhubError(f"{folder} was replaced while it was read.", "Push again.")
    return publish(
        "dataset", manifest.name, files | verdicts, formats.MANIFEST, partial(cards.merged, own, manifest), repo_id,
        stale=formats.OPTIONAL, version=manifest.format.version,
        merge={path: partial(verified.merged, own, manifest) for path, own in verdicts.items()}, **options,
    )  # fmt: skip


def _content(folder: Path, path: str) -> bytes:
    try:
        with formats.open_file(folder, path) as file:
            return file.read()
    except OSError as error:  # it was there a moment ago
        raise AtomhubError(f"{folder / path} cannot be read: {error.strerror}.", "Push again.") from error


def publish(
    kind: Kind, name: str, files: Mapping[str, bytes], marker: str, card: Callable[[str, str | None], str],
    repo_id: str | None, *, private: bool | None = None, token: str | None = None, revision: str | None = None,
    commit_message: str | None = None, create_pr: bool = False, tags: Sequence[str] = (), dry_run: bool = False,
    stale: Sequence[str] | None = (), version: int | None = 1, harmless: Sequence[str] = (),
    merge: Mapping[str, Callable[[bytes], bytes]] = {},
) -> Pushed:  # fmt: skip
    """Bring a repository to hold some files: create it if need be, upload what changed in one commit, tag it.

    Unchanged content makes no new commit, and the owner's edits of the card on the Hub are kept. The tag of the
    format's version (``format-v1``) follows the newest commit of the main branch.

    Args:
        kind: ``dataset``, ``model``, or ``space``, a static one.
        name: What is published, for the message of the commit.
        files: Path in the repository to content, without the card.
        marker: The file that tells a repository of ours from any other.
        card: From the repository's id, and the card that is there (None: there is none), to the card to publish.
        repo_id: ``user/name``; None: ``name`` under your own account.
        private: Whether a new repository is private; None: the account's default.
        token: None: the one you are logged in with.
        revision: Branch to commit to.
        commit_message: None: says what is pushed.
        create_pr: Open a pull request instead of committing.
        tags: Tags to give to the commit.
        dry_run: Change nothing.
        stale: Files of ours that are deleted where they are not in ``files``; None: all other files are.
        version: Of the format; None: no tag says it.
        harmless: Files that may be there before ours are.
        merge: Path to what makes its content of the one that is there.

    Raises:
        UsageError: an impossible id, a tag that names another commit.
        NotFoundError: no such repository to open a pull request on.
        AtomhubError: not logged in, not allowed, the repository holds something else, the Hub cannot be reached.
    """
    api = hub_api(token=token)
    account = call_hub(lambda: str(api.whoami()["name"]), repo_id or "the Hub", token)
    repo = repo_id or f"{account}/{name}"

    def ask(work: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        return call_hub(lambda: work(repo, *arguments, repo_type=kind, **options), repo, token, account)

    if not dry_run and not create_pr:
        static = {"space_sdk": "static"} if kind == "space" else {}
        repo = ask(api.create_repo, private=private, exist_ok=True, **static).repo_id

    tagged: dict[str, None] = {}  # in all attempts
    moves = None if version is None else formats.tag(version)  # the one tag that does

    def bring() -> Pushed:
        head, theirs = _there(ask, api, marker, repo, revision, dry_run, harmless)
        old = _card(ask, api, head, theirs) if marker in theirs else None
        text = card(repo, old)
        wanted = {**files, formats.CARD: text.encode(), **_joined(ask, api, head, theirs, merge)}
        changes = [CommitOperationAdd(path, data) for path, data in wanted.items() if not _same(theirs.get(path), data)]
        gone = [CommitOperationDelete(path) for path in _gone(theirs, wanted, stale)]
        room = "" if kind == "model" else f"{kind}s/"
        changed, url = bool(changes or gone), f"{api.endpoint}/{room}{repo}"
        sizes = {path: len(data) for path, data in wanted.items()}
        if dry_run:
            return Pushed(repo, url, None, changed, (), sizes, text)
        there = {t.name: t.target_commit for t in ask(api.list_repo_refs).tags}
        for tag in set(tags) - {moves}:
            if there.get(tag) not in (None, head) or (tag in there and changed):
                raise UsageError(f"{repo} has a tag {tag!r} already, of another commit.", "Choose another tag.")
        commit = head
        if changed:
            made = api.create_commit(
                repo, [*changes, *gone], commit_message=commit_message or f"Publish {name} (atomhub)",
                repo_type=kind, revision=revision, create_pr=create_pr, parent_commit=head,
            )  # fmt: skip
            commit, url = made.oid, made.pr_url or url
        if moves and revision in (None, "main") and not create_pr and there.get(moves) != commit:
            if moves in there:
                ask(api.delete_tag, tag=moves)
            ask(api.create_tag, tag=moves, revision=commit)
        tagged.update(dict.fromkeys(tag for tag in tags if tag not in (*there, moves)))
        for tag in tagged:
            if tag not in there:
                ask(api.create_tag, tag=tag, revision=commit)
        return Pushed(repo, url, commit, changed, tuple(tagged), sizes, text)

    # a lost answer may have been a commit, and another client may have been faster: every attempt looks anew
    return call_hub(bring, repo, token, account)


def _there(
    ask: Callable[..., Any],
    api: HfApi,
    marker: str,
    repo: str,
    revision: str | None,
    new: bool,
    harmless: Sequence[str],
) -> tuple[str | None, dict[str, Any]]:
    """Return the commit of a repository and its files, or nothing for a new one; AtomhubError if it is not ours."""
    try:
        # never the card's YAML, which huggingface_hub reads and may fail at
        sha = ask(api.repo_info, revision=revision, expand=["sha"]).sha
        listed = ask(lambda *a, **k: list(api.list_repo_tree(*a, **k)), revision=sha, recursive=True)
    except NotFoundError:
        if not new:
            raise
        return None, {}
    theirs = {f.path: f for f in listed if isinstance(f, RepoFile)}
    others = set(theirs) - {".gitattributes", formats.CARD, *harmless}
    if others and marker not in theirs:
        raise AtomhubError(
            f"{repo} was not published by atomhub: it holds {', '.join(sorted(others)[:4])}.",
            "Name another repository.",
        )
    return sha, theirs


def _joined(
    ask: Callable[..., Any], api: HfApi, head: str | None, theirs: Mapping[str, Any],
    merge: Mapping[str, Callable[[bytes], bytes]],
) -> dict[str, bytes]:  # fmt: skip
    """Return the files that are made of those that are there."""
    found = {}
    for path, joined in merge.items():
        if path in theirs and theirs[path].size <= limits.MANIFEST:
            with at_most(limits.MANIFEST):
                found[path] = joined(Path(ask(api.hf_hub_download, path, revision=head)).read_bytes())
    return found


def _gone(theirs: Mapping[str, Any], wanted: Mapping[str, Any], stale: Sequence[str] | None) -> list[str]:
    """Return the files that are there and are to go: of all those that may the ones that are not wanted."""
    ours = set(theirs) - {".gitattributes"} if stale is None else set(stale) & set(theirs)
    return sorted(ours - set(wanted))


def _card(ask: Callable[..., Any], api: HfApi, head: str | None, theirs: Mapping[str, Any]) -> str | None:
    """Return the card of a repository; None where it has none, or one that is too large to be one."""
    if formats.CARD not in theirs or theirs[formats.CARD].size > limits.CARD:
        return None
    with at_most(limits.CARD):
        path = Path(ask(api.hf_hub_download, formats.CARD, revision=head))
    return path.read_text(encoding="utf-8", errors="replace")


def _same(there: Any, content: bytes) -> bool:
    """Whether a file of the Hub has this content, by its digest."""
    if there is None:
        return False
    if there.lfs is not None:
        return bool(there.lfs["sha256"] == hashlib.sha256(content).hexdigest())
    return bool(there.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest())


def check_account(repo_id: str | None = None, token: str | None = None) -> str:
    """Return the account that would push, before long work is done; AtomhubError if it may not.

    Args:
        repo_id: Where to.
        token: None: the one you are logged in with.
    """
    who = call_hub(lambda: hub_api(token=token).whoami(), repo_id or "the Hub", token)
    name = str(who["name"])
    role = (who.get("auth") or {}).get("accessToken", {}).get("role")
    spaces = {name, *(org["name"] for org in who.get("orgs") or [])}
    if role == "read" or (repo_id and "/" in repo_id and repo_id.split("/")[0] not in spaces):
        why = "this token can only read" if role == "read" else f"{repo_id} belongs to another account"
        raise AtomhubError(f"You are {name!r}, and {why}.", "Use a token with write access: hf auth login")
    return name
