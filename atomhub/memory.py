"""How much memory there is, and how much of it is taken."""

import ctypes
import os
import platform
import re
import sys
from contextlib import suppress
from pathlib import Path

import torch

_GROUP = Path("/sys/fs/cgroup")


def free_memory(device: torch.device) -> int:
    """Return the bytes that are free: of a GPU, or of this machine or of the container that this process is in."""
    if device.type == "cuda":
        return (
            torch.cuda.mem_get_info(device)[0]
            + torch.cuda.memory_reserved(device)
            - torch.cuda.memory_allocated(device)
        )
    free = []
    with suppress(OSError, ValueError, AttributeError):
        found = re.search(r"^MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"), re.MULTILINE)
        free.append(1024 * int(found.group(1)))  # type: ignore[union-attr]
    with suppress(OSError, ValueError):  # a container's own limit; "max" is none
        most, now = (int((_GROUP / f"memory.{what}").read_text(encoding="ascii")) for what in ("max", "current"))
        stat = (_GROUP / "memory.stat").read_text(encoding="ascii")  # pages of files that the system may drop count too
        files = [int(n) for n in re.findall(r"^(?:in)?active_file (\d+)$", stat, re.MULTILINE)]
        free.append(most - now + sum(files))
    if not free:
        with suppress(AttributeError, ValueError, OSError):
            free.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)  # half of all there is
    return max(0, min(free)) if free else 4 * 2**30


def used_memory(device: torch.device) -> int:
    """Return the bytes that are taken: of a GPU by tensors, else by this process; 0 where nobody says.

    Without the pages of files, such as libraries: how many of them are in a process is the system's choice.
    """
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return _status("RssAnon") or 0


def peak_memory(device: torch.device) -> int | None:
    """Return the most memory used so far, in bytes: of the GPU by tensors, else of this process; None: unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = _status("VmHWM")  # Linux: what getrusage says starts from the peak of the parent process
    if peak is not None:
        return peak
    try:
        import resource
    except ImportError:  # Windows
        return None
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def give_back() -> None:
    """Give the memory that this process has freed back to the system, where the C library is glibc."""
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def _status(key: str) -> int | None:
    with suppress(OSError, AttributeError):
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return 1024 * int(re.search(rf"^{key}:\s*(\d+) kB", status, re.MULTILINE).group(1))  # type: ignore[union-attr]
    return None
