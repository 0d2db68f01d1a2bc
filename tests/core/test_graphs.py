"""What can be proven of distilling on a GPU where there is none; ``benchmarks/gpu.py`` proves the rest."""

import numpy as np
import pytest
import torch
from engines import make_engine
from pretended import GPU, Copies

from atomhub.core import graphs, sampling
from atomhub.core.engine import Engine
from atomhub.core.real import RealImages
from atomhub.core.whitening import Normalization
from atomhub.errors import AtomhubWarning

KINDS = [
    {"norm": "instance"},
    {"norm": "batch", "formation": 2},
    {"norm": "batch", "statistics": "real", "zca": True},
    {"norm": "none", "power": 3.0},
    {"norm": "batch", "bank": 2, "calibration": 0.3},
    {"classes_per_iteration": 2, "image_schedule": "cosine", "image_step": "normalized"},
]


@pytest.mark.parametrize("fields", KINDS, ids=str)
def test_a_step_stays_on_the_gpu_and_never_asks_it_for_a_value(fields, pretended_gpu):
    engine = make_engine(dtype=torch.float32, options={"device": GPU}, **fields)
    draw = engine.draw(0)
    with Copies() as copies:
        loss = engine.synthetic_side(draw, engine.real_side(draw))
    assert loss.device == engine.synthetic.images.device == draw.weights.device == GPU
    assert copies.found == ()


def test_what_a_step_must_not_do_would_be_noticed(pretended_gpu):
    x = torch.zeros(3, device=GPU)
    with pytest.raises(Exception, match=r"(?i)data.?dependent|_local_scalar_dense"):
        float(x[0])
    with pytest.raises(Exception, match=r"(?i)dynamic|nonzero"):
        x.nonzero()
    with Copies() as copies:
        x.cpu()
        torch.ones(3).to(GPU)
    assert len(copies.found) == 2


@pytest.mark.parametrize("fields", KINDS, ids=str)
def test_a_run_by_recordings_is_the_same_run(fields, monkeypatch):
    """Without a GPU they are called instead of played, in the order and with the copies of a GPU."""
    plain, recorded = (make_engine(dtype=torch.float32, iterations=8, **fields) for _ in range(2))
    losses = [report.loss for report in plain.run(report_every=1)]
    monkeypatch.setattr(Engine, "_recordable", lambda engine: True)
    assert [report.loss for report in recorded.run(report_every=1)] == losses
    assert torch.equal(recorded.synthetic.images, plain.synthetic.images)


def test_where_nothing_can_be_recorded_the_run_goes_on(monkeypatch):
    def fails(*arguments):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    plain, other = (make_engine(dtype=torch.float32) for _ in range(2))
    list(plain.run())
    monkeypatch.setattr(Engine, "_recordable", lambda engine: True)
    monkeypatch.setattr(graphs, "Recording", fails)
    with pytest.warns(AtomhubWarning, match="could not be recorded .* not permitted when stream is capturing$"):
        list(other.run())
    assert torch.equal(other.synthetic.images, plain.synthetic.images)


def test_draws_ahead_are_the_draws_of_their_iterations():
    """They come from several threads, and a run that ends early leaves none behind."""
    sampler = make_engine(bank=2, calibration=0.3, iterations=40).sampler
    for iteration, draw in zip(range(3, 40), sampler.ahead(range(3, 40), GPU), strict=True):
        own = sampler.draw(iteration)
        assert torch.equal(draw.packed(), own.packed())
    ahead = sampler.ahead(range(40), GPU)
    next(ahead)
    ahead.close()


def test_what_is_recorded_is_small_alone_and_without_a_limit(pretended_gpu):
    assert make_engine(options={"device": GPU})._recordable()
    assert make_engine(options={"device": GPU}, classes_per_iteration=4000)._recordable()  # of three: all
    assert not make_engine(options={"device": GPU, "memory": 2**40})._recordable()
    assert not make_engine(options={"device": GPU}, widths=(3, 5))._recordable()
    assert not make_engine()._recordable()


def test_a_draw_survives_its_way_as_one_block():
    draw = make_engine(bank=2, calibration=0.3, classes_per_iteration=2).draw(1)
    back = draw.unpacked(draw.packed().clone())
    for name in ("classes", "indices", "augmentation", "lr", "weights", "trained"):
        a, b = getattr(draw, name), getattr(back, name)
        assert torch.equal(a, b) and a.dtype == b.dtype and a.shape == b.shape


def test_an_apple_gpu_is_given_no_float64(monkeypatch):
    monkeypatch.setattr(sampling, "upload", lambda block, device: block)
    draw = make_engine(classes_per_iteration=2).draw(1)
    there = draw.on(torch.device("mps"))
    assert there.augmentation.dtype == there.lr.dtype == torch.float32
    assert torch.equal(there.augmentation, draw.augmentation.float()) and torch.equal(there.weights, draw.weights)


def test_real_images_stay_off_a_gpu_where_a_limit_leaves_no_room_for_them(pretended_gpu):
    size = make_engine().real.images.nbytes
    assert make_engine(options={"device": GPU, "memory": 2**40}).real.resident is not None
    normalization = Normalization((0.5,) * 3, (0.2,) * 3)
    images = np.zeros((size // 768, 3, 16, 16), np.uint8)
    assert RealImages(images, normalization, GPU, memory=size).resident is None
