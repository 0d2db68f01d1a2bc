"""One iteration of attention matching, and the loop.

At every iteration: a network with fresh weights, or one of a bank; a batch of real images of every class and all
synthetic images go through it, with one augmentation draw per class; the images take one SGD step on the loss. The loss
is a sum over classes of distances between class means, so both sides are worked off in pieces that fit memory and
caches; batch norm, which couples the classes, goes level by level. Neither changes the result but for rounding.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from atomhub.core import augment, graphs, initial, mixer
from atomhub.core.bank import Bank
from atomhub.core.blocks import Kind, Moments, exact_float32
from atomhub.core.embedding import Embedding
from atomhub.core.parallel import Team
from atomhub.core.passes import Compiler, Network, Passes, Side, Store
from atomhub.core.plan import LIBRARIES, Piece, Plan, budget, length, plan, worth_compiling
from atomhub.core.real import RealImages
from atomhub.core.sampling import Draw, Networks, Sampler
from atomhub.core.synthetic import Synthetic, to_views
from atomhub.core.whitening import Normalization
from atomhub.errors import AtomhubError
from atomhub.memory import free_memory, give_back, used_memory
from atomhub.recipe import Recipe


@dataclass(frozen=True)
class Report:
    """Where a run is.

    Attributes:
        done: Iterations done.
        loss: Loss of the last iteration, before its step.
        clipped: Share of pixel values that the last step pushed out of 0..1.
    """

    done: int
    loss: float
    clipped: float


class Engine:
    """Distillation of one set, or of the classes of it that this process owns.

    Args:
        images: (N, C, H, W) uint8 real training images, sorted by class; may be memory-mapped and larger than memory.
        offsets: (K+1,) ints, images of class k are ``offsets[k]`` to ``offsets[k+1]``.
        recipe: A resolved recipe (:meth:`Recipe.resolved`).
        ipc: Synthetic images per class; times ``recipe.views_per_image``, at most the size of the smallest class.
        normalization: From pixels to the space of the networks.
        seed: Keys every random draw, with iteration and class.
        device: Where to compute.
        dtype: Precision of images, weights and loss; ``recipe.precision`` is that of the convolutions.
        memory: Bytes that this process (a GPU: its tensors) may take; None: 80 % of what is free.
        compiled: Use ``torch.compile``; None: if the run is long enough to pay for it.
        team: The processes that share the work.
        bank: The trained networks, where the recipe has a bank.
        teacher: Scores tiles, where the images start from these; without one they start from noise.

    Raises:
        AtomhubError: the memory is too small for the synthetic images that must be worked on at once.
    """

    def __init__(
        self, images: NDArray[np.uint8], offsets: NDArray[np.int64], recipe: Recipe, ipc: int,
        normalization: Normalization, seed: int = 0, device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32, *, memory: int | None = None, compiled: bool | None = None,
        team: Team | None = None, bank: Bank | None = None, teacher: initial.Teacher | None = None,
    ) -> None:  # fmt: skip
        self.device, self.dtype = torch.device(device), dtype
        self.recipe, self.ipc, self.seed, self.memory = recipe, ipc, seed, memory
        self.views = ipc * recipe.views_per_image  # images of a class that networks see
        self.team = team or Team()
        self.classes = len(offsets) - 1
        self.owned = self.team.shares(self.classes)[self.team.rank]
        bounds = np.asarray(offsets, dtype=np.int64)
        first, last = bounds[self.owned[0]], bounds[self.owned[-1] + 1]
        images = images[first:last]  # the owned classes lie together
        self.starts = bounds[:-1][self.owned] - first
        self.counts = bounds[1:][self.owned] - self.starts - first
        exact_float32(recipe.precision == "tf32")
        bf16 = recipe.precision == "bfloat16" and dtype == torch.float32
        compute = torch.bfloat16 if bf16 else dtype
        self.real = RealImages(images, normalization, self.device, dtype, memory)
        self._give_back = partial(_give_back, self.real, memory if self.device.type == "cpu" else None)
        networks = self._networks(images.shape[1:], compute, compiled, bank)
        self.sampler = Sampler(recipe, seed, self.classes, self.owned, self.starts, self.counts, networks)
        self.numbers = torch.from_numpy(self.owned).to(self.device)
        each = recipe.classes_per_iteration or self.classes
        numbers = len(self.owned) * ipc * int(np.prod(images.shape[1:]))
        resident = 3 * numbers * dtype.itemsize  # the images, their gradient, their momentum
        on_gpu = self.device.type == "cuda"
        limit = budget(memory, free_memory(self.device), used_memory(self.device), resident, 0 if on_gpu else LIBRARIES)

        @cache
        def planned(count: int) -> Plan:
            return self._planned(count, compute.itemsize, limit)

        self.plan: Callable[[int], Plan] = planned
        """Gives how the work on some classes is cut."""
        self.plan(min(each, len(self.owned)))  # now, if the memory is too small
        self.normalization = self.real.normalization
        start = initial.images(recipe, self.real, self.owned, self.starts, self.counts, ipc, seed, teacher)
        self.synthetic = Synthetic(start.to(self.device, dtype), recipe.pixels, self.normalization)
        self.gradients, self.momentum = (torch.zeros_like(self.synthetic.images.detach()) for _ in range(2))
        self._clipped = torch.zeros((), device=self.device)

    def _networks(
        self, shape: tuple[int, int, int], compute: torch.dtype, compiled: bool | None, bank: Bank | None
    ) -> Networks:
        """Return what networks are drawn from, and set up how they work on images of a shape."""
        recipe, classes, (channels, size, _) = self.recipe, self.classes, shape
        if compiled is None:
            compiled = worth_compiling(recipe, classes, self.ipc, channels, size, self.device)
        self.compiler = Compiler(compiled and self.dtype == torch.float32)
        add = self.team.add if self.team.size > 1 else None
        kind = Kind(recipe.norm, recipe.power, bool(recipe.spatial), bool(recipe.channel))
        self.passes = Passes(kind, self.compiler, add, self._give_back)
        self.calibration = Passes(Kind(recipe.norm, 1.0, False, False), self.compiler, add, self._give_back)
        self.embedding = Embedding(recipe, channels, classes, size, self.dtype, compute, bank)
        return self.embedding

    def _planned(self, count: int, itemsize: int, limit: int) -> Plan:
        """Return how the work on some classes is cut so that it fits a limit of bytes."""
        largest = max(self.embedding.networks, key=lambda n: (n.convolutions[0].out_channels, n.depth))
        return plan(self.recipe, largest, count, self.views, itemsize, limit, self.device, self.memory)

    def draw(self, iteration: int) -> Draw:
        """Return what chance decides in an iteration; calls may come in any order."""
        return self.placed(self.sampler.draw(iteration))

    def placed(self, draw: Draw) -> Draw:
        """Return a draw on the device, but for rows of real images that are not there."""
        return draw.on(self.device, self.real.resident is not None)

    def gradient(self, iteration: int) -> Tensor:
        """Write the gradient of an iteration's loss into ``gradients``; return the loss, a scalar."""
        draw = self.draw(iteration)
        return self._gradient(draw, self.real_side(draw))

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
        """Return what is to be matched of the real images of a draw (shapes: :data:`atomhub.core.graphs.Targets`)."""
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

    def _seen(self, draw: Draw, k: slice) -> Tensor:
        """Return the synthetic images of some of the drawn classes, as networks see them, (k, ipc, C, H, W)."""
        return self.synthetic.seen(draw.rows(k))

    def _views(self, images: Tensor, m: slice, u: Tensor) -> Tensor:
        """Return some views of every class, augmented, (k*m, C, H, W)."""
        views = to_views(images, self.recipe.formation)[:, m]
        return augment.augment(views, u, self.recipe.stages).flatten(0, 1)

    def step(self, iteration: int) -> Tensor:
        """Take one SGD step on the synthetic images of an iteration's classes; return the loss before it, a scalar."""
        return self._step(self.sampler.draw(iteration))

    def _step(self, draw: Draw) -> Tensor:
        here = self.placed(draw)
        return self.synthetic_side(here, self.real_side(here))

    def _recordable(self) -> bool:
        """Whether all iterations are of one shape, wait for nobody, and are so small that asking for them counts."""
        if self.device.type != "cuda" or self.real.resident is None or self.team.size > 1:
            return False
        classes = min(self.recipe.classes_per_iteration or self.classes, self.classes)
        return self.memory is None and len(self.embedding.networks) == 1 and len(self.plan(classes).real) == 1

    def _losses(self, iterations: range) -> Iterator[Tensor]:
        """Take the steps of some iterations; yield the loss of each."""
        draws = self.sampler.ahead(iterations, self.device)
        if self._recordable():
            for draw in islice(draws, graphs.WARM):
                yield self._step(draw)
            for draw in islice(draws, 1):
                pipeline = graphs.attempt(partial(graphs.Pipeline, self, self.placed(draw)))
                if pipeline is not None:
                    yield from pipeline.run(draws)
                    return
                yield self._step(draw)
        for draw in draws:
            yield self._step(draw)

    @torch.no_grad()
    def synthetic_side(self, draw: Draw, targets: graphs.Targets) -> Tensor:
        """Take the step of a draw, given what :meth:`real_side` found for it; return the loss before it, a scalar."""
        loss = self._gradient(draw, targets)
        images, gradient = self.synthetic.images, self.gradients
        outside = torch.zeros((), device=self.device)
        for k in self.plan(len(draw.indices)).spans:
            rows = draw.rows(k)
            self.momentum[rows] = self.recipe.image_momentum * self.momentum[rows] + gradient[rows]
            images[rows] -= draw.lr * self.momentum[rows]
            outside += self.synthetic.project(rows)
        self._clipped.copy_(outside / max(1, len(draw.indices) * images[0].numel()))
        return loss

    def run(self, start: int = 0, report_every: int = 10, stop: Callable[[], bool] = lambda: False) -> Iterator[Report]:
        """Run the iterations of the recipe from ``start``; report now and then, at the end, and when it is to stop.

        Args:
            start: Iterations done before.
            report_every: Iterations between reports.
            stop: Asked once after every iteration.

        Raises:
            AtomhubError: the loss is not finite.
        """
        for done, loss in enumerate(self._losses(range(start, self.recipe.iterations)), start + 1):
            stopping = stop()
            if done % report_every == 0 or done in (1, self.recipe.iterations) or stopping:
                value = float(loss)
                if not np.isfinite(value):
                    raise AtomhubError(
                        f"The loss is {value} at iteration {done}.",
                        "The images diverged: lower image_lr, loss_scale or power (recipe fields).",
                    )
                yield Report(done, value, float(self._clipped))

    def state(self) -> dict[str, Tensor]:
        """Return what a run continues from, for all classes: ``images`` and ``momentum``, (K, ipc, C, H, W) on CPU."""
        return {
            "images": self.team.gather(self.synthetic.images.detach(), self.classes),
            "momentum": self.team.gather(self.momentum, self.classes),
        }

    @torch.no_grad()
    def restore(self, state: dict[str, Tensor]) -> None:
        """Continue from a :meth:`state`, bit for bit."""
        self.synthetic.images.copy_(state["images"][self.owned])
        self.momentum.copy_(state["momentum"][self.owned])


def _give_back(real: RealImages, memory: int | None, share: float = 1) -> None:
    """Give back what a CPU's work has freed and what was read of files, where more than a share of a limit is taken."""
    if memory is not None and used_memory(real.device) + LIBRARIES > memory * share:
        real.let_go()
        give_back()
