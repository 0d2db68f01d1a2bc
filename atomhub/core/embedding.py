"""The networks a recipe draws from: fresh ones at every iteration, or those of a bank.

Weights are drawn on the CPU, whatever the device, so that a run is the same everywhere.
"""

from itertools import product
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from atomhub.core import draws
from atomhub.core.bank import Bank
from atomhub.core.convnet import ConvNet
from atomhub.core.passes import Network
from atomhub.core.real import upload
from atomhub.recipe import Recipe


class Embedding:
    """The networks a recipe draws from, and the weights of the one in use.

    Args:
        recipe: A resolved recipe.
        channels: Channels of the images.
        classes: K.
        size: Side of the images in pixels.
        dtype: Precision of the head.
        compute: Precision of the convolutions.
        device: Where to compute.
        bank: Networks to draw from; None: fresh ones.
    """

    def __init__(
        self, recipe: Recipe, channels: int, classes: int, size: int, dtype: torch.dtype, compute: torch.dtype,
        device: torch.device, bank: Bank | None = None,
    ) -> None:  # fmt: skip
        self.bank = bank.to(torch.device("cpu"), torch.float32) if bank is not None else None
        self.dtype, self.compute, self.device = dtype, compute, device
        self.biased = recipe.norm == "none"  # a norm takes away what the bias of a convolution adds
        kinds = product(recipe.widths or (recipe.width,), recipe.depths or (recipe.depth,))
        self.networks = [ConvNet(channels, classes, size, width, depth, recipe.norm) for width, depth in kinds]
        for network in self.networks:
            network.requires_grad_(False)  # in float32: draws of another precision would be others
        self.network = self.networks[0]
        self.generator = torch.Generator()
        self.member = 0

    def draw(self, seed: int, iteration: int, trained: bool = False) -> tuple[Network, Network | None]:
        """Choose the network of an iteration and draw its weights; a function of (seed, iteration).

        Returns:
            It, and if ``trained`` the same one of a bank at the trained end of its line, with its head.
        """
        key = draws.generator_seed(seed, draws.WEIGHTS, iteration)
        self.network = self.networks[key % len(self.networks)]
        self.generator.manual_seed(key)
        end = None
        if self.bank is None:
            self.network.reinitialise(self.generator, head=False)
        else:
            self.member = key % len(self.bank)
            if trained:
                self.bank.put(self.network, self.member, 1.0)
                end = self._weights(head=True)
            self.bank.put(self.network, self.member, float(draws.uniform(seed, draws.BANK, iteration)[0]))
        return self._weights(), end

    def _weights(self, head: bool = False) -> Network:
        """Return copies of the weights in use, which went to the device as one block."""
        convolutions = [cast(nn.Conv2d, c) for c in self.network.convolutions]
        parameters = [c.weight for c in convolutions] + [cast(Tensor, c.bias) for c in convolutions] * self.biased
        sizes = [p.numel() for p in parameters]
        block = torch.cat([p.detach().flatten() for p in parameters])
        parts = upload(block, self.device).to(self.compute).split(sizes)
        tensors = [part.view(p.shape) for part, p in zip(parts, parameters, strict=True)]
        weights = [w.contiguous(memory_format=torch.channels_last) for w in tensors[: len(convolutions)]]
        last = self.network.head
        return Network(
            weights,
            tensors[len(convolutions) :] if self.biased else None,
            (self._copied(last.weight), self._copied(last.bias)) if head else None,
        )

    def _copied(self, x: Tensor) -> Tensor:
        return upload(x.detach().clone(), self.device).to(self.dtype)

    def prepare(self, images: Tensor) -> Tensor:
        """Return images (N, C, H, W) as the convolutions want them: padded, in their precision and layout."""
        before = self.network.padding // 2
        after = self.network.padding - before
        x = F.pad(images, (before, after, before, after)) if self.network.padding else images
        return x.to(self.compute, memory_format=torch.channels_last)

    def unprepare(self, gradient: Tensor, like: Tensor) -> Tensor:
        """Return the gradient of images from that of the prepared ones."""
        before, side = self.network.padding // 2, like.shape[-1]
        return gradient[..., before : before + side, before : before + side].to(like.dtype)
