"""From pixels to the space in which networks see them, and back."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor

from atomhub.errors import AtomhubError, UsageError

EPS = 0.1
"""Added to the eigenvalues of the covariance (DataDAM's setting for CIFAR)."""
_LARGEST = 3 * 48 * 48
"""Most numbers in an image for which a whitening matrix is kept: 191 MB at 48x48, 604 MB at 64x64."""


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
        return (x - _like(self.mean, x.dtype, x.device)) / _like(self.std, x.dtype, x.device)

    def undo(self, images: Tensor) -> Tensor:
        """Return pixels in 0..1 (float, not clamped) of normalised images (..., C, H, W)."""
        return images * _like(self.std, images.dtype, images.device) + _like(self.mean, images.dtype, images.device)

    def to(self, device: torch.device, dtype: torch.dtype) -> Normalization:
        """Return the same on a device, where it is used again and again."""
        return self


@lru_cache(maxsize=64)
def _like(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=device).view(-1, 1, 1)


@dataclass(frozen=True, eq=False)
class Whitening(Normalization):
    """Normalisation followed by ZCA: decorrelated pixels that still look like the image.

    Attributes:
        center: (D,) mean of the normalised training images, D = C*H*W.
        matrix: (D, D) symmetric, U diag(1/sqrt(eigenvalues + EPS)) U^T of their covariance.
    """

    center: Tensor
    matrix: Tensor

    def apply(self, pixels: Tensor) -> Tensor:
        """Return whitened float images of pixels (..., C, H, W), as :meth:`Normalization.apply`."""
        x = super().apply(pixels)
        return ((x.flatten(-3) - self.center.to(x)) @ self.matrix.to(x)).view_as(x)

    def undo(self, images: Tensor) -> Tensor:
        """Return pixels in 0..1 (float, not clamped) of whitened images (..., C, H, W)."""
        return super().undo((images.flatten(-3) @ self.inverse.to(images) + self.center.to(images)).view_as(images))

    @cached_property
    def inverse(self) -> Tensor:
        """The inverse of the matrix, (D, D)."""
        return torch.linalg.inv(self.matrix.double()).to(self.matrix)

    def to(self, device: torch.device, dtype: torch.dtype) -> Whitening:
        """Return the same on a device, where it is used again and again."""
        moved = Whitening(self.mean, self.std, self.center.to(device, dtype), self.matrix.to(device, dtype))
        moved.__dict__["inverse"] = self.inverse.to(device, dtype)
        return moved


def fit_zca(images: np.ndarray, normalization: Normalization) -> Whitening:
    """Fit ZCA whitening on the training images, once; it is never fit again on anything else.

    Args:
        images: (N, C, H, W) uint8, may be memory-mapped; read in pieces.
        normalization: Applied first.

    Raises:
        AtomhubError: the images are too large for a matrix of (C*H*W) squared.
    """
    size = int(np.prod(images.shape[1:]))
    if size > _LARGEST:
        raise AtomhubError(
            f"ZCA of images of {'x'.join(map(str, images.shape[1:]))} would need a matrix of {size}x{size}.",
            "Use smaller images (`size=32`), or leave it out (recipe field zca).",
        )
    total, products = torch.zeros(size, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64)
    for piece in np.array_split(images, -(-len(images) // 2048)):
        x = normalization.apply(torch.tensor(piece)).flatten(1).double()
        total += x.sum(0)
        products.addmm_(x.T, x)
    center = total / len(images)
    values, vectors = torch.linalg.eigh(products / len(images) - torch.outer(center, center))
    matrix = (vectors * (values.clamp_min(0) + EPS).rsqrt()) @ vectors.T
    return Whitening(normalization.mean, normalization.std, center.float(), matrix.float())
