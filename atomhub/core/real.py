"""The real images, wherever they live."""

import mmap
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atomhub.core.whitening import Normalization


class RealImages:
    """Real images, gathered and normalised when they are asked for.

    They live on a GPU where they take at most half of its free memory, else where they are.

    Args:
        images: (N, C, H, W) uint8; may be memory-mapped and larger than memory.
        normalization: From pixels to the space of the networks.
        device: Where they are wanted.
        dtype: What they become.
        memory: Bytes of a GPU that there are for all, of which they take at most half; None: what is free.
    """

    def __init__(
        self, images: NDArray[np.uint8], normalization: Normalization, device: torch.device,
        dtype: torch.dtype = torch.float32, memory: int | None = None,
    ) -> None:  # fmt: skip
        self.device, self.dtype, self.images = device, dtype, images
        self.normalization = normalization.to(device, dtype)
        fits = device.type == "cuda" and images.nbytes < min(memory or 2**63, torch.cuda.mem_get_info(device)[0]) // 2
        self.resident = torch.from_numpy(np.array(images)).to(device) if fits else None

    def pixels(self, rows: Any) -> Tensor:
        """Return pixels (*rows.shape, C, H, W) in 0..1; ``rows`` are an array, a tensor or a slice."""
        if self.resident is not None:
            found = self.resident[upload(torch.from_numpy(rows), self.device) if isinstance(rows, np.ndarray) else rows]
        else:
            found = torch.from_numpy(self.images[rows.cpu().numpy() if isinstance(rows, Tensor) else rows].copy())
            found = upload(found, self.device)  # as bytes: a fourth of what floats would be
        return found.to(self.dtype) / 255

    def __getitem__(self, rows: Any) -> Tensor:
        """Return normalised images (*rows.shape, C, H, W)."""
        with torch.autocast(self.device.type, enabled=False):  # whitening is a product that needs float32
            return self.normalization.apply(self.pixels(rows))

    def let_go(self) -> None:
        """Take the pages of memory-mapped images that were read out of this process; the system may still keep them."""
        mapped = getattr(self.images, "_mmap", None)
        if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED)


def upload(x: Tensor, device: torch.device) -> Tensor:
    """Return a CPU tensor on the device; to a GPU through pinned memory, so that nothing waits for it."""
    if device.type != "cuda":
        return x.to(device)
    return x.detach().contiguous().pin_memory().to(device, non_blocking=True)
