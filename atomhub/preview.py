"""The picture of a set: every class a row with its name, and a line that says what a tile is."""

from __future__ import annotations

import base64
import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from atomhub.text import plain
from atomhub.views import to_pil

if TYPE_CHECKING:
    from PIL import Image

_CLASSES = 200
"""Most classes that are shown."""
_TILE, _LARGEST = 64, 128
"""Smaller images are enlarged to about this, and larger ones reduced to that, in pixels."""
_ASPECT = 1.5
"""Width by height to come near to, where classes need several columns."""
_ROW, _COLUMN, _MARGIN, _LINE = 8, 28, 14, 20
"""Pixels between classes, between columns of classes, around all, and for a line of text."""


@dataclass(frozen=True)
class Layout:
    """Where everything is in a preview, in pixels.

    Attributes:
        size: Width and height of the picture.
        lines: What a tile is, in lines of text.
        boxes: Left, top, width and height of the images of every class that is shown.
    """

    size: tuple[int, int]
    lines: list[str]
    boxes: list[tuple[int, int, int, int]]


def layout(shape: Sequence[int], class_names: Sequence[str], formation: int = 1, shown: int = 10) -> Layout:
    """Return where everything is in the preview of images of a shape (K, ipc, C, H, W); see :func:`draw_preview`."""
    from PIL import ImageFont

    font, small = ImageFont.load_default(15), ImageFont.load_default(14)
    names = [plain(name, 24) for name in class_names[:_CLASSES]]
    count, shown = len(names), min(shown, shape[1])
    gutter = math.ceil(max(font.getlength(name) for name in names)) + _ROW
    width, height = _strip_size(shown, shape[-1], formation)
    block, row = gutter + width + _COLUMN, height + _ROW
    ratios = {c: c * block / (math.ceil(count / c) * row) for c in range(1, count + 1)}
    columns = min(ratios, key=lambda c: abs(math.log(ratios[c] / _ASPECT))) if count > 10 or ratios[1] < 1 / 4 else 1
    high = math.ceil(count / columns)
    text = _caption(shape, formation, count, shown)
    wide = max(columns * block - _COLUMN, 320)
    lines = textwrap.wrap(text, max(20, int(wide / small.getlength(text) * len(text))))
    top = _MARGIN + _LINE * len(lines) + _ROW
    boxes = [(_MARGIN + k // high * block + gutter, top + k % high * row, width, height) for k in range(count)]
    return Layout((wide + 2 * _MARGIN, top + high * row - _ROW + _MARGIN), lines, boxes)


def draw_preview(images: Tensor, class_names: Sequence[str], formation: int = 1, shown: int = 10) -> Image.Image:
    """Return images as one picture, class by class, small ones enlarged unsmoothed, large ones reduced.

    Args:
        images: (K, ipc, C, H, W) uint8, the stored images of the classes; the first 200 are shown.
        class_names: K names.
        formation: Views per side of an image, which are set apart a little.
        shown: Most images of a class to show.
    """
    from PIL import Image, ImageDraw, ImageFont

    font, small = ImageFont.load_default(15), ImageFont.load_default(14)
    places = layout(images.shape, class_names, formation, shown)
    picture = Image.new("RGB", places.size, "white")
    canvas = ImageDraw.Draw(picture)
    for i, line in enumerate(places.lines):
        canvas.text((_MARGIN, _MARGIN + _LINE * i), line, "#555555", small)
    for name, own, (x, y, _, height) in zip(class_names, images, places.boxes, strict=False):
        canvas.text((x - _ROW, y + height // 2), plain(name, 24), "black", font, anchor="rm")
        picture.paste(_strip(own[:shown], formation), (x, y))
    return picture


def notebook_html(picture: Image.Image, title: str, facts: Mapping[str, str]) -> str:
    """Return what a notebook shows of a set: its preview, and facts about it, as HTML of its own; text is escaped."""
    from html import escape

    file = io.BytesIO()
    picture.save(file, "PNG")
    left = 'style="text-align:left"'
    rows = "".join(
        f"<tr><th {left}>{escape(plain(key))}</th><td {left}>{escape(plain(value))}</td></tr>"
        for key, value in facts.items()
    )
    image = base64.b64encode(file.getvalue()).decode()
    return (
        f"<div><b>{escape(plain(title))}</b>"
        '<img alt="The images, class by class" style="display:block;max-width:100%" '
        f'src="data:image/png;base64,{image}">'
        f"<table>{rows}</table></div>"
    )


def _strip(own: Tensor, formation: int) -> Image.Image:
    """Return some images (n, C, H, W) in a row."""
    from torchvision.transforms.functional import resize
    from torchvision.utils import make_grid

    zoom = max(1, _TILE // own.shape[-1])
    large = own.repeat_interleave(zoom, -1).repeat_interleave(zoom, -2)
    side = large.shape[-1] // formation
    views = large.unfold(2, side, side).unfold(3, side, side).permute(0, 2, 3, 1, 4, 5).flatten(1, 2)
    if large.shape[-1] > _LARGEST:
        views = torch.stack([resize(v, [_LARGEST // formation], antialias=True) for v in views])
    whole = [make_grid(v, nrow=formation, padding=1 if formation > 1 else 0, pad_value=255) for v in views]
    return to_pil(make_grid(torch.stack(whole), nrow=len(own), padding=2, pad_value=255))


def _strip_size(count: int, size: int, formation: int) -> tuple[int, int]:
    """Return width and height of a :func:`_strip` of so many images; a picture of one has no edges."""
    large = size * max(1, _TILE // size)
    view = (_LARGEST if large > _LARGEST else large) // formation
    side = view if formation == 1 else formation * (view + 1) + 1
    return (side, side) if count == 1 else (count * (side + 2) + 2, side + 4)


def _caption(shape: Sequence[int], formation: int, classes: int, shown: int) -> str:
    """Return what a tile is, and what is left out."""
    count, ipc, _, _, size = shape
    own = f"{ipc} image{'s' * (ipc > 1)} of {size}x{size} pixels for each class"
    own += f"; an image holds {formation}x{formation} views" * (formation > 1)
    own += f"; the first {shown} of each are shown" * (shown < ipc)
    return own + f"; the first {classes} of {count} classes" * (classes < count)
