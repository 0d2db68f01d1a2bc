"""A limit of memory is held by the whole process, and what has no limit finds its own."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from atomhub import memory
from atomhub.core.real import RealImages
from atomhub.core.whitening import Normalization

CPU = torch.device("cpu")
SPARE = 300 * 2**20


@pytest.mark.parametrize(
    ("matched", "limit", "iterations"),
    [("attention", 700 * 2**20, 3), ("gradients", 700 * 2**20, 1), ("gradients of many weights", 880 * 2**20, 1)],
)
def test_a_process_stays_within_its_limit(matched, limit, iterations):
    """Iterations whose maps would take more than the limit at once: of 100 classes under both norms, of many views."""
    command = [sys.executable, str(Path(__file__).parent / "limited.py"), str(limit), matched]
    out = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    *losses, peak = map(float, out.split())
    assert peak < limit + SPARE
    assert np.isfinite(losses).all()
    assert len(losses) == iterations


def test_free_memory_is_that_of_the_container_where_it_has_less(tmp_path, monkeypatch):
    (tmp_path / "memory.max").write_text("5000000\n")
    (tmp_path / "memory.current").write_text("2000000\n")
    stat = "anon 1000000\nfile 1000000\nfile_mapped 5\ninactive_anon 9\ninactive_file 700000\nactive_file 300000\n"
    (tmp_path / "memory.stat").write_text(stat)  # of files that were read: the system lets them go
    whole = memory.free_memory(CPU)
    assert 0 < memory.used_memory(CPU) <= memory.peak_memory(CPU)
    monkeypatch.setattr(memory, "_GROUP", tmp_path)
    assert memory.free_memory(CPU) == 4_000_000 < whole
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_memory(CPU) > 4_000_000


def test_images_that_were_read_from_a_file_do_not_stay_in_the_process(tmp_path):
    shape = (400, 3, 128, 128)
    images = np.memmap(tmp_path / "images", np.uint8, "w+", shape=shape)
    images[:] = np.arange(400, dtype=np.uint8)[:, None, None, None] % 251
    images.flush()
    real = RealImages(np.memmap(tmp_path / "images", np.uint8, "r", shape=shape)[5:], Normalization((0,), (1,)), CPU)
    before = memory._status("RssFile")
    first = real.pixels(np.arange(395))
    read = memory._status("RssFile")
    real.let_go()
    assert read - before > 15 * 2**20
    assert memory._status("RssFile") - before < 4 * 2**20
    assert torch.equal(real.pixels(np.arange(395)), first)
