"""The ConvNet family with feature taps, re-initialised in place."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from atomhub.recipe import default_depth

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "leakyrelu": F.leaky_relu,
    "sigmoid": torch.sigmoid,
}
"""Activation name to function; the slope of the leaky one is 0.01."""
POOLINGS: dict[str, Callable[[Tensor, int], Tensor] | None] = {"avg": F.avg_pool2d, "max": F.max_pool2d, "none": None}
"""Pooling name to function: 2x2 with stride 2, or no pooling at all."""


class ConvNet(nn.Module):
    """ConvNet-D of the dataset distillation literature (DC, ICLR 2021, section 4).

    D blocks of [3x3 convolution, norm, activation, 2x2 pooling] and a linear head. Images whose side is not a multiple
    of 2**D are zero-padded around where there is pooling (28x28 becomes 32x32).

    Args:
        channels: Channels of the images.
        classes: Outputs of the head.
        size: Side of the square images in pixels.
        width: Channels of every block.
        depth: Number of blocks; None follows the resolution.
        norm: ``instance`` (one group per channel), ``batch``, ``layer`` (over channels and pixels), ``group`` (of 4
            groups), all affine, or ``none``.
        activation: ``relu``, ``leakyrelu`` or ``sigmoid``.
        pooling: ``avg``, ``max`` or ``none``.
    """

    def __init__(
        self, channels: int, classes: int, size: int, width: int = 128, depth: int | None = None,
        norm: str = "instance", activation: str = "relu", pooling: str = "avg",
    ) -> None:  # fmt: skip
        super().__init__()
        self.size = size
        self.depth = depth or default_depth(size)
        self.activation, self.pool = ACTIVATIONS[activation], POOLINGS[pooling]
        shrink = 2 if self.pool else 1
        self.padding = -size % shrink**self.depth
        channel_counts = [channels] + [width] * self.depth
        self.widths = width, channels
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1) for a, b in zip(channel_counts, channel_counts[1:], strict=False)
        )
        sides = [(size + self.padding) // shrink**block for block in range(self.depth + 1)]
        self.norms = nn.ModuleList(_norm(norm, width, side) for side in sides[:-1])
        self.head = nn.Linear(width * sides[-1] ** 2, classes)

    def blocks(self, images: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield for each block its activation and the same after pooling.

        Args:
            images: (N, C, size, size), normalised.

        Yields:
            (N, width, H, W) and (N, width, H/2, W/2).
        """
        before = self.padding // 2
        after = self.padding - before
        x = F.pad(images, (before, after, before, after)) if self.padding else images
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            activation = self.activation(norm(convolution(x)))
            x = self.pool(activation, 2) if self.pool else activation
            yield activation, x

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, classes) of normalised images (N, C, size, size)."""
        x = images
        for _, x in self.blocks(images):  # noqa: B007 the last block's output is what the head takes
            pass
        return self.head(x.flatten(1))

    @torch.no_grad()
    def reinitialise(self, generator: torch.Generator, head: bool = True) -> None:
        """Draw all weights afresh in place, as PyTorch's default initialisation does.

        Convolutions and linear layers: uniform within 1/sqrt(fan-in), weights and biases; norms: scale 1, shift 0.

        Args:
            generator: Of the device of the weights.
            head: Whether to draw those of the head, the last, as well.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d) or (head and isinstance(module, nn.Linear)):
                bound = 1 / math.sqrt(module.weight[0].numel())
                for parameter in module.parameters():
                    parameter.uniform_(-bound, bound, generator=generator)
            elif isinstance(module, nn.GroupNorm | nn.BatchNorm2d):
                module.reset_parameters()


def _norm(norm: str, width: int, side: int) -> nn.Module:
    if norm == "instance":
        return nn.GroupNorm(width, width)
    if norm == "batch":
        return nn.BatchNorm2d(width)
    if norm == "layer":
        return nn.LayerNorm([width, side, side])
    return nn.GroupNorm(4, width) if norm == "group" else nn.Identity()
