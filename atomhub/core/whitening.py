"""From pixels to the space in which networks see them, and back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from atomhub.errors import UsageError


@dataclass(frozen=True)
class Normalization:
    """Mean and standard deviation of each colour channel, in units of pixels in [0, 1].

    Attributes:
        mean: C floats.
        std: C floats, all above 0.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def apply(self, pixels: Tensor) -> Tensor:
        """Return normalised float images of pixels (..., C, H, W): uint8 in 0..255, or float in 0..1.

        Raises:
            UsageError: another dtype.
        """
        if pixels.dtype != torch.uint8 and not pixels.is_floating_point():
            raise UsageError(f"Pixels cannot be {pixels.dtype}: use uint8 in 0..255 or floats in 0..1.")
        x = pixels.to(torch.float32) / 255 if pixels.dtype == torch.uint8 else pixels
        return (x - self._like(self.mean, x)) / self._like(self.std, x)

    def undo(self, images: Tensor) -> Tensor:
        """Return pixels in 0..1 (float, not clamped) of normalised images (..., C, H, W)."""
        return images * self._like(self.std, images) + self._like(self.mean, images)

    @staticmethod
    def _like(values: tuple[float, ...], x: Tensor) -> Tensor:
        return torch.tensor(values, dtype=x.dtype, device=x.device).view(-1, 1, 1)
