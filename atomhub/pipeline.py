"""From real images to a distilled set: the main job."""

from __future__ import annotations

import math
import platform
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import atomhub
from atomhub.core.engine import Engine, Report, worth_compiling
from atomhub.core.synthetic import stored
from atomhub.core.whitening import Normalization, Whitening, fit_zca
from atomhub.devices import (
    describe_device,
    enough_memory,
    fast_bfloat16,
    find_device,
    first_of_machine,
    keep_large_buffers,
    parse_size,
    peak_memory,
    processes,
)
from atomhub.distilled import DistilledDataset
from atomhub.errors import AtomhubError, AtomhubWarning, SourceError, UsageError, check_whole
from atomhub.manifest import Manifest, check_name
from atomhub.recipe import TUNED, Recipe
from atomhub.runs import Checkpoint, Checkpoints, clear, signals
from atomhub.sources import RealData, open_source

Progress = Callable[[int, int, float], None]
"""Called with iterations done, iterations in all, and the loss."""

_HISTORY = 200
_REPORT_EVERY = 10


def distill(
    source: str | Path | RealData,
    ipc: int,
    recipe: str | Path | Recipe = "atom",
    overrides: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
    device: str = "auto",
    memory: int | str | None = None,
    name: str | None = None,
    measure_every: int = 0,
    checkpoints: str | Path | None = None,
    checkpoint_every: int = 500,
    resume: bool | None = None,
    progress: Progress | None = None,
    command: str | None = None,
    **options: Any,
) -> DistilledDataset:
    """Distil a labelled image dataset into ``ipc`` synthetic images a class.

    The same arguments give the same images, bit for bit, on the same CPU and versions, resumed or not; a GPU, another
    number of processes or another memory limit adds floats in another order, so there they agree up to rounding. The
    set stays in memory: ``.save()`` keeps it. Under ``torchrun`` the processes share the classes, and all return it.

    Args:
        source: What :func:`atomhub.open_source` understands, or its result.
        ipc: Images per class, 1 to the size of the smallest class.
        recipe: Preset name (adapted to sources that have tuned values), TOML file, or a Recipe, taken as it is.
        overrides: Recipe fields to replace.
        seed: Keys every random draw.
        device: ``auto``, ``cpu`` or ``cuda``.
        memory: Limit for the work of an iteration, in bytes or as ``"8GiB"``; None: as fast as possible.
        name: Name of the set; None: ``<source>-ipc<ipc>``.
        measure_every: Measure one network under ``quick`` every so many iterations, for the curve; 0: never.
        checkpoints: Folder for checkpoints, deleted when the set is saved; None: none are kept.
        checkpoint_every: Iterations between checkpoints; SIGINT and SIGTERM write one as well.
        resume: Go on from the checkpoints (True) or start anew (False); None: refuse if there are any.
        progress: Told about the loss now and then.
        command: How the set was asked for; recorded.
        options: Source options (:class:`atomhub.sources.SourceOptions`).

    Raises:
        UsageError: a value that is not possible, checkpoints of another run.
        AtomhubError: data that cannot be used, a loss that is not finite, not enough memory or disk.
        KeyboardInterrupt: SIGINT or SIGTERM came; a checkpoint was written.
    """
    check_whole("ipc", ipc, 1)
    check_whole("seed", seed, 0)
    check_whole("measure_every", measure_every, 0)
    check_whole("checkpoint_every", checkpoint_every, 1)
    limit = None if memory is None else parse_size(memory)
    chosen = choose_recipe(recipe, source.info.id if isinstance(source, RealData) else str(source), overrides)
    where = find_device(device)
    if isinstance(source, RealData) and options:
        raise UsageError(f"The source is open already, so {min(options)!r} comes too late.", "Give it to open_source.")
    with processes(where) as team:
        with first_of_machine(team):
            real = source if isinstance(source, RealData) else open_source(source, **options)
        if measure_every and real.test is None:
            raise UsageError(
                "measure_every needs test images, and the source has none.", "Set some aside: test_fraction."
            )
        resolved = _resolved(chosen, real, ipc, where)
        manifest = Manifest(
            name=check_name(name or f"{real.name}-ipc{ipc}"),
            source=real.info,
            recipe=resolved,
            seed=seed,
            ipc=ipc,
            formation=resolved.formation,
            class_names=real.class_names,
            mean=real.mean,
            std=real.std,
            seconds=0,
            device=describe_device(where),
            versions={"atomhub": atomhub.__version__}
            | {p: version(p) for p in ("torch", "torchvision", "numpy")}
            | {"python": platform.python_version()},
            command=command or _call(real, ipc, recipe, overrides, seed, options),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        identity = {
            "source": real.info.fingerprint,
            "ipc": ipc,
            "seed": seed,
            "recipe": resolved.model_dump(mode="json"),
        }
        kept = Checkpoints(Path(checkpoints), identity) if checkpoints is not None else None
        begin = _begin(kept, resume)
        keep_large_buffers()
        with enough_memory("set a limit (--memory 2GiB), lower real_batch or width, or use a smaller size"):
            normalization = Normalization(real.mean, real.std)
            if resolved.zca:
                normalization = fit_zca(real.train.images, normalization)
            pool = None
            if resolved.pool:
                from atomhub.training.pool import find_pool

                with first_of_machine(team):
                    pool = find_pool(real, resolved, normalization, where)
                manifest = manifest.model_copy(update={"seconds": pool.seconds})  # it counts, cached or not
            engine = Engine(
                real.train.images, real.train.offsets(len(real.class_names)), resolved, ipc,
                normalization, seed, where, memory=limit, team=team, pool=pool,
            )  # fmt: skip
            run = _Run(engine, manifest, real, device, measure_every, kept, checkpoint_every, progress)
            return run.finish(begin)


def _resolved(recipe: Recipe, real: RealData, ipc: int, device: torch.device) -> Recipe:
    """Fill in what follows from the data and the device; SourceError if a class is too small."""
    counts = np.diff(real.train.offsets(len(real.class_names)))
    views = ipc * recipe.formation**2
    if counts.min() < views:
        scarce, each = int(counts.argmin()), f" of {recipe.formation**2} views" * (recipe.formation > 1)
        raise SourceError(
            f"The class {real.class_names[scarce]!r} has {counts[scarce]} real training images, fewer than ipc "
            f"{ipc}{each}.",
            f"Use --ipc {counts[scarce] // recipe.formation**2} or less.",
        )
    resolved = recipe.resolved(ipc, real.info.size, real.info.flip)
    if resolved.precision == "auto":
        # on CPUs bfloat16 gains only where it is compiled: the norm layers PyTorch has for it are slow
        long = device.type == "cuda" or worth_compiling(resolved, len(counts), ipc, real.info.channels, real.info.size)
        resolved = resolved.replace(precision="bfloat16" if long and fast_bfloat16(device) else "float32")
    return resolved


def _begin(kept: Checkpoints | None, resume: bool | None) -> Checkpoint | None:
    """Return the checkpoint to go on from, if there is one and that is wanted."""
    if kept is None or not kept:
        return None
    if resume is None:
        raise UsageError(
            f"There is an unfinished run in {kept.folder}.", "Go on with it (--resume), or start anew (--no-resume)."
        )
    if resume:
        return kept.latest()
    clear(kept.folder)
    return None


@dataclass
class _Run:
    """The loop around the engine: reports, measurements and checkpoints."""

    engine: Engine
    manifest: Manifest
    real: RealData
    device: str
    measure_every: int
    kept: Checkpoints | None
    checkpoint_every: int
    progress: Progress | None

    def finish(self, begin: Checkpoint | None) -> DistilledDataset:
        """Run to the end, from a checkpoint or from the start."""
        engine, team = self.engine, self.engine.team
        iterations, first, seconds = engine.recipe.iterations, 0, self.manifest.seconds
        self.losses: list[tuple[int, float]] = []
        self.clipped: list[tuple[int, float]] = []
        self.accuracies: list[tuple[int, float]] = []
        if begin is not None:
            engine.restore(begin.state)
            first, seconds = begin.iteration, begin.record["seconds"]
            self.losses, self.clipped, self.accuracies = (
                [(int(i), v) for i, v in begin.record[key]] for key in ("losses", "clipped", "accuracies")
            )
        self.own: list[Report] = []  # of this process alone, not yet added up
        self.start = time.perf_counter() - seconds
        every = math.gcd(_REPORT_EVERY, self.measure_every, self.checkpoint_every if self.kept is not None else 0)
        last = first
        # processes cannot agree on an iteration to stop at without exchanging more than they need to
        heed = self.kept is not None and team.size == 1
        with signals() if heed else nullcontext(lambda: False) as stop:
            try:
                for report in engine.run(first, every, stop):
                    if report.done % _REPORT_EVERY == 0 or report.done in (1, iterations):
                        self.own.append(report)  # the same ones whatever else is done on the way
                    if self.progress:
                        self.progress(report.done, iterations, report.loss)
                    if self.measure_every and report.done % self.measure_every == 0:
                        self._measure(report.done)
                    due = self.kept is not None and report.done % self.checkpoint_every == 0
                    if (due or stop()) and report.done < iterations:
                        self._save(report.done)
                        last = report.done
                    if stop():
                        note = f"Stopped at iteration {report.done}: --resume goes on from there."
                        warnings.warn(note, AtomhubWarning, stacklevel=4)
                        raise KeyboardInterrupt
            except AtomhubError as error:
                if last and "--resume" not in error.hint:
                    error.hint += f" The checkpoint at iteration {last} is good."
                raise
        self._add_up()
        state = engine.state()
        images = stored(
            state["images"], engine.synthetic.rounds, engine.normalization.to(torch.device("cpu"), engine.dtype)
        )
        if self.kept is not None and (begin is None or begin.iteration < iterations):
            self._save(iterations)  # until the set is saved as well
        thin = -(-len(self.losses) // _HISTORY)
        update = {
            "history": tuple(self.losses[::thin]),
            "clipped_history": tuple(self.clipped[::thin]),
            "accuracy_history": tuple(self.accuracies),
            "seconds": round(time.perf_counter() - self.start, 2),
            "peak_memory": peak_memory(engine.device),
        }
        checkpoints = self.kept.folder if self.kept is not None and team.rank == 0 else None
        return replace(self._set(images, self.manifest.model_copy(update=update)), checkpoints=checkpoints)

    def _set(self, images: Tensor, manifest: Manifest) -> DistilledDataset:
        labels = torch.arange(len(manifest.class_names)).repeat_interleave(manifest.ipc)
        normalization = self.engine.normalization.to(torch.device("cpu"), torch.float32)
        whitening = normalization if isinstance(normalization, Whitening) else None
        return DistilledDataset(images, labels, manifest, whitening=whitening)

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
        from atomhub.training.evaluation import evaluate

        state = self.engine.state()
        if self.engine.team.rank == 0:
            before = time.perf_counter()
            normalization = self.engine.normalization.to(torch.device("cpu"), self.engine.dtype)
            snapshot = self._set(stored(state["images"], self.engine.synthetic.rounds, normalization), self.manifest)
            found = evaluate(snapshot, protocol="quick", runs=1, baseline=(), device=self.device, source=self.real)
            self.accuracies.append((done, found.score.mean))
            self.start += time.perf_counter() - before


def _call(
    real: RealData,
    ipc: int,
    recipe: str | Path | Recipe,
    overrides: Mapping[str, Any] | None,
    seed: int,
    options: dict[str, Any],
) -> str:
    """Return the Python call to record; a folder's place and a recipe of one's own are left to who reads it."""
    shown = f"Recipe(**{recipe.model_dump()})" if isinstance(recipe, Recipe) else repr(Path(recipe).name)
    words = [repr(real.info.id.removeprefix("folder:")), str(ipc), shown]
    if overrides:
        words.append(f"overrides={dict(overrides)}")
    words += [f"{key}={value!r}" for key, value in {"seed": seed, **options}.items()]
    return f"atomhub.distill({', '.join(words)})"


def choose_recipe(recipe: str | Path | Recipe, source: str, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Return the recipe to use for a source: a preset with the source's tuned values, then the overrides."""
    if isinstance(recipe, Recipe):
        return recipe.replace(**(overrides or {}))
    preset = not str(recipe).endswith(".toml")
    return Recipe.named(recipe, {**(TUNED.get(source, {}) if preset else {}), **(overrides or {})})
