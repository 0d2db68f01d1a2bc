"""What a network makes of images, and how often it is right."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from atomhub.core.whitening import Normalization
from atomhub.errors import AtomhubError, UsageError, first_line, is_out_of_memory

_TEST_BATCH = 512


def logits(model: nn.Module, images: Tensor) -> Tensor:
    """Return what a model makes of normalised images (B, C, H, W), as a tensor.

    Raises:
        UsageError: it cannot take them, or gives neither a tensor nor an object with ``logits``.
    """
    try:
        output = model(images)
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        if is_out_of_memory(error):
            raise
        raise UsageError(
            f"The network {type(model).__name__} cannot take images of {'x'.join(map(str, images.shape[1:]))}: "
            f"{first_line(error)}.",
            "Build it for this size, and for these channels.",
        ) from error
    output = getattr(output, "logits", output)
    if not isinstance(output, Tensor):
        raise UsageError(f"The network {type(model).__name__} gives {type(output).__name__}, not a tensor of logits.")
    return output


def accuracy(
    model: nn.Module, images: Tensor, labels: Tensor, normalization: Normalization, device: torch.device, classes: int
) -> float:
    """Return the top-1 accuracy in percent of a model on real images; arguments and errors as :func:`confusion`'s."""
    return share_right(confusion(model, images, labels, normalization, device, classes))


def share_right(counts: Tensor) -> float:
    """Return the accuracy in percent that a matrix of :func:`confusion` stands for."""
    return 100 * int(counts.trace()) / int(counts.sum())


@torch.no_grad()
def confusion(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    normalization: Normalization | None,
    device: torch.device,
    classes: int,
) -> Tensor:
    """Return how often a model takes real images of each class for each; it is left in the mode it was in.

    Args:
        model: Maps normalised (B, C, H, W) to logits.
        images: (M, C, H, W) uint8.
        labels: (M,) int64.
        normalization: The one the model was trained under; None: they are what it takes.
        device: Where the model is.
        classes: K.

    Returns:
        (K, K) int64 on the CPU: the class of an image, what it was taken for.

    Raises:
        UsageError: the model does not give (B, K).
        AtomhubError: it gives values that are not finite.
    """
    mode, space = model.training, normalization and normalization.to(device, torch.float32)
    model.eval()
    counts = torch.zeros(classes * classes, dtype=torch.int64, device=device)
    finite = torch.ones((), dtype=torch.bool, device=device)
    for pixels, targets in zip(images.split(_TEST_BATCH), labels.split(_TEST_BATCH), strict=True):
        given = pixels.to(device)
        found = logits(model, space.apply(given) if space else given)
        check_shape(type(model).__name__, found.shape, (len(pixels), classes))
        pairs = targets.to(device) * classes + found.argmax(1)
        counts.scatter_add_(0, pairs, torch.ones_like(pairs))  # bincount would wait for a GPU
        finite &= found.isfinite().all()
    model.train(mode)
    if not bool(finite):
        raise AtomhubError(f"The network {type(model).__name__} gives values that are not finite.")
    return counts.view(classes, classes).cpu()


def check_shape(name: str, found: Sequence[int], wanted: tuple[int, int]) -> None:
    """Raise UsageError if a network gave another shape than (B, K)."""
    if tuple(found) != wanted:
        raise UsageError(
            f"The network {name} gives {tuple(found)} for {wanted[0]} images of {wanted[1]} classes, not {wanted}.",
            f"Make its last layer give {wanted[1]} logits.",
        )
