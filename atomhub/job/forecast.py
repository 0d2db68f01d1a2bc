"""What a run is going to do, in words; and what it will take, measured on a few steps of it."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from atomhub import devices
from atomhub.core import initial
from atomhub.core.plan import convnet_flops, worth_compiling
from atomhub.core.real import RealImages
from atomhub.core.whitening import Normalization
from atomhub.data.real import RealData, Split
from atomhub.data.sources import open_source
from atomhub.errors import SourceError, check_installed, check_whole
from atomhub.job.banks import find_bank, lacking, teacher_of
from atomhub.job.matchers import Matching, engine_for, find_matcher, name_of
from atomhub.memory import free_memory
from atomhub.recipe import Recipe, choose_recipe
from atomhub.training.bank import BATCH, train_bank

_BATCHES, _TILED, _LOOKED_AT = 10, 12, 64
"""Of a network's training, and images that tiles and typical images are chosen from, to time it."""


@dataclass(frozen=True)
class Forecast:
    """What a run will take on this machine, as long as nothing else works on it.

    Attributes:
        plan: What it is going to do, in a sentence or two.
        networks: Networks to train on the real images first; those of earlier runs are used again.
        network_seconds: Seconds for each of them.
        choosing_seconds: Seconds to choose the images to start from, where a network does.
        iterations: Iterations of the run.
        iteration_seconds: Seconds for each of them.
        memory: Most bytes that it takes.
    """

    plan: str
    networks: int
    network_seconds: float
    choosing_seconds: float
    iterations: int
    iteration_seconds: float
    memory: int

    @property
    def seconds(self) -> float:
        """Seconds of the whole run, without what it takes to start it."""
        return self.networks * self.network_seconds + self.choosing_seconds + self.iterations * self.iteration_seconds


def asked(
    source: object, recipe: str | Path | Recipe, overrides: Mapping[str, Any] | None, device: str,
    memory: int | str | None, matcher: Callable[[], nn.Module] | None,
) -> tuple[Recipe, torch.device, int | None]:  # fmt: skip
    """Return the recipe, the device and the limit of memory that arguments of a run mean."""
    check_installed("Distilling", "distill", "matplotlib", "sklearn")
    limit = None if memory is None else devices.parse_size(memory)
    given = source.info.id if isinstance(source, RealData) else source if isinstance(source, str | Path) else ""
    if matcher is not None:
        overrides = {**(overrides or {}), "matcher": name_of(matcher)}
    return choose_recipe(recipe, str(given), overrides), devices.find_device(device), limit


def resolved_for(
    recipe: Recipe, real: RealData, ipc: int, device: torch.device, matcher: Callable[[], nn.Module] | None = None
) -> tuple[Recipe, Matching | None]:
    """Fill in what follows from the data and the device, and find the matcher; SourceError if a class is too small."""
    counts = np.diff(real.train.offsets(len(real.class_names)))
    reals = recipe.reals_per_image
    if counts.min() < ipc * reals:
        most = counts.min() // reals
        of_what = "tiles" if recipe.init == "tiles" else "views"
        scarce, each = int(counts.argmin()), f" of {reals} {of_what}" * (reals > 1)
        ways = [f"`ipc={most}` or less"] * bool(most)
        others: list[tuple[str, dict[str, Any]]] = [("formation=1", {"formation": 1}), ("init=real", {"init": "real"})]
        fewer = [said for said, f in others if recipe.model_copy(update=f).reals_per_image < reals]
        ways += fewer or ["formation=1 and init=real"] * (reals > 1)
        raise SourceError(
            f"The class {real.class_names[scarce]!r} has {counts[scarce]} real training images, fewer than ipc "
            f"{ipc}{each}.",
            f"Use {', or '.join(ways)}.",
        )
    matching = find_matcher(recipe, real, matcher)
    if matching is not None:
        recipe = recipe.replace(matcher=matching.spec, weights=matching.weights)
    resolved = recipe.resolved(ipc, real.info.size, real.info.flip)
    if resolved.precision == "auto":
        # on CPUs bfloat16 gains most where it is compiled: the norm layers PyTorch has for it are slow, and a bank of
        # other networks is trained as they are; gradients are matched under the networks of other recipes' banks
        operations = convnet_flops(resolved, real.info.channels, real.info.size) if matching is None else 0
        run = (resolved, len(counts), ipc, operations, device)
        long = device.type == "cuda" or worth_compiling(*run, gradients=False)
        resolved = resolved.replace(precision="bfloat16" if long and devices.fast_bfloat16(device) else "float32")
    return resolved, matching


def plan_of(
    real: RealData, recipe: Recipe, ipc: int, device: torch.device, memory: int | None, matching: Matching | None
) -> str:
    """Return what a run with a resolved recipe is going to do, in a sentence or two."""
    size = real.info.size
    views = f", with {recipe.formation}x{recipe.formation} views each" if recipe.formation > 1 else ""
    images = f"{len(real.train.labels):,} images of {size}x{size} in {len(real.class_names)} classes"
    missing = lacking(real, recipe, device, matching) if recipe.bank else 0
    first = f"{missing} of {recipe.bank} networks to train first, then " if missing else ""
    under = f" under {matching.spec}" if matching else ""
    steps = f"{recipe.iterations:,} iterations" if recipe.iterations else "nothing to optimise"
    return (
        f"{real.info.called}: {images} become {ipc} for each class{views}{under}. {first}{steps} on "
        f"{devices.describe_device(device)}, in at most {_most(device, memory) / 1e9:.1f} GB of memory."
    )


def _most(device: torch.device, memory: int | None) -> int:
    return int(0.8 * free_memory(device)) if memory is None else memory


def forecast(
    source: object, ipc: int, recipe: str | Path | Recipe = "dance", overrides: Mapping[str, Any] | None = None, *,
    seed: int = 0, device: str = "auto", memory: int | str | None = None,
    matcher: Callable[[], nn.Module] | None = None, **options: Any,
) -> Forecast:  # fmt: skip
    """Return what :func:`atomhub.distill` with these arguments would do, and how long that would take.

    Some iterations and some steps of a network's training are run for it, compiled if the run would be, which takes
    some minutes; nothing is kept but the decoded images. Arguments are those of ``distill``.

    Args:
        source: The real images.
        ipc: Images per class.
        recipe: Preset name, TOML file, or a Recipe.
        overrides: Recipe fields to replace.
        seed: Of all draws.
        device: ``auto``, ``cpu`` or ``cuda``.
        memory: Most bytes to take.
        matcher: Makes the networks that images are matched under, in place of the recipe's.
        options: Source options.

    Raises:
        UsageError, AtomhubError: what that would raise before its work.
    """
    check_whole("ipc", ipc, 1)
    chosen, where, limit = asked(source, recipe, overrides, device, memory, matcher)
    real = source if isinstance(source, RealData) else open_source(source, **options)
    resolved, matching = resolved_for(chosen, real, ipc, where, matcher)
    with devices.enough_memory("set a limit (`memory=2GiB`), lower real_batch or width, or use a smaller size"):
        normalization = Normalization(real.mean, real.std)
        taught = resolved.taught()
        networks = lacking(real, taught, where, matching) if taught.bank else 0
        each, choosing, bank = 0.0, 0.0, None
        if networks:
            for batches in (1, _BATCHES):  # the first is slow
                rows = slice(0, batches * BATCH)
                some = replace(real, train=Split(real.train.images[rows], real.train.labels[rows]))
                images = RealImages(some.train.images, normalization, where)
                build = matching.build if matching else None
                (one,) = train_bank(some, taught.replace(bank_epochs=1), images, [0], build)
            bank, each = one, one.seconds * taught.bank_epochs * len(real.train.labels) / len(some.train.labels)
        elif taught.bank:
            bank = find_bank(real, taught, normalization, where, matching)
        if bank is not None and resolved.init in ("tiles", "typical"):
            teacher = teacher_of(bank, real, taught, normalization, where, matching)
            choosing = _choosing(real, RealImages(real.train.images, normalization, where), resolved, teacher)
        trial = resolved.replace(init="noise")  # the same work, and no images to choose
        engine = engine_for(
            real,
            trial,
            ipc,
            normalization,
            seed,
            where,
            matching=matching,
            memory=limit,
            bank=bank if resolved.bank else None,
        )
        engine.step(0)
        float(engine.step(1))  # which waits for a GPU
        start = time.perf_counter()
        float(engine.step(2))
        spent = time.perf_counter() - start
    plan = plan_of(real, taught, ipc, where, limit, matching)
    return Forecast(plan, networks, each, choosing, resolved.iterations, spent, _most(where, limit))


def _choosing(real: RealData, images: RealImages, recipe: Recipe, teacher: initial.Teacher) -> float:
    """Return the seconds that it takes a network to choose among the images of all classes, from those of a few.

    Typical images are also clustered, which takes longer the more are wanted, and is left out.
    """
    counts = np.diff(real.train.offsets(len(real.class_names)))
    few, side = (
        min(_TILED if recipe.init == "tiles" else _LOOKED_AT, int(counts.min())),
        real.info.size // int(recipe.reals_per_image**0.5),
    )
    for _ in range(2):  # the first is slow
        start = time.perf_counter()
        if recipe.init == "tiles":
            initial.tiles(images, teacher, 0, 0, few, few, side, seed=0)
        else:
            initial.typical(images, teacher, 0, 0, few, 1, seed=0)
        spent = time.perf_counter() - start
    most = initial.CANDIDATES if recipe.init == "tiles" else initial.TYPICAL
    return float(spent * np.minimum(counts, most).sum() / few)
