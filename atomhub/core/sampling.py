"""What chance decides in an iteration: a function of (seed, iteration), drawn on the CPU whatever the device."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from typing import Protocol as Interface

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atomhub.core import augment, draws
from atomhub.core.real import upload
from atomhub.recipe import Recipe

_DRAWING, _AHEAD = 4, 8
"""Threads that draw for a GPU, and iterations they are ahead: a draw takes some 2 ms of a core, as an iteration may."""


@dataclass(frozen=True)
class Draw:
    """What chance decides in one iteration, for the k classes of it that this process owns.

    Attributes:
        network: Which of the recipe's networks.
        classes: (k,) int64, which of the owned classes, ascending; None: all.
        indices: (k, B) int64, rows of the real images.
        augmentation: (k, augment.DRAWS) float64 in [0, 1).
        lr: Learning rate of the images, a float64 scalar.
        weights: Of the network, see :meth:`atomhub.core.embedding.Embedding.draw`.
        trained: The same of the trained network that calibrates, where the recipe has one.
    """

    network: int
    classes: Tensor | None
    indices: Tensor
    augmentation: Tensor
    lr: Tensor
    weights: Tensor
    trained: Tensor | None

    def rows(self, part: slice) -> slice | Tensor:
        """Return the rows of the owned classes' images that a slice of the drawn classes stands for."""
        return part if self.classes is None else self.classes[part]

    def packed(self, indices: bool = True) -> Tensor:
        """Return the bytes of all its tensors, (n,) uint8; ``indices``: of the rows as well."""
        return torch.cat([part.reshape(-1).view(torch.uint8) for part in self._parts(indices).values()])

    def unpacked(self, block: Tensor, indices: bool = True) -> Draw:
        """Return it with the tensors that lie in a :meth:`packed` block, wherever that is now."""
        parts = self._parts(indices)
        own = block.split([part.nbytes for part in parts.values()])
        found = {name: b.view(p.dtype).view(p.shape) for (name, p), b in zip(parts.items(), own, strict=True)}
        return replace(self, **found)

    def on(self, device: torch.device, indices: bool = True) -> Draw:
        """Return it on the device, where it goes as one block; the rows stay on the CPU unless ``indices``."""
        if device.type == "cpu":
            return self
        draw = self
        if device.type == "mps":  # which has no float64
            draw = replace(self, augmentation=self.augmentation.float(), lr=self.lr.float())
        return draw.unpacked(upload(draw.packed(indices), device), indices)

    def _parts(self, indices: bool) -> dict[str, Tensor]:
        # those of 8 bytes a number are declared first, so that all lie where their size wants them
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {n: v for n, v in values.items() if isinstance(v, Tensor) and (indices or n != "indices")}


class Networks(Interface):
    """What the networks of a run are drawn from."""

    def draw(self, seed: int, iteration: int, trained: bool = False) -> tuple[int, Tensor, Tensor | None]:
        """Return which network, its weights, and those of the trained one (:class:`Draw` has them)."""


@dataclass(frozen=True)
class Sampler:
    """Draws iterations.

    Attributes:
        recipe: A resolved recipe.
        seed: Of the run.
        classes: K.
        owned: (k,) class numbers that this process owns.
        starts: (k,) first rows of their real images.
        counts: (k,) how many they have.
        networks: Gives the networks.
    """

    recipe: Recipe
    seed: int
    classes: int
    owned: NDArray[np.int64]
    starts: NDArray[np.int64]
    counts: NDArray[np.int64]
    networks: Networks

    def draw(self, iteration: int) -> Draw:
        """Return an iteration's draw, on the CPU; every part is keyed by class as well, but for the weights."""
        recipe, chosen = self.recipe, self._chosen(iteration)
        network, weights, trained = self.networks.draw(self.seed, iteration, bool(recipe.calibration))
        at = slice(None) if chosen is None else chosen
        owned = self.owned[at]
        u = draws.uniform(self.seed, draws.AUGMENTATION, iteration, owned[:, None], np.arange(augment.DRAWS)[None])
        members = draws.sample(self.seed, draws.REAL, iteration, owned, self.counts[at], recipe.real_batch)
        share = (1 + math.cos(math.pi * iteration / recipe.iterations)) / 2 if recipe.image_schedule == "cosine" else 1
        classes = None if chosen is None else torch.from_numpy(chosen)
        indices = torch.from_numpy(members + self.starts[at][:, None])
        lr = torch.tensor(share * (recipe.image_lr or 1.0), dtype=torch.float64)
        return Draw(network, classes, indices, torch.from_numpy(u), lr, weights, trained)

    def ahead(self, iterations: range, device: torch.device) -> Iterator[Draw]:
        """Yield the draws of some iterations, on the CPU; for a GPU they are drawn while it works."""
        if device.type != "cuda":
            yield from map(self.draw, iterations)
            return
        with ThreadPoolExecutor(_DRAWING) as pool:
            coming = deque(pool.submit(self.draw, i) for i in iterations[:_AHEAD])
            for i in range(len(iterations)):
                if i + _AHEAD < len(iterations):
                    coming.append(pool.submit(self.draw, iterations[i + _AHEAD]))
                yield coming.popleft().result()

    def _chosen(self, iteration: int) -> NDArray[np.int64] | None:
        """Return the owned classes that an iteration is about: rounds go through a permutation of all classes."""
        each = self.recipe.classes_per_iteration
        if each is None or each >= self.classes:
            return None
        turns = -(-self.classes // each)
        order = draws.sample(self.seed, draws.CLASSES, iteration // turns, [0], [self.classes], self.classes)[0]
        start = min(iteration % turns * each, self.classes - each)
        return np.flatnonzero(np.isin(self.owned, order[start : start + each]))
