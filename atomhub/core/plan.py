"""The size of a run's work, and the pieces in which it is done."""

import numpy as np
import torch
from numpy.typing import NDArray

from atomhub.recipe import Recipe

_WORTH_COMPILING = 10**13
"""Floating point operations of a run from which compiling (some 20 s) pays: about 40 s of work of two cores."""


def worth_compiling(recipe: Recipe, classes: int, ipc: int, channels: int, size: int) -> bool:
    """Return whether a run is long enough for ``torch.compile`` to pay."""
    width, depth = max(recipe.widths or (recipe.width,)), max(recipe.depths or (recipe.depth or 1,))
    passes = 6 if recipe.calibration else 3  # forward and backward, once or twice
    images = classes * (recipe.real_batch + passes * ipc * recipe.views_per_image)
    return recipe.iterations * images * flops(width, depth, channels, size) >= _WORTH_COMPILING


def flops(width: int, depth: int, channels: int, size: int) -> int:
    """Return the floating point operations (two a multiply-add) of the convolutions for one image, forward."""
    sides = [-(-size // 2**depth) * 2**depth // 2**layer for layer in range(depth)]
    return sum(2 * 9 * (width if layer else channels) * width * side**2 for layer, side in enumerate(sides))


def piece(total: int, most: int) -> int:
    """Return a divisor of ``total`` near below ``most``, so that all pieces have one shape; else ``most``."""
    if most >= total:
        return total
    return next((n for n in range(most, most // 2, -1) if total % n == 0), most)


def slices(total: int, size: int) -> list[slice]:
    """Return slices of ``size`` that cover ``total``; the last may be shorter."""
    return [slice(i, min(i + size, total)) for i in range(0, total, size)]


def fits(images: NDArray[np.uint8], device: torch.device) -> bool:
    """Whether the real images may live on the device: at most half of its free memory."""
    return device.type == "cuda" and images.nbytes < torch.cuda.mem_get_info(device)[0] // 2
