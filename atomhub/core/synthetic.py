"""The synthetic images as parameters of the optimisation."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from atomhub.core.whitening import Normalization
from atomhub.manifest import BITS


class Synthetic(nn.Module):
    """K*N images that are optimised in normalised space, where the field's learning rates are meant, and kept in 0..1.

    Where pixels have 8, 4 or 2 bits networks see the images rounded to as many levels, with the gradient passed
    straight through, so what they see during distillation is exactly what is stored.

    Args:
        initial: (K, ipc, C, H, W) float pixels in 0..1.
        pixels: A kind of stored pixels (:data:`atomhub.manifest.BITS`).
        normalization: From pixels to the space of the networks.
    """

    def __init__(self, initial: Tensor, pixels: str, normalization: Normalization) -> None:
        super().__init__()
        self.normalization = normalization
        self.brightest = 2 ** BITS[pixels] - 1 if pixels != "float32" else None  # level
        self.images = nn.Parameter(normalization.apply(initial))
        self.project()

    @torch.no_grad()
    def seen(self, classes: slice | Tensor = slice(None)) -> Tensor:
        """Return the images of some classes as networks see them, (k, ipc, C, H, W), normalised; no gradient."""
        images = self.images[classes]
        if self.brightest is None:
            return images.clone()
        return self.normalization.apply((self.normalization.undo(images) * self.brightest).round() / self.brightest)

    @torch.no_grad()
    def project(self, classes: slice | Tensor = slice(None)) -> Tensor:
        """Clamp images to real colours, pixels in 0..1; return how many values were outside, a scalar."""
        pixels = self.normalization.undo(self.images[classes])
        outside = ((pixels < -1e-4) | (pixels > 1 + 1e-4)).sum()  # not what rounding moved
        self.images[classes] = self.normalization.apply(pixels.clamp(0, 1))
        return outside

    @torch.no_grad()
    def export(self) -> Tensor:
        """Return the images to store, (K*ipc, C, H, W) on the CPU: uint8 in 0..255, or float32 in 0..1."""
        return stored(self.images, self.brightest, self.normalization)


def to_views(images: Tensor, formation: int, size: int | None = None) -> Tensor:
    """Return the views that images hold, each enlarged to the size of an image (IDC, ICML 2022, section 3).

    Args:
        images: (K, n, C, H, W) float; differentiable.
        formation: Views per side; divides H and W.
        size: Side of the views in pixels; None: that of the images.

    Returns:
        (K, formation**2 * n, C, size, size), bilinear: of each class the top left views of all images, then those to
        their right, and so on, row by row.
    """
    if formation == 1:
        return images
    height, width = images.shape[-2] // formation, images.shape[-1] // formation
    views = [
        images[..., top : top + height, left : left + width]
        for top in range(0, images.shape[-2], height)
        for left in range(0, images.shape[-1], width)
    ]
    small = torch.cat(views, 1)  # (K, V*n, C, h, w)
    side = size or images.shape[-1]
    large = F.interpolate(small.flatten(0, 1), size=(side, side), mode="bilinear", align_corners=False)
    return large.view(*small.shape[:3], side, side)


def from_views(views: Tensor, formation: int) -> Tensor:
    """Return images that hold views, each made smaller by averaging; :func:`to_views` gives about the views back.

    Args:
        views: (K, formation**2 * n, C, H, W) float, in the order of :func:`to_views`.
        formation: Views per side; divides H and W.

    Returns:
        (K, n, C, H, W).
    """
    if formation == 1:
        return views
    small = F.avg_pool2d(views.flatten(0, 1), formation)
    return torch.stack([arranged(own, formation) for own in small.view(*views.shape[:3], *small.shape[-2:])])


def arranged(small: Tensor, side: int) -> Tensor:
    """Return images (n, C, side * h, side * w) of ``side`` by ``side`` smaller ones (side**2 * n, C, h, w) each.

    The top left ones of all images come first, then those to their right, and so on, row by row.
    """
    parts = small.unflatten(0, (side, side, -1))  # (row, column, n, C, h, w)
    return parts.permute(2, 3, 0, 4, 1, 5).flatten(4, 5).flatten(2, 3)


def stored(images: Tensor, brightest: int | None, normalization: Normalization) -> Tensor:
    """Return normalised images (K, ipc, C, H, W) as they are stored, see :meth:`Synthetic.export`.

    Args:
        images: Normalised.
        brightest: The highest of the levels that pixels are rounded to, a divisor of 255; None: they are not.
        normalization: From pixels to these.
    """
    pixels = normalization.undo(images).clamp(0, 1).flatten(0, 1).cpu()
    if brightest is None:
        return pixels.to(torch.float32)
    return (pixels * brightest).round().to(torch.uint8) * (255 // brightest)
