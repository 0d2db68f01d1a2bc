"""The networks a recipe draws from: fresh ones at every iteration, or those of a bank.

Weights are drawn on the CPU, whatever the device, so that a run is the same everywhere.
"""

from itertools import product
from threading import Lock
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from atomhub.core import draws
from atomhub.core.bank import Bank
from atomhub.core.convnet import ConvNet
from atomhub.core.passes import Network
from atomhub.recipe import Recipe


class Embedding:
    """The networks a recipe draws from.

    Args:
        recipe: A resolved recipe.
        channels: Channels of the images.
        classes: K.
        size: Side of the images in pixels.
        dtype: Precision of the head.
        compute: Precision of the convolutions.
        bank: Networks to draw from; None: fresh ones.
    """

    def __init__(
        self, recipe: Recipe, channels: int, classes: int, size: int, dtype: torch.dtype, compute: torch.dtype,
        bank: Bank | None = None,
    ) -> None:  # fmt: skip
        self.bank = bank.to(torch.device("cpu"), torch.float32) if bank is not None else None
        self.dtype, self.compute, self.reach = dtype, compute, recipe.bank_reach
        self.biased = recipe.norm == "none"  # a norm takes away what the bias of a convolution adds
        kinds = product(recipe.widths or (recipe.width,), recipe.depths or (recipe.depth,))
        self.networks = [ConvNet(channels, classes, size, width, depth, recipe.norm) for width, depth in kinds]
        for network in self.networks:
            network.requires_grad_(False)  # in float32: draws of another precision would be others
        self.lock = Lock()  # several threads may draw

    def draw(self, seed: int, iteration: int, trained: bool = False) -> tuple[int, Tensor, Tensor | None]:
        """Choose the network of an iteration and draw its weights; a function of (seed, iteration).

        Returns:
            Its place in ``networks``; its weights, (n,) float32 on the CPU: those of the convolutions, then their
            biases; and if ``trained`` the same of a bank at the trained end of its line, then those of the head.
        """
        key = draws.generator_seed(seed, draws.WEIGHTS, iteration)
        place = key % len(self.networks)
        network, end = self.networks[place], None
        with self.lock:
            if self.bank is None:
                network.reinitialise(torch.Generator().manual_seed(key), head=False)
            else:
                member = key % len(self.bank)
                if trained:
                    self.bank.put(network, member, 1.0)
                    end = torch.cat([p.flatten() for p in self._parameters(network, head=True)])
                self.bank.put(network, member, self.reach * float(draws.uniform(seed, draws.BANK, iteration)[0]))
            return place, torch.cat([p.flatten() for p in self._parameters(network)]), end

    def network(self, place: int, weights: Tensor) -> Network:
        """Return a network from weights of :meth:`draw`, on whatever device they are, as convolutions want them."""
        depth, model = self.networks[place].depth, self.networks[place]
        head = len(weights) > sum(p.numel() for p in self._parameters(model))
        parameters = self._parameters(model, head)
        parts = weights.split([p.numel() for p in parameters])
        tensors = [part.view(p.shape) for part, p in zip(parts, parameters, strict=True)]
        last = [t.to(self.dtype) for t in tensors[2 * depth :]]
        return Network(
            [w.to(self.compute, memory_format=torch.channels_last) for w in tensors[:depth]],
            [b.to(self.compute) for b in tensors[depth : 2 * depth]] if self.biased else None,
            (last[0], last[1]) if head else None,
            model.padding,
        )

    @staticmethod
    def _parameters(network: ConvNet, head: bool = False) -> list[Tensor]:
        convolutions = [cast(nn.Conv2d, c) for c in network.convolutions]
        own = [c.weight for c in convolutions] + [cast(Tensor, c.bias) for c in convolutions]
        return own + [network.head.weight, network.head.bias] * head

    def prepare(self, images: Tensor, padding: int) -> Tensor:
        """Return images (N, C, H, W) as the convolutions want them: padded, in their precision and layout."""
        before = padding // 2
        after = padding - before
        x = F.pad(images, (before, after, before, after)) if padding else images
        return x.to(self.compute, memory_format=torch.channels_last)

    def unprepare(self, gradient: Tensor, like: Tensor, padding: int) -> Tensor:
        """Return the gradient of images from that of the prepared ones."""
        before, side = padding // 2, like.shape[-1]
        return gradient[..., before : before + side, before : before + side].to(like.dtype)
