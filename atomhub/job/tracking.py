"""Watching a run: what it reports, and its images now and then, go to a CSV file, TensorBoard, wandb or trackio."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol as Interface

import numpy as np

from atomhub.errors import UsageError, closest
from atomhub.files import cannot_write

if TYPE_CHECKING:
    from PIL import Image

COLUMNS = ("iteration", "seconds", "loss", "clipped", "accuracy", "iterations_per_second", "memory")
"""What is tracked: seconds since the start, the share of pixels that a step pushed out of 0..1, the accuracy in percent
of a network where it was measured, and bytes."""


class Tracker(Interface):
    """Where reports go."""

    def log(self, values: Mapping[str, float]) -> None:
        """Keep a report: some of :data:`COLUMNS`, ``iteration`` always."""

    def show(self, iteration: int, picture: Image.Image) -> None:
        """Keep the images as they are."""

    def finish(self) -> None:
        """Write what is not written yet."""


class _Csv:
    """``log.csv``, and pictures beside it."""

    def __init__(self, folder: Path, name: str, config: Mapping[str, Any], begin: int) -> None:
        self.folder, self.path = folder, folder / "log.csv"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            kept = []
            if not begin and self.path.exists():  # of another run
                self.path.rename(next(p for n in count(1) if not (p := folder / f"log-{n}.csv").exists()))
            if begin and self.path.exists():  # a run that goes on: what came after its checkpoint comes again
                with self.path.open(newline="", encoding="utf-8") as file:
                    kept = [row for row in csv.DictReader(file) if int(row["iteration"]) <= begin]
            with self.path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
                writer.writeheader()
                writer.writerows(kept)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise cannot_write(self.path, error if isinstance(error, OSError) else OSError(str(error))) from error

    def log(self, values: Mapping[str, float]) -> None:
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, COLUMNS).writerow(values)

    def show(self, iteration: int, picture: Image.Image) -> None:
        picture.save(self.folder / f"images-{iteration:07d}.png")

    def finish(self) -> None:
        """Nothing is left to do."""


class _TensorBoard:
    """Event files of TensorBoard."""

    def __init__(self, folder: Path, name: str, config: Mapping[str, Any], begin: int) -> None:
        _needed("tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        try:
            self.writer: Any = SummaryWriter(str(folder), purge_step=begin + 1 if begin else None)
        except OSError as error:
            raise cannot_write(folder, error) from error
        self.writer.add_text("run", "\n\n".join(f"{key}: {value}" for key, value in config.items()))

    def log(self, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            if key != "iteration":
                self.writer.add_scalar(key, value, int(values["iteration"]))

    def show(self, iteration: int, picture: Image.Image) -> None:
        self.writer.add_image("images", np.asarray(picture), iteration, dataformats="HWC")

    def finish(self) -> None:
        self.writer.close()


class _Service:
    """wandb, or trackio, which has the same interface."""

    def __init__(self, package: str, name: str, config: Mapping[str, Any]) -> None:
        self.package: Any = _needed(package)
        self.run = self.package.init(project="atomhub", name=name, config=dict(config))

    def log(self, values: Mapping[str, float]) -> None:
        self.package.log({k: v for k, v in values.items() if k != "iteration"}, step=int(values["iteration"]))

    def show(self, iteration: int, picture: Image.Image) -> None:
        self.package.log({"images": self.package.Image(np.asarray(picture))}, step=iteration)

    def finish(self) -> None:
        self.package.finish()


KINDS = ("csv", "tensorboard", "trackio", "wandb")


def _needed(package: str) -> Any:
    with suppress(ImportError):
        return import_module(package)
    raise UsageError(f"Tracking with {package} needs it.", f"Install it: pip install {package}")


def check_kinds(kinds: Sequence[str]) -> list[str]:
    """Return the kinds of trackers; UsageError, before any work, for one that does not exist or is not installed."""
    for kind in kinds:
        if kind not in KINDS:
            raise UsageError(f"A run cannot be tracked with {kind!r}.", closest(kind, KINDS))
        if kind != "csv":
            _needed(kind)
    return list(dict.fromkeys(kinds))


def find_tracker(kind: str, name: str, config: Mapping[str, Any], begin: int = 0) -> Tracker:
    """Return where the reports of a run go.

    Args:
        kind: ``csv`` or ``tensorboard`` (the folder ``NAME-track`` here), ``trackio`` or ``wandb`` (the project
            ``atomhub``).
        name: Of the set.
        config: What the run is.
        begin: Iterations done before.

    Raises:
        UsageError: its package is not installed.
        AtomhubError: the folder cannot be written.
    """
    if kind in ("trackio", "wandb"):
        return _Service(kind, name, config)
    return (_Csv if kind == "csv" else _TensorBoard)(Path(f"{name}-track"), name, config, begin)
