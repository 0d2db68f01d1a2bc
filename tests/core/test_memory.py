"""A limit of memory is held by the whole process, and what has no limit finds its own."""

import multiprocessing
from pathlib import Path

import numpy as np
import torch
from conftest import ROOT

from atomhub import memory

LIMIT, SPARE = 700 * 2**20, 300 * 2**20
CLASSES, SIDE = 100, 32


def peak_of(limit, queue):
    """In a process of its own: iterations of 100 classes, whose maps would take 1.6 GB at once."""
    from atomhub.core.engine import Engine
    from atomhub.core.whitening import Normalization
    from atomhub.devices import keep_large_buffers
    from atomhub.recipe import Recipe

    torch.set_num_threads(1)
    keep_large_buffers()
    images = np.random.default_rng(0).integers(0, 256, (CLASSES * 20, 3, SIDE, SIDE), dtype=np.uint8)
    normalization, losses = Normalization((0.5,) * 3, (0.25,) * 3), []
    for norm in ("batch", "instance"):
        recipe = Recipe.named("atom", {"norm": norm, "width": 64, "real_batch": 20}).resolved(5, SIDE)
        engine = Engine(images, np.arange(CLASSES + 1) * 20, recipe, 5, normalization, memory=limit, compiled=False)
        losses += [float(engine.step(iteration)) for iteration in range(2)]
    queue.put((memory.peak_memory(engine.device), losses))


def test_a_process_stays_within_its_limit(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}:{Path(__file__).parent}")
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=peak_of, args=(LIMIT, queue))
    process.start()
    peak, losses = queue.get(timeout=120)
    process.join()
    assert peak < LIMIT + SPARE
    assert np.isfinite(losses).all()


def test_free_memory_is_that_of_the_container_where_it_has_less(tmp_path, monkeypatch):
    (tmp_path / "memory.max").write_text("5000000\n")
    (tmp_path / "memory.current").write_text("2000000\n")
    cpu = torch.device("cpu")
    whole = memory.free_memory(cpu)
    assert 0 < memory.used_memory(cpu) <= memory.peak_memory(cpu)
    monkeypatch.setattr(memory, "_GROUP", tmp_path)
    assert memory.free_memory(cpu) == 3_000_000 < whole
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_memory(cpu) > 3_000_000
