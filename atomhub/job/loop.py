"""The loop of a distillation: iterations, reports, measurements on the way, checkpoints."""

import math
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from atomhub.core.iterations import Iterations, Report
from atomhub.core.synthetic import stored
from atomhub.core.whitening import Whitening
from atomhub.data.real import RealData
from atomhub.dataset import DistilledDataset
from atomhub.errors import AtomhubError, AtomhubWarning, first_line
from atomhub.interrupts import heeded
from atomhub.job.checkpoints import Checkpoint, Checkpoints
from atomhub.job.tracking import Tracker, find_tracker
from atomhub.manifest import Manifest
from atomhub.memory import peak_memory
from atomhub.training.measure import measure

Progress = Callable[[str, float, int, float | None], None]
"""Called with ``images`` (read), ``networks`` or ``iterations``, how many are done, how many there are, and the loss of
an iteration."""

_HISTORY = 200
_REPORT_EVERY = 10


@dataclass
class Run:
    """The loop around the engine: reports, measurements and checkpoints; its fields are as in ``run.distill``."""

    engine: Iterations
    manifest: Manifest
    real: RealData
    device: str
    measure_every: int
    kept: Checkpoints | None
    checkpoint_every: int
    progress: Progress | None
    track: Sequence[str] = ()
    losses: list[tuple[int, float]] = field(default_factory=list)
    clipped: list[tuple[int, float]] = field(default_factory=list)
    accuracies: list[tuple[int, float]] = field(default_factory=list)
    own: list[Report] = field(default_factory=list)
    """Reports of this process alone, not yet added up."""
    start: float = 0.0
    before: float = 0.0
    """Seconds that were spent before this process."""

    def finish(self, begin: Checkpoint | None, seconds: float) -> DistilledDataset:
        """Run to the end, and return the set, in memory.

        Args:
            begin: Where to continue; None: from the start.
            seconds: Time that was spent before the start.

        Raises:
            AtomhubError: the loss is not finite; a good checkpoint is named.
            KeyboardInterrupt: SIGINT or SIGTERM came; a checkpoint was written.
        """
        engine, team = self.engine, self.engine.team
        iterations, first = engine.recipe.iterations, 0
        if begin is not None:
            engine.restore(begin.state)
            first, seconds = begin.iteration, begin.record["seconds"]
            self.losses, self.clipped, self.accuracies = (
                [(int(i), v) for i, v in begin.record[key]] for key in ("losses", "clipped", "accuracies")
            )
        self.start, self.before = time.perf_counter() - seconds, seconds
        trackers = self._trackers(first)
        every = math.gcd(_REPORT_EVERY, self.measure_every, self.checkpoint_every if self.kept is not None else 0)
        last = first
        stopping = False
        with heeded("this iteration") if self.kept is not None else nullcontext(lambda: False) as came:

            def stop() -> bool:  # asked once an iteration, by all processes: a dead one is noticed as well
                nonlocal stopping
                stopping = team.anywhere(stopping or came())
                return stopping

            try:
                for report in engine.run(first, every, stop):
                    if report.done % _REPORT_EVERY == 0 or report.done in (1, iterations):
                        self.own.append(report)  # the same ones whatever else is done on the way
                    if self.progress:
                        self.progress("iterations", report.done, iterations, report.loss)
                    stopping = stopping or (team.size == 1 and came())  # while that was shown
                    self._look(report, trackers, first)
                    due = self.kept is not None and report.done % self.checkpoint_every == 0
                    if (due or stopping) and report.done < iterations:
                        self._save(report.done)
                        last = report.done
                    if stopping:
                        note = f"Stopped at iteration {report.done}: `resume=True` continues from there."
                        warnings.warn(note, AtomhubWarning, stacklevel=4)
                        raise KeyboardInterrupt
            except AtomhubError as error:
                if last and "resume" not in error.hint:
                    error.hint += f" The checkpoint at iteration {last} is good."
                raise
            finally:
                for tracker in trackers:
                    tracker.finish()
        self._add_up()
        state = engine.state()
        if self.kept is not None and (begin is None or begin.iteration < iterations):
            self._save(iterations)  # until the set is saved as well
        thin = max(1, -(-len(self.losses) // _HISTORY))
        done = {
            "history": tuple(self.losses[::thin]),
            "clipped_history": tuple(self.clipped[::thin]),
            "accuracy_history": tuple(self.accuracies),
            "compiled": engine.compiler.works,
            "seconds": round(time.perf_counter() - self.start, 2),
            "peak_memory": peak_memory(engine.device),
        }
        return self._set(state["images"], self.manifest.replace(provenance=done))

    def _trackers(self, begin: int) -> list[Tracker]:
        if self.engine.team.rank:
            return []
        p = self.manifest.provenance
        config = {"source": p.source_id, "recipe": p.method, "command": p.command, "device": p.device, "seed": p.seed}
        return [find_tracker(kind, self.manifest.name, config, begin) for kind in self.track]

    def _look(self, report: Report, trackers: list[Tracker], begin: int) -> None:
        """Measure where that is due, and send a report to where the run is tracked; collective."""
        if self.measure_every and report.done % self.measure_every == 0:
            self._measure(report.done)
        if self.track:
            self._send(report, trackers, begin)

    def _send(self, report: Report, trackers: list[Tracker], begin: int) -> None:
        """Send a report of all processes together, and every tenth of the way the images; collective."""
        engine, iterations = self.engine, self.engine.recipe.iterations
        loss, clipped = engine.team.total([report.loss, report.clipped * len(engine.owned) / engine.classes])
        step = max(1, iterations // (10 * _REPORT_EVERY)) * _REPORT_EVERY
        pictured = report.done == iterations or report.done % step == 0
        state = engine.state() if pictured else {}
        seconds = time.perf_counter() - self.start
        values = {
            "iteration": report.done, "seconds": round(seconds, 3), "loss": loss, "clipped": clipped,
            "iterations_per_second": round((report.done - begin) / max(seconds - self.before, 1e-9), 4),
            "memory": float(peak_memory(engine.device) or 0),
        }  # fmt: skip
        if self.accuracies and self.accuracies[-1][0] == report.done:
            values["accuracy"] = self.accuracies[-1][1]
        for tracker in list(trackers):
            try:
                tracker.log(values)
                if state:
                    tracker.show(report.done, self._set(state["images"], self.manifest).preview())
            except Exception as error:  # a full disk or a lost connection is no reason to lose the run
                trackers.remove(tracker)
                note = f"The run is not tracked any more: {first_line(error)}"
                warnings.warn(note, AtomhubWarning, stacklevel=4)

    def _set(self, images: Tensor, manifest: Manifest) -> DistilledDataset:
        """Return normalised images (K, ipc, C, H, W) as a set."""
        exact = self.engine.normalization.to(torch.device("cpu"), self.engine.dtype)
        pixels = stored(images, self.engine.synthetic.brightest, exact)
        labels = torch.arange(len(images)).repeat_interleave(images.shape[1])
        normalization = self.engine.normalization.to(torch.device("cpu"), torch.float32)
        whitening = normalization if isinstance(normalization, Whitening) else None
        return DistilledDataset(pixels, labels, manifest, whitening=whitening)

    def _add_up(self) -> None:
        """Add the reports of all processes up: losses are sums over classes, clipped shares averages."""
        team, share = self.engine.team, len(self.engine.owned) / self.engine.classes
        done = [report.done for report in self.own]
        self.losses += zip(done, team.total([report.loss for report in self.own]), strict=True)
        self.clipped += zip(done, team.total([report.clipped * share for report in self.own]), strict=True)
        self.own = []

    def _save(self, done: int) -> None:
        self._add_up()
        state = self.engine.state()
        if self.kept is not None and self.engine.team.rank == 0:
            record = {
                "losses": self.losses, "clipped": self.clipped, "accuracies": self.accuracies,
                "seconds": time.perf_counter() - self.start,
            }  # fmt: skip
            self.kept.save(Checkpoint(done, state, record))

    def _measure(self, done: int) -> None:
        """Measure one quickly trained network; its time is not counted."""
        state = self.engine.state()
        if self.engine.team.rank == 0:
            before = time.perf_counter()
            snapshot = self._set(state["images"], self.manifest)
            found = measure(snapshot, protocol="quick", runs=1, baseline=None, device=self.device, source=self.real)
            self.accuracies.append((done, found.score.mean))
            self.start += time.perf_counter() - before
        self.engine.team.wait()  # in the group that waits for hours; that of the GPUs would give up
