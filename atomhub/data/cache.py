"""Decode a source once into memory-mapped uint8 arrays, sorted by class."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from atomhub.data.pictures import CHUNK, read_all
from atomhub.data.tables import Raw, Rows
from atomhub.errors import SourceError

SMALLEST = 16
"""Smallest side in pixels: below, the ConvNet has no layer for attention."""
LARGEST = 512
"""Largest side in pixels."""
PHOTO = 224
"""Side chosen for photos whose shorter side has as much: what networks for photos take."""
LARGEST_AUTO = 128
"""Largest side chosen for smaller images of mixed sizes."""
_GREY = ("1", "L", "I", "I;16", "I;16B", "I;16L", "I;16N")

Progress = Callable[[int, int], None]
"""Called with the images that are read, and all that there are."""


@dataclass(frozen=True)
class Decoded:
    """What was decided and measured while decoding."""

    size: int
    channels: int
    fingerprint: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    notes: tuple[str, ...]
    counts: dict[str, int]


@dataclass(frozen=True)
class Survey:
    """What the headers of all images say.

    Attributes:
        raw: The source, without the images that are left out.
        shapes, modes: How many images have each size and mode.
        skipped: What names the images that were left out.
        faults: What is wrong with the source.
    """

    raw: Raw
    shapes: Counter[tuple[int, int]]
    modes: Counter[str]
    skipped: list[str]
    faults: list[SourceError]


def survey(raw: Raw, skip_unreadable: bool, folder: Path, size: int | None, progress: Progress) -> Survey:
    """Read all images, and collect what is wrong with them and with the classes.

    They are decoded on the way as the first one asks for. Where all turn out to be like it, that was it, and the rows
    that are returned give pixels, (C, side, side) uint8.

    Args:
        raw: The source.
        skip_unreadable: Leave unreadable images out.
        folder: Existing folder for what is decoded.
        size: Side in pixels; None: that of the images, if they are square and equal.
        progress: Called with the images that are read and all that there are.
    """
    shapes: Counter[tuple[int, int]] = Counter()
    modes: Counter[str] = Counter()
    skipped: list[str] = []
    broken: list[SourceError] = []
    kept: dict[str, Rows] = {}
    splits = {"train": raw.train} | ({"test": raw.test} if raw.test else {})
    total, like = sum(len(rows.labels) for rows in splits.values()), _like(raw.train, size)
    ready: dict[str, NDArray[np.uint8]] = {}
    for name, rows in splits.items():
        good = []
        with (folder / f"{name}.pixels").open("wb") as file:  # written in order: a full disk is an error, not a crash
            for i, read in enumerate(read_all(rows, list(range(len(rows.labels))), like, skip_unreadable)):
                if i % CHUNK == 0:
                    progress(shapes.total() + len(broken), total)
                if isinstance(read, SourceError):
                    skipped.append(rows.where(i))
                    broken.append(read)
                    continue
                shape, mode, image = read
                good.append(i)
                shapes[shape] += 1
                modes[mode] += 1
                if image is not None:
                    file.write(image.tobytes())
        kept[name] = rows.take(np.array(good, dtype=np.int64))
        if good and like is not None:
            ready[name] = np.memmap(Path(file.name), np.uint8, "r", shape=(len(good), like[1], like[0], like[0]))
    progress(total, total)
    if shapes and like == (_choose_size(shapes, size)[0], _choose_channels(modes)[0]):
        for name, read_already in ready.items():
            kept[name] = replace(kept[name], encoded=read_already.__getitem__, fetch=None)
    faults = _wrong_classes(raw.class_names, (kept["train"] if skip_unreadable else raw.train).labels)
    if broken and not skip_unreadable:
        more = f" And {len(broken) - 3} more images cannot be read." if len(broken) > 3 else ""
        faults.append(SourceError(" ".join(e.message for e in broken[:3]) + more, broken[0].hint))
    raw = replace(raw, train=kept["train"], test=kept.get("test"))
    return Survey(raw, shapes, modes, skipped, faults)


def decode(found: Survey, folder: Path, size: int | None, set_aside: bool) -> Decoded:
    """Write ``train.npy`` and ``test.npy`` (uint8 [N, C, H, W]) and their ``*_labels.npy`` (int64 [N]) to a folder.

    Args:
        found: The source, without faults.
        folder: Existing folder to write to.
        size: Side in pixels; None keeps the images' own when they are square and equal.
        set_aside: Whether the test images were taken from the training images: then none is in both.

    Returns:
        What was decided, with mean and standard deviation per channel for pixels in 0..1.

    Raises:
        SourceError: an unreadable image.
    """
    raw, skipped = found.raw, found.skipped
    splits = {"train": raw.train} | ({"test": raw.test} if raw.test else {})
    side, size_note = _choose_size(found.shapes, size)
    channels, mode_note = _choose_channels(found.modes)
    skip_note = f"{len(skipped)} unreadable images left out: {', '.join(skipped[:5])}." if skipped else ""

    for name, rows in splits.items():
        order = np.argsort(rows.labels, kind="stable")
        np.save(folder / f"{name}_labels.npy", rows.labels[order])
        with (folder / f"{name}.npy").open("wb") as file:  # written in order: a full disk is an error, not a crash
            shape = (len(order), channels, side, side)
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            for read in read_all(rows, order.tolist(), (side, channels), True):
                if isinstance(read, SourceError):
                    raise read
                if read[2] is not None:
                    file.write(read[2].tobytes())
    written = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in splits}
    twice_note = ""
    if "test" in written and (again := _in_both(written["train"], written["test"])).any():
        if set_aside and again.all():
            raise SourceError(
                "All images that were set aside for tests are exact copies of training images.",
                "Remove the copies, or go without tests: `test_fraction=0`.",
            )
        twice_note = f"{again.sum()} test images are training images as well"
        if set_aside:
            twice_note += ", and were left out"
            labels = np.load(folder / "test_labels.npy")
            written["test"] = np.array(written["test"][~again])
            np.save(folder / "test.npy", written["test"])
            np.save(folder / "test_labels.npy", labels[~again])
        twice_note += "."
    mean, std = _moments(written["train"])
    digest = fingerprint(raw.class_names, ((written[k], np.load(folder / f"{k}_labels.npy")) for k in splits))
    notes = tuple(note for note in (size_note, mode_note, skip_note, twice_note) if note)
    return Decoded(side, channels, digest, mean, std, notes, {name: len(images) for name, images in written.items()})


def _in_both(train: NDArray[np.uint8], test: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return which test images are training images, pixel by pixel."""
    known = {hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in train}
    return np.array([hashlib.blake2b(image.tobytes(), digest_size=16).digest() in known for image in test])


def _like(rows: Rows, size: int | None) -> tuple[int, int] | None:
    """Return side and channels of all images if they are as the first one; None: it does not tell."""
    found = next(read_all(rows, [0], None, True), None) if len(rows.labels) else None
    if found is None or isinstance(found, SourceError):
        return None
    (width, height), mode, _ = found
    if size is None and (width != height or not SMALLEST <= width <= LARGEST):
        return None
    return size or width, _choose_channels(Counter([mode]))[0]


def _wrong_classes(names: tuple[str, ...], labels: NDArray[np.int64]) -> list[SourceError]:
    faults = []
    if len(names) < 2:
        faults.append(SourceError(f"There is one class only ({', '.join(names)}): distillation needs at least two."))
    empty = [names[k] for k, n in enumerate(np.bincount(labels, minlength=len(names))) if n == 0]
    if empty:
        more = f" (and {len(empty) - 1} more)" if len(empty) > 1 else ""
        faults.append(
            SourceError(f"The class {empty[0]!r} has no training images{more}.", "Add some, or drop the class.")
        )
    return faults


def fingerprint(class_names: tuple[str, ...], splits: Iterable[tuple[NDArray[np.uint8], NDArray[np.int64]]]) -> str:
    """Return the SHA-256 of class names, and of labels and images of each split."""
    digest = hashlib.sha256(repr(class_names).encode())
    for images, labels in splits:
        digest.update(labels.tobytes())
        for start in range(0, len(images), 4096):
            digest.update(images[start : start + 4096].tobytes())
    return digest.hexdigest()


def _choose_size(shapes: Counter[tuple[int, int]], size: int | None) -> tuple[int, str]:
    """Return the side and the note that says what is resized."""
    (width, height), _ = shapes.most_common(1)[0]
    smallest, largest = min(map(min, shapes)), max(map(max, shapes))
    if len(shapes) == 1 and width == height and (size == width or (size is None and SMALLEST <= width <= LARGEST)):
        return width, ""
    chosen = size is None
    if size is None and largest < SMALLEST:
        size = SMALLEST
    if size is None:
        short = int(np.median([min(s) for s in shapes.elements()]))
        size = PHOTO if short >= PHOTO else min(LARGEST_AUTO, max(SMALLEST, 2 ** int(np.log2(short))))
    found = f"{width}x{height}" if len(shapes) == 1 else f"of mixed sizes ({smallest} to {largest} pixels)"
    fewer = " `size` takes another side: half of it is four times as fast." if chosen and size >= PHOTO else ""
    return size, f"Images {found} were resized to {size}x{size}.{fewer}"


def _choose_channels(modes: Counter[str]) -> tuple[int, str]:
    """Return 1 or 3 and the note that says what is converted."""
    channels = 1 if all(mode in _GREY for mode in modes) else 3
    usual = "L" if channels == 1 else "RGB"
    names = dict.fromkeys(_GREY, "16-bit") | {"L": "greyscale", "1": "bilevel", "P": "palette", "RGBA": "transparent"}
    odd = {mode: n for mode, n in modes.items() if mode != usual}
    if not odd:
        return channels, ""
    found = ", ".join(f"{n} {names.get(mode, mode)}" for mode, n in sorted(odd.items()))
    return channels, f"{found} images were converted to {'greyscale' if channels == 1 else 'RGB'}."


def _moments(images: NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel, in units of pixels in 0..1, from exact sums."""
    total = np.zeros(images.shape[1], dtype=np.int64)
    squares = np.zeros(images.shape[1], dtype=np.int64)
    for start in range(0, len(images), 256):
        chunk = images[start : start + 256]
        total += chunk.sum((0, 2, 3), dtype=np.int64)
        squares += np.square(chunk, dtype=np.uint16).sum((0, 2, 3), dtype=np.int64)
    count = images.size / images.shape[1]
    mean = total / count / 255
    std = np.sqrt(np.maximum(squares / count / 255**2 - mean**2, 1e-8))
    return tuple(mean.round(6).tolist()), tuple(std.round(6).tolist())
