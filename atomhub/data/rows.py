"""What every reader gives: rows of encoded images with class numbers, nothing decoded yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomhub.errors import UsageError

TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "testing", "validation", "valid", "val")
IMAGE_NAMES = ("image", "img", "images", "picture", "pixels")
LABEL_NAMES = ("label", "labels", "class", "target", "category", "fine_label", "digit")


@dataclass(frozen=True)
class Rows:
    """One split, nothing decoded yet.

    Attributes:
        labels: (N,) int64 class numbers.
        encoded: Row number to encoded bytes, a file, or a PIL image.
        where: Row number to what names the row in an error.
    """

    labels: NDArray[np.int64]
    encoded: Callable[[int], Any]
    where: Callable[[int], str]

    def take(self, rows: NDArray[np.int64]) -> Rows:
        """Return some of the rows."""
        return Rows(self.labels[rows], lambda i: self.encoded(int(rows[i])), lambda i: self.where(int(rows[i])))


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


def pick(given: str | None, usual: tuple[str, ...], found: Mapping[str, Any], what: str) -> str | None:
    """Return the given name if it is there, else the first usual one that is, else None."""
    if given is not None:
        if given not in found:
            raise UsageError(f"There is no {what} {given!r}: found {', '.join(found) or 'none'}.")
        return given
    return next((name for word in usual for name in found if name.lower() == word), None)
