"""Features of real images under a network that stays as it is, found once."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from atomhub.core.real import RealImages

_CHUNK = 64
"""Most real images whose features are found together and kept."""


class Known:
    """Features of real images as they are, not augmented, found when they are first asked for.

    Args:
        real: N images.
        width: D, numbers of an image's features.
        dtype: Of the features.
        device: Where they are kept.
    """

    def __init__(self, real: RealImages, width: int, dtype: torch.dtype, device: torch.device) -> None:
        self.real = real
        self.features = torch.empty(len(real.images), width, dtype=dtype, device=device)
        self.limit(_CHUNK)

    def limit(self, most: int) -> None:
        """Find those of at most so many images together: always the same ones, so that a run goes on bit for bit."""
        self.chunk = min(_CHUNK, most)
        self.there = np.zeros(-(-len(self.features) // self.chunk), dtype=bool)

    def take(self, indices: Tensor, see: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the features (..., D) of images by their numbers; ``see`` finds those of (n, C, H, W) pixels."""
        if not self.there.all():
            chunks = np.unique(indices.cpu().numpy() // self.chunk)
            for chunk in chunks[~self.there[chunks]]:
                rows = slice(chunk * self.chunk, (chunk + 1) * self.chunk)
                self.features[rows] = see(self.real[rows])
                self.there[chunk] = True
        return self.features[indices.to(self.features.device)]
