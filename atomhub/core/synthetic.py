"""The synthetic images as parameters of the optimisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from atomhub.core.whitening import Normalization


class Synthetic(nn.Module):
    """K*N images that are optimised in normalised space, where the field's learning rates are meant, and kept in 0..1.

    With ``pixels = "uint8"`` the forward pass rounds to 8 bits with a straight-through gradient, so what the networks
    see during distillation is exactly what is stored.

    Args:
        initial: (K, ipc, C, H, W) float pixels in 0..1.
        pixels: ``uint8`` or ``float32``.
        normalization: From pixels to the space of the networks.
    """

    def __init__(self, initial: Tensor, pixels: str, normalization: Normalization) -> None:
        super().__init__()
        self.normalization = normalization
        self.rounds = pixels == "uint8"
        self.images = nn.Parameter(normalization.apply(initial))
        self.project()

    def forward(self) -> Tensor:
        """Return the images as networks see them, (K, ipc, C, H, W), normalised."""
        if not self.rounds:
            return self.images
        rounded = self.normalization.apply((self.normalization.undo(self.images.detach()) * 255).round() / 255)
        return rounded + (self.images - self.images.detach())

    @torch.no_grad()
    def project(self) -> None:
        """Clamp the images to real colours: pixels in 0..1."""
        self.images.copy_(self.normalization.apply(self.normalization.undo(self.images).clamp(0, 1)))

    @torch.no_grad()
    def export(self) -> Tensor:
        """Return the images to store, (K*ipc, C, H, W) on the CPU: uint8 in 0..255, or float32 in 0..1."""
        pixels = self.normalization.undo(self.images).clamp(0, 1).flatten(0, 1).cpu()
        return (pixels * 255).round().to(torch.uint8) if self.rounds else pixels.to(torch.float32)
