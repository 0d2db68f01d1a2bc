"""What chance decides in an iteration: a function of (seed, iteration), drawn on the CPU whatever the device."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atomhub.core import augment, draws
from atomhub.core.embedding import Embedding
from atomhub.core.passes import Network
from atomhub.core.real import upload
from atomhub.recipe import Recipe


@dataclass(frozen=True)
class Draw:
    """What chance decides in one iteration, for the k classes of it that this process owns.

    Attributes:
        classes: (k,) which of the owned classes, ascending; None: all.
        indices: (k, B), rows of the real images.
        augmentation: (k, augment.DRAWS) float64 in [0, 1), on the device.
        network: The network.
        trained: The trained network that calibrates, where the recipe has one.
        lr: Learning rate of the images.
    """

    classes: NDArray[np.int64] | None
    indices: NDArray[np.int64]
    augmentation: Tensor
    network: Network
    trained: Network | None
    lr: float

    def rows(self, part: slice) -> slice | Tensor:
        """Return the rows of the owned classes' images that a slice of the drawn classes stands for."""
        if self.classes is None:
            return part
        return upload(torch.from_numpy(self.classes[part]), self.augmentation.device)


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
        embedding: Gives the networks.
        device: Where to compute.
    """

    recipe: Recipe
    seed: int
    classes: int
    owned: NDArray[np.int64]
    starts: NDArray[np.int64]
    counts: NDArray[np.int64]
    embedding: Embedding
    device: torch.device

    def draw(self, iteration: int) -> Draw:
        """Return an iteration's draw, every part of it keyed by class as well, but for the weights."""
        recipe, chosen = self.recipe, self._chosen(iteration)
        network, trained = self.embedding.draw(self.seed, iteration, bool(recipe.calibration))
        at = slice(None) if chosen is None else chosen
        owned = self.owned[at]
        u = draws.uniform(self.seed, draws.AUGMENTATION, iteration, owned[:, None], np.arange(augment.DRAWS)[None])
        members = draws.sample(self.seed, draws.REAL, iteration, owned, self.counts[at], recipe.real_batch)
        share = (1 + math.cos(math.pi * iteration / recipe.iterations)) / 2 if recipe.image_schedule == "cosine" else 1
        return Draw(
            chosen, members + self.starts[at][:, None], upload(torch.from_numpy(u), self.device), network, trained,
            share * (recipe.image_lr or 1.0),
        )  # fmt: skip

    def _chosen(self, iteration: int) -> NDArray[np.int64] | None:
        """Return the owned classes that an iteration is about: rounds go through a permutation of all classes."""
        each = self.recipe.classes_per_iteration
        if each is None or each >= self.classes:
            return None
        turns = -(-self.classes // each)
        order = draws.sample(self.seed, draws.CLASSES, iteration // turns, [0], [self.classes], self.classes)[0]
        start = min(iteration % turns * each, self.classes - each)
        return np.flatnonzero(np.isin(self.owned, order[start : start + each]))
