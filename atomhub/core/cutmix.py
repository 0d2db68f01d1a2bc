"""CutMix: a box of every image of a batch comes from another image of it (Yun et al., ICCV 2019, section 3.1)."""

import torch
from torch import Tensor


def boxes(u: Tensor, probability: float, sides: tuple[int, int] | torch.Size) -> Tensor:
    """Return the box of a batch, (..., 4) int64: left, right, top, bottom, of whole pixels, within the image.

    It has as many pixels on either side of its centre, hung over the edge before it was cut off, and is empty where
    the batch is not mixed.

    Args:
        u: (..., 4) uniform in [0, 1): coin, share kept, centre across and down.
        probability: That a batch is mixed.
        sides: Height and width in pixels.
    """
    cut = ((u[..., 0] < probability) * (1 - u[..., 1])).sqrt()  # side of the box, as a share
    found = []
    for side, centre in ((sides[1], u[..., 2]), (sides[0], u[..., 3])):
        half = ((cut * side).floor() / 2).floor()
        found += [((centre * side).floor() + sign * half).clamp(0, side) for sign in (-1, 1)]
    return torch.stack(found, -1).long()


def paste(batch: Tensor, targets: Tensor, box: Tensor, partners: Tensor) -> tuple[Tensor, Tensor]:
    """Mix each network's batch, and its targets by the share of the box.

    Args:
        batch: (R, B, C, H, W).
        targets: (R, B, K) probabilities.
        box: (R, 4), see :func:`boxes`.
        partners: (R, B) int64: the place in the batch of the image that each gets the box of.
    """

    def inside(side: int, low: Tensor, high: Tensor) -> Tensor:  # (R, side): rows or columns that the box covers
        span = torch.arange(side, device=batch.device)
        return (span >= low[:, None]) & (span < high[:, None])

    left, right, top, bottom = box.unbind(-1)
    x, y = inside(batch.shape[-1], left, right), inside(batch.shape[-2], top, bottom)
    covered = (y[:, :, None] & x[:, None, :])[:, None, None]  # (R, 1, 1, H, W)
    share = covered.to(batch).mean((-1, -2)).view(-1, 1, 1)
    pasted = batch.take_along_dim(partners[..., None, None, None], 1)
    theirs = targets.take_along_dim(partners[..., None], 1)
    return torch.where(covered, pasted, batch), targets * (1 - share) + theirs * share
