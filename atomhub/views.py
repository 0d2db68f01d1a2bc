"""What other libraries want to see of a distilled set: pictures, torch datasets, batches, transforms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from atomhub.core.augment import augment_batch
from atomhub.core.whitening import Normalization
from atomhub.data.pictures import to_pixels

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class PictureTransform:
    """Brings PIL images of any size and mode to normalised (C, H, W); a class, so that worker processes can have it."""

    size: int
    channels: int
    normalization: Normalization

    def __call__(self, image: Image.Image) -> Tensor:
        """Return the tensor of a picture."""
        return self.normalization.apply(torch.tensor(to_pixels(image, self.size, self.channels)))


@dataclass(frozen=True)
class Labelled(Dataset[Any]):
    """A map-style dataset of (image, label): N tensors or pictures, transformed when asked for, and (N,) int64."""

    images: Any
    labels: Tensor
    transform: Callable[[Any], Any] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = self.images[index]
        return image if self.transform is None else self.transform(image), int(self.labels[index])


@dataclass(frozen=True)
class Collate:
    """Stacks samples and augments the batch, by stages or a function; a class, so that worker processes can have it."""

    augment: Any

    def __call__(self, samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
        """Return images (B, C, H, W) and labels (B,)."""
        images = torch.stack([image for image, _ in samples])
        labels = torch.tensor([label for _, label in samples])
        if callable(self.augment):
            return self.augment(images), labels
        return augment_batch(images, self.augment), labels


def to_pil(image: Tensor) -> Image.Image:
    """Return a uint8 image (C, H, W) as PIL, mode L or RGB."""
    from PIL import Image

    array = image.permute(1, 2, 0).numpy()
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
