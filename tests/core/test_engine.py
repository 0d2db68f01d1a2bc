"""The engine agrees with the slow reference, and behaves as its docstrings say."""

import gc
import weakref
from collections import Counter
from functools import partial

import numpy as np
import pytest
import reference
import torch
from engines import SIZE, make_bank, make_engine, named
from torch.nn import functional as F

from atomhub.core import initial
from atomhub.core.passes import Compiler
from atomhub.core.synthetic import from_views, to_views
from atomhub.errors import AtomhubError, AtomhubWarning
from atomhub.presets import PRESETS


def reference_loss_and_gradient(engine, iteration):
    """Recompute an iteration by the reference; the gradient is per normalised synthetic image (K, ipc, C, H, W)."""
    draw = engine.draw(iteration)
    mean, std = (
        torch.tensor(v, dtype=torch.float64).view(-1, 1, 1)
        for v in (engine.normalization.mean, engine.normalization.std)
    )
    real = [[(torch.tensor(engine.real.images[i]).double() / 255 - mean) / std for i in rows] for rows in draw.indices]
    seen = engine.synthetic.images.detach().double()
    if levels := {"uint8": 255, "uint4": 15, "uint2": 3}.get(engine.recipe.pixels):
        seen = (((seen * std + mean) * levels).round() / levels - mean) / std
    seen.requires_grad_()
    weights = named(engine, draw, draw.weights)
    trained = named(engine, draw, draw.trained) if engine.recipe.calibration else None
    loss = reference.objective(weights, real, list(seen), draw.augmentation, engine.recipe, trained)
    loss.backward()
    return loss.detach(), seen.grad


def check(engine, iteration):
    expected_loss, expected = reference_loss_and_gradient(engine, iteration)
    loss = engine.gradient(iteration)
    assert abs(loss.item() - expected_loss) <= 1e-6 * abs(expected_loss)
    assert (engine.gradients - expected).norm() <= 1e-6 * expected.norm()
    assert expected.norm() > 0


@pytest.mark.parametrize("power", [1, 2, 4])
@pytest.mark.parametrize("ipc", [1, 3])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "preset", [name for name, fields in PRESETS.items() if not {"bank", "matcher"} & fields.keys()]
)  # parts of those with one: see below
def test_loss_and_gradient_agree_with_the_reference(preset, channels, ipc, power):
    check(make_engine(preset, channels, ipc, power=power), iteration=power + ipc)


@pytest.mark.parametrize("operation", ["color", "crop", "cutout", "flip", "scale", "rotate"])
def test_every_augmentation_agrees_with_the_reference(operation):
    check(make_engine(augmentation=(operation,)), iteration=2)


@pytest.mark.parametrize(
    "overrides",
    [
        {"depth": 3, "pixels": "float32", "augmentation": ()},
        {"norm": "batch"},
        {"norm": "batch", "statistics": "real"},
        {"augmentation": ("color", "crop", "cutout"), "augmentation_draw": "all"},
        {"norm": "none"},
        {"spatial": 0.5, "channel": 2.0, "feature": 0.0},
        {"power": 3.0},
        {"widths": (3, 5), "depths": (1, 2, 3)},
        {"formation": 2},
        {"formation": 4, "norm": "batch", "pixels": "float32"},
        {"bank": 2},
        {"bank": 2, "norm": "batch", "calibration": 0.3},
        {"bank": 2, "norm": "batch", "calibration": 0.3, "statistics": "real", "formation": 2},
        {"bank": 3, "calibration": 2.0, "formation": 2, "power": 2},
    ],
    ids=str,
)
def test_every_kind_of_network_and_term_agrees_with_the_reference(overrides):
    engine = make_engine(**overrides)
    for iteration in range(4):
        check(engine, iteration)


def test_networks_are_drawn_evenly_from_the_widths_and_depths_of_a_recipe():
    engine = make_engine(widths=(3, 5), depths=(1, 2))
    kinds = Counter()
    for iteration in range(400):
        network = engine.embedding.networks[engine.draw(iteration).network]
        kinds[network.convolutions[0].out_channels, network.depth] += 1
    assert len(kinds) == 4
    assert min(kinds.values()) > 70


@pytest.mark.parametrize(
    ("dtype", "fields"),
    [
        (torch.float32, {"norm": "instance"}),
        (torch.bfloat16, {"norm": "batch"}),
        (torch.bfloat16, {"norm": "batch", "statistics": "real"}),
    ],
)
def test_compiled_work_agrees_with_eager_work(dtype, fields):
    precision = str(dtype).removeprefix("torch.")
    eager = make_engine(dtype=torch.float32, **fields)
    compiled = make_engine(dtype=torch.float32, precision=precision, options={"compiled": True}, **fields)
    assert compiled.gradient(0).item() == pytest.approx(
        eager.gradient(0).item(), rel=1e-4 if dtype.itemsize == 4 else 0.1
    )
    a, b = (e.gradients.flatten() for e in (eager, compiled))
    assert F.cosine_similarity(a, b, dim=0) > (0.9999 if dtype.itemsize == 4 else 0.95)


@pytest.mark.parametrize("how", [Compiler.__call__, Compiler.traced])
def test_many_shapes_are_all_compiled(how, monkeypatch):
    """torch gives up beyond eight unless it is told otherwise, and says so to nobody."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        compiler = Compiler(True)
        double = how(compiler, lambda x: x * 2)
        for n in range(2, 14):
            assert torch.equal(double(torch.ones(n)), torch.full((n,), 2.0))
    assert compiler.works


def test_without_a_compiler_work_goes_on_as_it_is(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # nothing compiled before
    torch._dynamo.reset()
    with torch._inductor.config.patch({"cpp.cxx": ("/nowhere/c++",), "fx_graph_cache": False}):
        engine = make_engine(dtype=torch.float32, width=7, options={"compiled": True})
        assert engine.compiler.works
        with pytest.warns(AtomhubWarning, match="torch.compile failed, so the work goes on uncompiled") as said:
            engine.gradient(0)
        assert len(said) == 1
        assert engine.gradient(0).item() == pytest.approx(make_engine(dtype=torch.float32, width=7).gradient(0).item())
    assert not engine.compiler.works


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
    assert torch.equal(last.weights, jumped.weights)


def test_every_iteration_has_a_network_of_its_own():
    engine = make_engine()
    first, second = (engine.draw(iteration).weights for iteration in range(2))
    assert not torch.any(first == second)


@pytest.mark.parametrize("reach", [1.0, 0.5])
def test_networks_of_a_bank_lie_between_their_ends(reach):
    engine = make_engine(bank=2, width=3, calibration=0.3, bank_reach=reach)
    bank, shares = make_bank(engine.recipe), []
    for iteration in range(40):
        draw, name = engine.draw(iteration), "convolutions.1.weight"
        now, found = named(engine, draw, draw.weights)[name], []
        for member in range(2):
            a, b = (side[name][member].double() for side in (bank.initial, bank.trained))
            share = ((now - a) / (b - a)).median()
            if torch.allclose(now, a + share * (b - a), atol=1e-6):
                found.append((member, round(share.item(), 6)))
                end = named(engine, draw, draw.trained)
                assert all(torch.equal(end[n], bank.trained[n][member].double()) for n in end)
                assert len(end) == len(bank.trained)
        assert len(found) == 1
        shares += found
    assert {member for member, _ in shares} == {0, 1}
    assert len({share for _, share in shares}) == 40  # drawn afresh
    assert min(shares)[1] < 0.2 * reach and 0.8 * reach < max(share for _, share in shares) < reach


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
        real = {tuple(r.tolist()) for r in engine.real.images[first : first + size].reshape(size, -1)}
        assert {tuple(r.tolist()) for r in start[k]} <= real
        assert len({tuple(r.tolist()) for r in start[k]}) == 3
    list(engine.run())
    pixels = engine.normalization.undo(engine.synthetic.images)
    assert pixels.min() >= -1e-9
    assert pixels.max() <= 1 + 1e-9


@pytest.mark.parametrize(("pixels", "step"), [("uint8", 1), ("uint4", 17), ("uint2", 85)])
def test_rounded_images_are_what_the_networks_see_and_what_is_stored(pixels, step):
    engine = make_engine(dtype=torch.float32, pixels=pixels)
    list(engine.run())
    stored = engine.synthetic.export()
    assert stored.dtype == torch.uint8
    assert not (stored % step).any()
    assert torch.equal(engine.normalization.apply(stored), engine.synthetic.seen().flatten(0, 1))


def test_noise_is_another_place_to_start():
    engine = make_engine(init="noise")
    assert engine.synthetic.export().float().std() > 50
    list(engine.run())


@pytest.mark.parametrize("kind", ["herding", "kmeans"])
def test_chosen_real_images_are_distinct_and_stand_for_their_class(kind):
    engine = make_engine(init=kind, ipc=3)
    chosen = engine.synthetic.export().view(3, 3, -1)
    for k, (first, size) in enumerate(zip(engine.starts, engine.counts, strict=True)):
        real = torch.tensor(engine.real.images[first : first + size]).flatten(1)
        assert {tuple(r.tolist()) for r in chosen[k]} <= {tuple(r.tolist()) for r in real}
        assert len({tuple(r.tolist()) for r in chosen[k]}) == 3


def test_herding_follows_its_definition():
    images = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
    chosen = []
    for _ in range(5):  # greedily: the row that brings the mean of the chosen closest to the mean of all
        distances = [
            np.inf if i in chosen else np.linalg.norm(images[[*chosen, i]].mean(0) - images.mean(0)) for i in range(20)
        ]
        chosen.append(int(np.argmin(distances)))
    assert initial.herding(images, 5, 0).tolist() == chosen


def test_kmeans_finds_the_groups_of_a_class():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.eye(4, dtype=np.float32) * 10, 10, axis=0)
    rows = initial.kmeans(groups + rng.normal(size=(40, 4)).astype(np.float32), 4, 0)
    assert sorted(rows // 10) == [0, 1, 2, 3]


def test_the_share_of_clipped_pixels_is_reported():
    calm, wild = (make_engine(pixels="float32", image_lr=lr) for lr in (1e-9, 1e6))
    assert list(calm.run())[-1].clipped == 0
    assert list(wild.run())[-1].clipped > 0.2


def test_state_is_all_a_run_needs_to_go_on():
    straight, first, second = (make_engine(dtype=torch.float32) for _ in range(3))
    list(straight.run())
    for iteration in range(2):
        first.step(iteration)
    second.restore(first.state())
    list(second.run(start=2))
    assert torch.equal(straight.synthetic.images, second.synthetic.images)


def test_a_loss_that_is_not_finite_stops_the_run():
    engine = make_engine(dtype=torch.float32, pixels="float32", norm="none", power=8, loss_scale=1e9)
    with torch.no_grad():
        engine.synthetic.images.fill_(float("nan"))
    with pytest.raises(AtomhubError, match="loss is nan at iteration 1"):
        list(engine.run())


def test_views_start_from_real_images_and_come_back_in_order():
    engine = make_engine(formation=2, ipc=2, pixels="float32")
    pixels = engine.synthetic.export().view(3, 2, 3, SIZE, SIZE)
    real = torch.from_numpy(engine.real.images).double() / 255
    small = F.avg_pool2d(real, 2)
    found = {tuple(image.flatten().tolist()) for image in (small * 1020).round().int()}
    for k in range(3):
        for image in pixels[k]:
            for row in (0, 8):
                for column in (0, 8):
                    part = (image[:, row : row + 8, column : column + 8].double() * 1020).round().int()
                    assert tuple(part.flatten().tolist()) in found
    views = torch.rand(3, 8, 3, 8, 8).repeat_interleave(2, -1).repeat_interleave(2, -2)  # no detail to lose
    images = from_views(views, 2)
    assert images.shape == (3, 2, 3, 16, 16)
    plain = torch.rand(3, 8, 3, 1, 1).expand(-1, -1, -1, 16, 16)
    assert torch.allclose(to_views(from_views(plain, 2), 2), plain)
    assert torch.equal(images[1, 0, :, :8, :8], views[1, 0, :, ::2, ::2])
    assert torch.equal(images[1, 1, :, :8, 8:], views[1, 3, :, ::2, ::2])
    assert torch.equal(images[1, 0, :, 8:, 8:], views[1, 6, :, ::2, ::2])


def test_float32_is_float32_unless_tf32_is_asked_for():
    make_engine(dtype=torch.float32, precision="tf32")
    assert torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32  # whitening stays exact
    make_engine(dtype=torch.float32)
    assert not (torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32)
    assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark


def test_an_engine_leaves_memory_with_its_last_user():
    """And does not wait for the collector: its real images may lie on a GPU."""
    engine = make_engine()
    engine.step(0)
    known = weakref.ref(engine)
    gc.disable()
    try:
        del engine
        assert known() is None
    finally:
        gc.enable()
