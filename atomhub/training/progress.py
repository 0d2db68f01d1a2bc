"""Trainings under way: what is kept of them, how far they are."""

import time
from collections.abc import Callable

from torch import Tensor


class Halfway:
    """Keeps a training under way, so that one that was stopped or killed goes on, to the same bits; this one does not.

    Attributes:
        seconds: That it took before.
    """

    seconds = 0.0

    def found(self) -> dict[str, Tensor]:
        """Return what was kept of it last; empty: nothing."""
        return {}

    def after(self, state: Callable[[], dict[str, Tensor]]) -> bool:
        """Keep the state if it is time, and return whether to stop here; then it was kept."""
        return False


class Paused(Exception):
    """A training was stopped, and what there is of it was kept."""


class Told:
    """Tells every second or so how much of a training is done.

    Args:
        report: Called with a share in 0..1; None: nobody wants to know.
    """

    def __init__(self, report: Callable[[float], None] | None) -> None:
        self.report, self.last = report, time.perf_counter()

    def __call__(self, epoch: int, batch: int, epochs: int, batches: int) -> None:
        """Tell where a training is, if it is time."""
        if self.report and time.perf_counter() - self.last >= 1:
            self.last = time.perf_counter()
            self.report((epoch + min(batch / batches, 1)) / epochs)
