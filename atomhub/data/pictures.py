"""Pictures: what may be one, and how it becomes pixels; many of them by all cores."""

from __future__ import annotations

import io
import os
import struct
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from atomhub.data.tables import Rows
from atomhub.errors import SourceError, UsageError, first_line
from atomhub.files import read_regular, user_path
from atomhub.limits import PICTURE

if TYPE_CHECKING:
    from PIL import Image

CHUNK = 64
"""Images that are decoded by one core at a time."""
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "AVIF", "PPM")
_PLAIN = ("PNG", "BMP", "GIF", "PPM")
"""Those that say by ``info`` alone whether they could have an orientation."""
_BROKEN = (
    OSError, ValueError, SyntaxError, TypeError, AttributeError, EOFError, OverflowError, RuntimeError, struct.error,
)  # fmt: skip
"""What Pillow raises for files that are not what they seem."""

Read = tuple[tuple[int, int], str, NDArray[np.uint8] | None]
"""Size and mode of an image, and its pixels (C, side, side), if they were asked for."""


@cache
def formats() -> tuple[str, ...]:
    """Return what pictures may be, whatever they are called: Pillow knows others that start programs, or never end."""
    from PIL import Image

    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)  # an older Pillow has no AVIF


def read_all(rows: Rows, order: list[int], like: tuple[int, int] | None, load: bool) -> Iterator[Read | SourceError]:
    """Yield what is found of some rows, in their order, or what is wrong with them; all cores decode.

    Args:
        rows: The images.
        order: Which.
        like: Side and channels of the pixels; None: not asked for.
        load: Whether images are to be readable to their end, where no pixels are asked for.
    """

    def work(some: list[int], encoded: list[Any]) -> list[Read | SourceError]:
        return [_read(rows, i, content, like, load) for i, content in zip(some, encoded, strict=True)]

    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:  # Pillow lets go of the interpreter while it decodes
        pending: deque[Future[list[Read | SourceError]]] = deque()
        for start in range(0, len(order), CHUNK):
            some = order[start : start + CHUNK]
            pending.append(pool.submit(work, some, rows.several(some)))
            if len(pending) > 2 * workers:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()


def _read(rows: Rows, i: int, content: Any, like: tuple[int, int] | None, load: bool) -> Read | SourceError:
    if isinstance(content, np.ndarray):  # decoded already
        return content.shape[:0:-1], "", content
    try:
        image = _open(rows, i, content)
        shape, mode = image.size, "RGBA" if _has_alpha(image) else image.mode
        if like is None and not load:
            return shape, mode, None
        if like is not None:
            _draft(image, like[0])
        image.load()
        return shape, "RGBA" if _has_alpha(image) else mode, None if like is None else to_pixels(image, *like)
    except SourceError as error:
        return error
    except _BROKEN as error:
        return _unreadable(rows, i, error)


def open_picture(file: str | Path, side: int) -> Image.Image:
    """Open and decode a picture of a file for images of that side; UsageError for anything else."""
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(read_regular(user_path(file), PICTURE)), formats=formats())
        _draft(image, side)
        image.load()
    except (*_BROKEN, Image.DecompressionBombError) as error:
        reason = "not a picture" if "cannot identify" in str(error) else first_line(error)
        raise UsageError(f"Cannot read {str(file)!r}: {reason}.", f"Known are {', '.join(formats())}.") from None
    return image


def _open(rows: Rows, i: int, encoded: Any) -> Image.Image:
    """Open an image, or raise the error in its place; SourceError names the image that cannot be."""
    from PIL import Image

    try:
        if isinstance(encoded, Exception):
            raise encoded
        if not isinstance(encoded, Image.Image):
            encoded = Image.open(io.BytesIO(encoded), formats=formats())
        _check_range(encoded)
        return encoded
    except (*_BROKEN, Image.DecompressionBombError) as error:
        raise _unreadable(rows, i, error) from error


def _unreadable(rows: Rows, i: int, error: Exception) -> SourceError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
    reason = "not an image" if "cannot identify" in str(error) else reason
    copy = "Copy what links lead to into the folder. " * ("is a link" in reason)
    if "names the file" in reason:
        embed = 'rows.with_format("arrow").map(datasets.table.embed_table_storage, batched=True)'
        copy = f"Write the images into it: {embed}. "
    hint = f"{copy}Leave such images out with `skip_unreadable=True`."
    return SourceError(f"Cannot read {rows.where(i)}: {reason}.", hint)


def _check_range(image: Image.Image) -> None:
    # the range of 32-bit and float pixels is anybody's guess; PNG and PGM files of mode I have 16 bits
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        raise ValueError(f"pixels of mode {image.mode} (32 bits) have no known range; save it with 8 or 16 bits")


def _draft(image: Image.Image, side: int) -> None:
    """Have a large JPEG that is not decoded yet decoded smaller, and still twice what is wanted."""
    image.draft(None, (2 * side,) * 2)


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info


def to_pixels(image: Image.Image, size: int, channels: int) -> NDArray[np.uint8]:
    """Convert any image to uint8 (channels, size, size) as training and test images are.

    Upright (EXIF), 16 bits to their high 8, transparency over white, greyscale or RGB, centre square, bicubic.

    Raises:
        ValueError: its pixels have no known range.
    """
    from PIL import Image, ImageOps

    _check_range(image)
    _draft(image, size)
    if image.format not in _PLAIN or any("exif" in str(key) or "xmp" in str(key).lower() for key in image.info):
        with suppress(*_BROKEN):  # a broken orientation tag: as it is stored
            image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        deep, clear = np.asarray(image), image.info.get("transparency")
        deep = np.where(deep == clear, 2**16 - 1, deep) if isinstance(clear, int) else deep
        image = Image.fromarray((deep >> 8).astype(np.uint8))
    if _has_alpha(image):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    pixels = np.asarray(image)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)
