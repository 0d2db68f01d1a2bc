"""The engine agrees with the slow reference, and behaves as its docstrings say."""

import numpy as np
import pytest
import reference
import torch

from atomhub.core.engine import Engine
from atomhub.core.whitening import Normalization
from atomhub.errors import AtomhubError
from atomhub.recipe import PRESETS, Recipe

SIZE, SIZES = 16, (5, 4, 7)


def make_engine(preset="atom", channels=3, ipc=2, seed=0, dtype=torch.float64, **overrides):
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (sum(SIZES), channels, SIZE, SIZE), dtype=np.uint8)
    offsets = np.cumsum([0, *SIZES])
    recipe = Recipe.named(preset, {"width": 6, "real_batch": 4, "iterations": 5, **overrides}).resolved(ipc, SIZE)
    normalization = Normalization((0.4, 0.5, 0.45)[:channels], (0.2, 0.25, 0.3)[:channels])
    return Engine(images, offsets, recipe, ipc, normalization, seed, dtype=dtype)


def reference_loss_and_gradient(engine, iteration):
    """Recompute an iteration by the reference; the gradient is per normalised synthetic image (K, ipc, C, H, W)."""
    draw = engine.draw(iteration)
    mean, std = (
        torch.tensor(v, dtype=torch.float64).view(-1, 1, 1)
        for v in (engine.normalization.mean, engine.normalization.std)
    )
    real = [[(torch.tensor(engine.real[i]).double() / 255 - mean) / std for i in rows] for rows in draw.indices]
    seen = engine.synthetic.images.detach().double()
    if engine.recipe.pixels == "uint8":
        seen = (((seen * std + mean) * 255).round() / 255 - mean) / std
    seen.requires_grad_()
    weights = {k: v.double() for k, v in engine.embedding.network.state_dict().items()}
    loss = reference.objective(weights, real, list(seen), draw.augmentation, engine.recipe)
    loss.backward()
    return loss.detach(), seen.grad


def check(engine, iteration):
    expected_loss, expected = reference_loss_and_gradient(engine, iteration)
    loss = engine.gradient(iteration)
    assert abs(loss.item() - expected_loss) <= 1e-6 * abs(expected_loss)
    assert (engine.synthetic.images.grad - expected).norm() <= 1e-6 * expected.norm()
    assert expected.norm() > 0


@pytest.mark.parametrize("power", [1, 2, 4])
@pytest.mark.parametrize("ipc", [1, 3])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("preset", PRESETS)
def test_loss_and_gradient_agree_with_the_reference(preset, channels, ipc, power):
    check(make_engine(preset, channels, ipc, power=power), iteration=power + ipc)


@pytest.mark.parametrize("operation", ["color", "crop", "cutout", "flip", "scale", "rotate"])
def test_every_augmentation_agrees_with_the_reference(operation):
    check(make_engine(augmentation=(operation,)), iteration=2)


def test_three_blocks_float_pixels_and_no_augmentation_agree_with_the_reference():
    check(make_engine(depth=3, pixels="float32", augmentation=()), iteration=0)


def test_float32_stays_close_to_the_reference():
    engine = make_engine(dtype=torch.float32)
    expected, _ = reference_loss_and_gradient(engine, 3)
    assert engine.gradient(3).item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_same_seed_gives_the_same_images_and_another_seed_others():
    def result(seed):
        engine = make_engine(seed=seed, dtype=torch.float32)
        list(engine.run())
        return engine.synthetic.export()

    assert torch.equal(result(0), result(0))
    assert not torch.equal(result(0), result(1))


def test_draws_of_an_iteration_do_not_depend_on_those_before_it():
    straight, jumping = make_engine(), make_engine()
    for iteration in (0, 1, 2):
        last = straight.draw(iteration)
    jumped = jumping.draw(2)
    assert np.array_equal(last.indices, jumped.indices)
    assert torch.equal(last.augmentation, jumped.augmentation)
    for a, b in zip(straight.embedding.network.parameters(), jumping.embedding.network.parameters(), strict=True):
        assert torch.equal(a, b)


def test_every_iteration_has_a_network_of_its_own():
    engine = make_engine()
    engine.draw(0)
    first = [p.clone() for p in engine.embedding.network.parameters() if p.dim() > 1]
    engine.draw(1)
    assert not any(
        torch.equal(a, b)
        for a, b in zip(first, (p for p in engine.embedding.network.parameters() if p.dim() > 1), strict=True)
    )


def test_images_move_by_sgd_with_the_learning_rate_and_momentum_of_the_recipe():
    engine = make_engine(pixels="float32", image_lr=0.01, image_momentum=0.7, loss_scale=1.0)
    expected, velocity = engine.synthetic.images.detach().clone(), 0
    for iteration in range(3):
        engine.gradient(iteration)
        velocity = 0.7 * velocity + engine.synthetic.images.grad
        pixels = engine.normalization.undo(expected - 0.01 * velocity).clamp(0, 1)
        expected = engine.normalization.apply(pixels)
        engine.step(iteration)
        assert torch.allclose(engine.synthetic.images, expected, atol=1e-9)


def test_real_batches_hold_images_of_their_class_without_repeats():
    engine = make_engine()
    for iteration in range(20):
        indices = engine.draw(iteration).indices
        for k, (start, size) in enumerate(zip(engine.starts, engine.counts, strict=True)):
            row = indices[k].tolist()
            assert all(start <= i < start + size for i in row)
            assert len(set(row)) == 4


def test_a_step_lowers_the_loss_of_its_own_iteration():
    engine = make_engine(pixels="float32", image_lr=0.1)
    before = engine.step(0)
    assert engine.gradient(0) < before


def test_images_start_from_real_ones_of_their_class_and_stay_real_colours():
    engine = make_engine(ipc=3)
    start = engine.synthetic.export().view(3, 3, -1)
    for k, (first, size) in enumerate(zip(engine.starts, engine.counts, strict=True)):
        real = {tuple(r.tolist()) for r in engine.real[first : first + size].reshape(size, -1)}
        assert {tuple(r.tolist()) for r in start[k]} <= real
        assert len({tuple(r.tolist()) for r in start[k]}) == 3
    list(engine.run())
    pixels = engine.normalization.undo(engine.synthetic.images)
    assert pixels.min() >= -1e-9
    assert pixels.max() <= 1 + 1e-9


def test_rounded_images_are_what_the_networks_see_and_what_is_stored():
    engine = make_engine(dtype=torch.float32)
    list(engine.run())
    stored = engine.synthetic.export()
    assert stored.dtype == torch.uint8
    assert torch.equal(engine.normalization.apply(stored), engine.synthetic.seen().flatten(0, 1))


def test_noise_is_another_place_to_start():
    engine = make_engine(init="noise")
    assert engine.synthetic.export().float().std() > 50
    list(engine.run())


def test_batch_norm_and_no_norm_run():
    for norm in ("batch", "none"):
        assert np.isfinite(make_engine(norm=norm).gradient(0).item())


def test_a_loss_that_is_not_finite_stops_the_run():
    engine = make_engine(dtype=torch.float32, pixels="float32", norm="none", power=8, loss_scale=1e9)
    with torch.no_grad():
        engine.synthetic.images.fill_(float("nan"))
    with pytest.raises(AtomhubError, match="loss is nan at iteration 1"):
        list(engine.run())
