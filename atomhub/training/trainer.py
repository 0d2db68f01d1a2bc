"""Fit a network on a small set of images, and measure it on real ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from atomhub.core import siamese
from atomhub.core.whitening import Normalization
from atomhub.errors import AtomhubError
from atomhub.training.protocols import Protocol

_TEST_BATCH = 512


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators for the block, and put them back as they were."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def fit(
    model: nn.Module, images: Tensor, labels: Tensor, protocol: Protocol, operations: Sequence[str], classes: int
) -> None:
    """Train a model in place; random numbers come from torch's global generators (:func:`seeded`).

    Args:
        model: Maps (B, C, H, W) to (B, classes) logits; already on the device of the images.
        images: (N, C, H, W) float32, normalised.
        labels: (N,) int64.
        protocol: Epochs, batch, optimiser, schedule, CutMix.
        operations: DSA operations, one drawn per image (the protocol's, less those that change a class).
        classes: K.

    Raises:
        AtomhubError: the loss is not finite (names the epoch).
    """
    optimizer = torch.optim.SGD(
        model.parameters(), lr=protocol.lr, momentum=protocol.momentum, weight_decay=protocol.decay
    )
    milestones = [round(share * protocol.epochs) for share in protocol.drops]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, protocol.factor)
    model.train()
    for epoch in range(protocol.epochs):
        for rows in torch.randperm(len(images)).to(images.device).split(protocol.batch):
            batch = siamese.augment_each(images[rows], operations)
            batch, targets = _cutmix(batch, labels[rows], classes, protocol.cutmix)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(batch), targets)
            loss.backward()
            optimizer.step()
        if not torch.isfinite(loss):
            raise AtomhubError(f"The training loss is {loss.item()} in epoch {epoch + 1} of {protocol.epochs}.")
        schedule.step()


def _cutmix(batch: Tensor, labels: Tensor, classes: int, probability: float) -> tuple[Tensor, Tensor]:
    if not probability or float(torch.rand(())) >= probability:
        return batch, labels
    from torchvision.transforms import v2

    mixed: tuple[Tensor, Tensor] = v2.CutMix(num_classes=classes)(batch, labels)
    return mixed


@torch.no_grad()
def accuracy(
    model: nn.Module, images: Tensor, labels: Tensor, normalization: Normalization, device: torch.device
) -> float:
    """Return the top-1 accuracy in percent of a model on real images.

    Args:
        model: Maps normalised (B, C, H, W) to logits.
        images: (M, C, H, W) uint8.
        labels: (M,) int64.
        normalization: The one the model was trained under.
        device: Where the model is.
    """
    model.eval()
    right = 0
    for pixels, targets in zip(images.split(_TEST_BATCH), labels.split(_TEST_BATCH), strict=True):
        logits = model(normalization.apply(pixels.to(device)))
        right += int((logits.argmax(1) == targets.to(device)).sum())
    return 100 * right / len(labels)
