"""Distillation under ConvNets, whose forward and backward passes are in closed form.

The loss is a sum over classes of distances between class means, so both sides are worked off in pieces that fit memory
and caches; batch norm, which couples the classes, goes level by level. Neither changes the result but for rounding.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from atomhub.core import augment, graphs, mixer
from atomhub.core.bank import Bank
from atomhub.core.blocks import Kind, Moments
from atomhub.core.embedding import Embedding
from atomhub.core.iterations import Iterations
from atomhub.core.passes import Compiler, Network, Passes, Side, Store
from atomhub.core.plan import Piece, Plan, convnet_flops, length, plan, worth_compiling
from atomhub.core.sampling import Draw, Networks


class Engine(Iterations):
    """Distillation under ConvNets; arguments and errors as :class:`atomhub.core.iterations.Iterations`."""

    def _networks(
        self, shape: tuple[int, int, int], compute: torch.dtype, compiled: bool | None, bank: Bank | None
    ) -> Networks:
        recipe, classes, (channels, size, _) = self.recipe, self.classes, shape
        if compiled is None:
            each = convnet_flops(recipe, channels, size)
            compiled = worth_compiling(recipe, classes, self.ipc, each, self.device)
        self.compiler = Compiler(compiled and self.dtype == torch.float32)
        add = self.team.add if self.team.size > 1 else None
        kind = Kind(recipe.norm, recipe.power, bool(recipe.spatial), bool(recipe.channel))
        self.passes = Passes(kind, self.compiler, add, self._give_back)
        self.calibration = Passes(Kind(recipe.norm, 1.0, False, False), self.compiler, add, self._give_back)
        self.embedding = Embedding(recipe, channels, classes, size, self.dtype, compute, bank)
        return self.embedding

    def _planned(self, count: int, itemsize: int, limit: int) -> Plan:
        largest = max(self.embedding.networks, key=lambda n: (n.convolutions[0].out_channels, n.depth))
        return plan(self.recipe, largest, count, self.views, itemsize, limit, self.device, self.memory)

    @torch.no_grad()
    def _gradient(self, draw: Draw, targets: graphs.Targets) -> Tensor:
        recipe, network = self.recipe, self.embedding.network(draw.network, draw.weights)
        self.gradients.zero_()
        plan, depth = self.plan(len(draw.indices)), len(network.weights)
        means, given = targets[0], targets[1] if recipe.statistics == "real" and targets[1] else None
        total = torch.zeros((), dtype=self.dtype, device=self.device)
        trained = None if draw.trained is None else self.embedding.network(draw.network, draw.trained)

        def matched(found: list[Tensor], k: slice) -> Tensor:
            last, count = len(found) - 1, k.stop - k.start
            own = [mixer.means(v, count, i < last) for i, v in enumerate(found)]
            return mixer.loss([m[k] for m in means], own, recipe, depth)

        def classified(found: list[Tensor], k: slice) -> Tensor:
            wanted = self.numbers[draw.rows(k)].repeat_interleave(self.views)
            logits = F.linear(found[-1], *(trained.head or ()))  # type: ignore[union-attr]
            loss = F.cross_entropy(logits, wanted, reduction="sum") / self.views
            return recipe.loss_scale * recipe.calibration * loss

        for group in plan.groups:
            total += self._descend(draw, network, self.passes, given, group, matched, plan.first)
            if trained is not None:
                total += self._descend(draw, trained, self.calibration, None, group, classified, plan.first)
        self._give_back(1 / 2)
        return total

    @torch.no_grad()
    def real_side(self, draw: Draw) -> graphs.Targets:
        """Return what is to be matched of the real images of a draw."""
        plan, network = self.plan(len(draw.indices)), self.embedding.network(draw.network, draw.weights)
        means: dict[int, Tensor] = {}
        depth = len(network.weights)

        def found(level: int, i: int, values: list[Tensor]) -> None:
            (k, m), each = plan.real[i], draw.indices.shape[1]
            for j, value in enumerate(values):
                own = mixer.means(value, k.stop - k.start, level < depth - 1)
                position = level * self.passes.kind.maps + j
                if position not in means:
                    means[position] = own.new_zeros(len(draw.indices), own.shape[1])
                means[position][k] += own * ((m.stop - m.start) / each)

        ready: dict[int, Tensor] = {}  # the pieces of one chunk that were not asked for yet

        def images(i: int) -> Tensor:
            if i not in ready:
                ready.clear()
                k, m = plan.chunks[i]
                pixels = self.real[draw.indices[k, m]]
                views = augment.augment(pixels, draw.augmentation[k], self.recipe.stages).flatten(0, 1)
                own = plan.members(i)
                parts = self.embedding.prepare(views, network.padding).split([length(plan.real[j]) for j in own])
                ready.update(zip(own, parts, strict=True))
            return ready.pop(i)

        keep = frozenset(level for level in plan.keep if level < depth)
        sizes = [length(part) for part in plan.real]
        known = Side(self.passes, network, images, sizes, keep, None, found, True, plan.some).forward()
        self._give_back(1 / 2)
        return [means[position] for position in sorted(means)], [pair for pair in known if pair is not None]

    def _descend(
        self, draw: Draw, network: Network, passes: Passes, given: Sequence[Moments | None] | None,
        group: list[Piece], objective: Callable[[list[Tensor], slice], Tensor], first: bool,
    ) -> Tensor:  # fmt: skip
        """Add the gradient of an objective of some classes' images to theirs; return it, a scalar.

        Args:
            draw: Of the iteration.
            network: What they go through.
            passes: How.
            given: Batch-norm moments, where they are not their own.
            group: The pieces they are cut in.
            objective: Gives a scalar from what is found of them, (n, D) for every vector, and from their classes.
            first: Whether level 0 is kept as well.
        """
        maps, depth = passes.kind.maps, len(network.weights)
        found: list[list[Tensor]] = [[] for _ in range(maps * (depth - 1) + 1)]
        sizes = [length(part) for part in group]
        stores = [Store(sizes) for _ in found]

        def keep(level: int, i: int, values: list[Tensor]) -> None:
            for j, value in enumerate(values, level * maps):
                found[j].append(stores[j].put(i, value))  # pieces come in order

        def images(i: int) -> Tensor:
            k, m = group[i]
            return self.embedding.prepare(self._views(self._seen(draw, k), m, draw.augmentation[k]), network.padding)

        levels = frozenset({-1, *range(0 if first else 1, depth)})
        side = Side(passes, network, images, sizes, levels, given, keep)
        side.forward()
        loss = torch.zeros((), dtype=self.dtype, device=self.device)
        gradients: list[list[Tensor]] = [[] for _ in found]
        if group:  # else other processes have the classes of this iteration, and wait for sums
            with torch.enable_grad():
                leaves = [torch.cat(parts).requires_grad_() for parts in found]
                value = objective(leaves, slice(group[0][0].start, group[-1][0].stop))
            gradients = [list(g.split(sizes)) for g in torch.autograd.grad(value, leaves)]
            loss += value.detach()
        of_images = side.backward(
            gradients[-1],
            lambda level, i: [g[i] for g in gradients[level * maps :][:maps]][: maps * (level < depth - 1)],
        )
        for (k, m), g in zip(group, of_images, strict=True):
            with torch.enable_grad():
                seen = self._seen(draw, k).requires_grad_()
                views = self._views(seen, m, draw.augmentation[k])
            own = torch.autograd.grad(views, seen, self.embedding.unprepare(g, views, network.padding))[0]
            self.gradients[draw.rows(k)] += own
        return loss

    def _recordable(self) -> bool:
        if self.device.type != "cuda" or self.real.resident is None or self.team.size > 1:
            return False
        classes = min(self.recipe.classes_per_iteration or self.classes, self.classes)
        return self.memory is None and len(self.embedding.networks) == 1 and len(self.plan(classes).real) == 1
