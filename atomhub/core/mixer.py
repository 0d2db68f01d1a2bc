"""The attention mixer: the three-term loss between class means of attention and features.

Source: ATOM (Khaki et al. 2024, arXiv 2405.01373), section 3; DataDAM (arXiv 2310.00093) for the spatial term.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from atomhub.recipe import Recipe


def weights(recipe: Recipe, depth: int) -> list[float]:
    """Return the weight of every vector that is matched: of the attention of each block but the last, then features."""
    return [w for w in (recipe.spatial, recipe.channel) if w] * (depth - 1) + [recipe.feature]


def means(vectors: Tensor, classes: int, attention: bool) -> Tensor:
    """Return class means (k, D) of vectors (k*n, D), sorted by class; those of attention are divided by their L2 norm.

    A row of zeros stays one.
    """
    vectors = F.normalize(vectors) if attention else vectors
    return vectors.view(classes, -1, vectors.shape[1]).mean(1)


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


def head_gradient(head: Tensor, features: Tensor, labels: Tensor) -> Tensor:
    """Return the gradient of a linear layer's summed cross-entropy by its weights, (K, D), in closed form.

    Args:
        head: (K, D) the weights.
        features: (n, D) what enters it.
        labels: (n,) class numbers.
    """
    wrong = (features @ head.T).softmax(1) - F.one_hot(labels, len(head))
    return wrong.T @ features


def apart(a: Tensor, b: Tensor) -> Tensor:
    """Return 1 minus the cosine between two tensors as vectors, 0 to 2 (linear gradient matching, arXiv 2511.16674)."""
    return 1 - F.cosine_similarity(a.flatten(), b.flatten(), dim=0)
