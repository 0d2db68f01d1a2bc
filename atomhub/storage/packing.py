"""Pixels of 4 and 2 bits, as a file holds them: several to a byte."""

import torch
from torch import Tensor

from atomhub.errors import AtomhubError


def pack(images: Tensor, bits: int) -> Tensor:
    """Return images (..., W) uint8 as (..., ceil(W * bits / 8)) uint8: levels, the left pixel in the highest bits.

    Args:
        images: Every pixel is a level of 0 to 2**bits - 1 times 255 / (2**bits - 1).
        bits: 4 or 2.

    Raises:
        AtomhubError: a pixel is no such level.
    """
    step, each = 255 // (2**bits - 1), 8 // bits
    if bool((images % step).any()):
        bad = int(images[images % step != 0][0])
        raise AtomhubError(
            f"A pixel of {bad} cannot be stored in {bits} bits.", f"Use multiples of {step}, or pixels = 'uint8'."
        )
    levels = torch.nn.functional.pad(images // step, (0, -images.shape[-1] % each)).unflatten(-1, (-1, each))
    packed = torch.zeros_like(levels[..., 0])
    for place in range(each):
        packed = packed << bits | levels[..., place]
    return packed


def unpack(packed: Tensor, bits: int, width: int) -> Tensor:
    """Return what :func:`pack` was given, (..., width) uint8, from what it gave: rows of whole bytes, uint8."""
    shifts = torch.arange(8 - bits, -1, -bits, dtype=torch.uint8)
    levels = packed[..., None] >> shifts & (2**bits - 1)
    return levels.flatten(-2)[..., :width] * (255 // (2**bits - 1))
