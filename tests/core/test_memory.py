"""A limit of memory is held by the whole process, and what has no limit finds its own."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from atomhub import memory

LIMIT, SPARE = 700 * 2**20, 300 * 2**20


def test_a_process_stays_within_its_limit():
    """Iterations of 100 classes, whose maps would take more than the limit at once, under both norms."""
    command = [sys.executable, str(Path(__file__).parent / "limited.py"), str(LIMIT)]
    out = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    peak, *losses = map(float, out.split())
    assert peak < LIMIT + SPARE
    assert np.isfinite(losses).all()
    assert len(losses) == 3


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
