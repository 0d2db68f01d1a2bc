"""Rows of encoded images with class numbers, as every reader gives them; those of the tables of ``datasets``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomhub.errors import SourceError, UsageError
from atomhub.files import read_regular
from atomhub.limits import PICTURE

TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "testing", "validation", "valid", "val")
IMAGE_NAMES = ("image", "img", "images", "picture", "pixels")
LABEL_NAMES = ("label", "labels", "class", "target", "category", "fine_label", "digit")


@dataclass(frozen=True)
class Rows:
    """One split, nothing decoded yet.

    Attributes:
        labels: (N,) int64 class numbers.
        encoded: Row number to encoded bytes or a PIL image; ValueError or OSError where there is none.
        where: Row number to what names the row in an error.
        fetch: Row numbers to what gives the ``encoded`` of the first, second, ... of them, where many together are
            faster.
    """

    labels: NDArray[np.int64]
    encoded: Callable[[int], Any]
    where: Callable[[int], str]
    fetch: Callable[[list[int]], Callable[[int], Any]] | None = None

    def take(self, rows: NDArray[np.int64]) -> Rows:
        """Return some of the rows."""
        fetch = self.fetch
        return Rows(
            self.labels[rows], lambda i: self.encoded(int(rows[i])), lambda i: self.where(int(rows[i])),
            None if fetch is None else lambda some: fetch([int(rows[i]) for i in some]),
        )  # fmt: skip

    def several(self, rows: list[int]) -> list[Any]:
        """Return what ``encoded`` gives for some rows, or the error that it raises for one."""
        if self.fetch is not None:
            with suppress(Exception):  # one that is damaged is not to take its neighbours with it
                cell = self.fetch(rows)
                return [_or_error(cell, at) for at in range(len(rows))]
        return [_or_error(self.encoded, row) for row in rows]


@dataclass(frozen=True)
class Raw:
    """A source that was found, read up to its labels."""

    class_names: tuple[str, ...]
    train: Rows
    test: Rows | None
    train_split: str = "train"
    test_split: str | None = "test"
    image_column: str | None = None
    label_column: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Columns:
    """What to read: None is detected.

    Attributes:
        image, label: Column names; ``preferred`` ones are used where they exist.
        train, test: Split names.
    """

    image: str | None = None
    label: str | None = None
    train: str | None = None
    test: str | None = None
    preferred: tuple[str, ...] = ()


def _or_error(function: Callable[[int], Any], i: int) -> Any:
    try:
        return function(i)
    except Exception as error:  # of one row, which its reader is told
        return error


def tables(splits: Mapping[str, Any], columns: Columns, root: Path | None = None) -> Raw:
    """Read the splits of a ``datasets.DatasetDict``; detect image and label columns and the splits.

    Args:
        splits: Name to table.
        columns: What to read.
        root: Folder below which files that rows name are read; None: rows must hold their images.
    """
    train_name = pick(columns.train, TRAIN_NAMES, splits, "train split")
    if train_name is None:
        if len(splits) != 1:
            raise SourceError(f"No train split among {', '.join(splits)}.", "Name it with `train_split`.")
        train_name = next(iter(splits))
    test_name = pick(columns.test, TEST_NAMES, {n: None for n in splits if n != train_name}, "test split")
    train = splits[train_name]
    image = _image_column(train.features, columns)
    label = _label_column(train.features, columns)
    class_names, number = _classes(train, label, columns.label is not None)
    return without_unused(Raw(
        class_names, _table_rows(train, train_name, image, label, number, root),
        _table_rows(splits[test_name], test_name, image, label, number, root) if test_name else None, train_name,
        test_name, image, label,
    ))  # fmt: skip


def without_unused(raw: Raw) -> Raw:
    """Return a source without the class names that no image has, which a filtered table still lists; a note tells."""
    splits = [rows.labels for rows in (raw.train, raw.test) if rows is not None]
    used = np.unique(np.concatenate(splits))
    unused = [name for k, name in enumerate(raw.class_names) if k not in set(used.tolist())]
    if not unused or len(used) < 2:
        return raw
    new = np.full(len(raw.class_names), -1, dtype=np.int64)
    new[used] = np.arange(len(used))
    more = f" and {len(unused) - 3} more" if len(unused) > 3 else ""
    note = f"Classes without images were left out: {', '.join(unused[:3])}{more}."
    train, test = (rows and replace(rows, labels=new[rows.labels]) for rows in (raw.train, raw.test))
    names = tuple(raw.class_names[k] for k in used)
    return replace(raw, class_names=names, train=train or raw.train, test=test, notes=(*raw.notes, note))


def _table_rows(table: Any, split: str, image: str, label: str, number: Mapping[Any, int], root: Path | None) -> Rows:
    """Read a split; ``number`` maps labels, or the names behind them where both are known, to class numbers."""
    from datasets import ClassLabel, Image

    for column in (image, label):
        if column not in table.features:
            raise SourceError(f"The split {split!r} has no column {column!r}: it has {', '.join(table.features)}.")
    values = table.select_columns([label])[label]
    feature = table.features[label]
    if isinstance(feature, ClassLabel) and any(isinstance(key, str) for key in number):
        # every split may number its classes in its own way
        values = (feature.names[v] if v is not None and 0 <= v < len(feature.names) else None for v in values)
    labels = np.fromiter((number.get(v, -1) for v in values), dtype=np.int64, count=len(table))
    if (labels < 0).any():
        row = int((labels < 0).argmax())
        value = table.select_columns([label])[row][label]
        if value is None or (isinstance(feature, ClassLabel) and value == -1):  # what datasets writes for none
            raise SourceError(f"Row {row} of the split {split!r} has no label.", _OTHER)
        raise SourceError(f"The split {split!r} has images without a class of the training split (row {row}).", _OTHER)
    if isinstance(table.features[image], Image):
        table = table.cast_column(image, Image(decode=False))
    column = table.select_columns([image])

    def content_of(cell: Any) -> bytes:
        content, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
        if content is None and path and root is not None:
            return read_regular(root / path, PICTURE, root)
        if content is None:
            raise ValueError(f"it names the file {path!r}, which is not read" if path else "there is no image")
        return bytes(content)

    def fetch(rows: list[int]) -> Callable[[int], bytes]:
        cells = column[rows][image]
        return lambda at: content_of(cells[at])

    return Rows(labels, lambda i: content_of(column[i][image]), lambda i: f"row {i} of the split {split!r}", fetch)


_OTHER = "Leave such rows out, or name another split with `test_split` or `train_split`."


def _image_column(features: Mapping[str, Any], columns: Columns) -> str:
    from datasets import Image, Value

    def encoded(feature: Any) -> bool:
        if isinstance(feature, dict):
            return set(feature) == {"bytes", "path"}
        return isinstance(feature, Image) or (isinstance(feature, Value) and "binary" in feature.dtype)

    candidates = [name for name, feature in features.items() if encoded(feature)]
    if columns.image is not None:
        if columns.image in features and columns.image not in candidates:
            raise SourceError(f"The column {columns.image!r} holds {features[columns.image]}, not images.")
        return _known(columns.image, features, "image")
    return _only(candidates, columns.preferred, IMAGE_NAMES, features, "image")


def _label_column(features: Mapping[str, Any], columns: Columns) -> str:
    from datasets import ClassLabel

    if columns.label is not None:
        return _known(columns.label, features, "label")
    candidates = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    candidates = candidates or [name for name in features if name.lower() in LABEL_NAMES]
    return _only(candidates, columns.preferred, LABEL_NAMES, features, "label")


def _classes(table: Any, label: str, chosen: bool) -> tuple[tuple[str, ...], dict[Any, int]]:
    """Return class names, and the class numbers of labels, by name as well as by value.

    ``chosen``: the user named the column.
    """
    from datasets import ClassLabel, Value

    feature = table.features[label]
    if isinstance(feature, ClassLabel):
        names = tuple(feature.names)
        return names, {i: i for i in range(len(names))} | {name: i for i, name in enumerate(names)}
    kind = feature.dtype if isinstance(feature, Value) else str(feature)
    if kind == "float64":  # whole numbers that pandas read beside an empty cell
        cells = table.select_columns([label])[label]
        empty = next((i for i, v in enumerate(cells) if v is None or v != v), None)
        if empty is not None:
            raise SourceError(f"Row {empty} of the column {label!r} has no label.", "Give it one, or leave it out.")
    if not (kind.startswith(("int", "uint")) or kind in ("string", "large_string", "bool")):
        raise SourceError(f"The column {label!r} holds {kind}, not classes.", "Name the classes with `label_column`.")
    values = sorted({v for v in table.select_columns([label])[label] if v is not None})
    if len(values) * 2 > max(len(table), 4):
        raise SourceError(
            f"The column {label!r} has {len(values)} values in {len(table)} rows: that is not a class.",
            "Classes have two images or more each." if chosen else "Name the classes with `label_column`.",
        )
    return tuple(str(v) for v in values), {v: i for i, v in enumerate(values)}


def _known(name: str, features: Mapping[str, Any], what: str) -> str:
    if name not in features:
        raise UsageError(f"There is no {what} column {name!r}: the columns are {', '.join(features)}.")
    return name


def _only(
    candidates: list[str], preferred: tuple[str, ...], usual: tuple[str, ...], features: Mapping[str, Any], what: str
) -> str:
    """Return the one candidate, or the one that is preferred or usually so named."""
    for name in (*preferred, *usual):
        if name in candidates:
            return name
    if len(candidates) == 1:
        return candidates[0]
    found = f"{what} columns {', '.join(candidates)}" if candidates else f"no {what} column among {', '.join(features)}"
    raise SourceError(f"Found {found}.", f"Name it with `{what}_column`.")


def pick(given: str | None, usual: tuple[str, ...], found: Mapping[str, Any], what: str) -> str | None:
    """Return the given name if it is there, else the first usual one that is, else None."""
    if given is not None:
        if given not in found:
            raise UsageError(f"There is no {what} {given!r}: found {', '.join(found) or 'none'}.")
        return given
    return next((name for word in usual for name in found if name.lower() == word), None)


@contextmanager
def quiet_datasets() -> Iterator[None]:
    """Keep the progress bars and log lines of ``datasets`` off for local work that takes no time."""
    import datasets

    shown, verbosity = not datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    if shown:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        if shown:
            datasets.enable_progress_bars()
