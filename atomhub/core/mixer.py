"""The attention mixer: the three-term loss between class means of attention and features.

Source: ATOM (Khaki et al. 2024, arXiv 2405.01373), section 3; DataDAM (arXiv 2310.00093) for the spatial term.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

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


def layer_loss(synthetic: Tensor, labels: Tensor, real: Tensor, real_labels: Tensor, counts: Tensor) -> Tensor:
    """Return the mean cross-entropy on real images of the linear layer that is trained on synthetic ones.

    It is trained as under the protocol ``probe`` (there batches have up to 256 images, here all), from weights of 0:
    features are divided by the root mean square length of the synthetic ones, and a 1 for the bias is appended.
    Classes count as their real images do. The gradient goes through all steps of the training (Dataset Distillation,
    arXiv 1811.10959).

    Args:
        synthetic: (n, D) what enters the layer.
        labels: (n,) class numbers.
        real: (m, D).
        real_labels: (m,) class numbers, of the same classes.
        counts: (K,) real images of every class.
    """
    length = synthetic.square().sum(1).mean().sqrt().clamp(min=1e-12)
    f = F.pad(synthetic / length, (0, 1), value=1.0)
    wanted = F.one_hot(labels, len(counts)).to(f)
    # the layer's weights are sums of the features, whose factors (n, K) may be fewer than the weights (D + 1, K)
    of_factors = len(f) <= f.shape[1]
    into, back = (f @ f.T, None) if of_factors else (f, f.T)
    state = (into.new_zeros(into.shape[1], len(counts)),) * 2
    rates = [1.0] * (EPOCHS - EPOCHS // 2) + [0.1] * (EPOCHS // 2)
    for first in range(0, EPOCHS, _KEPT):
        some = rates[first : first + _KEPT]
        state = checkpoint(_trained, *state, into, back, wanted, some, use_reentrant=False, preserve_rng_state=False)
    weights = f.T @ state[0] if of_factors else state[0]
    logits = real @ (weights[:-1] / length) + weights[-1]
    there = torch.bincount(real_labels, minlength=len(counts)).clamp(min=1)
    shares = (counts.to(f) / there)[real_labels]
    return (shares * F.cross_entropy(logits, real_labels, reduction="none")).sum() / shares.sum()


def _trained(
    trained: Tensor, momentum: Tensor, into: Tensor, back: Tensor | None, wanted: Tensor, rates: list[float]
) -> tuple[Tensor, Tensor]:
    """Return what is trained, and its momentum, (m, K), after some steps of SGD.

    Args:
        trained: (m, K) the factors or the weights of the layer.
        momentum: (m, K).
        into: (n, m) takes them to logits.
        back: (m, n) takes the loss's slopes by logits to those by weights; None: factors follow them as they are.
        wanted: (n, K) labels, one-hot.
        rates: Learning rate of every step.
    """
    for rate in rates:
        slope = ((into @ trained).softmax(1) - wanted) / len(wanted)
        momentum = 0.9 * momentum + (slope if back is None else back @ slope)
        trained = trained - rate * momentum
    return trained, momentum


EPOCHS = 300
"""Of the layer's training, whose rate is 1, and a tenth of it in the second half."""
_KEPT = 20
"""Steps of it between two states that are kept for the gradient."""
STATES = 2 * (EPOCHS // _KEPT) + 4 * _KEPT
"""Tensors like the factors that are held for it at a time."""


def apart(a: Tensor, b: Tensor) -> Tensor:
    """Return 1 minus the cosine between two tensors as vectors, 0 to 2 (linear gradient matching, arXiv 2511.16674)."""
    return 1 - F.cosine_similarity(a.flatten(), b.flatten(), dim=0)
