"""Where to compute, with how many processes, and what to say when it does not fit."""

import ctypes
import os
import platform
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import cast

import torch
import torch.distributed as dist

from atomhub.core.blocks import exact_float32
from atomhub.core.parallel import Team
from atomhub.errors import AtomhubError, UsageError, is_out_of_memory

_CPU = 'Use `device="cpu"`.'


def find_device(device: str) -> torch.device:
    """Return the torch device for ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``; UsageError for any other."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and "LOCAL_RANK" in os.environ:  # under torchrun: a GPU each
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    kind, _, index = device.partition(":")
    if device == "mps":
        if not torch.backends.mps.is_available():
            raise UsageError("The device 'mps' was asked for, but torch finds no GPU of Apple's here.", _CPU)
        return torch.device(device)
    if device != "cpu" and (kind != "cuda" or (device != "cuda" and not index.isdecimal())):
        raise UsageError(f"There is no device {device!r}.", "Use auto, cpu, cuda or mps.")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            f"The device {device!r} was asked for, but torch finds no CUDA GPU here.", 'Use `device="cpu"`.'
        )
    if index and int(index) >= torch.cuda.device_count():
        raise UsageError(f"There is no device {device!r}: this machine has {torch.cuda.device_count()} GPUs.")
    if kind == "cuda":
        exact_float32()  # whatever ran before in this process
    return torch.device(device)


def describe_device(device: torch.device) -> str:
    """Return what a reader of a result needs to know of the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return f"Apple GPU ({platform.machine()})"
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"


@contextmanager
def enough_memory(way_out: str) -> Iterator[None]:
    """Turn the many ways of running out of memory into a sentence with the way out."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise AtomhubError("There is not enough memory for this.", f"To need less, {way_out}.") from error


@contextmanager
def processes(device: torch.device) -> Iterator[Team]:
    """Join the processes that ``torchrun`` started, if it did, for the block.

    Args:
        device: Where this process computes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield Team()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # the others wait while one decodes a source or trains networks; a process that ends is noticed at once all the same
    dist.init_process_group("gloo", timeout=timedelta(days=1))
    # here it may not be, and none is away for longer than it compiles
    gpus = dist.new_group(backend="nccl", timeout=timedelta(minutes=10)) if device.type == "cuda" else None
    try:
        yield Team(cast(dist.ProcessGroup | None, gpus))
    finally:
        dist.destroy_process_group()


@contextmanager
def first_of_machine(team: Team) -> Iterator[None]:
    """Run the block in one process of every machine first, then in the others: what it caches is made once."""
    first = os.environ.get("LOCAL_RANK", "0") == "0"
    if not first:
        team.wait()
    yield
    if first:
        team.wait()


def fast_bfloat16(device: torch.device) -> bool:
    """Whether convolutions in bfloat16 are faster than in float32 there."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in checks)


def keep_large_buffers() -> None:
    """Let this process keep large freed buffers for the next operation, where the C library is glibc.

    By default glibc maps every large buffer anew and the system clears its pages, which takes about half the time of
    the convolutions on a CPU. It holds for the whole process, which keeps the memory it once had.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD: buffers up to 1 GiB come from the heap
        libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD: and go back to it


def parse_size(size: int | str) -> int:
    """Return bytes from a number of them or text such as ``8GiB``, ``500 MB``; UsageError otherwise."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:([kmgt])(i?)b?|b)?\s*", str(size), re.IGNORECASE)
    if not found or isinstance(size, bool):
        raise UsageError(f"The memory cannot be {size!r}.", "Use a number with a unit, such as 8GiB.")
    number, unit, binary = found.groups()
    return int(float(number) * (1024 if binary else 1000) ** (" kmgt".index(unit.lower()) if unit else 0))
