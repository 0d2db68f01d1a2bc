"""However the work of an iteration is cut and shared, its result is the same."""

import multiprocessing
from dataclasses import replace

import pytest
import torch
from conftest import small_limit
from engines import make_engine

from atomhub.core import plan
from atomhub.core.parallel import Team
from atomhub.core.passes import Compiler
from atomhub.errors import AtomhubError, UsageError


@pytest.mark.parametrize(("norm", "statistics"), [("instance", "own"), ("batch", "own"), ("batch", "real")])
def test_work_in_pieces_gives_the_same_gradient(norm, statistics):
    """A limit of memory splits real images in pieces of one, and synthetic ones class by class."""
    whole, pieces = (
        make_engine(norm=norm, statistics=statistics, options=options)
        for options in ({}, {"memory": small_limit(800_000)})
    )
    assert len(pieces.plan(3).real) > 3  # the limit is felt
    assert len(pieces.plan(3).groups) == (1 if (norm, statistics) == ("batch", "own") else 3)
    for iteration in (0, 1):
        loss, expected = whole.step(iteration), pieces.step(iteration)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-10)
    assert torch.allclose(whole.synthetic.images, pieces.synthetic.images, atol=1e-10)


@pytest.mark.parametrize("keep", [(), (-1,), (0,), (1,), (2,), (-1, 1, 2), (0, 1, 2)], ids=str)
def test_what_is_kept_of_the_real_images_changes_no_result(keep, monkeypatch):
    """Under batch norm a level is worked off before the next; what memory cannot keep is computed again."""
    expected = make_engine(norm="batch", depth=3).gradient(0)
    monkeypatch.setattr(plan, "kept", lambda *_: frozenset(keep))
    assert make_engine(norm="batch", depth=3).gradient(0).item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("keep", [(), (-1,), (1,), (-1, 1)], ids=str)
@pytest.mark.parametrize("some", [0, 1, 2, 3, 5])
def test_pieces_of_one_chunk_are_the_images_of_their_places(some, keep, monkeypatch):
    """Two chunks, of two classes and of one, in pieces of one image; some of which were kept and are not asked for."""
    expected = make_engine(norm="batch").gradient(0)
    engine = make_engine(norm="batch")
    chunks = [(slice(0, 2), slice(0, 4)), (slice(2, 3), slice(0, 4))]
    real = [(part, chunk) for chunk in chunks for part in plan.inside(chunk, 1)]
    own = replace(
        engine.plan(3), real=[p for p, _ in real], chunks=[c for _, c in real], some=some, keep=frozenset(keep)
    )
    assert len(own.real) == 12
    assert own.members(1) == list(range(8)) and own.members(8) == [8, 9, 10, 11]
    monkeypatch.setattr(engine, "plan", lambda count: own)
    assert engine.gradient(0).item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("some", [0, 1, 2])
def test_level_0_of_some_pieces_is_kept_where_that_of_all_would_be_too_much(some, monkeypatch):
    expected = make_engine(norm="batch").gradient(0)
    piece = 8 * 6 * 16**2 * 4  # of one class: float64, width, pixels, images
    monkeypatch.setattr(plan, "_CACHED", piece // torch.get_num_threads())
    monkeypatch.setattr(plan, "_REUSED", piece * some)
    engine = make_engine(norm="batch")
    assert (len(engine.plan(3).real), engine.plan(3).some) == (3, some)
    assert engine.gradient(0).item() == pytest.approx(expected.item(), rel=1e-12)


def test_levels_are_kept_that_save_most_and_fit():
    costs, sizes = [10, 100, 30], [1, 64, 16, 4]
    assert plan.kept(costs, sizes, 10, 10**6) == {-1, 1, 2}
    assert plan.kept(costs, sizes, 10, 10**6, first=True) == {0, 1, 2}
    assert plan.kept(costs, sizes, 10, 205) == {1, 2}
    assert plan.kept(costs, sizes, 10, 160) == {1}
    assert plan.kept(costs, sizes, 10, 50) == {-1, 2}
    assert plan.kept(costs, sizes, 10, 9) == set()


def test_pieces_cover_every_image_once_in_order():
    for classes in (1, 3, 7):
        for each in (1, 4, 6, 10):
            for most in (1, 2, 3, 5, 12, 100):
                pieces = plan.cut(classes, each, most)
                found = [(k, m) for a, b in pieces for k in range(a.start, a.stop) for m in range(b.start, b.stop)]
                assert found == [(k, m) for k in range(classes) for m in range(each)]
                assert max(map(plan.length, pieces)) <= most


def test_classes_take_turns():
    """Three classes, two an iteration: in two iterations all had their turn, and only those drawn move."""
    engine = make_engine(classes_per_iteration=2, norm="batch", pixels="float32")
    turns = []
    for iteration in range(4):
        before = engine.synthetic.images.detach().clone()
        classes = engine.draw(iteration).classes
        engine.step(iteration)
        moved = (engine.synthetic.images != before).flatten(1).any(1).nonzero().flatten()
        assert moved.tolist() == classes.tolist()
        turns.append(set(classes.tolist()))
    assert all(len(turn) == 2 for turn in turns)
    assert turns[0] | turns[1] == turns[2] | turns[3] == {0, 1, 2}


def test_an_iteration_of_some_classes_is_that_of_a_set_of_those():
    engine = make_engine(classes_per_iteration=2, pixels="float32", augmentation=())
    whole = make_engine(pixels="float32", augmentation=())
    engine.gradient(0), whole.gradient(0)
    chosen = engine.draw(0).classes
    assert torch.allclose(engine.gradients[chosen], whole.gradients[chosen], atol=1e-9)


def test_a_limit_too_small_names_one_that_fits():
    with pytest.raises(
        AtomhubError, match=r"(?s)too small: the work on 2 synthetic images.*nothing is left.*memory=.*MiB"
    ):
        make_engine(options={"memory": 10_000})
    with pytest.raises(
        AtomhubError, match=r"(?s)too small: the work on 6 synthetic images.*classes_per_iteration.*norm=instance"
    ):
        make_engine(norm="batch", options={"memory": small_limit(100_000)})


ALIKE = [
    {"norm": "instance"},
    {"norm": "none", "depth": 2},
    {"norm": "batch"},
    {"norm": "batch", "statistics": "real", "bank": 2, "calibration": 0.3},
    {"norm": "batch", "classes_per_iteration": 1},
]
TIGHT = 3 * 2**19
"""Bytes that cut the work in pieces, and leave room for what an allocator takes meanwhile."""


def last_images(overrides, memory=None):
    engine = make_engine(options={"team": Team(), "memory": memory and small_limit(memory)}, **overrides)
    list(engine.run())
    return engine.state()["images"]


def share_of(rank, size, folder):
    """One of several processes."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/rendezvous-{size}", rank=rank, world_size=size)
    found = [last_images(overrides, memory) for overrides in ALIKE for memory in (None, TIGHT)]

    def refuse():
        raise UsageError("The first process says no.")

    with pytest.raises(UsageError, match="says no"):  # in all of them
        Team().lead(refuse)
    assert Team().lead(lambda: rank) == 0
    if rank == 0:
        torch.save(found, folder / f"{size}.pt")
    torch.distributed.destroy_process_group()


def test_processes_and_limits_change_nothing_but_rounding(tmp_path):
    """In float64, after five iterations: one, two and three processes, each with and without a limit of memory."""
    forks = multiprocessing.get_context("fork")
    processes = [forks.Process(target=share_of, args=(r, size, tmp_path)) for size in (2, 3) for r in range(size)]
    for process in processes:
        process.start()
    alone = [last_images(overrides) for overrides in ALIKE]
    tight = [last_images(overrides, TIGHT) for overrides in ALIKE]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    for size in (2, 3):
        found = torch.load(tmp_path / f"{size}.pt", weights_only=True)
        for i, (a, b) in enumerate(zip(alone, tight, strict=True)):
            for other in (b, found[2 * i], found[2 * i + 1]):
                assert (a - other).abs().max() < 1e-9


def test_a_limit_leaves_what_the_program_does_not_take():
    mib = 2**20
    assert plan.budget(None, free=1000, used=10**9, resident=100) == 700
    assert plan.budget(1000 * mib, free=10, used=300 * mib, resident=44 * mib) == 400 * mib


def test_running_out_of_memory_is_no_failure_of_the_compiler(monkeypatch):
    def full(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: full)
    compiler = Compiler(wanted=True)
    with pytest.raises(RuntimeError, match="allocate"):
        compiler(lambda x: x)(1)
    assert compiler.works
