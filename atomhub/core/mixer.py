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


def ridge_loss(synthetic: Tensor, labels: Tensor, real: Tensor, real_labels: Tensor, classes: int) -> Tensor:
    """Return the mean cross-entropy on real images of the linear layer that ridge regression fits to synthetic ones.

    Features are divided by the root mean square length of the real ones and a 1 for the bias is appended; targets are
    one-hot less 1/K (KIP, ICLR 2021; FRePo, NeurIPS 2022). The penalty is :data:`PENALTY` for each synthetic image, and
    logits are multiplied by that power of the square root of 2 which fits real images best (about 4 096 of them).

    Args:
        synthetic: (n, D) what enters the layer.
        labels: (n,) class numbers.
        real: (m, D).
        real_labels: (m,).
        classes: K.
    """
    length = real.square().sum(1).mean().sqrt().clamp(min=1e-12)
    f, r = (F.pad(x / length, (0, 1), value=1.0) for x in (synthetic, real))
    wanted = F.one_hot(labels, classes).to(f) - 1 / classes
    count, width = f.shape
    penalty = PENALTY * torch.eye(min(count, width), dtype=f.dtype, device=f.device)
    if count <= width:  # the smaller of two systems with the same solution
        layer = f.T @ torch.linalg.solve(f @ f.T / count + penalty, wanted) / count
    else:
        layer = torch.linalg.solve(f.T @ f / count + penalty, f.T @ wanted / count)
    logits = r @ layer
    with torch.no_grad():
        factors = torch.logspace(0, 10, 21, base=2, dtype=f.dtype, device=f.device)
        some = slice(None, None, -(-len(logits) // 4096))
        fits = torch.stack([F.cross_entropy(factor * logits[some], real_labels[some]) for factor in factors])
        factor = factors[fits.argmin()]
    return F.cross_entropy(factor * logits, real_labels)


PENALTY = 0.03
"""Of ridge regression, where the real features' root mean square length is 1."""


def apart(a: Tensor, b: Tensor) -> Tensor:
    """Return 1 minus the cosine between two tensors as vectors, 0 to 2 (linear gradient matching, arXiv 2511.16674)."""
    return 1 - F.cosine_similarity(a.flatten(), b.flatten(), dim=0)
