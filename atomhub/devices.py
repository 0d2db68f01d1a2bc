"""Where to compute, and what to say when it does not fit."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from atomhub.errors import AtomhubError, UsageError


def find_device(device: str) -> torch.device:
    """Return the torch device for ``auto``, ``cpu``, ``cuda`` or ``cuda:1``; UsageError for any other."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = device.partition(":")
    if device != "cpu" and (kind != "cuda" or (device != "cuda" and not index.isdecimal())):
        raise UsageError(f"There is no device {device!r}.", "Use auto, cpu or cuda.")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"The device {device!r} was asked for, but torch finds no CUDA GPU here.", "Use --device cpu.")
    if index and int(index) >= torch.cuda.device_count():
        raise UsageError(f"There is no device {device!r}: this machine has {torch.cuda.device_count()} GPUs.")
    return torch.device(device)


def describe_device(device: torch.device) -> str:
    """Return what a reader of a result needs to know of the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"


@contextmanager
def enough_memory(way_out: str) -> Iterator[None]:
    """Turn the many ways of running out of memory into a sentence with the way out."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not re.search("out of memory|allocate|enough memory", str(error)):
            raise
        raise AtomhubError("There is not enough memory for this.", f"To need less, {way_out}.") from error
