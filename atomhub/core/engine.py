"""One iteration of attention matching, and the loop.

At every iteration: a network with fresh weights, or one of a bank; a batch of real images of every class and all
synthetic images go through it, with one augmentation draw per class; the images take one SGD step on the loss. The loss
is a sum over classes of distances between class means, so both sides are worked off in pieces that fit memory and
caches: real images in any pieces, synthetic ones class by class. Batch norm couples the classes and keeps the synthetic
side in one piece.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from atomhub.core import augment, draws, initial, mixer
from atomhub.core.bank import Bank
from atomhub.core.embedding import Embedding, Moments
from atomhub.core.parallel import Team
from atomhub.core.plan import fits, piece, slices, worth_compiling
from atomhub.core.synthetic import Synthetic, from_views, to_views
from atomhub.core.whitening import Normalization
from atomhub.errors import AtomhubError
from atomhub.recipe import Recipe

_PIECE = 10 * 2**20
"""Bytes of a feature map that a piece of work aims at on a CPU, where it should stay in the caches."""
_GATHERED = 2048
"""Images that are gathered and augmented at once."""


@dataclass(frozen=True)
class Draw:
    """What chance decides in one iteration, for k classes.

    Attributes:
        indices: (k, B), rows of the real images.
        augmentation: (k, augment.DRAWS) float in [0, 1).
    """

    indices: NDArray[np.int64]
    augmentation: Tensor


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
        memory: Bytes that the work of an iteration may take; None: as fast as possible.
        compiled: Use ``torch.compile``; None: if the run is long enough to pay for it.
        team: The processes that share the work.
        bank: The trained networks, where the recipe has a bank.

    Raises:
        AtomhubError: the memory is too small for one class of synthetic images.
    """

    def __init__(
        self, images: NDArray[np.uint8], offsets: NDArray[np.int64], recipe: Recipe, ipc: int,
        normalization: Normalization, seed: int = 0, device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32, *, memory: int | None = None, compiled: bool | None = None,
        team: Team | None = None, bank: Bank | None = None,
    ) -> None:  # fmt: skip
        self.device, self.dtype = torch.device(device), dtype
        self.recipe, self.ipc, self.seed, self.memory = recipe, ipc, seed, memory
        self.views = ipc * recipe.views_per_image  # images of a class that networks see
        self.team = team or Team()
        self.classes = len(offsets) - 1
        self.owned = self.team.shares(self.classes)[self.team.rank]
        bounds = np.asarray(offsets, dtype=np.int64)
        self.starts = bounds[:-1][self.owned]
        self.counts = bounds[1:][self.owned] - self.starts
        self.normalization = normalization.to(self.device, dtype)
        channels, size = images.shape[1], images.shape[-1]
        if compiled is None:
            compiled = worth_compiling(recipe, self.classes, ipc, channels, size)
        bf16 = recipe.precision == "bfloat16" and dtype == torch.float32
        self.embedding = Embedding(
            recipe, channels, self.classes, size, self.device, dtype, torch.bfloat16 if bf16 else dtype,
            compiled and dtype == torch.float32, self.team.add if self.team.size > 1 else None, bank,
        )  # fmt: skip
        width = max(recipe.widths or (recipe.width,))
        self._map = width * (size + self.embedding.network.padding) ** 2 * (2 if bf16 else 4)
        self.real = images
        self.resident = torch.from_numpy(np.array(images)).to(self.device) if fits(images, self.device) else None
        start = self._initial().to(self.device, dtype)
        self.synthetic = Synthetic(start, recipe.pixels, self.normalization)
        self.synthetic.images.grad = torch.zeros_like(self.synthetic.images)
        self.optimizer = torch.optim.SGD(
            self.synthetic.parameters(), lr=recipe.image_lr or 1.0, momentum=recipe.image_momentum
        )
        self._clipped = torch.zeros(())
        self.groups = self._groups()

    def _initial(self) -> Tensor:
        """Return (k, ipc, C, H, W) float pixels in 0..1 to start from."""
        if self.recipe.init == "noise":
            shape = (self.ipc, *self.real.shape[1:])
            flat = draws.uniform(self.seed, draws.NOISE, 0, self.owned[:, None], np.arange(np.prod(shape))[None])
            return torch.from_numpy(flat).view(len(self.owned), *shape)

        def flattened(k: int) -> NDArray[np.float32]:
            start = int(np.searchsorted(self.owned, k))
            pixels = self._pixels(self.starts[start] + np.arange(self.counts[start])) / 255
            return self.normalization.apply(pixels).flatten(1).float().cpu().numpy()

        rows = initial.rows(self.recipe.init, flattened, self.owned, self.counts, self.views, self.seed)
        return from_views(self._pixels(rows + self.starts[:, None]) / 255, self.recipe.formation)

    def _groups(self) -> list[slice]:
        """Return the classes whose synthetic images go through the network together, keeping what a gradient needs."""
        count = len(self.owned)
        if self.recipe.norm == "batch":
            need = 10 * self._map * self.views * count
            if self.memory is not None and need > self.memory:
                raise AtomhubError(
                    f"The memory of {self.memory / 2**30:.2g} GiB is too small for all {count * self.views} synthetic "
                    "images, which batch norm needs at once.",
                    f'Give `memory="{need / 2**30:.2g}GiB"`, or normalise image by image (recipe field norm=instance).',
                )
            return [slice(0, count)]
        need = 10 * self._map * self.views  # the maps of a block and of the smaller ones after it, and their gradients
        if self.memory is not None and need > self.memory:
            raise AtomhubError(
                f"The memory of {self.memory / 2**30:.2g} GiB is too small for one class of {self.views} images.",
                f'Give `memory="{need / 2**30:.2g}GiB"`, or lower the recipe field width.',
            )
        wanted = _PIECE if self.device.type == "cpu" else 4 * 2**30
        together = min(wanted // self._map, (self.memory or need * count) // (10 * self._map)) // self.views
        size = piece(count, max(1, together))
        return [slice(i, min(i + size, count)) for i in range(0, count, size)]

    def _real_piece(self, total: int) -> int:
        """Return how many of ``total`` real images go through the network together."""
        wanted = _PIECE if self.device.type == "cpu" else 4 * 2**30
        if self.recipe.norm == "batch":
            wanted = total * self._map  # pieces would need a pass for every layer's statistics
        return piece(total, max(1, min(wanted, (self.memory or wanted * 8) // 8) // self._map))

    def _pixels(self, rows: NDArray[np.int64]) -> Tensor:
        """Gather real pixels (*rows.shape, C, H, W) as float in 0..255."""
        if self.resident is None:
            return torch.from_numpy(self.real[rows]).to(self.device, self.dtype)
        return self.resident[torch.from_numpy(rows).to(self.device)].to(self.dtype)

    def draw(self, iteration: int) -> Draw:
        """Return the real batch and the augmentation of an iteration, and give the network its weights.

        Every draw is keyed by (seed, iteration) and, but for the weights, by class: calls may come in any order.
        """
        self.embedding.draw(self.seed, iteration)
        u = draws.uniform(self.seed, draws.AUGMENTATION, iteration, self.owned[:, None], np.arange(augment.DRAWS)[None])
        batch = self.recipe.real_batch
        members = draws.sample(self.seed, draws.REAL, iteration, self.owned, self.counts, batch)
        return Draw(members + self.starts[:, None], torch.from_numpy(u))

    def gradient(self, iteration: int) -> Tensor:
        """Write the gradient of an iteration's loss into ``synthetic.images.grad``; return the loss, a scalar."""
        draw = self.draw(iteration)
        real, moments = self._real_means(draw)
        total = torch.zeros((), dtype=self.dtype, device=self.device)
        gradient = self.synthetic.images.grad
        if gradient is None:
            raise AssertionError("the gradient is kept")
        for group in self.groups:
            images, augmented = self._augmented(group, draw)
            found, _ = self.embedding(augmented, moments)
            synthetic = [v.view(-1, self.views, v.shape[-1]).mean(1) for v in found]
            loss = mixer.loss([r[group] for r in real], synthetic, self.recipe, self.embedding.network.depth)
            gradient[group] = torch.autograd.grad(loss, images)[0]
            total += loss.detach()
        if self.recipe.calibration:
            self.embedding.train()
            for group in self.groups:
                images, augmented = self._augmented(group, draw)
                wanted = torch.from_numpy(self.owned[group]).to(self.device).repeat_interleave(self.views)
                loss = F.cross_entropy(self.embedding.logits(augmented), wanted, reduction="sum") / self.views
                loss = self.recipe.loss_scale * self.recipe.calibration * loss
                gradient[group] += torch.autograd.grad(loss, images)[0]
                total += loss.detach()
        return total

    def _augmented(self, group: slice, draw: Draw) -> tuple[Tensor, Tensor]:
        """Return synthetic images of some classes (k, ipc, C, H, W), and their augmented views (k*views, C, H, W)."""
        images = self.synthetic.seen(group).requires_grad_()
        views = to_views(images, self.recipe.formation)
        return images, augment.augment(views, draw.augmentation[group], self.recipe.augmentation).flatten(0, 1)

    @torch.no_grad()
    def _real_means(self, draw: Draw) -> tuple[list[Tensor], list[Moments] | None]:
        """Return the class means (k, D) of what is matched of the real images, and the statistics for synthetic ones.

        The latter are None where synthetic images are normalised by their own.
        """
        total = draw.indices.size
        shared = self.recipe.norm == "batch" and self.recipe.statistics == "real"
        moments = None
        # with a limit, processes of fewer classes must not be the only ones without pieces: they exchange sums
        pieces = self._real_piece(total) < total or (self.memory is not None and self.team.size > 1)
        if self.recipe.norm == "batch" and pieces:
            moments = self.embedding.moments(lambda: (images for _, images in self._real_batches(draw)))
        sums: list[Tensor] = []
        for classes, images in self._real_batches(draw):
            found, used = self.embedding(images, moments, shared)
            sums = sums or [v.new_zeros(len(self.owned), v.shape[-1]) for v in found]
            own = (classes == torch.arange(len(self.owned))[:, None]).to(self.device, found[0].dtype)
            for s, v in zip(sums, found, strict=True):
                s.addmm_(own, v)  # the same order of summation every time, unlike a scatter on a GPU
        return [s / draw.indices.shape[1] for s in sums], used if shared else None

    def _real_batches(self, draw: Draw) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield pieces of the real batch: (n,) positions of their classes, and augmented images (n, C, H, W)."""
        count, batch = draw.indices.shape
        size = self._real_piece(count * batch)
        pixels = 16 * int(np.prod(self.real.shape[1:]))  # bytes of an image as it is gathered and augmented
        gathered = max(size, _GATHERED if self.memory is None else min(_GATHERED, self.memory // 8 // pixels))
        for k in slices(count, max(1, gathered // batch)):
            for m in slices(batch, gathered):
                rows = draw.indices[k, m]
                images = self.normalization.apply(self._pixels(rows) / 255)
                images = augment.augment(images, draw.augmentation[k], self.recipe.augmentation).flatten(0, 1)
                classes = torch.arange(k.start, k.stop).repeat_interleave(rows.shape[1])
                size = piece(len(images), size)
                yield from zip(classes.split(size), images.split(size), strict=True)

    def step(self, iteration: int) -> Tensor:
        """Take one SGD step on the synthetic images; return the loss before it, a scalar."""
        loss = self.gradient(iteration)
        if self.recipe.image_schedule == "cosine":
            share = (1 + math.cos(math.pi * iteration / self.recipe.iterations)) / 2
            self.optimizer.param_groups[0]["lr"] = share * (self.recipe.image_lr or 1.0)
        self.optimizer.step()
        self._clipped = self.synthetic.project()
        return loss

    def run(self, start: int = 0, report_every: int = 10, stop: Callable[[], bool] = lambda: False) -> Iterator[Report]:
        """Run the iterations of the recipe from ``start``; report now and then, at the end, and when it is to stop.

        Raises:
            AtomhubError: the loss is not finite.
        """
        for iteration in range(start, self.recipe.iterations):
            loss = self.step(iteration)
            done = iteration + 1
            if done % report_every == 0 or done in (1, self.recipe.iterations) or stop():
                value = float(loss)
                if not np.isfinite(value):
                    raise AtomhubError(
                        f"The loss is {value} at iteration {done}.",
                        "The images diverged: lower image_lr, loss_scale or power (recipe fields).",
                    )
                yield Report(done, value, float(self._clipped))

    def state(self) -> dict[str, Tensor]:
        """Return what a run continues from, for all classes: ``images`` and ``momentum``, (K, ipc, C, H, W) on CPU."""
        momentum = self.optimizer.state[self.synthetic.images].get("momentum_buffer")
        images = self.synthetic.images.detach()
        momentum = torch.zeros_like(images) if momentum is None else momentum
        return {"images": self.team.gather(images, self.classes), "momentum": self.team.gather(momentum, self.classes)}

    @torch.no_grad()
    def restore(self, state: dict[str, Tensor]) -> None:
        """Continue from a :meth:`state`, bit for bit."""
        self.synthetic.images.copy_(state["images"][self.owned])
        self.optimizer.state[self.synthetic.images]["momentum_buffer"] = (
            state["momentum"][self.owned].to(self.device, self.dtype).clone()
        )
