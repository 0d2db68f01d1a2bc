"""ZCA: fit once on training images, applied to anything, undone for pictures."""

import numpy as np
import pytest
import torch

from atomhub.core.whitening import EPS, Normalization, fit_zca
from atomhub.errors import AtomhubError


@pytest.fixture
def images():
    """(300, 3, 4, 4) uint8 with correlated pixels."""
    rng = np.random.default_rng(0)
    smooth = rng.normal(size=(300, 3, 1, 1)) + 0.5 * rng.normal(size=(300, 3, 4, 4))
    return np.clip(128 + 40 * smooth, 0, 255).astype(np.uint8)


@pytest.fixture
def normalization():
    return Normalization((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))


def test_whitening_follows_its_formula(images, normalization):
    x = np.array([[(i[c] / 255 - (0.4, 0.5, 0.6)[c]) / (0.2, 0.25, 0.3)[c] for c in range(3)] for i in images])
    x = x.reshape(300, -1)
    u, s, _ = np.linalg.svd(np.cov(x.T, bias=True))
    expected = (x - x.mean(0)) @ (u @ np.diag(1 / np.sqrt(s + EPS)) @ u.T)
    found = fit_zca(images, normalization).apply(torch.tensor(images))
    assert np.allclose(found.flatten(1).numpy(), expected, atol=1e-4)


def test_whitened_images_can_be_undone(images, normalization):
    whitening = fit_zca(images, normalization)
    pixels = torch.tensor(images[:5])
    assert torch.equal((whitening.undo(whitening.apply(pixels)) * 255).round().to(torch.uint8), pixels)
    moved = whitening.to(torch.device("cpu"), torch.float64)
    assert torch.allclose(moved.undo(moved.apply(pixels.double() / 255)), pixels.double() / 255, atol=1e-4)


def test_images_too_large_for_a_matrix_are_refused(normalization):
    with pytest.raises(AtomhubError, match=r"(?s)ZCA of images of 3x64x64.*recipe field zca"):
        fit_zca(np.zeros((2, 3, 64, 64), dtype=np.uint8), normalization)
