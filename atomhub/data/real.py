"""Real data: images sorted by class, what is known of them, how they were read, and the copies kept in the cache."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from atomhub.data.cache import LARGEST, SMALLEST
from atomhub.errors import NotFoundError, UsageError, check_whole
from atomhub.files import home
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
        if self.test_fraction is not None and not 0 <= self.test_fraction < 1:
            raise UsageError(f"The test fraction cannot be {self.test_fraction}: use 0 to below 1, such as 0.2.")

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
            raise NotFoundError(f"{self.name!r} has no test split.", "Set some images aside: --test-fraction 0.2.")
        return torch.tensor(self.test.images), torch.from_numpy(self.test.labels)


def kept_folder() -> Path:
    """Return where the copies are."""
    return home() / "real"


def kept_metas() -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield folder and ``meta.json`` of all that was decoded, newest first; damaged ones are passed over."""
    files = [(path.stat().st_mtime, path) for path in kept_folder().glob("[!.]*/meta.json")]
    for _, path in sorted(files, reverse=True):
        with suppress(OSError, ValueError):
            yield path.parent, json.loads(path.read_text())


def decoded_before(name: str, options: SourceOptions) -> str | None:
    """Return the commit of the newest decoded copy of a Hub source under the same options."""
    for _, meta in kept_metas():
        if meta["info"]["id"] == name and meta["info"]["kind"] == "hub" and meta["options"] == asdict(options):
            return str(meta["info"]["revision"])
    return None


def open_kept(folder: Path) -> RealData | None:
    """Open decoded images; None where there are none, or damaged ones."""

    def split(name: str) -> Split:
        return Split(np.load(folder / f"{name}.npy", mmap_mode="r"), np.load(folder / f"{name}_labels.npy"))

    try:
        meta = json.loads((folder / "meta.json").read_text())
        info, options = SourceInfo.model_validate(meta["info"]), SourceOptions(**meta["options"])
        train, test = split("train"), split("test") if info.test_images else None
    except (OSError, ValueError, EOFError, KeyError, TypeError):
        return None
    return RealData(
        re.sub(r"[^a-z0-9._-]+", "-", re.split(r"[:/]", info.id)[-1].lower()).strip("-._") or "images", info,
        tuple(meta["class_names"]), train, test, tuple(meta["mean"]), tuple(meta["std"]), options,
    )  # fmt: skip
