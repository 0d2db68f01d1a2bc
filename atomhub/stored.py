"""Labels that travel: what a teacher made of every augmented batch of some epochs, and the batches again from that.

Source: FKD (Shen & Xing, ECCV 2022); in dataset distillation SRe2L (NeurIPS 2023) and RDED (CVPR 2024).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.utils.data import IterableDataset

from atomhub.core import augment, cutmix
from atomhub.errors import IntegrityError
from atomhub.limits import parse_json
from atomhub.views import resized


def batch_sizes(count: int, batch: int) -> list[int]:
    """Return the sizes of an epoch's batches; a last one of a single image, too few for batch norm, joins another."""
    sizes = [min(batch, count - start) for start in range(0, count, batch)]
    if len(sizes) > 1 and sizes[-1] == 1:
        sizes[-2:] = [sizes[-2] + 1]
    return sizes


@dataclass(frozen=True, eq=False)
class StoredLabels:
    """How the N training images of a set were augmented and mixed in E epochs, and a teacher's logits of K classes.

    Rows are in the order in which an epoch had the images. On each, the operations follow in the order of the fields.

    Attributes:
        order: (E, N) int32: which image it is.
        quarters: (E, N, 4) uint8: which quarter came to each place, row by row; all in place where sides are odd.
        parts: (E, N, 4) float32: what was enlarged to the whole, bilinear, as left, top, width, height in shares of
            the sides.
        mirrored: (E, N) uint8: 1 where it was mirrored.
        partners: (E, N) int32: the place in its batch of the image that it got a box of (CutMix).
        boxes: (E, T, 4) int16: the box of each of the T batches: left, right, top, bottom in pixels.
        logits: (E, N, K) float16: what the teacher made of the result.
        batch: Images in a batch.
        passed: How many passes over loaders there were: each has the next epoch.
    """

    order: Tensor
    quarters: Tensor
    parts: Tensor
    mirrored: Tensor
    partners: Tensor
    boxes: Tensor
    logits: Tensor
    batch: int
    passed: list[int] = field(default_factory=lambda: [0])

    @property
    def epochs(self) -> int:
        """Epochs that are stored."""
        return len(self.order)

    def epoch(self, images: Any, epoch: int, networks: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of an epoch: augmented and mixed images (R, B, C, H, W), and logits (R, B, K).

        Args:
            images: The set's N training images, normalised, (N, C, H, W).
            epoch: Counted from 0; after the last the first comes again.
            networks: R: how many have the same batches.
        """
        e, start = epoch % self.epochs, 0
        for t, size in enumerate(batch_sizes(self.order.shape[1], self.batch)):
            rows = slice(start, start := start + size)
            logits = self.logits[e, rows].to(images.device)
            batch = self._images(images, e, t, rows)
            yield batch.expand(networks, *batch.shape), logits.expand(networks, *logits.shape)

    def _images(self, images: Any, e: int, t: int, rows: slice) -> Tensor:
        where = images.device
        batch = images[self.order[e, rows].long().to(where)][:, None]
        batch = augment.arrange(batch, self.quarters[e, rows].long().to(where))
        batch = augment.enlarge(batch, self.parts[e, rows].to(batch))[:, 0]
        batch = torch.where(self.mirrored[e, rows].bool().to(where).view(-1, 1, 1, 1), batch.flip(-1), batch)
        nothing = batch.new_zeros(1, len(batch), 1)
        partners = self.partners[e, rows].long().to(where)[None]
        return cutmix.paste(batch[None], nothing, self.boxes[e, t : t + 1].long().to(where), partners)[0][0]

    def content(self) -> bytes:
        """Return them as a safetensors file."""
        about = json.dumps({"batch": self.batch})
        return save({name: getattr(self, name).contiguous() for name in TYPES}, {"atomhub": about})


TYPES = {
    "order": "I32", "quarters": "U8", "parts": "F32", "mirrored": "U8", "partners": "I32", "boxes": "I16",
    "logits": "F16",
}  # fmt: skip
"""Tensors of the file, in safetensors' words."""


def shapes(epochs: int, images: int, batch: int, classes: int) -> dict[str, list[int]]:
    """Return the shape of every tensor."""
    rows, batches = [epochs, images], len(batch_sizes(images, batch))
    return {
        "order": rows, "quarters": [*rows, 4], "parts": [*rows, 4], "mirrored": rows, "partners": rows,
        "boxes": [epochs, batches, 4], "logits": [*rows, classes],
    }  # fmt: skip


def read(path: Path, epochs: int, images: int, classes: int) -> StoredLabels:
    """Read a file of stored labels, for a set of N training images and K classes.

    Raises:
        IntegrityError: it is not what it should be: shapes, types, or numbers out of range.
    """
    try:
        with safe_open(path, "pt") as file:
            about = parse_json((file.metadata() or {}).get("atomhub", "null").encode())
            batch = about["batch"]
            if type(batch) is not int or not 0 < batch <= 2**31:
                raise ValueError("the batch is out of range")
            wanted = {n: (TYPES[n], s) for n, s in shapes(epochs, images, batch, classes).items()}
            found = {name: (s.get_dtype(), s.get_shape()) for name in file.keys() for s in [file.get_slice(name)]}  # noqa: SIM118
            if found != wanted:
                raise ValueError(f"it should hold {wanted}, and holds {found}")
            stored = StoredLabels(**{name: file.get_tensor(name) for name in TYPES}, batch=batch)
    except (SafetensorError, ValueError, OSError, KeyError, TypeError) as error:
        raise IntegrityError(f"{path} holds no stored labels: {error}.", "Get a fresh copy.") from error
    parts, boxes = stored.parts, stored.boxes
    sizes = torch.tensor(batch_sizes(images, batch))
    checks = {
        "order": bool((stored.order.sort(1).values == torch.arange(images)).all()),
        "quarters": bool((stored.quarters.sort(-1).values == torch.arange(4)).all()),
        "parts": bool(((parts >= 0) & (parts <= 1)).all()),
        "partners": bool(((stored.partners >= 0) & (stored.partners < sizes.repeat_interleave(sizes))).all()),
        "boxes": bool((boxes >= 0).all()),
        "logits": bool(stored.logits.isfinite().all()),
    }
    if bad := [name for name, good in checks.items() if not good]:
        raise IntegrityError(f"{path}: {bad[0]} is out of range.", "Get a fresh copy.")
    return stored


def file_size(epochs: int, images: int, batch: int, classes: int) -> int:
    """Return the bytes of the tensors."""
    sizes = shapes(epochs, images, batch, classes)
    return sum(torch.Size(sizes[name]).numel() * int(kind.lstrip("IUF")) // 8 for name, kind in TYPES.items())


class StoredEpochs(IterableDataset[tuple[Tensor, Tensor]]):
    """Batches (images, probabilities) of stored labels; every pass is the next stored epoch, also of another loader.

    Args:
        stored: The labels.
        images: The set's training images, normalised.
        temperature: What logits are divided by before the softmax.
        size: Side to resize to, in pixels; None: none.
    """

    def __init__(self, stored: StoredLabels, images: Tensor, temperature: float, size: int | None) -> None:
        self.stored, self.images, self.temperature, self.size = stored, images, temperature, size

    def __len__(self) -> int:
        return self.stored.boxes.shape[1]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch = self.stored.passed[0]
        self.stored.passed[0] += 1
        for batch, logits in self.stored.epoch(self.images, epoch):
            images = batch[0] if self.size is None else resized(batch[0], self.size)
            yield images, (logits[0].float() / self.temperature).softmax(1)
