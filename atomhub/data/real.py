"""Real data: images sorted by class, what is known of them, how they were read, and the copies kept in the cache."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from atomhub import limits
from atomhub.data.cache import LARGEST, SMALLEST, fingerprint
from atomhub.errors import AtomhubError, NotFoundError, UsageError, check_whole
from atomhub.files import home, read_regular, replace_file
from atomhub.provenance import SourceInfo

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class SourceOptions:
    """How to read a source; None is detected or left at the source's own.

    Attributes:
        size: Side in pixels to which images are resized, 16 to 512.
        image_column: Column of the images.
        label_column: Column of the classes.
        train_split: Split, or folder, of the training images.
        test_split: Split, or folder, of the test images.
        test_fraction: Share of a single split that becomes the test split (stratified, seed 0); 0: no test split.
        config: Configuration of a Hub dataset.
        revision: Branch, tag or commit of a Hub dataset.
        skip_unreadable: Leave unreadable images out instead of failing.
        flip: Whether a mirrored image keeps its class.
    """

    size: int | None = None
    image_column: str | None = None
    label_column: str | None = None
    train_split: str | None = None
    test_split: str | None = None
    test_fraction: float | None = None
    config: str | None = None
    revision: str | None = None
    skip_unreadable: bool = False
    flip: bool | None = None

    def __post_init__(self) -> None:
        if self.size is not None:
            check_whole("The size", self.size, SMALLEST, LARGEST)
        part = self.test_fraction
        if part is not None and not (isinstance(part, int | float) and 0 <= part < 1):
            raise UsageError(f"The test fraction cannot be {part!r}: use a number from 0 to below 1, such as 0.2.")

    def chosen(self) -> dict[str, Any]:
        """Return the options that were given, by name."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) != f.default}


@dataclass(frozen=True)
class Split:
    """Images of one split.

    Attributes:
        images: (N, C, H, W) uint8, sorted by class, memory-mapped.
        labels: (N,) int64.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def offsets(self, classes: int) -> NDArray[np.int64]:
        """Return (classes + 1,): images of class k are ``offsets[k]`` to ``offsets[k + 1]``."""
        return np.concatenate([[0], np.cumsum(np.bincount(self.labels, minlength=classes))])


@dataclass(frozen=True)
class RealData:
    """A source ready for use.

    Attributes:
        name: Short name for sets made from it.
        info: Provenance, recorded in manifests.
        class_names: K names.
        train, test: The splits; ``test`` is None where there is none.
        mean, std: Normalisation, per channel, in units of pixels in 0..1.
        options: How it was asked to be read.
    """

    name: str
    info: SourceInfo
    class_names: tuple[str, ...]
    train: Split
    test: Split | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    options: SourceOptions = SourceOptions()

    def test_tensors(self) -> tuple[Tensor, Tensor]:
        """Return the test images, uint8 (M, C, H, W), and labels, int64 (M,); NotFoundError if there are none."""
        import torch

        if self.test is None:
            raise NotFoundError(f"{self.name!r} has no test split.", "Set some images aside: `test_fraction=0.2`.")
        return torch.tensor(self.test.images), torch.from_numpy(self.test.labels)


class Kept(BaseModel, extra="forbid", frozen=True):
    """``meta.json`` of a decoded copy.

    Attributes:
        info, class_names, mean, std, options: As in :class:`RealData`.
        sha256: Digest of those.
    """

    info: SourceInfo
    class_names: tuple[limits.Word, ...]
    mean: tuple[limits.Mean, ...]
    std: tuple[limits.Std, ...]
    options: dict[str, Any]
    sha256: str = ""

    def signed(self) -> Kept:
        """Return a copy with its digest."""
        content = self.model_dump_json(exclude={"sha256"})
        return self.model_copy(update={"sha256": hashlib.sha256(content.encode()).hexdigest()})


META = "meta.json"
_CHECKED = "checked.json"


def kept_folder() -> Path:
    """Return where the copies are."""
    return home() / "real"


def kept_metas() -> Iterator[tuple[Path, Kept]]:
    """Yield folder and ``meta.json`` of all that was decoded, newest first; damaged ones are passed over."""
    with suppress(OSError):
        files = [(path.stat().st_mtime, path) for path in kept_folder().glob(f"[!.]*/{META}")]
        for _, path in sorted(files, reverse=True):
            if meta := _meta(path.parent):
                yield path.parent, meta


def _meta(folder: Path) -> Kept | None:
    try:
        meta = Kept.model_validate(limits.parse_json(read_regular(folder / META, limits.MANIFEST)))
    except (OSError, ValueError):
        return None
    return meta if meta == meta.signed() else None


def decoded_before(name: str, options: SourceOptions) -> str | None:
    """Return the commit of the newest decoded copy of a Hub source under the same options."""
    for _, meta in kept_metas():
        if meta.info.id == name and meta.info.kind == "hub" and meta.options == asdict(options):
            return meta.info.revision
    return None


def open_kept(folder: Path) -> RealData | None:
    """Open decoded images; None where there are none, or damaged ones.

    Their shapes are always checked, their content (:func:`atomhub.data.cache.fingerprint`) once after every start of
    the machine and every change of a file.
    """
    if (meta := _meta(folder)) is None:
        return None
    info = meta.info

    def split(name: str, count: int) -> Split:
        images, labels = np.load(folder / f"{name}.npy", mmap_mode="r"), np.load(folder / f"{name}_labels.npy")
        if images.shape != (count, info.channels, info.size, info.size) or images.dtype != np.uint8:
            raise ValueError("another shape")
        if labels.shape != (count,) or labels.dtype != np.int64:
            raise ValueError("another shape")
        return Split(images, labels)

    try:
        options = SourceOptions(**meta.options)
        splits = [split("train", info.train_images)] + ([split("test", info.test_images)] if info.test_images else [])
        if not _checked(folder):
            if fingerprint(meta.class_names, ((s.images, s.labels) for s in splits)) != info.fingerprint:
                return None
            with suppress(AtomhubError):  # where nothing may be written, it is checked every time
                replace_file(folder / _CHECKED, json.dumps(_state(folder)).encode())
    except (OSError, ValueError, EOFError, KeyError, TypeError, SyntaxError, AtomhubError):
        return None
    return RealData(
        re.sub(r"[^a-z0-9._-]+", "-", re.split(r"[:/]", info.id)[-1].lower()).strip("-._") or "images", info,
        meta.class_names, splits[0], splits[1] if len(splits) > 1 else None, meta.mean, meta.std, options,
    )  # fmt: skip


def _state(folder: Path) -> dict[str, Any]:
    """Return when the machine was started, as well as that can be known, and size and time of the files."""
    stats = {path.name: path.stat() for path in sorted(folder.glob("*.npy"))}
    return {"start": time.time() - time.monotonic(), "files": {n: [s.st_size, s.st_mtime_ns] for n, s in stats.items()}}


def _checked(folder: Path) -> bool:
    try:
        then = json.loads(read_regular(folder / _CHECKED, limits.MANIFEST))
        now = _state(folder)
        return bool(abs(then["start"] - now["start"]) < 60 and then["files"] == now["files"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def check_again(fingerprints: set[str]) -> None:
    """Let the content of decoded copies be checked when they are opened next."""
    for folder, meta in kept_metas():
        if meta.info.fingerprint in fingerprints:
            with suppress(OSError):
                (folder / _CHECKED).unlink(missing_ok=True)
