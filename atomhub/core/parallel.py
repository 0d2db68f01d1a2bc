"""Class-parallel work under ``torchrun``: every process owns some classes and draws the same networks.

The loss is a sum over classes, so nothing is exchanged but what is gathered now and then (and the statistics of batch
norm, which couples the classes).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from atomhub.errors import AtomhubError, UsageError

T = TypeVar("T")


class Team:
    """The processes that share the work; one alone unless ``torch.distributed`` runs.

    Attributes:
        rank: Number of this process; 0 writes and prints.
        size: Number of processes.

    Args:
        gpus: The group that adds up what lies on GPUs; None: the one of all processes does.
    """

    def __init__(self, gpus: dist.ProcessGroup | None = None) -> None:
        self.gpus = gpus
        together = dist.is_available() and dist.is_initialized()
        self.rank, self.size = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)

    def shares(self, classes: int) -> list[NDArray[np.int64]]:
        """Return the class numbers that each process owns, in order and as even as can be.

        Raises:
            UsageError: more processes than classes.
        """
        if self.size > classes:
            raise UsageError(
                f"{self.size} processes cannot share {classes} classes.", f"Use at most {classes} (--nproc-per-node)."
            )
        return np.array_split(np.arange(classes, dtype=np.int64), self.size)

    def gather(self, x: Tensor, classes: int) -> Tensor:
        """Return the rows of all classes, (K, ...) on the CPU, from the (k, ...) of each process; collective."""
        own = x.detach().cpu().contiguous()
        if self.size == 1:
            return own.clone()
        counts = [len(share) for share in self.shares(classes)]
        padded = own.new_zeros(max(counts), *own.shape[1:])
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in counts]
        with _together():
            dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    def lead(self, work: Callable[[], T]) -> T:
        """Return what ``work`` gives in the first process, in all of them, and raise there what it raises; collective.

        What it gives is copied by pickle, so tensors are to be on the CPU. The others wait as long as it takes.
        """
        if self.size == 1:
            return work()
        found: list[Any] = [None, None]
        if self.rank == 0:
            try:
                found[0] = work()
            except (Exception, KeyboardInterrupt) as error:
                found[1] = error
        with _together():
            dist.broadcast_object_list(found, device=torch.device("cpu"))
        if found[1] is not None:
            raise found[1]
        return found[0]

    def anywhere(self, here: bool) -> bool:
        """Return whether something is so in any process; collective, and soon over."""
        if self.size == 1:
            return here
        flag = torch.tensor([float(here)])
        with _together():
            dist.all_reduce(flag)
        return bool(flag > 0)

    def add(self, x: Tensor) -> Tensor:
        """Return the sum over all processes, or what is given where this one is alone; collective."""
        if self.size == 1:
            return x
        x = x.clone()
        with _together():
            dist.all_reduce(x, group=self.gpus if x.is_cuda else None)
        return x

    def of_all(self, x: Tensor, numbers: Tensor, classes: int) -> tuple[Tensor, Tensor]:
        """Return the rows of all processes' classes, (m, ...), and their class numbers, (m,); collective.

        Args:
            x: (k, ...) the rows of this one's.
            numbers: (k,) their class numbers; no other process has one of them.
            classes: K.
        """
        if self.size == 1:
            return x, numbers
        everyones, there = x.new_zeros(classes, *x.shape[1:]), x.new_zeros(classes)
        everyones[numbers], there[numbers] = x, 1
        present = self.add(there) > 0
        return self.add(everyones)[present], present.nonzero()[:, 0]

    def total(self, values: list[float]) -> list[float]:
        """Return sums over all processes, number by number; collective."""
        sums = torch.tensor(values, dtype=torch.float64)
        if self.size > 1:
            with _together():
                dist.all_reduce(sums)
        return sums.tolist()

    def wait(self) -> None:
        """Wait until all processes are here; collective."""
        if self.size > 1:
            with _together():
                dist.barrier()


@contextmanager
def _together() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise AtomhubError(
            "Another process of this run has ended, so this one ends as well.",
            "See its message; `resume=True` continues from the last checkpoint.",
        ) from error
