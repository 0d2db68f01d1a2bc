"""What other libraries want to see of a distilled set: pictures, torch datasets, batches, transforms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import Dataset

from atomhub.core.augment import augment_batch
from atomhub.core.whitening import Normalization
from atomhub.data.pictures import to_pixels
from atomhub.errors import UsageError

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class PictureTransform:
    """Brings PIL images of any size and mode to normalised (C, H, W); a class, so that worker processes can have it."""

    size: int
    channels: int
    normalization: Normalization
    side: int | None = None

    def __call__(self, image: Image.Image) -> Tensor:
        """Return the tensor of a picture: brought to the set's size, and from there to another one.

        Raises:
            UsageError: it is no PIL image, or one whose pixels have no known range.
        """
        if not hasattr(image, "convert"):
            raise UsageError(
                f"A picture cannot be of type {type(image).__name__} here.", "Give a PIL image: `PIL.Image.fromarray`."
            )
        try:
            pixels = to_pixels(image, self.size, self.channels)
        except ValueError as error:
            raise UsageError(f"Cannot use the picture: {error}.") from None
        own = self.normalization.apply(torch.tensor(pixels))
        return own if self.side is None else resized(own[None], self.side)[0]


def resized(images: Tensor, side: int) -> Tensor:
    """Return images (N, C, side, side), bilinear."""
    return interpolate(images, (side, side), mode="bilinear", antialias=True)


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
    """Stacks samples, augments the batch by stages or a function, and resizes it; a class, so that workers can have it.

    Attributes:
        augment: Stages, or a function of a batch.
        size: Side to resize to, in pixels; None: none.
    """

    augment: Any
    size: int | None = None

    def __call__(self, samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
        """Return images (B, C, H, W) and labels (B,)."""
        images = torch.stack([image for image, _ in samples])
        labels = torch.tensor([label for _, label in samples])
        images = self.augment(images) if callable(self.augment) else augment_batch(images, self.augment)
        if self.size is not None:
            images = resized(images, self.size)
        return images, labels


def to_pil(image: Tensor) -> Image.Image:
    """Return a uint8 image (C, H, W) as PIL, mode L or RGB."""
    from PIL import Image

    array = image.permute(1, 2, 0).numpy()
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
