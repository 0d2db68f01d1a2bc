"""A network that is watched as it runs: its activations, its batch norms, its last linear layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from atomhub.core.blocks import Kind, Moments
from atomhub.errors import UsageError

_NONLINEAR = frozenset({
    F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.gelu,
    F.silu, F.mish, F.hardswish, F.prelu, F.softplus, torch.sigmoid, Tensor.sigmoid, torch.tanh, Tensor.tanh,
})  # fmt: skip
"""What makes an activation, as modules call it."""
_BATCH_NORM = tuple(signature(F.batch_norm).parameters)
_LINEAR = ("input", "weight", "bias")
_LAYERS = (nn.modules.conv._ConvNd, nn.Linear, nn.MultiheadAttention)
"""Whose weights' gradients may be matched."""


@dataclass(frozen=True)
class Look:
    """What a dry run of a network has shown.

    Attributes:
        taps: Which of its activations, counted as they come, are the last before the resolution changes.
        vectors: Numbers that are matched of an image.
        classes, features: Numbers that the last linear layer gives and gets.
        largest: Bytes of the largest tensor of an image, in float32.
        total: Bytes of all of them.
        norms: How many times it applies batch norm.
        weights: Names of the parameters whose gradients may be matched: weights of layers, but for the last linear one.
        numbers: How many numbers these have.
    """

    taps: tuple[int, ...]
    vectors: int
    classes: int
    features: int
    largest: int
    total: int
    norms: int
    weights: tuple[str, ...]
    numbers: int


class Watch(TorchFunctionMode):
    """Sees every function of tensors that is called.

    Args:
        look: Called with the number of an activation of images, from 0, and the activation, (N, C, H, W).
        size: Called with the bytes of every new tensor.
        norm: Called with the number of a batch norm, from 0, and what enters it; gives the moments to use. None: those
            of the module.

    Attributes:
        entered, head, left: What the last linear layer got, its weight, and what it gave.
        norms: Batch norms so far.
    """

    def __init__(
        self, look: Callable[[int, Tensor], None] = lambda count, z: None,
        size: Callable[[int], None] = lambda size: None, norm: Callable[[int, Tensor], Moments] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.look, self.size, self.norm = look, size, norm
        self.activations, self.norms = 0, 0
        self.entered: Tensor | None = None
        self.head: Tensor | None = None
        self.left: Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm:
            given = dict(zip(_BATCH_NORM, args, strict=False)) | kwargs
            if self.norm is not None:
                mean, variance = self.norm(self.norms, given["input"])
                given |= {"running_mean": mean, "running_var": variance, "training": False}
            self.norms += 1
            args, kwargs = (), given
        found = func(*args, **kwargs)
        if isinstance(found, Tensor):
            self.size(found.numel() * found.element_size())
            if func is F.linear:
                given = dict(zip(_LINEAR, args, strict=False)) | kwargs
                self.entered, self.head, self.left = given["input"], given["weight"], found
            elif func in _NONLINEAR and found.dim() == 4 and found.shape[2] * found.shape[3] > 1:
                self.look(self.activations, found)
                self.activations += 1
        return found


def dry_run(model: nn.Module, kind: Kind, shape: tuple[int, int, int]) -> Look:
    """Return what a network shows when it sees one image.

    Args:
        model: From (N, C, H, W) to (N, K) logits, on the CPU, in float32.
        kind: What is matched.
        shape: C, H, W of the images.

    Raises:
        UsageError: it does not end in a linear layer, or has no attention where that is matched.
    """
    sides, sizes, widths = list[tuple[int, int]](), list[int](), list[int]()

    def look(_: int, z: Tensor) -> None:
        sides.append((z.shape[2], z.shape[3]))
        widths.append(z.shape[1])

    with torch.no_grad(), Watch(look, sizes.append) as watch:
        logits = model(torch.zeros(1, *shape))
    name = type(model).__name__
    if watch.entered is None or watch.left is not logits:
        raise UsageError(
            f"The network {name} does not end in a linear layer, whose input would be matched.",
            "Use another matcher, such as resnet18.",
        )
    ends = [i for i, side in enumerate(sides) if i + 1 == len(sides) or sides[i + 1] != side][:-1]
    if (kind.spatial or kind.channel) and not ends:
        raise UsageError(
            f"The network {name} has no activations of two resolutions, so there is no attention to match.",
            "Set spatial and channel to 0, or use another matcher, such as resnet18.",
        )
    vectors = [sides[i][0] * sides[i][1] * kind.spatial + widths[i] * kind.channel for i in ends]
    taps = tuple(ends) if kind.maps else ()
    entered, classes = watch.entered.numel(), logits.shape[1]
    # as IDC's code: neither biases and norms, nor the classifier
    own = {
        f"{name}.{n}".lstrip("."): p.numel()
        for name, layer in model.named_modules() if isinstance(layer, _LAYERS)
        for n, p in layer.named_parameters(recurse=False) if p.dim() > 1 and p is not watch.head
    }  # fmt: skip
    return Look(
        taps, sum(vectors) + entered, classes, entered, max(sizes), sum(sizes), watch.norms, tuple(own),
        sum(own.values()),
    )  # fmt: skip


@torch.no_grad()
def look(model: Callable[[Tensor], Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the features of images (N, C, H, W), (N, D), which enter the last linear layer, and the logits, (N, K)."""
    with Watch() as watch:
        logits = model(images)
    assert watch.entered is not None
    return watch.entered, logits
