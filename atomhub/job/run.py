"""From real images to a distilled set: the main job, and the one place where it is set up."""

import gc
import logging
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from atomhub import devices
from atomhub.command import command
from atomhub.core import draws
from atomhub.core.whitening import Normalization, fit_zca
from atomhub.data.real import RealData
from atomhub.data.sources import open_source
from atomhub.dataset import DistilledDataset
from atomhub.errors import UsageError, check_whole
from atomhub.files import check_target, home, locked
from atomhub.job.banks import find_bank, teacher_of
from atomhub.job.checkpoints import Checkpoint, Checkpoints, clear
from atomhub.job.forecast import asked, plan_of, resolved_for
from atomhub.job.loop import Progress, Run
from atomhub.job.matchers import engine_for
from atomhub.job.tracking import check_kinds
from atomhub.manifest import BITS, Format, Manifest, check_name
from atomhub.presets import PRESETS
from atomhub.provenance import Provenance
from atomhub.recipe import Recipe, choose_recipe
from atomhub.results import Results
from atomhub.storage import formats, store
from atomhub.version import versions

_LOG = logging.getLogger("atomhub")


def distill(
    source: object, ipc: int, recipe: str | Path | Recipe = "dance",
    overrides: Mapping[str, Any] | None = None, *, seed: int = 0, device: str = "auto",
    memory: int | str | None = None, name: str | None = None, save: bool | str | Path = False,
    overwrite: bool = False, measure_every: int = 0, checkpoints: bool | str | Path = False,
    checkpoint_every: int = 500, resume: bool | None = None, progress: Progress | None = None,
    matcher: Callable[[], nn.Module] | None = None, track: str | Sequence[str] = (), **options: Any,
) -> DistilledDataset:  # fmt: skip
    """Distil a labelled image dataset into ``ipc`` synthetic images per class.

    The same arguments give the same images, bit for bit, on the same CPU and versions, resumed or not; a GPU, another
    number of processes or another memory limit draws the same and adds floats in another order, so there they agree up
    to rounding.
    Under ``torchrun`` the processes share the classes, and all return the set.

    Args:
        source: What :func:`atomhub.open_source` understands, or its result.
        ipc: Images per class, 1 to the size of the smallest class.
        recipe: Preset name (adapted to sources that have tuned values), TOML file, or a Recipe, taken as it is.
        overrides: Recipe fields to replace.
        seed: Keys every random draw.
        device: ``auto``, ``cpu`` or ``cuda``.
        memory: Most bytes that this process may take (on a GPU: its tensors), or text such as ``"8GiB"``; None: 80 % of
            what is free.
        name: Name of the set; None: ``<source>-ipc<ipc>``.
        save: True: save the set under its name in the local store; a folder: there; False: it stays in memory.
        overwrite: Replace a set that is there.
        measure_every: Measure one network under ``quick`` every so many iterations, for the curve; 0: never.
        checkpoints: True: keep checkpoints under the name of the set in ``ATOMHUB_HOME``; a folder: there; False: keep
            none. They are deleted when the run has saved the set.
        checkpoint_every: Iterations between checkpoints; SIGINT and SIGTERM write one as well.
        resume: Continue from the checkpoints (True) or start anew (False); None: refuse if there are any.
        progress: Called now and then.
        matcher: A function that returns a new network to match images under, with fresh weights, in place of the
            recipe's ``matcher``.
        track: Where else what is reported goes: ``csv``, ``tensorboard``, ``trackio``, ``wandb`` or several of them
            (:func:`atomhub.job.tracking.find_tracker`).
        options: Source options (:class:`atomhub.data.real.SourceOptions`).

    Raises:
        UsageError: a value that is not possible, checkpoints of another run.
        AtomhubError: data that cannot be used, a loss that is not finite, not enough memory or disk, a set that exists.
        KeyboardInterrupt: SIGINT or SIGTERM came; a checkpoint was written.
    """
    check_whole("ipc", ipc, 1)
    name = None if name is None else check_name(name)  # before the work
    check_whole("seed", seed, 0)
    check_whole("measure_every", measure_every, 0)
    check_whole("checkpoint_every", checkpoint_every, 1)
    kinds = check_kinds([track] if isinstance(track, str) else track)
    chosen, where, limit = asked(source, recipe, overrides, device, memory, matcher)
    if isinstance(source, RealData) and options:
        raise UsageError(f"The source is open already, so {min(options)!r} comes too late.", "Give it to open_source.")

    def told(what: str) -> Callable[[float, int], None]:
        return lambda done, total: progress(what, done, total, None) if progress else None

    with devices.processes(where) as team, ExitStack() as locks:
        with devices.first_of_machine(team):
            real = source if isinstance(source, RealData) else open_source(source, progress=told("images"), **options)
        if measure_every and real.test is None:
            raise UsageError(
                "measure_every needs test images, and the source has none.", "Set some aside: test_fraction."
            )
        resolved, matching = resolved_for(chosen, real, ipc, where, matcher)
        name = check_name(name or f"{real.name}-ipc{ipc}")
        target = None
        if save is not False:
            target = (store.place(name) if save is True else Path(save)).expanduser().absolute()
            check_target(target, overwrite, formats.MANIFEST)
        kept = None
        if checkpoints is not False:
            folder = home() / "runs" / name if checkpoints is True else Path(checkpoints)
            identity = {"draws": draws.VERSION, "source": real.info.fingerprint, "ipc": ipc, "seed": seed}
            kept = Checkpoints(folder, identity | {"recipe": resolved.model_dump(mode="json")})
        for path in (target, kept.folder if kept is not None else None):
            if path is not None and team.rank == 0:  # now, and not when the work is done
                locks.enter_context(locked(path, wait=0, doing="distilling in"))
        begin = team.lead(lambda: _begin(kept, resume, resolved.iterations))
        devices.keep_large_buffers()
        with devices.enough_memory("set a limit (`memory=2GiB`), lower real_batch or width, or use a smaller size"):
            normalization = Normalization(real.mean, real.std)
            if resolved.zca:
                normalization = fit_zca(real.train.images, normalization)
            taught = resolved.taught() if begin is None else resolved  # a run that goes on has its images
            _LOG.info(plan_of(real, taught, ipc, where, limit, matching))
            make = partial(engine_for, real, matching=matching, memory=limit, team=team)
            bank = teacher = None
            seconds = 0.0
            if taught.bank:
                # too little memory is said now, not after hours of training networks
                make(resolved.replace(init="noise"), ipc, normalization, seed, where)
                gc.collect()  # what holds itself would keep real images on a GPU
                arguments = (real, taught, normalization, where, matching)
                # those of another machine would not be the same, bit for bit
                bank = team.lead(lambda: find_bank(*arguments, told("networks")))
                seconds = bank.seconds  # which count, cached or not
                chosen_by = resolved.init in ("tiles", "typical") and begin is None
                teacher = teacher_of(bank, *arguments) if chosen_by else None
            engine = make(
                resolved, ipc, normalization, seed, where, bank=bank if resolved.bank else None, teacher=teacher
            )
            network = matching.network if matching else resolved.network()
            manifest = _manifest(name, real, ipc, chosen, resolved, seed, where, network)
            run = Run(engine, manifest, real, device, measure_every, kept, checkpoint_every, progress, kinds)
            distilled = run.finish(begin, seconds)
        if target is not None and team.rank == 0:
            distilled = distilled.save(target, overwrite)
            if kept is not None:
                kept.finish()
        return distilled


def recorded_command(real: RealData, ipc: int, recipe: Recipe, seed: int, name: str) -> str:
    """Return the command that makes a set again, with every choice that changes the images.

    The place of a folder, an object or a file is left to whoever runs it; a recipe is spelt out by what differs from a
    preset.
    """
    base = recipe.name if recipe.name in PRESETS else "atom"
    if recipe.weights:
        recipe = recipe.replace(weights=Path(recipe.weights).name)
    default = f"{real.name}-ipc{ipc}"
    return command(
        "distill", real.info.called, ipc=ipc, recipe=base,
        settings=recipe.settings(choose_recipe(base, real.info.id)), seed=seed,
        name=None if name == default else name, **real.options.chosen(),
    )  # fmt: skip


def _manifest(
    name: str, real: RealData, ipc: int, chosen: Recipe, resolved: Recipe, seed: int, device: torch.device, network: str
) -> Manifest:
    """Return all that is known of a set before it is distilled."""
    info = real.info
    form = Format(
        version=2 if BITS[resolved.pixels] < 8 else 1, class_names=real.class_names, ipc=ipc, channels=info.channels,
        size=info.size, pixels=resolved.pixels, formation=resolved.formation, mean=real.mean, std=real.std,
        whitening="zca" if resolved.zca else "none", flip=info.flip,
    )  # fmt: skip
    provenance = Provenance(
        source=info, recipe=resolved, seed=seed, command=recorded_command(real, ipc, chosen, seed, name),
        versions=versions("torch", "torchvision", "numpy") | {"python": platform.python_version()},
        device=devices.describe_device(device), created=datetime.now(UTC).isoformat(timespec="seconds"),
    )  # fmt: skip
    return Manifest(name=name, format=form, provenance=provenance, results=Results(network=network))


def _begin(kept: Checkpoints | None, resume: bool | None, iterations: int) -> Checkpoint | None:
    """Return the checkpoint to continue from, if there is one and that is wanted, or if the run is over already."""
    if kept is None or not (kept or resume):
        return None
    if resume is None:
        latest = kept.latest()  # one of another run is refused
        if latest is not None and latest.iteration == iterations:
            return latest
        raise UsageError(
            f"There is an unfinished run in {kept.folder}.",
            "Continue it (`resume=True`), or start anew (`resume=False`).",
        )
    if resume:
        latest = kept.latest()
        if latest is not None and latest.iteration > iterations:
            raise UsageError(f"The run in {kept.folder} has {latest.iteration} iterations already, not {iterations}.")
        return latest
    clear(kept.folder)
    return None
