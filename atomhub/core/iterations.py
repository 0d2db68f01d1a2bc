"""The iterations of attention matching: what does not depend on the networks, and the loop.

At every iteration: a network with fresh weights, or one of a bank; a batch of real images of every class and all
synthetic images go through it, with one augmentation draw per class; the images take one step on the loss.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atomhub.core import augment, graphs, initial
from atomhub.core.bank import Bank
from atomhub.core.blocks import exact_float32
from atomhub.core.parallel import Team
from atomhub.core.passes import Compiler
from atomhub.core.plan import LIBRARIES, Plan, budget
from atomhub.core.real import RealImages
from atomhub.core.sampling import Draw, Networks, Sampler
from atomhub.core.steps import Steps
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


class Iterations(ABC):
    """Distillation of one set, or of the classes of it that this process owns: what all kinds of networks share.

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
        teacher: Chooses the images to start from, where a network does; without one they start from noise.

    Raises:
        AtomhubError: the memory is too small for the synthetic images that must be worked on at once.
    """

    compiler: Compiler
    """What is compiled, or not."""

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
        self.all_counts = torch.from_numpy(bounds[1:] - bounds[:-1]).to(self.device)
        each = recipe.classes_per_iteration or self.classes
        numbers = len(self.owned) * ipc * int(np.prod(images.shape[1:]))
        resident = dtype.itemsize * int((2 + Steps.held(recipe, images.shape[-1])) * numbers)  # images, gradient, steps
        on_gpu = self.device.type == "cuda"
        limit = budget(memory, free_memory(self.device), used_memory(self.device), resident, 0 if on_gpu else LIBRARIES)

        self._plans, self._fits = dict[int, Plan](), (compute.itemsize, limit)
        self.plan(min(each, len(self.owned)))  # now, if the memory is too small
        self.normalization = self.real.normalization
        start = initial.images(recipe, self.real, self.owned, self.starts, self.counts, ipc, seed, teacher)
        self.synthetic = Synthetic(start.to(self.device, dtype), recipe.pixels, self.normalization)
        self.gradients = torch.zeros_like(self.synthetic.images.detach())
        self.steps = Steps(recipe, self.synthetic.images)
        self._clipped = torch.zeros((), device=self.device)

    def plan(self, count: int) -> Plan:
        """Return how the work on some classes is cut."""
        if count not in self._plans:
            self._plans[count] = self._planned(count, *self._fits)
        return self._plans[count]

    @abstractmethod
    def _networks(
        self, shape: tuple[int, int, int], compute: torch.dtype, compiled: bool | None, bank: Bank | None
    ) -> Networks:
        """Return what networks are drawn from, and set up how they work on images of a shape (C, H, W)."""

    @abstractmethod
    def _planned(self, count: int, itemsize: int, limit: int) -> Plan:
        """Return how the work on some classes is cut so that it fits a limit of bytes."""

    @abstractmethod
    def real_side(self, draw: Draw) -> graphs.Targets:
        """Return what is to be matched of the real images of a draw (shapes: :data:`atomhub.core.graphs.Targets`)."""

    @abstractmethod
    def _gradient(self, draw: Draw, targets: graphs.Targets) -> Tensor:
        """Write the gradient of a draw's loss into ``gradients``; return the loss, a scalar."""

    def _recordable(self) -> bool:
        """Whether all iterations are of one shape, wait for nobody, and are so small that asking for them counts."""
        return False

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

    def _seen(self, draw: Draw, k: slice) -> Tensor:
        """Return the synthetic images of some of the drawn classes, as networks see them, (k, ipc, C, H, W)."""
        return self.synthetic.seen(draw.rows(k))

    def _views(self, images: Tensor, m: slice, u: Tensor) -> Tensor:
        """Return some views of every class, augmented, (k*m, C, H, W)."""
        views = to_views(images, self.recipe.formation)[:, m]
        return augment.augment(views, u, self.recipe.stages).flatten(0, 1)

    def step(self, iteration: int) -> Tensor:
        """Take one step on the synthetic images of an iteration's classes; return the loss before it, a scalar."""
        return self._step(self.sampler.draw(iteration))

    def _step(self, draw: Draw) -> Tensor:
        here = self.placed(draw)
        return self.synthetic_side(here, self.real_side(here))

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
            images[rows] -= draw.lr * self.steps.take(rows, gradient[rows])
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
        """Return what a run continues from, for all classes, on the CPU.

        ``images`` (K, ipc, C, H, W), and what :class:`atomhub.core.steps.Steps` remembers.
        """
        own = {"images": self.synthetic.images.detach(), **self.steps.state}
        return {name: self.team.gather(tensor, self.classes) for name, tensor in own.items()}

    @torch.no_grad()
    def restore(self, state: dict[str, Tensor]) -> None:
        """Continue from a :meth:`state`, bit for bit."""
        self.synthetic.images.copy_(state["images"][self.owned])
        for name, tensor in self.steps.state.items():
            tensor.copy_(state[name][self.owned])


def _give_back(real: RealImages, memory: int | None, share: float = 1) -> None:
    """Give back what a CPU's work has freed and what was read of files, where more than a share of a limit is taken."""
    if memory is not None and used_memory(real.device) + LIBRARIES > memory * share:
        real.let_go()
        give_back()
