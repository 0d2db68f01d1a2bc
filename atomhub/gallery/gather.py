"""The sets of a gallery: those on this machine, or on the Hub. Nothing they say is trusted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from atomhub import limits
from atomhub.errors import AtomhubError
from atomhub.hub.find import search
from atomhub.hub.pull import download
from atomhub.manifest import Manifest
from atomhub.storage import formats, store, verified

_PICTURES = (formats.PREVIEW, formats.CURVE)
_LARGEST = 8 * 2**20
"""Bytes of a picture that is fetched."""


@dataclass(frozen=True)
class Entry:
    """A set as the gallery shows it.

    Attributes:
        name: What :func:`atomhub.load` takes.
        manifest: What it says of itself.
        pictures: Of ``preview.png`` and ``curve.png`` those that there are.
        verdicts: Of those who measured it anew.
        url: Where it lies on the Hub.
    """

    name: str
    manifest: Manifest
    pictures: dict[str, bytes]
    verdicts: list[verified.Verification]
    url: str | None = None


@dataclass(frozen=True)
class Broken:
    """A set that cannot be shown, and why."""

    name: str
    reason: str


def local_sets() -> tuple[list[Entry], list[Broken]]:
    """Return the sets of the store and those that come with atomhub, without tensors, and what is wrong with others."""
    found, broken = [], []
    own = store.names()
    folders = [store.place(name) for name in own] + [store.STARTER / n for n in store.starters() if n not in own]
    for folder in folders:
        try:
            found.append(_entry(folder.name, folder))
        except AtomhubError as error:
            broken.append(Broken(folder.name, error.message))
    return found, broken


def remote_sets(
    author: str | None = None, token: str | None = None,
    progress: Callable[[int, int, str], None] = lambda done, total, name: None,
) -> tuple[list[Entry], list[Broken]]:  # fmt: skip
    """Return the sets on the Hub that are tagged ``atomhub``: of each its manifest and pictures alone are fetched.

    Args:
        author: User or organisation; None: all.
        token: To see private ones.
        progress: Called with sets done, sets in all, and the name of one.
    """
    from huggingface_hub import constants

    def pictures(folder: Path) -> dict[str, range]:
        given = formats.read_manifest(folder).files
        return {
            p: range(given[p].size, given[p].size + 1) for p in _PICTURES if p in given and given[p].size < _LARGEST
        }

    found, broken = [], []
    there = search(author, token=token)
    for done, listed in enumerate(there):
        progress(done, len(there), listed.name)
        try:
            entry = download(
                "dataset", listed.name, None, {formats.MANIFEST: range(limits.MANIFEST + 1)}, pictures,
                read=lambda folder: _entry("", folder), token=token, what="a distilled set",
                perhaps={verified.VERIFIED: range(limits.MANIFEST + 1)},
            )  # fmt: skip
            found.append(replace(entry, name=listed.name, url=f"{constants.ENDPOINT}/datasets/{listed.name}"))
        except AtomhubError as error:
            broken.append(Broken(listed.name, error.message))
    return found, broken


def _entry(name: str, folder: Path) -> Entry:
    """Return a set by its manifest and pictures; IntegrityError where these are not what it says."""
    manifest = formats.read_manifest(folder)
    pictures = {}
    for path in _PICTURES:
        if path in manifest.files and manifest.files[path].size < _LARGEST:
            content = formats.read_checked(folder, path, manifest)
            if content.startswith(b"\x89PNG\r\n\x1a\n"):
                pictures[path] = content
    return Entry(name, manifest, pictures, verified.read(folder, manifest))
