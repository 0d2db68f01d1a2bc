"""From images to the vectors that are matched, through networks that are drawn at every iteration.

Under instance norm a fresh network has exact no-ops, which are left out: the norm's affine map is the identity, and the
norm takes away whatever a convolution's bias adds.
"""

from collections.abc import Callable, Sequence
from itertools import product
from types import FunctionType
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from atomhub.core import draws, mixer
from atomhub.core.bank import Bank
from atomhub.core.convnet import ConvNet
from atomhub.recipe import Recipe

EPS = 1e-5
"""Added to variances by PyTorch's norm layers."""
Moments = tuple[Tensor, Tensor]
"""Mean and variance of each channel over a whole batch, (C,) each."""
Reduce = Callable[[Tensor], Tensor]
"""Adds a tensor up over all processes, differentiably."""


class Embedding:
    """The networks a recipe draws from, and what is matched of an image in the one in use.

    Args:
        recipe: A resolved recipe.
        channels: Channels of the images.
        classes: K.
        size: Side of the images in pixels.
        device: Where to compute.
        dtype: Precision of the images and of the weights that are drawn.
        compute: Precision of the convolutions.
        compiled: Whether to use ``torch.compile``; where it cannot, all runs as it is.
        reduce: Adds batch-norm statistics up over processes; None: there is one process.
        bank: Networks to draw from; None: fresh ones.
    """

    def __init__(
        self, recipe: Recipe, channels: int, classes: int, size: int, device: torch.device, dtype: torch.dtype,
        compute: torch.dtype, compiled: bool, reduce: Reduce | None = None, bank: Bank | None = None,
    ) -> None:  # fmt: skip
        self.bank = bank.to(device, dtype) if bank is not None else None
        self.recipe, self.compute, self.reduce = recipe, compute, reduce
        kinds = product(recipe.widths or (recipe.width,), recipe.depths or (recipe.depth,))
        self.networks = [ConvNet(channels, classes, size, width, depth, recipe.norm) for width, depth in kinds]
        for network in self.networks:
            network.requires_grad_(False).to(device, dtype)
        self.network = self.networks[0]
        self.generator = torch.Generator(device)
        own = compiled and reduce is None
        # uncompiled on a CPU, what keeps maps for a gradient is faster in the contiguous layout, all else is not
        self.gradient_format = torch.contiguous_format if device.type == "cpu" and not own else torch.channels_last
        self.compiled = {
            network: Compiled(cast(FunctionType, vectors)) if own else vectors for network in self.networks
        }
        self.weights: dict[torch.memory_format, list[Tensor]] = {}
        self.biases: list[Tensor] | None = None
        self.member = 0

    def draw(self, seed: int, iteration: int) -> None:
        """Choose the network of an iteration and draw its weights in place; a function of (seed, iteration)."""
        key = draws.generator_seed(seed, draws.WEIGHTS, iteration)
        self.network = self.networks[key % len(self.networks)]
        self.generator.manual_seed(key)
        if self.bank is None:
            self.network.reinitialise(self.generator)
        else:
            self.member = key % len(self.bank)
            self.bank.put(self.network, self.member, float(draws.uniform(seed, draws.BANK, iteration)[0]))
        self._take_weights()

    def train(self) -> None:
        """Move the network of the iteration, one of a bank, to the trained end of its line."""
        if self.bank is None:
            raise AssertionError("only the networks of a bank are trained")
        self.bank.put(self.network, self.member, 1.0)
        self._take_weights()

    def _take_weights(self) -> None:
        weights, biases = ([getattr(c, name) for c in self.network.convolutions] for name in ("weight", "bias"))
        formats = {torch.channels_last, self.gradient_format}
        self.weights = {f: [w.to(self.compute, memory_format=f) for w in weights] for f in formats}
        self.biases = None if self.recipe.norm == "instance" else [b.to(self.compute) for b in biases]

    @property
    def format(self) -> torch.memory_format:
        """The layout to compute in: with a gradient, or without."""
        return self.gradient_format if torch.is_grad_enabled() else torch.channels_last

    def prepare(self, images: Tensor) -> Tensor:
        """Return images (N, C, H, W) as the convolutions want them: padded, in their precision and layout."""
        before = self.network.padding // 2
        after = self.network.padding - before
        x = F.pad(images, (before, after, before, after)) if self.network.padding else images
        return x.to(self.compute, memory_format=self.format)

    def __call__(
        self, images: Tensor, moments: Sequence[Moments] | None = None, keep: bool = False
    ) -> tuple[list[Tensor], list[Moments]]:
        """Return what is matched of normalised images (N, C, H, W), and the statistics used: see :func:`vectors`."""
        r = self.recipe
        wanted = (bool(r.spatial), bool(r.channel), bool(r.feature))
        return self.compiled[self.network](
            self.prepare(images), self.weights[self.format], self.biases, r.norm, r.power, wanted, moments,
            self.reduce, keep,
        )  # fmt: skip

    def logits(self, images: Tensor) -> Tensor:
        """Return the logits (N, K) of normalised images (N, C, H, W) under the weights in use."""
        (features,), _ = self.compiled[self.network](
            self.prepare(images), self.weights[self.format], self.biases, self.recipe.norm, 1.0, (False, False, True),
            None, self.reduce, False,
        )  # fmt: skip
        return F.linear(features, self.network.head.weight, self.network.head.bias)

    def moments(self, batches: Callable[[], Any]) -> list[Moments]:
        """Return the batch-norm statistics of a batch that comes in pieces, layer by layer.

        Args:
            batches: Called once a layer; gives an iterable of normalised images (N, C, H, W).
        """
        known: list[Moments] = []
        weights = self.weights[self.format]
        for _ in weights:
            count, mean, square = 0, torch.zeros(()), torch.zeros(())
            for images in batches():
                maps = mixer.at_least_float32(activations(self.prepare(images), weights, self.biases, known))
                x = maps.double()
                n, m = x.numel() // x.shape[1], x.mean((0, 2, 3))
                s = (x - m.view(-1, 1, 1)).square().sum((0, 2, 3))
                # the update of Chan, Golub and LeVeque (1979) for a mean and a sum of squared deviations
                mean, square = mean.to(m), square.to(m)
                delta, count = m - mean, count + n
                square = square + s + delta.square() * (n * (count - n) / count)
                mean = mean + delta * (n / count)
            total = mean.new_tensor(count)
            if self.reduce is not None:
                own, sums = mean, self.reduce(torch.cat([mean * count, total[None]]))
                mean, total = sums[:-1] / sums[-1], sums[-1]
                square = self.reduce(square + count * (own - mean).square())
            known.append((mean.to(maps.dtype), (square / total).to(maps.dtype)))
        return known


def vectors(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor] | None, norm: str, power: float,
    wanted: tuple[bool, bool, bool], moments: Sequence[Moments] | None, reduce: Reduce | None, keep: bool,
) -> tuple[list[Tensor], list[Moments]]:  # fmt: skip
    """Return what is matched of every image, in one pass over the network, and the batch-norm statistics used.

    Args:
        x: (N, C, H, W), normalised and padded.
        weights: (width, ., 3, 3) for every block.
        biases: (width,) for every block; None: left out.
        norm: ``instance``, ``batch`` or ``none``.
        power: p of the attention maps.
        wanted: Whether spatial attention, channel attention and features are matched.
        moments: Batch-norm statistics, where they are not those of ``x``.
        reduce: Adds sums up over all processes.
        keep: Whether to return the statistics of ``x`` under batch norm.

    Returns:
        For each block but the last: (N, H*W) spatial, then (N, width) channel attention; last, (N, D) features, the
        flattened output of the last block after pooling. Those wanted, in float32 at least. And a pair of (width,) for
        every block, or nothing.
    """
    spatial, channel, feature = wanted
    out: list[Tensor] = []
    used: list[Moments] = []
    for layer, weight in enumerate(weights):
        x = F.conv2d(x, weight, biases[layer] if biases is not None else None, padding=1)
        known = moments[layer] if moments is not None else None
        if known is None and norm == "batch" and (keep or reduce is not None):
            known = _moments(x, reduce)
        if known is not None and keep:
            used.append(known)
        x = F.relu(_normalise(x, norm, known))
        if layer < len(weights) - 1 and (spatial or channel):
            out += mixer.attention(x, power, spatial, channel)
        x = F.avg_pool2d(x, 2)
    return [*out, mixer.at_least_float32(x).flatten(1)] if feature else out, used


def activations(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor] | None, moments: Sequence[Moments]
) -> Tensor:
    """Return what enters the norm of block ``len(moments)``, given the statistics of those before."""
    for layer, (weight, known) in enumerate(zip(weights, moments, strict=False)):
        x = F.conv2d(x, weight, biases[layer] if biases is not None else None, padding=1)
        x = F.avg_pool2d(F.relu(_normalise(x, "batch", known)), 2)
    layer = len(moments)
    return F.conv2d(x, weights[layer], biases[layer] if biases is not None else None, padding=1)


def _normalise(x: Tensor, norm: str, moments: Moments | None) -> Tensor:
    if norm == "instance":
        return F.group_norm(x, x.shape[1], eps=EPS)
    if norm == "none":
        return x
    if moments is None:
        return F.batch_norm(x, None, None, training=True, eps=EPS)
    mean, variance = moments
    return ((x - mean.view(-1, 1, 1)) * (variance.view(-1, 1, 1) + EPS).rsqrt()).to(x.dtype)


def _moments(x: Tensor, reduce: Reduce | None) -> Moments:
    """Return the statistics of a batch, which may be spread over processes, in float32 at least."""
    x = mixer.at_least_float32(x)
    if reduce is None:
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        return mean, variance
    total = torch.cat([x.sum((0, 2, 3)), x.new_tensor([x.numel() / x.shape[1]])])
    total = reduce(total)
    mean = total[:-1] / total[-1]
    return mean, reduce((x - mean.view(-1, 1, 1)).square().sum((0, 2, 3))) / total[-1].detach()


class Compiled:
    """A function under ``torch.compile``, or as it is where it cannot be compiled (no C++ compiler, say).

    Args:
        function: What to compile, at its first call for every shape; a plain function.
    """

    def __init__(self, function: FunctionType) -> None:
        self.function = function
        # code of its own: torch keeps a few compiled variants of each code object, and gives up beyond
        own = FunctionType(function.__code__.replace(), function.__globals__, function.__name__)
        self.fast: Callable[..., Any] | None = torch.compile(own, dynamic=False)

    def __call__(self, *arguments: Any) -> Any:
        """Call the function."""
        if self.fast is not None:
            try:
                return self.fast(*arguments)
            except Exception:  # whatever stopped the compiler; a fault of the function itself comes again below
                self.fast = None
        return self.function(*arguments)
