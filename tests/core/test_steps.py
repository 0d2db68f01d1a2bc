"""The steps that images take along the gradient of an iteration."""

import numpy as np
import pytest
import torch
from engines import make_engine
from torch.nn import functional as F

from atomhub.core.steps import Steps, normalized, pyramid


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


def test_a_step_along_a_pyramid_is_that_of_all_its_levels():
    """SGD on images that are sums of enlarged levels, with a rate for each that is as many times its pixels."""
    gradient = torch.randn(2, 1, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    levels = [torch.zeros(2, 3, side, side, dtype=torch.float64, requires_grad=True) for side in (1, 2, 4, 8)]
    enlarged = [F.interpolate(level, (8, 8), mode="bilinear", align_corners=False) for level in levels]
    steps = torch.autograd.grad((sum(enlarged) * gradient[:, 0]).sum(), levels)
    rates = [(len(level[0, 0]) / 8) ** 2 for level in levels]
    moved = sum(
        rate * F.interpolate(step, (8, 8), mode="bilinear", align_corners=False)
        for rate, step in zip(rates, steps, strict=True)
    )
    assert (pyramid(gradient)[:, 0] - moved).abs().max() < 1e-12
    assert (pyramid(torch.ones_like(gradient)) - 4).abs().max() < 1e-12  # four levels, each as far


@pytest.mark.parametrize("step", ["gradient", "normalized"])
def test_images_take_the_step_of_the_pyramid(step):
    fields = {"pixels": "float32", "image_lr": 1e-3, "image_step": step}
    engine = make_engine(image_pyramid=True, **fields)
    before = engine.synthetic.images.detach().clone()
    engine.step(0)
    gradient = engine.gradients
    wanted = normalized(pyramid(gradient, even=True)) if step == "normalized" else pyramid(gradient)
    inside = (before - 1e-3 * wanted - engine.synthetic.images).abs().detach()
    assert inside.median() < 1e-12  # but for pixels that are clamped


def test_even_levels_go_equally_far():
    gradient = torch.randn(1, 2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moved = gradient / gradient.square().mean((2, 3, 4), keepdim=True).sqrt()
    for side in (1, 2, 4):
        own = torch.zeros(2, 3, side, side, dtype=torch.float64, requires_grad=True)
        enlarged = F.interpolate(own, (8, 8), mode="bilinear", align_corners=False)
        (step,) = torch.autograd.grad(enlarged, own, gradient[0])
        step = step / step.square().mean((1, 2, 3), keepdim=True).sqrt()
        moved = moved + F.interpolate(step, (8, 8), mode="bilinear", align_corners=False)
    assert (pyramid(gradient, even=True) - moved).abs().max() < 1e-12


@pytest.mark.parametrize("fields", [{}, {"classes_per_iteration": 2}], ids=str)
def test_images_move_by_adam(fields):
    """As torch's own does, for every class on its own."""
    engine = make_engine(pixels="float32", image_step="adam", image_lr=0.01, image_momentum=0.8, **fields)
    images = [engine.synthetic.images[k].detach().clone().requires_grad_() for k in range(3)]
    theirs = [torch.optim.Adam([own], 0.01, (0.8, 0.999), eps=1e-16) for own in images]
    for iteration in range(4):
        engine.gradient(iteration)
        drawn = engine.draw(iteration).classes
        for k in range(3) if drawn is None else drawn.tolist():
            images[k].grad = engine.gradients[k].clone()
            theirs[k].step()
            with torch.no_grad():
                inside = engine.normalization.undo(images[k]).clamp(0, 1)
                images[k].copy_(engine.normalization.apply(inside))
        engine.step(iteration)
        assert torch.allclose(engine.synthetic.images, torch.stack(images), atol=1e-9)


def test_levels_of_a_pyramid_have_an_adam_each():
    recipe = make_engine(image_step="adam", image_pyramid=True, image_momentum=0.8).recipe
    start = torch.zeros(2, 1, 3, 8, 8, dtype=torch.float64)
    steps, moved = Steps(recipe, start), start.clone()
    levels = [torch.zeros(2, 3, side, side, dtype=torch.float64, requires_grad=True) for side in (1, 2, 4, 8)]
    theirs = torch.optim.Adam(levels, 0.1, (0.8, 0.999), eps=1e-16)
    for seed in range(3):
        gradient = torch.randn(2, 1, 3, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        moved -= 0.1 * steps.take(slice(None), gradient)
        image = sum(F.interpolate(level, (8, 8), mode="bilinear", align_corners=False) for level in levels)
        theirs.zero_grad()
        (image * gradient[:, 0]).sum().backward()
        theirs.step()
        wanted = sum(F.interpolate(level, (8, 8), mode="bilinear", align_corners=False) for level in levels)
        assert (moved[:, 0] - wanted).abs().max() < 1e-9


def test_adams_steps_are_as_long_for_the_smallest_gradients():
    recipe = make_engine(image_step="adam", image_pyramid=True).recipe
    gradient = torch.randn(2, 1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    usual, small = (Steps(recipe, gradient).take(slice(None), scale * gradient) for scale in (1.0, 1e-9))
    assert torch.allclose(small, usual, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("fields", [{}, {"image_step": "adam"}, {"image_step": "adam", "image_pyramid": True}], ids=str)
@pytest.mark.parametrize("size", [8, 12, 65])
def test_what_steps_take_of_the_memory_is_known_before(fields, size):
    recipe, images = make_engine(**fields).recipe, torch.zeros(2, 1, 3, size, size)
    state = Steps(recipe, images).state
    numbers = sum(tensor.numel() for name, tensor in state.items() if name != "steps")
    assert Steps.held(recipe, size) * images.numel() == pytest.approx(numbers)


@pytest.mark.parametrize("pyramid", [False, True])
def test_a_run_by_adam_goes_on_to_the_same_bits(pyramid):
    fields = {"image_step": "adam", "image_pyramid": pyramid, "iterations": 6, "classes_per_iteration": 2}
    engine, first, again = (make_engine(dtype=torch.float32, **fields) for _ in range(3))
    list(engine.run())
    next(report for report in first.run(report_every=1) if report.done == 3)
    again.restore(first.state())
    list(again.run(3))
    assert torch.equal(again.synthetic.images, engine.synthetic.images)


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
