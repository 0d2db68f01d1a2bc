"""Sources that are Python objects: tables of ``datasets``, torch datasets, arrays of images with labels."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from atomhub.data.tables import TEST_NAMES, TRAIN_NAMES, Columns, Raw, Rows, pick, tables, without_unused
from atomhub.errors import SourceError, UsageError

if TYPE_CHECKING:
    from PIL import Image

_KNOWN = (
    "Give a name, a path, a datasets.Dataset, a torch dataset of (image, label), (images, labels), or a dict of these "
    "by split."
)


@dataclass(frozen=True)
class Given:
    """An object that was taken for a source.

    Attributes:
        name: A short name.
        kind: What it is, in words.
        splits: Split name to a table of ``datasets``, or to (image, label) by number.
    """

    name: str
    kind: str
    splits: Mapping[str, Any]

    def stamp(self) -> list[str]:
        """Return what changes with the images: ``datasets``' own fingerprints, or a digest of all, which reads them."""
        return [f"{name} {digest}" for name, (digest, _) in self.looked.items()]

    @cached_property
    def looked(self) -> dict[str, tuple[str, list[int | str]]]:
        """Split name to its part of the stamp, and the labels of its items; of a table none are asked for here."""
        return {name: _look(split) for name, split in self.splits.items()}


def given(source: object) -> Given:
    """Return an object as a source.

    Raises:
        UsageError: it is none of those that are known.
    """
    from datasets import Dataset

    named = source if isinstance(source, Mapping) else {"all": source}
    splits = {str(name): _split(value) for name, value in named.items()}
    first = next(iter(splits.values()), None)
    if first is None or len({isinstance(split, Dataset) for split in splits.values()}) > 1:
        raise UsageError("The splits of a source cannot be none, or of different kinds.", _KNOWN)
    if isinstance(first, Dataset):
        return Given(_name(first.info.dataset_name or "images"), "a datasets.Dataset", splits)
    if isinstance(first, _Pairs):
        return Given("images", "arrays", splits)
    inner = _innermost(first)
    return Given(_name(type(inner).__name__), f"a {type(inner).__name__} in Python", splits)


def read(found: Given, columns: Columns) -> Raw:
    """Return the splits, nothing decoded yet; a note says what they were.

    Raises:
        SourceError: there is no train split among several, or a label or an image that cannot be used.
    """
    from datasets import Dataset

    if isinstance(next(iter(found.splits.values())), Dataset):
        raw = tables(found.splits, columns, Path("/"))
    else:
        splits = found.splits
        train = pick(columns.train, TRAIN_NAMES, splits, "train split")
        if train is None and len(splits) > 1:
            raise SourceError(f"No train split among {', '.join(splits)}.", "Name it with `train_split`.")
        train = train or next(iter(splits))
        test = pick(columns.test, TEST_NAMES, {name: None for name in splits if name != train}, "test split")
        labels = {name: labels for name, (_, labels) in found.looked.items()}
        names, number = _classes(splits[train], labels[train])
        rows = [_rows(splits[name], name, labels[name], number) if name else None for name in (train, test)]
        raw = without_unused(Raw(names, rows[0], rows[1], train, test))  # type: ignore[arg-type]
    return replace(raw, notes=(*raw.notes, f"The images were given as {found.kind}."))


class _Pairs:
    """Arrays of images and of labels as (image, label) by number."""

    def __init__(self, images: Any, labels: Any) -> None:
        # a Series of pandas has an index of its own, which is not the place of an item
        images, labels = (x.to_numpy() if hasattr(x, "iloc") else x for x in (images, labels))
        if not all(hasattr(x, "__len__") and hasattr(x, "__getitem__") for x in (images, labels)):
            raise UsageError("A source of two parts must be (images, labels).", _KNOWN)
        if len(images) != len(labels):
            raise UsageError(f"There are {len(images)} images and {len(labels)} labels.", "Give a label for each.")
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Any, Any]:
        return self.images[i], self.labels[i]


def _split(source: object) -> Any:
    from datasets import Dataset

    if isinstance(source, Dataset):
        return source
    if isinstance(source, Sequence) and not isinstance(source, str) and len(source) == 2:
        return _Pairs(*source)
    if hasattr(source, "__len__") and hasattr(source, "__getitem__") and not isinstance(source, str | bytes | Mapping):
        return source
    raise UsageError(f"A source cannot be of type {type(source).__name__}.", _KNOWN)


def _innermost(dataset: Any) -> Any:
    """Return the dataset below ``torch.utils.data.Subset``; other wrappers may give other labels."""
    from torch.utils.data import Subset

    while isinstance(dataset, Subset) and not hasattr(dataset, "classes"):
        dataset = dataset.dataset
    return dataset


def _name(text: str) -> str:
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._") or "images"


def _look(split: Any) -> tuple[str, list[int | str]]:
    """Return what changes with a split, and the labels of what is no table: those of its items, whatever it lists."""
    from datasets import Dataset

    if isinstance(split, Dataset):
        return hashlib.sha256(repr([split._fingerprint, *_files(split)]).encode()).hexdigest(), []
    digest, labels = hashlib.sha256(repr(getattr(_innermost(split), "classes", None)).encode()), list[int | str]()
    for i in range(len(split)):
        image, label = _item(split, i)
        picture = _picture(image, i)
        digest.update(f"{picture.mode} {picture.size} {label!r}".encode() + picture.tobytes())
        labels.append(label)
    return digest.hexdigest(), labels


def _files(table: Any) -> Iterator[tuple[str, int, int]]:
    """Yield name, bytes and time of the files that a table names in place of images."""
    from datasets import Image

    for name, feature in table.features.items():
        if isinstance(feature, Image):
            for chunk in table.data.column(name).chunks:
                fields = getattr(chunk, "storage", chunk)
                named = fields.field("path").filter(fields.field("bytes").is_null()).drop_null().to_pylist()
                for path in dict.fromkeys(named):
                    if Path(path).is_file():
                        at = Path(path).stat()
                        yield path, at.st_size, at.st_mtime_ns


def _label(label: Any, i: int) -> int | str:
    with suppress(ValueError, RuntimeError):  # of several numbers
        label = label.item() if hasattr(label, "item") else label
    if isinstance(label, bool) or not isinstance(label, int | str):
        raise SourceError(
            f"The label of item {i} is {' '.join(str(label).split())[:80]!r}, not a class number or name.",
            "Give one for each image; of one-hot labels, where the 1 is.",
        )
    return label


def _item(split: Any, i: int) -> tuple[Any, int | str]:
    item = split[i]
    if not isinstance(item, Sequence) or len(item) < 2:
        raise SourceError(f"Item {i} is of type {type(item).__name__}, not (image, label).", _KNOWN)
    return item[0], _label(item[1], i)


def _classes(split: Any, labels: list[int | str]) -> tuple[tuple[str, ...], dict[Any, int]]:
    """Return class names, and the class numbers of labels: those that the dataset names, or else that occur."""
    given = getattr(_innermost(split), "classes", None)
    names = list(given) if isinstance(given, Sequence | np.ndarray) and not isinstance(given, str) else []
    if names and all(isinstance(name, str) for name in names):
        return tuple(map(str, names)), {k: k for k in range(len(names))} | {name: k for k, name in enumerate(names)}
    values = sorted(set(labels), key=lambda v: (isinstance(v, str), v))
    return tuple(map(str, values)), {value: k for k, value in enumerate(values)}


def _rows(split: Any, name: str, labels: list[int | str], number: Mapping[Any, int]) -> Rows:
    numbers = np.array([number.get(label, -1) for label in labels], dtype=np.int64)
    if (numbers < 0).any():
        row = int((numbers < 0).argmax())
        raise SourceError(f"Item {row} of the split {name!r} has the label {labels[row]!r}, which is no class.")
    return Rows(numbers, lambda i: _picture(split[i][0], i), lambda i: f"item {i} of the split {name!r}")


def _picture(image: Any, i: int) -> Image.Image:
    """Return an image of an array, a tensor or Pillow as Pillow's; floats are in 0..1."""
    from PIL import Image

    if isinstance(image, Image.Image):
        return image
    tensor = hasattr(image, "detach")
    pixels: NDArray[Any] = image.detach().cpu().numpy() if tensor else np.asarray(image)
    if pixels.ndim == 3 and pixels.shape[0 if tensor else 2] not in (1, 3):  # the other way round
        tensor = not tensor
    if pixels.ndim == 3 and tensor:
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3)):
        raise SourceError(f"Image {i} has the shape {tuple(np.shape(image))}: use (H, W), (H, W, 3) or (3, H, W).")
    if pixels.dtype.kind == "f" and pixels.size and pixels.min() >= 0 and pixels.max() <= 1:
        pixels = (pixels * 255).round().astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise SourceError(
            f"Image {i} has pixels of {pixels.dtype} that are not in 0 to 1.",
            "Give uint8 in 0 to 255, or floats in 0 to 1, before any normalisation.",
        )
    return Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels)
