"""Differentiable siamese augmentation (DSA, Zhao and Bilen, ICML 2021), batched over groups of images.

A group is augmented with one draw: all real and synthetic images of a class in distillation, one image in training.
Images are normalised, so 0 is the mean colour. G groups, M images a group; ``u`` is (G, DRAWS) uniform in [0, 1).

An augmentation is stages, one after the other; of each stage ONE operation is drawn, by the same number in all of them
(those of the literature have one stage that leaves a choice).
"""

import math
from collections.abc import Callable, Sequence
from functools import cache
from itertools import permutations

import torch
from torch import Tensor
from torch.nn import functional as F

Stages = Sequence[Sequence[str]]
"""Names of operations: one of each stage is applied."""
DSA: tuple[tuple[str, ...], ...] = (("color", "crop", "cutout", "flip", "scale", "rotate"),)
"""One of six operations (DSA, ICML 2021, and DM's and DataDAM's evaluation)."""
IDC: tuple[tuple[str, ...], ...] = (("flip",), ("color",), ("crop", "scale", "rotate"))
"""A pipeline (IDC, ICML 2022; DANCE): flip and colour always, then one of three; cutout is left out beside CutMix."""
NCFM: tuple[tuple[str, ...], ...] = (*IDC, ("cutout",))
"""IDC's, and cutout always (NCFM, CVPR 2025)."""

RDED: tuple[tuple[str, ...], ...] = (("shuffle",), ("resize",), ("flip",))
"""The four tiles of an image in another order, a random part of it enlarged, and flip (RDED, CVPR 2024, its code)."""

DRAWS = 12
"""Uniform numbers a group consumes; their columns follow."""
(
    _OPERATION, _BRIGHTNESS, _SATURATION, _CONTRAST, _SHIFT_X, _SHIFT_Y, _HOLE_X, _HOLE_Y, _FLIP, _ZOOM_X, _ZOOM_Y,
    _ANGLE,
) = range(DRAWS)  # fmt: skip

SHIFT = 0.125
"""Largest shift of a crop, as a share of the side."""
HOLE = 0.5
"""Side of the cutout, as a share of the side."""
ZOOM = 1.2
"""Largest factor of a scaling; the smallest is its inverse."""
ANGLE = 15.0
"""Largest rotation in degrees."""
PART, RATIO = 0.5, 4 / 3
"""Least share of an image's area that is enlarged, and largest ratio of its sides."""


def augment(images: Tensor, u: Tensor, stages: Stages) -> Tensor:
    """Apply to each group ONE operation of each stage, chosen and parametrised by its row of ``u``.

    Args:
        images: (G, M, C, H, W), normalised.
        u: (G, DRAWS) float, uniform in [0, 1). On the CPU each group goes through its operation alone; elsewhere all
            go through all, and nothing waits for the choice (:func:`augment_static`).
        stages: Names of :data:`OPERATIONS`; a stage of none changes nothing.

    Returns:
        (G, M, C, H, W), differentiable with respect to the images.
    """
    if u.device.type != "cpu":
        return augment_static(images, u, stages)
    for operations in stages:
        chosen = (u[:, _OPERATION] * len(operations)).long()
        out = images.clone() if len(operations) > 1 else images
        for index, name in enumerate(operations):
            groups = (chosen == index).nonzero().squeeze(1)
            if len(groups) == len(u):
                out = OPERATIONS[name](images, u.to(images))
            elif len(groups):
                on = groups.to(images.device)
                out[on] = OPERATIONS[name](images[on], u[groups].to(images))
        images = out
    return images


def augment_static(images: Tensor, u: Tensor, stages: Stages) -> Tensor:
    """Return what :func:`augment` returns, by the same operations on tensors of the same shapes every time."""
    for operations in stages:
        images = _one_of(images, u, operations)
    return images


def _one_of(images: Tensor, u: Tensor, operations: Sequence[str]) -> Tensor:
    chosen = (u[:, _OPERATION] * len(operations)).floor()
    u = u.to(images)
    warped, theta = chosen < 0, _identity(u)
    for index, name in enumerate(operations):
        on = chosen == index
        if name in WARPS:  # one sampling for all of them
            warped, theta = warped | on, torch.where(on.view(-1, 1, 1), WARPS[name](images, u), theta)
        else:
            images = torch.where(_per_group(on), OPERATIONS[name](images, u), images)
    if any(name in WARPS for name in operations):
        images = torch.where(_per_group(warped), _warp(images, theta), images)
    return images


def _per_group(column: Tensor) -> Tensor:
    return column.view(-1, 1, 1, 1, 1)


def color(x: Tensor, u: Tensor) -> Tensor:
    """Brightness, saturation, contrast, in that order.

    Brightness adds b in [-0.5, 0.5]; saturation scales the distance from the grey mean by s in [0, 2]; contrast scales
    the distance from the image's mean by c in [0.5, 1.5].
    """
    x = x + _per_group(u[:, _BRIGHTNESS] - 0.5)
    grey = x.mean(2, keepdim=True)
    x = grey + (x - grey) * _per_group(2 * u[:, _SATURATION])
    mean = x.mean((2, 3, 4), keepdim=True)
    return mean + (x - mean) * _per_group(u[:, _CONTRAST] + 0.5)


def crop(x: Tensor, u: Tensor) -> Tensor:
    """Shift by whole pixels, at most an eighth of the side each way, filling with 0."""
    return _warp(x, _shift(x, u))


def _shift(x: Tensor, u: Tensor) -> Tensor:
    reach = [int(side * SHIFT + 0.5) for side in (x.shape[-1], x.shape[-2])]
    shifts = [(u[:, c] * (2 * r + 1)).floor() - r for c, r in zip((_SHIFT_X, _SHIFT_Y), reach, strict=True)]
    theta = _identity(u)
    theta[:, 0, 2] = -2 * shifts[0] / x.shape[-1]
    theta[:, 1, 2] = -2 * shifts[1] / x.shape[-2]
    return theta


def cutout(x: Tensor, u: Tensor) -> Tensor:
    """Zero a square of half the side, centred anywhere between two pixels (so it may hang over the edge)."""

    def inside(column: int, side: int) -> Tensor:  # (G, side): rows or columns that the square covers
        width = int(side * HOLE + 0.5)
        start = (u[:, column] * (side + 1 - width % 2)).floor() - width // 2
        offset = torch.arange(side, device=x.device)[None, :] - start[:, None]
        return (offset >= 0) & (offset < width)

    hole = inside(_HOLE_Y, x.shape[-2])[:, :, None] & inside(_HOLE_X, x.shape[-1])[:, None, :]
    return x.masked_fill(hole[:, None, None], 0)


def flip(x: Tensor, u: Tensor) -> Tensor:
    """Mirror left and right with probability one half."""
    return torch.where(_per_group(mirrored(u)), x.flip(-1), x)


def scale(x: Tensor, u: Tensor) -> Tensor:
    """Stretch each axis about the centre by its own factor in [1/1.2, 1.2], bilinear, filling with 0."""
    return _warp(x, _stretch(x, u))


def _stretch(_: Tensor, u: Tensor) -> Tensor:
    theta = _identity(u)
    for axis, column in enumerate((_ZOOM_X, _ZOOM_Y)):
        theta[:, axis, axis] = 1 / ZOOM + u[:, column] * (ZOOM - 1 / ZOOM)
    return theta


def rotate(x: Tensor, u: Tensor) -> Tensor:
    """Turn about the centre by an angle within 15 degrees, bilinear, filling with 0."""
    return _warp(x, _turn(x, u))


def _turn(_: Tensor, u: Tensor) -> Tensor:
    angle = (2 * u[:, _ANGLE] - 1) * math.radians(ANGLE)
    theta = _identity(u)
    theta[:, 0, 0] = theta[:, 1, 1] = angle.cos()
    theta[:, 0, 1] = -angle.sin()
    theta[:, 1, 0] = angle.sin()
    return theta


def resize(x: Tensor, u: Tensor) -> Tensor:
    """Enlarge a part of half the area or more to the whole, bilinear (as torchvision's RandomResizedCrop).

    The ratio of its sides is within 3/4 and 4/3, as far as it fits.
    """
    return enlarge(x, part(u))


def part(u: Tensor) -> Tensor:
    """Return the part that :func:`resize` enlarges, (G, 4): left, top, width, height as shares of the sides."""
    area = PART + (1 - PART) * u[:, _ZOOM_X]
    ratio = ((2 * u[:, _ZOOM_Y] - 1) * math.log(RATIO)).exp()
    sides = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], 1).clamp(max=1)
    # by a slice: a list of columns would be copied to the device, which a recording may not wait for
    return torch.cat([u[:, _SHIFT_X : _SHIFT_Y + 1] * (1 - sides), sides], 1)


def enlarge(x: Tensor, parts: Tensor) -> Tensor:
    """Enlarge a part of every image of a group to the whole: parts (G, 4) as :func:`part` gives them."""
    theta = _identity(parts)
    for axis in (0, 1):
        theta[:, axis, axis] = parts[:, 2 + axis]
        theta[:, axis, 2] = 2 * parts[:, axis] + parts[:, 2 + axis] - 1
    return _warp(x, theta, "border")


@cache
def _orders(device: torch.device) -> Tensor:
    """Return the 24 orders of four things; kept on the device, as a recording may not wait for a copy."""
    return torch.tensor(list(permutations(range(4))), device=device)


def shuffle(x: Tensor, u: Tensor) -> Tensor:
    """Put the four quarters of an image in another order, any of the 24; sides that are odd are left as they are."""
    return arrange(x, quarters(u))


def quarters(u: Tensor) -> Tensor:
    """Return the order of :func:`shuffle`, (G, 4) int64: which quarter comes to each place, row by row."""
    return _orders(u.device)[(u[:, _ANGLE] * 24).long()]


def arrange(x: Tensor, order: Tensor) -> Tensor:
    """Put the quarters of an image in an order (G, 4); sides that are odd are left as they are."""
    height, width = x.shape[-2:]
    if height % 2 or width % 2:
        return x
    parts = x.unflatten(-1, (2, -1)).unflatten(-3, (2, -1)).movedim((-4, -2), (1, 2)).flatten(1, 2)
    moved = parts.take_along_dim(order.view(len(x), 4, *[1] * (parts.dim() - 2)), 1)
    return moved.unflatten(1, (2, 2)).movedim((1, 2), (-4, -2)).flatten(-2).flatten(-3, -2)


def mirrored(u: Tensor) -> Tensor:
    """Return which images :func:`flip` mirrors, (G,) bool."""
    return u[:, _FLIP] < 0.5


OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "color": color, "crop": crop, "cutout": cutout, "flip": flip, "scale": scale, "rotate": rotate,
    "resize": resize, "shuffle": shuffle,
}  # fmt: skip
"""Each maps images (G, M, C, H, W) and draws (G, DRAWS) to images of the same shape."""


WARPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"crop": _shift, "scale": _stretch, "rotate": _turn}
"""The same for operations that sample an image elsewhere: to (G, 2, 3), from output to input coordinates."""


def _identity(u: Tensor) -> Tensor:
    return torch.eye(2, 3, dtype=u.dtype, device=u.device).repeat(len(u), 1, 1)


def _warp(x: Tensor, theta: Tensor, beyond: str = "zeros") -> Tensor:
    """Sample every image of a group through the group's affine map ``theta`` (G, 2, 3): output to input coordinates."""
    flat = x.flatten(0, 1)  # (G*M, C, H, W)
    grid = F.affine_grid(theta, [len(theta), *flat.shape[1:]], align_corners=False)
    grid = grid.repeat_interleave(x.shape[1], 0)
    return F.grid_sample(flat, grid, padding_mode=beyond, align_corners=False).view_as(x)


def one_choice(u: Tensor) -> Tensor:
    """Return draws (..., B, DRAWS or more) that choose the same operations for all images of a batch of B.

    Their parameters remain each image's own. So do DC's, DM's, DataDAM's and IDC's code when they train a network.
    """
    return torch.cat([u[..., :1, :1].expand(*u.shape[:-1], 1), u[..., 1:]], -1)


def augment_batch(images: Tensor, stages: Stages) -> Tensor:
    """Augment a batch (B, C, H, W) as :func:`one_choice` says, with draws from torch's global generator."""
    return augment(images[:, None], one_choice(torch.rand(len(images), DRAWS)), stages)[:, 0]
