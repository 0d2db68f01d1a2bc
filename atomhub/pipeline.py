"""From real images to a distilled set: the main job."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import atomhub
from atomhub.core.engine import Engine
from atomhub.core.whitening import Normalization
from atomhub.devices import describe_device, enough_memory, find_device
from atomhub.distilled import DistilledDataset
from atomhub.errors import SourceError, UsageError, check_whole
from atomhub.manifest import Manifest, check_name
from atomhub.recipe import TUNED, Recipe
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
    name: str | None = None,
    measure_every: int = 0,
    progress: Progress | None = None,
    command: str | None = None,
    **options: Any,
) -> DistilledDataset:
    """Distil a labelled image dataset into ``ipc`` synthetic images a class.

    The same arguments give the same images on the same CPU and versions; a GPU adds floats in an order of its own, so
    there they agree up to rounding. The set stays in memory: ``.save()`` keeps it.

    Args:
        source: What :func:`atomhub.open_source` understands, or its result.
        ipc: Images per class, 1 to the size of the smallest class.
        recipe: Preset name (adapted to sources that have tuned values), TOML file, or a Recipe, taken as it is.
        overrides: Recipe fields to replace.
        seed: Keys every random draw.
        device: ``auto``, ``cpu`` or ``cuda``.
        name: Name of the set; None: ``<source>-ipc<ipc>``.
        measure_every: Measure one network under ``quick`` every so many iterations, for the curve; 0: never.
        progress: Told about the loss now and then.
        command: How the set was asked for; recorded.
        options: Source options (:class:`atomhub.sources.SourceOptions`).

    Raises:
        UsageError: a value that is not possible.
        AtomhubError: data that cannot be used, or a loss that is not finite.
    """
    check_whole("ipc", ipc, 1)
    check_whole("seed", seed, 0)
    check_whole("measure_every", measure_every, 0)
    chosen = choose_recipe(recipe, source.info.id if isinstance(source, RealData) else str(source), overrides)
    where = find_device(device)
    if isinstance(source, RealData) and options:
        raise UsageError(f"The source is open already, so {min(options)!r} comes too late.", "Give it to open_source.")
    real = source if isinstance(source, RealData) else open_source(source, **options)
    if measure_every and real.test is None:
        raise UsageError("measure_every needs test images, and the source has none.", "Set some aside: test_fraction.")
    offsets = real.train.offsets(len(real.class_names))
    counts = offsets[1:] - offsets[:-1]
    if counts.min() < ipc:
        scarce = int(counts.argmin())
        raise SourceError(
            f"The class {real.class_names[scarce]!r} has {counts[scarce]} real training images, fewer than ipc {ipc}.",
            f"Use --ipc {counts[scarce]} or less.",
        )
    resolved = chosen.resolved(ipc, real.info.size, real.info.flip)
    normalization = Normalization(real.mean, real.std)
    manifest = Manifest(
        name=check_name(name or f"{real.name}-ipc{ipc}"),
        source=real.info,
        recipe=resolved,
        seed=seed,
        ipc=ipc,
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
    labels = torch.arange(len(real.class_names)).repeat_interleave(ipc)
    history: list[tuple[int, float]] = []
    accuracies: list[tuple[int, float]] = []
    start, measuring = time.perf_counter(), 0.0
    with enough_memory("lower real_batch or width (--set real_batch=32), or use fewer classes or a smaller size"):
        engine = Engine(torch.from_numpy(real.train.images), offsets, resolved, ipc, normalization, seed, where)
        for done, loss in engine.run(math.gcd(_REPORT_EVERY, measure_every)):
            history.append((done, loss))
            if progress:
                progress(done, resolved.iterations, loss)
            if measure_every and done % measure_every == 0:
                before = time.perf_counter()
                snapshot = DistilledDataset(engine.synthetic.export(), labels, manifest)
                accuracies.append((done, _accuracy_now(snapshot, real, device)))
                measuring += time.perf_counter() - before
    update = {
        "history": tuple(history[:: -(-len(history) // _HISTORY)]),
        "accuracy_history": tuple(accuracies),
        "seconds": round(time.perf_counter() - start - measuring, 2),
    }
    return DistilledDataset(engine.synthetic.export(), labels, manifest.model_copy(update=update))


def _accuracy_now(distilled: DistilledDataset, real: RealData, device: str) -> float:
    """Return the accuracy of one quickly trained network, in percent."""
    from atomhub.training.evaluation import evaluate

    return evaluate(distilled, protocol="quick", runs=1, baseline=(), device=device, source=real).score.mean


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
