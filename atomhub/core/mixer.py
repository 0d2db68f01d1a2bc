"""The attention mixer: statistics of feature maps by class, and the three-term loss between them.

Source: ATOM (Khaki et al. 2024, arXiv 2405.01373), section 3; DataDAM (arXiv 2310.00093) for the spatial term.
K classes, M images a class.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from atomhub.core.networks import ConvNet
from atomhub.recipe import Recipe


@dataclass
class Statistics:
    """What is matched between real and synthetic images, for K classes.

    Attributes:
        spatial: For each layer before the last, (K, H*W): class means of normalised spatial attention.
        channel: For each layer before the last, (K, C): class means of normalised channel attention.
        feature: (K, D): class means of the flattened last feature map.
    """

    spatial: list[Tensor] = field(default_factory=list)
    channel: list[Tensor] = field(default_factory=list)
    feature: Tensor | None = None


def class_means(x: Tensor, classes: int) -> Tensor:
    """Average (K*M, D), class-major, over the M images of each class: (K, D)."""
    return x.view(classes, -1, x.shape[-1]).mean(1)


def attention(f: Tensor, power: float) -> tuple[Tensor, Tensor]:
    """Return spatial and channel attention of feature maps, each divided by its own L2 norm.

    Args:
        f: (N, C, H, W) feature maps.
        power: p, at least 1.

    Returns:
        (N, H*W) and (N, C), rows of length 1 (0 where the map is all zero).
    """
    a = f.abs() if power == 1 else f.abs().pow(power)
    return F.normalize(a.sum(1).flatten(1)), F.normalize(a.sum((2, 3)))


def statistics(network: ConvNet, images: Tensor, classes: int, recipe: Recipe) -> Statistics:
    """Run the network once over the images of all classes and keep only the class means.

    Feature maps are reduced as they appear: without gradients, none outlives the next block.

    Args:
        network: Network in use at this iteration.
        images: (K*M, C, H, W), normalised and augmented, class-major.
        classes: K.
        recipe: Weights and power; without weight on either attention, neither is computed.
    """
    out = Statistics()
    for index, (activation, pooled) in enumerate(network.blocks(images), start=1):
        if index == network.depth:
            out.feature = class_means(pooled.flatten(1), classes)
        elif recipe.spatial or recipe.channel:
            spatial, channel = attention(activation, recipe.power)
            out.spatial.append(class_means(spatial, classes))
            out.channel.append(class_means(channel, classes))
    return out


def loss(real: Statistics, synthetic: Statistics, recipe: Recipe) -> Tensor:
    """Return the mixed loss, a scalar: squared distances summed over classes and layers, weighted and scaled."""
    terms = []
    for weight, pairs in (
        (recipe.spatial, zip(real.spatial, synthetic.spatial, strict=True)),
        (recipe.channel, zip(real.channel, synthetic.channel, strict=True)),
        (recipe.feature, [(real.feature, synthetic.feature)]),
    ):
        if weight:
            terms += [weight * (r - s).square().sum() for r, s in pairs if r is not None and s is not None]
    return recipe.loss_scale * torch.stack(terms).sum()
