"""The attention mixer: what is matched of every image, and the three-term loss between class means.

Source: ATOM (Khaki et al. 2024, arXiv 2405.01373), section 3; DataDAM (arXiv 2310.00093) for the spatial term.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from atomhub.recipe import Recipe


def attention(f: Tensor, power: float, spatial: bool = True, channel: bool = True) -> list[Tensor]:
    """Return spatial and channel attention of feature maps, each divided by its own L2 norm.

    Args:
        f: (N, C, H, W) feature maps after a ReLU, so not negative; sums are taken in float32 at least.
        power: p, at least 1.
        spatial: Whether to compute spatial attention.
        channel: Whether to compute channel attention.

    Returns:
        (N, H*W) and (N, C), those asked for; rows of length 1 (0 where the map is all zero).
    """
    a = _power(at_least_float32(f), power)
    maps = []
    if spatial:
        maps.append(F.normalize(a.sum(1).flatten(1)))
    if channel:
        maps.append(F.normalize(a.sum((2, 3))))
    return maps


def _power(x: Tensor, power: float) -> Tensor:
    if power == 1:
        return x
    if power in (2, 4):  # products are several times faster than pow
        square = x * x
        if power == 2:
            return square
        return square * square if square.requires_grad else square.mul_(square)
    return x.pow(power)


def at_least_float32(x: Tensor) -> Tensor:
    """Return half precision as float32; anything wider as it is."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def weights(recipe: Recipe, depth: int) -> list[float]:
    """Return the weight of every vector that is matched, in the order in which the embedding gives them."""
    layer = [w for w in (recipe.spatial, recipe.channel) if w]
    return layer * (depth - 1) + [recipe.feature] * bool(recipe.feature)


def loss(real: Sequence[Tensor], synthetic: Sequence[Tensor], recipe: Recipe, depth: int) -> Tensor:
    """Return the mixed loss, a scalar: squared distances summed over classes and layers, weighted and scaled.

    Args:
        real: Class means, (K, D) for every vector that is matched.
        synthetic: The same of the synthetic images.
        recipe: Weights and scale.
        depth: Blocks of the network in use.
    """
    terms = [w * (r - s).square().sum() for w, r, s in zip(weights(recipe, depth), real, synthetic, strict=True)]
    return recipe.loss_scale * torch.stack(terms).sum()
