"""The steps that images take along the gradient of an iteration."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from atomhub.recipe import Recipe

_SQUARES, _LEAST = 0.999, 1e-16
"""Adam's second beta (Kingma and Ba, ICLR 2015), and an epsilon far below the gradients of many and large images."""


class Steps:
    """What images step along, and what is remembered of their steps before.

    Args:
        recipe: Says how.
        images: (k, n, C, H, W), the images.

    Attributes:
        state: What a run continues from, name to (k, ...): ``momentum``, and of Adam ``squares``, both in the shape of
            the images or, for a pyramid of Adam's, (k, n, numbers of all levels), and ``steps`` taken, (k,).
    """

    def __init__(self, recipe: Recipe, images: Tensor) -> None:
        self.recipe = recipe
        self.adam, self.even = recipe.image_step == "adam", recipe.image_step == "normalized"
        like = images.detach()
        if self.adam and recipe.image_pyramid:
            like = torch.cat([level.flatten(2) for level in levels(like)], 2)
        self.state = {"momentum": torch.zeros_like(like)}
        if self.adam:
            self.state |= {"squares": torch.zeros_like(like), "steps": like.new_zeros(len(like))}

    @staticmethod
    def held(recipe: Recipe, size: int) -> float:
        """Return how many times the numbers of all images, of ``size`` pixels a side, a state has."""
        if recipe.image_step != "adam":
            return 1
        below = _sides(size) if recipe.image_pyramid else []
        return 2 * (1 + sum((side / size) ** 2 for side in below))

    @torch.no_grad()
    def take(self, rows: slice | Tensor, gradient: Tensor) -> Tensor:
        """Remember the gradient of some images, (k, n, C, H, W), and return what a rate of 1 takes from them."""
        if self.adam:
            return self._adam(rows, gradient)
        step = pyramid(gradient, self.even) if self.recipe.image_pyramid else gradient
        if self.even:
            step = normalized(step)
        momentum = self.state["momentum"]
        momentum[rows] = self.recipe.image_momentum * momentum[rows] + step
        return momentum[rows]

    def _adam(self, rows: slice | Tensor, gradient: Tensor) -> Tensor:
        parts = list(levels(gradient)) if self.recipe.image_pyramid else [gradient]
        own = torch.cat([part.flatten(2) for part in parts], 2).view_as(self.state["momentum"][rows])
        betas, steps = (self.recipe.image_momentum, _SQUARES), self.state["steps"]
        steps[rows] += 1
        means = []
        for name, beta, value in zip(("momentum", "squares"), betas, (own, own.square()), strict=True):
            self.state[name][rows] = beta * self.state[name][rows] + (1 - beta) * value
            begun = (1 - beta ** steps[rows]).view(-1, *[1] * (own.dim() - 1))
            means.append(self.state[name][rows] / begun)
        step = means[0] / (means[1].sqrt() + _LEAST)
        if not self.recipe.image_pyramid:
            return step
        total = torch.zeros_like(gradient).flatten(0, 1)
        for part, level in zip(parts, step.split([part[0, 0].numel() for part in parts], 2), strict=True):
            total += _enlarged(level.reshape(part.shape).flatten(0, 1), total.shape[-2:])
        return total.view_as(gradient)


@torch.no_grad()
def pyramid(gradient: Tensor, even: bool = False) -> Tensor:
    """Return the step of an image that is a sum of levels of 1, 2, 4 ... pixels a side, all of which step.

    A level's gradient is that of the image through bilinear enlargement, divided by the pixels that one of its own
    stands for, so that coarse levels go as far as fine ones.

    Args:
        gradient: (k, n, C, H, W), by the pixels of images; unchanged.
        even: Take of every level what :func:`normalized` makes of it: fine ones have the larger gradients otherwise.

    Returns:
        The step, in the same shape and units.
    """
    size = gradient.shape[-2:]
    total = torch.zeros_like(gradient).flatten(0, 1)
    for own in levels(gradient):
        step = normalized(own) if even else own * own[0, 0, 0].numel() / (size[0] * size[1])
        total += _enlarged(step.flatten(0, 1), size)
    return total.view_as(gradient)


def levels(gradient: Tensor) -> Iterator[Tensor]:
    """Yield the gradient of images (k, n, C, H, W) by their own pixels, and by levels of 1, 2, 4 ... pixels a side."""
    yield gradient
    flat, size = gradient.flatten(0, 1), gradient.shape[-2:]
    for side in _sides(min(size)):
        with torch.enable_grad():
            level = flat.new_zeros(*flat.shape[:2], side, side, requires_grad=True)
            (own,) = torch.autograd.grad(_enlarged(level, size), level, flat)
        yield own.unflatten(0, gradient.shape[:2])


def _sides(size: int) -> list[int]:
    """Return the sides of the levels below an image's own."""
    return [2**level for level in range((size - 1).bit_length())]


def normalized(step: Tensor) -> Tensor:
    """Return steps (k, n, C, H, W), each divided by its root mean square; one of zeros stays so."""
    step = step / step.abs().amax((2, 3, 4), keepdim=True).clamp(min=torch.finfo(step.dtype).tiny)  # squares may vanish
    size = step.square().mean((2, 3, 4), keepdim=True).sqrt()
    return torch.where(size > 0, step / size, step)


def _enlarged(images: Tensor, size: tuple[int, ...]) -> Tensor:
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False)
