"""One block of the network, forward and backward, as functions of tensors: the whole of the heavy work.

A block is norm, ReLU and 2x2 average pooling of ``y``, what a convolution gave, and the next convolution. Its backward
pass is in closed form, so that neither needs anything but ``y``, and a compiler makes one or two loops of each. The
affine map of a fresh norm layer is the identity and is left out. Shapes: ``y`` (n, C, H, W), in the precision of the
convolutions; sums and statistics are in float32 at least.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

EPS = 1e-5
"""Added to variances by PyTorch's norm layers."""
Moments = tuple[Tensor, Tensor]
"""Mean and variance (not corrected): (C,) each of a whole batch, or (n, C) of every image."""


@dataclass(frozen=True)
class Kind:
    """What all blocks of a run have in common.

    Attributes:
        norm: ``instance``, ``batch`` or ``none``.
        power: p of the attention maps.
        spatial: Whether spatial attention is matched.
        channel: Whether channel attention is matched.
    """

    norm: str
    power: float
    spatial: bool
    channel: bool

    @property
    def maps(self) -> int:
        """How many attention vectors a block has."""
        return self.spatial + self.channel


def enter(x: Tensor, weight: Tensor, bias: Tensor | None, kind: Kind) -> tuple[Tensor, Moments | None]:
    """Return the first convolution of images ``x``, and under batch norm the moments of every image in it."""
    y = F.conv2d(x, weight, bias, padding=1)
    return y, moments(y) if kind.norm == "batch" else None


def through(
    y: Tensor, known: Moments | None, weight: Tensor, bias: Tensor | None, kind: Kind
) -> tuple[list[Tensor], Tensor, Moments | None]:
    """Return the attention of a block, not yet normalised, what enters the next norm, and the moments of that.

    The attention is (n, H*W), the sum over channels of the power of every value, and (n, C), that over positions: those
    of the two that are matched.
    """
    z = _activation(y, known, kind)
    sums = attention(z, kind)
    following, measured = enter(F.avg_pool2d(z, 2).to(y.dtype), weight, bias, kind)
    return sums, following, measured


def leave(y: Tensor, known: Moments | None, kind: Kind) -> Tensor:
    """Return the features of a network from what enters its last norm, (n, C*H/2*W/2)."""
    return F.avg_pool2d(_activation(y, known, kind), 2).flatten(1)


def totals(
    y: Tensor, known: Moments | None, pooled: Tensor, attention: list[Tensor], kind: Kind
) -> tuple[Tensor, Tensor]:
    """Return what batch norm's gradient needs of a batch, (n, C) each: sums of the gradient, and of it times z.

    Args:
        y: What entered the norm.
        known: Its moments.
        pooled: Gradient of the pooled output, (n, C, H/2, W/2).
        attention: Gradients of what :func:`through` returned as attention.
        kind: Of the blocks.
    """
    z = _activation(y, known, kind)
    g = _gradient(z, pooled, attention, kind)
    return g.sum((2, 3)), (g * z).sum((2, 3))


def back(
    y: Tensor, known: Moments | None, pooled: Tensor, attention: list[Tensor], means: Moments | None, weight: Tensor,
    kind: Kind,
) -> Tensor:  # fmt: skip
    """Return the gradient of what entered the convolution that gave ``y``.

    Args:
        y: What entered the norm.
        known: Its moments.
        pooled: Gradient of the pooled output, (n, C, H/2, W/2).
        attention: Gradients of what :func:`through` returned as attention.
        means: Batch norm with statistics of its own: :func:`totals`, averaged over the batch, (C,) each; else None.
        weight: Of that convolution.
        kind: Of the blocks.
    """
    if kind.norm == "instance":
        known = moments(y)
    z = _activation(y, known, kind)
    g = _gradient(z, pooled, attention, kind)
    if kind.norm == "instance":
        means = g.mean((2, 3)), (g * z).mean((2, 3))
    if known is not None:
        mean, scale = _spread(known[0]), _spread(known[1]).add(EPS).rsqrt()
        if means is not None:
            # z is 0 where the ReLU cut, but the norm's output is not
            g = g - _spread(means[0]) - (at_least_float32(y) - mean) * scale * _spread(means[1])
        g = g * scale
    return F.conv_transpose2d(g.to(y.dtype), weight, padding=1)


def moments(y: Tensor) -> Moments:
    """Return mean and variance of every channel of every image, (n, C) each, in one pass.

    The sums are of distances from one of the values: it is at most sqrt(H*W) deviations from the mean, so that little
    is lost by the difference of squares.
    """
    y = at_least_float32(y)
    shift = y[:, :, 0, 0]
    d = y - _spread(shift)
    mean = d.mean((2, 3))
    return mean + shift, (d.square().mean((2, 3)) - mean.square()).clamp_min(0)


def _spread(x: Tensor) -> Tensor:
    """Return (C,) or (n, C) so that it broadcasts against (n, C, H, W)."""
    return x[..., None, None]


def _activation(y: Tensor, known: Moments | None, kind: Kind) -> Tensor:
    y = at_least_float32(y)
    if kind.norm == "instance" and known is None:
        known = moments(y)
    if known is not None:
        mean, variance = known
        y = (y - _spread(mean)) * (_spread(variance) + EPS).rsqrt()
    return F.relu(y)


def attention(z: Tensor, kind: Kind) -> list[Tensor]:
    """Return what :func:`through` gives as attention, of activations (n, C, H, W) that are not negative."""
    a = _power(z, kind.power)
    return [a.sum(1).flatten(1)] * kind.spatial + [a.sum((2, 3))] * kind.channel


def _gradient(z: Tensor, pooled: Tensor, attention: list[Tensor], kind: Kind) -> Tensor:
    """Return the gradient of what enters the ReLU that gave ``z``."""
    g = F.interpolate(at_least_float32(pooled) / 4, scale_factor=2.0)  # every value four times
    slope = kind.power * _power(z, kind.power - 1) if attention and kind.power != 1 else None
    for i, a in enumerate(attention):  # one by one: their sum would have the other layout
        spread = a.view(len(z), 1, *z.shape[2:]) if kind.spatial and i == 0 else _spread(a)
        g = g + (spread if slope is None else slope * spread)
    return torch.where(z > 0, g, torch.zeros((), dtype=g.dtype, device=g.device))


def _power(z: Tensor, power: float) -> Tensor:
    """Return ``z ** power`` for values that are not negative; whole powers as products, several times faster."""
    if power in (1, 2, 3, 4):
        square = z * z if power > 1 else z
        return {1: z, 2: square, 3: square * z, 4: square * square}[int(power)]
    return z.pow(power)


def at_least_float32(x: Tensor) -> Tensor:
    """Return half precision as float32; anything wider as it is."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def exact_float32(fast: bool = False) -> None:
    """Let float32 mean float32 in this process's work on a GPU, and repeat results; ``fast``: TF32 in convolutions."""
    torch.backends.cuda.matmul.allow_tf32 = False  # whitening is a product
    torch.backends.cudnn.allow_tf32 = fast
    torch.backends.cudnn.benchmark = False  # it would choose other algorithms in another run
    torch.backends.cudnn.deterministic = True
