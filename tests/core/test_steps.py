"""The steps that images take along the gradient of an iteration."""

import numpy as np
import pytest
import torch
from engines import make_engine

from atomhub.core.synthetic import normalized


def test_images_move_by_sgd_with_the_learning_rate_and_momentum_of_the_recipe():
    engine = make_engine(pixels="float32", image_lr=0.01, image_momentum=0.7, loss_scale=1.0)
    expected, velocity = engine.synthetic.images.detach().clone(), 0
    for iteration in range(3):
        engine.gradient(iteration)
        velocity = 0.7 * velocity + engine.gradients
        pixels = engine.normalization.undo(expected - 0.01 * velocity).clamp(0, 1)
        expected = engine.normalization.apply(pixels)
        engine.step(iteration)
        assert torch.allclose(engine.synthetic.images, expected, atol=1e-9)


def test_a_normalized_step_is_as_long_in_every_image_and_under_every_scale_of_the_loss():
    ends = []
    for scale in (1.0, 1000.0):
        engine = make_engine(
            pixels="float32", image_step="normalized", image_lr=0.02, image_momentum=0, loss_scale=scale
        )
        before = engine.synthetic.images.detach().clone()
        engine.gradient(0)
        lengths = np.sqrt((engine.gradients.numpy() ** 2).mean((2, 3, 4), keepdims=True))
        wanted = before - 0.02 * engine.gradients / torch.from_numpy(lengths)
        engine.step(0)
        ends.append(engine.synthetic.images.detach().clone())
        inside = engine.normalization.apply(engine.normalization.undo(wanted).clamp(0, 1))
        assert (ends[-1] - inside).abs().max() < 1e-9
    assert (ends[0] - ends[1]).abs().max() < 1e-9


def test_a_normalized_step_is_as_long_for_the_smallest_and_largest_gradients_and_none_without_one():
    gradient = torch.randn(2, 1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    for scale in (1e-30, 1.0, 1e30):
        assert torch.allclose(normalized(gradient * scale), normalized(gradient), rtol=1e-5)
    assert torch.equal(normalized(gradient * 0), gradient * 0)


def test_the_learning_rate_follows_half_a_cosine():
    steps = []
    for schedule in ("constant", "cosine"):
        engine = make_engine(pixels="float32", image_lr=0.01, image_momentum=0, image_schedule=schedule)
        for iteration in range(5):
            before = engine.synthetic.images.detach().clone()
            engine.gradient(iteration)
            gradient = engine.gradients.clone()
            engine.step(iteration)
            inside = (engine.synthetic.images - before).abs() > 1e-12  # not clamped
            steps.append(((engine.synthetic.images - before)[inside] / gradient[inside]).median().item())
    cosine = [0.005 * (1 + np.cos(np.pi * i / 5)) for i in range(5)]
    assert steps == pytest.approx([-0.01] * 5 + [-lr for lr in cosine], rel=1e-6)
