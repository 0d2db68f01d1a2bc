"""What a distilled set is measured beside: as many real images, or all of them."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atomhub.core import draws
from atomhub.core.initial import herding
from atomhub.data.real import RealData
from atomhub.dataset import DistilledDataset


def random_real(distilled: DistilledDataset, real: RealData, seed: int) -> tuple[Tensor, Tensor]:
    """Return as many random real training images as the set has, normalised (N, C, H, W), with labels (N,)."""
    classes = len(real.class_names)
    offsets = real.train.offsets(classes)
    members = draws.sample(seed, draws.BASELINE, 0, range(classes), offsets[1:] - offsets[:-1], distilled.ipc)
    return _rows(distilled, real, (members + offsets[:-1, None]).flatten())


def herding_real(distilled: DistilledDataset, real: RealData) -> tuple[Tensor, Tensor]:
    """Return as many real training images as the set has, chosen by herding on normalised pixels; as random_real."""
    offsets = real.train.offsets(len(real.class_names))
    chosen = []
    for begin, end in zip(offsets, offsets[1:], strict=False):
        images = distilled.normalize(torch.tensor(real.train.images[begin:end])).flatten(1).numpy()
        chosen.append(begin + herding(images, distilled.ipc, 0))
    return _rows(distilled, real, np.concatenate(chosen))


def whole_real(distilled: DistilledDataset, real: RealData) -> tuple[Tensor, Tensor]:
    """Return the whole training set, normalised (N, C, H, W), with labels (N,)."""
    return distilled.normalize(torch.tensor(real.train.images)), torch.from_numpy(real.train.labels)


def _rows(distilled: DistilledDataset, real: RealData, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    return distilled.normalize(torch.from_numpy(real.train.images[rows])), torch.from_numpy(real.train.labels[rows])
