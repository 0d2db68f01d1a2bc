"""The ConvNet family with feature taps, re-initialised in place, and the networks that evaluation knows by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from atomhub.errors import UsageError, closest
from atomhub.recipe import default_depth


class ConvNet(nn.Module):
    """ConvNet-D of the dataset distillation literature (DC, ICLR 2021, section 4).

    D blocks of [3x3 convolution, norm, ReLU, 2x2 average pooling] and a linear head. Images whose side is not a
    multiple of 2**D are zero-padded around (28x28 becomes 32x32).

    Args:
        channels: Channels of the images.
        classes: Outputs of the head.
        size: Side of the square images in pixels.
        width: Channels of every block.
        depth: Number of blocks; None follows the resolution.
        norm: ``instance`` (affine, one group per channel), ``batch`` or ``none``.
    """

    def __init__(
        self, channels: int, classes: int, size: int, width: int = 128, depth: int | None = None, norm: str = "instance"
    ) -> None:
        super().__init__()
        self.size = size
        self.depth = depth or default_depth(size)
        step = 2**self.depth
        self.padding = -size % step
        sides = [channels] + [width] * self.depth
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in zip(sides, sides[1:], strict=False))
        self.norms = nn.ModuleList(_norm(norm, width) for _ in range(self.depth))
        self.head = nn.Linear(width * ((size + self.padding) // step) ** 2, classes)

    def blocks(self, images: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield for each block its activation after the ReLU and the same after pooling.

        Args:
            images: (N, C, size, size), normalised.

        Yields:
            (N, width, H, W) and (N, width, H/2, W/2).
        """
        before = self.padding // 2
        after = self.padding - before
        x = F.pad(images, (before, after, before, after)) if self.padding else images
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            activation = F.relu(norm(convolution(x)))
            x = F.avg_pool2d(activation, 2)
            yield activation, x

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, classes) of normalised images (N, C, size, size)."""
        x = images
        for _, x in self.blocks(images):  # noqa: B007 the last block's output is what the head takes
            pass
        return self.head(x.flatten(1))

    @torch.no_grad()
    def reinitialise(self, generator: torch.Generator) -> None:
        """Draw all weights afresh in place, as PyTorch's default initialisation does.

        Convolutions and linear layers: uniform within 1/sqrt(fan-in), weights and biases; norms: scale 1, shift 0.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                bound = 1 / math.sqrt(module.weight[0].numel())
                for parameter in module.parameters():
                    parameter.uniform_(-bound, bound, generator=generator)
            elif isinstance(module, nn.GroupNorm | nn.BatchNorm2d):
                module.reset_parameters()


def _norm(norm: str, width: int) -> nn.Module:
    if norm == "instance":
        return nn.GroupNorm(width, width)
    return nn.BatchNorm2d(width) if norm == "batch" else nn.Identity()


NETWORKS: dict[str, Callable[..., nn.Module]] = {"convnet": ConvNet}
"""Networks by name: called as ``build(channels, classes, size, width=, depth=, norm=)``."""


def find_network(name: str) -> Callable[..., nn.Module]:
    """Return the builder of a network; UsageError with the closest match when there is none of that name."""
    if name not in NETWORKS:
        raise UsageError(f"There is no network {name!r}.", closest(name, NETWORKS))
    return NETWORKS[name]
