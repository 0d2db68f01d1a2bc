"""One iteration of attention matching, and the loop.

At every iteration: a network with fresh weights; a batch of real images of every class and all synthetic images go
through it, each side in one forward, with one augmentation draw per class; the images take one SGD step on the loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from atomhub.core import draws, mixer, siamese
from atomhub.core.networks import ConvNet
from atomhub.core.synthetic import Synthetic
from atomhub.core.whitening import Normalization
from atomhub.errors import AtomhubError
from atomhub.recipe import Recipe


@dataclass(frozen=True)
class Draw:
    """What chance decides in one iteration.

    Attributes:
        indices: (K, B) int64, rows of the real images.
        augmentation: (K, siamese.DRAWS) float in [0, 1).
    """

    indices: Tensor
    augmentation: Tensor


class Engine:
    """Distillation of one set.

    Args:
        images: (N, C, H, W) uint8 real training images, sorted by class; may be memory-mapped.
        offsets: (K+1,) ints, images of class k are ``offsets[k]`` to ``offsets[k+1]``.
        recipe: A resolved recipe (:meth:`Recipe.resolved`).
        ipc: Synthetic images a class, at most the size of the smallest class.
        normalization: From pixels to the space of the networks.
        seed: Keys every random draw, with iteration and class.
        device: Where to compute.
        dtype: Precision of the computation.
    """

    def __init__(
        self,
        images: Tensor,
        offsets: np.ndarray,
        recipe: Recipe,
        ipc: int,
        normalization: Normalization,
        seed: int = 0,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.device, self.dtype = torch.device(device), dtype
        self.real = images.to(self.device) if _fits(images, self.device) else images
        self.starts = np.asarray(offsets[:-1], dtype=np.int64)
        self.counts = np.diff(np.asarray(offsets, dtype=np.int64))
        self.recipe, self.ipc, self.seed, self.normalization = recipe, ipc, seed, normalization
        self.classes = len(self.counts)
        self.network = ConvNet(
            images.shape[1], self.classes, images.shape[-1], recipe.width, recipe.depth, recipe.norm
        ).to(self.device, dtype)
        self.network.to(memory_format=torch.channels_last)
        self.network.requires_grad_(False)
        self.generator = torch.Generator(self.device)
        self.synthetic = Synthetic(self._initial(), recipe.pixels, normalization)
        self.optimizer = torch.optim.SGD(
            self.synthetic.parameters(), lr=recipe.image_lr or 1.0, momentum=recipe.image_momentum
        )

    def _initial(self) -> Tensor:
        """Return (K, ipc, C, H, W) float pixels in 0..1 to start from: random real images, or noise."""
        if self.recipe.init == "real":
            pixels = self._pixels(self._rows(draws.INIT, 0, self.ipc)) / 255
        else:
            shape = (self.ipc, *self.real.shape[1:])
            ids = np.arange(self.classes)[:, None]
            flat = draws.uniform(self.seed, draws.NOISE, 0, ids, np.arange(np.prod(shape))[None])
            pixels = torch.from_numpy(flat).view(self.classes, *shape)
        return pixels.to(self.device, self.dtype)

    def _rows(self, stream: int, iteration: int, count: int) -> Tensor:
        """Draw ``count`` images of every class: (K, count) rows of the real images."""
        members = draws.sample(self.seed, stream, iteration, np.arange(self.classes), self.counts, count)
        return torch.from_numpy(members + self.starts[:, None])

    def _pixels(self, rows: Tensor) -> Tensor:
        """Gather real pixels (K, M, C, H, W) as float in 0..255."""
        pixels = self.real[rows.flatten().to(self.real.device)].to(self.device, self.dtype)
        return pixels.view(*rows.shape, *self.real.shape[1:])

    def draw(self, iteration: int) -> Draw:
        """Return the real batch and the augmentation of an iteration, and give the network its weights.

        Every draw is keyed by (seed, iteration) and, but for the weights, by class: calls may come in any order.
        """
        ids = np.arange(self.classes)[:, None]
        u = draws.uniform(self.seed, draws.AUGMENTATION, iteration, ids, np.arange(siamese.DRAWS)[None])
        self.generator.manual_seed(draws.generator_seed(self.seed, draws.WEIGHTS, iteration))
        self.network.reinitialise(self.generator)
        return Draw(self._rows(draws.REAL, iteration, self.recipe.real_batch), torch.from_numpy(u))

    def loss(self, iteration: int) -> Tensor:
        """Return the loss of an iteration, a scalar differentiable in the synthetic images."""
        draw = self.draw(iteration)
        with torch.no_grad():
            real = self._statistics(self.normalization.apply(self._pixels(draw.indices) / 255), draw)
        return mixer.loss(real, self._statistics(self.synthetic(), draw), self.recipe)

    def _statistics(self, images: Tensor, draw: Draw) -> mixer.Statistics:
        """Augment normalised images (K, M, C, H, W) and reduce them to class statistics."""
        images = siamese.augment(images, draw.augmentation, self.recipe.augmentation).flatten(0, 1)
        images = images.contiguous(memory_format=torch.channels_last)
        return mixer.statistics(self.network, images, self.classes, self.recipe)

    def step(self, iteration: int) -> Tensor:
        """Take one SGD step on the synthetic images; return the loss before it, a detached scalar."""
        self.optimizer.zero_grad()
        loss = self.loss(iteration)
        loss.backward()
        self.optimizer.step()
        self.synthetic.project()
        return loss.detach()

    def run(self, report_every: int = 10) -> Iterator[tuple[int, float]]:
        """Run all iterations of the recipe; yield (iterations done, loss) now and then and at the end.

        Raises:
            AtomhubError: the loss is not finite.
        """
        for iteration in range(self.recipe.iterations):
            loss = self.step(iteration)
            done = iteration + 1
            if done % report_every == 0 or done in (1, self.recipe.iterations):
                value = float(loss)
                if not np.isfinite(value):
                    raise AtomhubError(
                        f"The loss is {value} at iteration {done}.",
                        "The images diverged: lower image_lr, loss_scale or power (--set image_lr=...).",
                    )
                yield done, value


def _fits(images: Tensor, device: torch.device) -> bool:
    """Whether the real images may live on the device: at most half of its free memory."""
    return device.type == "cuda" and images.nbytes < torch.cuda.mem_get_info(device)[0] // 2
