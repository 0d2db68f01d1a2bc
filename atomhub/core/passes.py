"""All images of one side through the network of an iteration, piece by piece, forward and backward.

Levels count what enters the norms, from 0. Batch norm couples all images of a side: a level is worked off in all pieces
before the next one begins, from what an earlier pass kept, or from the start again where it kept nothing. What is
independent of other images goes through the whole network at once.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import FunctionType
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from atomhub.core import blocks
from atomhub.core.blocks import Kind, Moments
from atomhub.errors import AtomhubError, AtomhubWarning, first_line, is_out_of_memory

Reduce = Callable[[Tensor], Tensor]
"""Adds a tensor up over all processes."""


@dataclass(frozen=True)
class Network:
    """The weights of an iteration, on the device.

    Attributes:
        weights: (width, ., 3, 3) for every block, in the precision of the convolutions.
        biases: (width,) for every block; None: a norm takes away what they add.
        head: Weight (K, D) and bias (K,) of the last layer, where it is used.
        padding: Rows and columns of zeros that its images need around them, in all.
    """

    weights: list[Tensor]
    biases: list[Tensor] | None = None
    head: tuple[Tensor, Tensor] | None = None
    padding: int = 0

    def bias(self, level: int) -> Tensor | None:
        """Return the bias of the convolution that gives a level."""
        return None if self.biases is None else self.biases[level]


class Passes:
    """The functions of :mod:`atomhub.core.blocks` as a run calls them, compiled or not.

    Args:
        kind: What all blocks have in common.
        compiler: Compiles them, or not.
        reduce: Adds batch-norm statistics up over processes; None: there is one process.
        before: Called before every piece of work on a level.
    """

    def __init__(
        self, kind: Kind, compiler: Compiler, reduce: Reduce | None = None, before: Callable[[], None] = lambda: None
    ) -> None:
        self.kind, self.reduce, self.before = kind, reduce, before
        self.enter, self.through, self.leave = compiler(blocks.enter), compiler(blocks.through), compiler(blocks.leave)
        self.totals, self.back = compiler(blocks.totals), compiler(blocks.back)

    def add(self, x: Tensor) -> Tensor:
        """Return the sum over all processes."""
        return x if self.reduce is None else self.reduce(x)

    def averages(self, values: Sequence[Moments], width: int, like: Tensor) -> Moments:
        """Return (n, C) pairs of some pieces, averaged over the images of all pieces and processes, (C,) each."""
        n = sum(len(first) for first, _ in values)
        zero = like.new_zeros(width, dtype=torch.promote_types(like.dtype, torch.float32))
        sums = [sum((pair[j].sum(0) for pair in values), zero) for j in range(2)]
        first, second, count = self.add(torch.cat([*sums, zero.new_full((1,), n)])).split([width, width, 1])
        return first / count, second / count

    def moments(self, values: Sequence[Moments], width: int, like: Tensor) -> Moments:
        """Return the moments (C,) of a batch from those of its images, (n, C) in every piece; one exchange."""
        dtype = torch.promote_types(like.dtype, torch.float32)
        wide = dtype if like.device.type == "mps" else torch.float64  # for the difference of squares below
        means = [mean.to(wide) for mean, _ in values]
        squares = [m.square() + variance for m, (_, variance) in zip(means, values, strict=True)]
        mean, square = self.averages(list(zip(means, squares, strict=True)), width, like.new_empty(0, dtype=wide))
        return mean.to(dtype), (square - mean.square()).clamp_min(0).to(dtype)


class Side:
    """The real or the synthetic images of some classes, on their way through one network.

    Args:
        passes: How blocks are computed.
        network: The weights.
        images: Gives piece i, normalised, padded, in the precision of the convolutions, (n, C, H, W).
        sizes: How many images each piece has.
        keep: Levels to keep in memory once they are known; -1 are the images.
        given: Batch-norm moments of every level, where they are not those of the images themselves.
        found: Called with level, piece and what is matched of it, once: attention sums, or at the last level features.
        once: Whether no gradient will be asked for, so that a kept level takes the place of those before it.
        some: How many pieces to keep level 0 of, where it is not to be kept of all.
    """

    def __init__(
        self, passes: Passes, network: Network, images: Callable[[int], Tensor], sizes: list[int], keep: frozenset[int],
        given: Sequence[Moments | None] | None, found: Callable[[int, int, list[Tensor]], None], once: bool = False,
        some: int = 0,
    ) -> None:  # fmt: skip
        self.passes, self.network, self.images, self.pieces = passes, network, images, len(sizes)
        self.stores: dict[int, Store] = defaultdict(lambda: Store(sizes))
        self.some = some
        if some:
            self.stores[0] = Store(sizes[:some])
        self.found, self.keep, self.once = found, keep, once
        self.depth = len(network.weights)
        self.coupled = passes.kind.norm == "batch" and given is None
        self.known: list[Moments | None] = list(given) if given is not None else []
        self.kept: list[dict[int, Tensor]] = [{} for _ in sizes]
        self.reached = [0] * len(sizes)

    def forward(self) -> list[Moments | None]:
        """Go through the network; return the batch-norm moments of every level, or None for each."""
        if self.coupled:
            for level in range(self.depth):
                measured = [self._reach(level, i)[1] for i in range(self.pieces)]
                weight = self.network.weights[level]
                self.known.append(self.passes.moments(cast(list[Moments], measured), len(weight), weight))
                if self.once and level in self.keep:
                    for at in [at for at in self.stores if at < level]:
                        del self.stores[at]
        elif not self.known:
            self.known = [None] * self.depth
        for i in range(self.pieces):
            y, _ = self._reach(self.depth - 1, i)
            self.found(self.depth - 1, i, [self.passes.leave(y, self.known[-1], self.passes.kind)])
            if self.once:
                self.kept[i].clear()
        return self.known

    def backward(self, features: list[Tensor], attention: Callable[[int, int], list[Tensor]]) -> list[Tensor]:
        """Return the gradient of every piece of images, as they were given.

        Args:
            features: Gradients of the features of every piece, (n, D).
            attention: Gives those of the attention sums, of a level and a piece.
        """
        passes, kind = self.passes, self.passes.kind
        gradients = []
        for i, g in enumerate(features):
            y, _ = self._reach(self.depth - 1, i)
            shape = (*y.shape[:2], y.shape[2] // 2, y.shape[3] // 2)
            gradients.append(g.view(shape).to(y.dtype, memory_format=torch.channels_last))
        for level in reversed(range(self.depth)):
            known, weight, means, area = self.known[level], self.network.weights[level], None, 1
            if self.coupled:
                sums = []
                for i, g in enumerate(gradients):
                    y, _ = self._reach(level, i)
                    area = y.shape[2] * y.shape[3]
                    sums.append(passes.totals(y, known, g, attention(level, i), kind))
                a, b = passes.averages(sums, len(weight), weight)
                means = a / area, b / area
            for i, g in enumerate(gradients):
                y, _ = self._reach(level, i)
                found = passes.back(y, known, g, attention(level, i), means, weight, kind)
                # what is kept has the shape of the gradient that takes its place: level 0 that of the images
                place = level or -1
                gradients[i] = self.stores[place].put(i, found) if place in self.keep else found
                self.kept[i].pop(place, None)
                self.kept[i].pop(level, None)
        return gradients

    def _reach(self, level: int, i: int) -> tuple[Tensor, Moments | None]:
        """Return piece ``i`` at a level, and if it was computed now under batch norm the moments of its images."""
        self.passes.before()
        kept, kind, network = self.kept[i], self.passes.kind, self.network
        start = max((at for at in kept if 0 <= at <= level), default=-1)
        if start >= 0:
            y, measured = kept[start], None
        else:
            x = kept[-1] if -1 in kept else self.images(i)
            if -1 in self.keep:
                x = kept[-1] = self.stores[-1].put(i, x)
            y, measured = self.passes.enter(x, network.weights[0], network.bias(0), kind)
            start = 0
            if 0 in self.keep or i < self.some:
                y = kept[0] = self.stores[0].put(i, y)
        for at in range(start + 1, level + 1):
            sums, y, measured = self.passes.through(y, self.known[at - 1], network.weights[at], network.bias(at), kind)
            if at > self.reached[i]:
                self.reached[i] = at
                self.found(at - 1, i, sums)
            if at in self.keep:
                if self.once:
                    kept.clear()
                y = kept[at] = self.stores[at].put(i, y)
        return y, measured


class Store:
    """One tensor for something of all pieces, so that what stays does not lie between buffers that come and go.

    Else the holes that these leave in a CPU's memory are soon too small for the next ones. A GPU's allocator knows
    better.

    Args:
        sizes: How many images each piece has.
    """

    def __init__(self, sizes: list[int]) -> None:
        self.total, self.starts = sum(sizes), np.cumsum([0, *sizes]).tolist()
        self.all: Tensor | None = None

    def put(self, i: int, x: Tensor) -> Tensor:
        """Return where piece ``i`` lies now."""
        if x.device.type != "cpu" or len(x) == self.total:
            return x
        if self.all is None:
            layout = torch.channels_last if x.dim() == 4 else torch.contiguous_format
            self.all = torch.empty((self.total, *x.shape[1:]), dtype=x.dtype, memory_format=layout)
        return self.all[self.starts[i] : self.starts[i + 1]].copy_(x)


def _same_gradients(one: Callable[..., Any], other: Callable[..., Any], arguments: Any) -> bool:
    """Return whether two functions of tensors have the same gradient, of the sum of all that they give."""
    inputs = [x for x in tree_leaves(arguments) if x.requires_grad]
    totals = [sum(found.float().sum() for found in tree_leaves(f(*arguments))) for f in (one, other)]
    a, b = (torch.cat([g.flatten() for g in torch.autograd.grad(total, inputs)]) for total in totals)
    return bool((a - b).norm() <= _NEAR * b.norm())


_NEAR = 0.05
"""How far gradients may be from each other that differ by rounding in bfloat16."""
_SHAPES = 64
"""Shapes for which one function may be compiled."""


class Compiler:
    """``torch.compile`` for the functions of a run, until it fails once (no C++ compiler, say).

    Args:
        wanted: Whether to compile at all.

    Attributes:
        failure: What stopped it, in one line.
    """

    def __init__(self, wanted: bool) -> None:
        self.wanted = wanted
        if wanted:  # beyond torch's 8, work goes on as it is and nobody hears of it
            dynamo = torch._dynamo.config
            dynamo.recompile_limit = max(dynamo.recompile_limit, _SHAPES)
        self.failure: str | None = None

    @property
    def works(self) -> bool:
        """Whether functions are compiled, as far as they were called."""
        return self.wanted and self.failure is None

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that is compiled at its first call for every shape; a plain one without gradients."""
        if not self.wanted:
            return function
        plain = cast(FunctionType, function)
        # code of its own: torch keeps a few compiled variants of each code object, and gives up beyond
        own = FunctionType(plain.__code__.replace(), plain.__globals__, plain.__name__)
        return self._careful(torch.compile(own, dynamic=False), function)

    def traced(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same for a function that Python watches as it runs: what it does is written down for every shape.

        What it does to gradients alone, such as ``detach``, is not; where that shows, work goes on uncompiled.
        """
        if not self.wanted:
            return function
        import torch._functorch.config as functorch  # here, as they take tens of megabytes
        from torch.fx.experimental.proxy_tensor import make_fx

        graphs = dict[Any, Callable[..., Any]]()

        def fast(*arguments: Any) -> Any:
            tensors = tree_leaves(arguments)
            differentiated = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
            kind = (*(x.shape for x in tensors), differentiated)
            if kind in graphs:
                return graphs[kind](*arguments)
            with torch.no_grad():
                graph = make_fx(lambda *a: function(*a))(*tree_map(Tensor.detach, arguments))
            if differentiated and not _same_gradients(graph, function, arguments):
                raise AtomhubError("the network treats gradients in a way of its own")
            graphs[kind] = torch.compile(graph, dynamic=False)
            with ExitStack() as now:  # its backward as well, so that a failure is seen here
                if hasattr(functorch, "force_non_lazy_backward_lowering"):
                    now.enter_context(functorch.patch(force_non_lazy_backward_lowering=True))
                return graphs[kind](*arguments)

        return self._careful(fast, function)

    def _careful(self, fast: Callable[..., Any], function: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``fast``, and once it has failed the function itself."""

        def call(*arguments: Any) -> Any:
            if self.failure is None:
                try:
                    return fast(*arguments)
                except Exception as error:  # whatever stopped the compiler; a fault of the function comes again below
                    if is_out_of_memory(error):
                        raise
                    self.failure = first_line(error)
                    note = f"torch.compile failed, so the work goes on uncompiled and slower. It said: {self.failure}"
                    warnings.warn(note, AtomhubWarning, stacklevel=2)
            return function(*arguments)

        return call
