"""Features of real images under a network that stays as it is, found once."""

import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from atomhub.core.plan import Piece
from atomhub.core.real import RealImages
from atomhub.errors import AtomhubWarning

_CHUNK = 64
"""Most real images whose features are found together and kept."""


class Known:
    """Features of real images as they are, not augmented: where they are kept, found when they are first asked for.

    Attributes:
        held: Bytes of those that are kept; 0: none are.

    Args:
        real: N images.
        width: D, numbers of an image's features.
        dtype: Of the features.
        device: Where they are kept.
    """

    def __init__(self, real: RealImages, width: int, dtype: torch.dtype, device: torch.device) -> None:
        self.real, self.held = real, 0
        self.features = torch.empty(0, width, dtype=dtype, device=device)

    def keep(self, room: int, asked: int, aloud: bool) -> None:
        """Keep them from now on if ``room`` bytes are enough, else say what that costs.

        Args:
            room: Bytes.
            asked: Images that are asked for at an iteration.
            aloud: Whether to say it.
        """
        count, width = len(self.real.images), self.features.shape[1]
        needed = count * width * self.features.itemsize
        if needed <= room:
            self.held, self.features = needed, self.features.new_empty(count, width)
        elif aloud:
            note = (
                f"Features of all real images need {needed / 2**20:.1f} MiB, for which there is no room: those of "
                f"{asked} are found at every iteration. That takes longer; give more memory, or a smaller real_batch."
            )
            warnings.warn(note, AtomhubWarning, stacklevel=2)

    def limit(self, most: int) -> None:
        """Find those of at most so many images together: always the same ones, so that a run goes on bit for bit."""
        self.chunk = min(_CHUNK, most)
        self.there = np.zeros(-(-len(self.features) // self.chunk), dtype=bool)

    def take(self, indices: Tensor, parts: Sequence[Piece], see: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the features (k, B, D) of images by their numbers (k, B).

        Args:
            indices: Numbers of images.
            parts: Of them, which are found together where they are not kept.
            see: Finds those of (n, C, H, W) pixels.
        """
        if not self.held:
            found = self.features.new_empty(*indices.shape, self.features.shape[1])
            for k, m in parts:
                found[k, m] = see(self.real[indices[k, m]].flatten(0, 1)).view_as(found[k, m])
            return found
        if not self.there.all():
            chunks = np.unique(indices.cpu().numpy() // self.chunk)
            for chunk in chunks[~self.there[chunks]]:
                rows = slice(chunk * self.chunk, (chunk + 1) * self.chunk)
                self.features[rows] = see(self.real[rows])
                self.there[chunk] = True
        return self.features[indices.to(self.features.device)]
