"""Checkpoints of a distillation: all or nothing, the last two kept, and never one of another run."""

import hashlib
import json
import shutil
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from atomhub.errors import AtomhubError, AtomhubWarning, UsageError
from atomhub.files import new_folder, sweep
from atomhub.recipe import Recipe

STATE = "state.safetensors"
RECORD = "run.json"
_KEPT = 2


@dataclass(frozen=True)
class Checkpoint:
    """Where a run was.

    Attributes:
        iteration: Iterations done.
        state: Tensors to continue from.
        record: Histories and time so far, plain data.
    """

    iteration: int
    state: dict[str, Tensor]
    record: dict[str, Any]


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run, a folder each: tensors in safetensors, the rest in JSON.

    Attributes:
        folder: Where they are; made when the first is saved, gone after :func:`clear`.
        identity: What a run is: checkpoints of another identity are refused.
    """

    folder: Path
    identity: dict[str, Any]

    def save(self, point: Checkpoint) -> None:
        """Write a checkpoint under a temporary name, rename it, and drop all but the last two.

        Raises:
            AtomhubError: the disk is full or not writable; earlier checkpoints stay.
        """
        tensors = save({name: tensor.contiguous() for name, tensor in point.state.items()})
        record = {
            "identity": self.identity,
            "iteration": point.iteration,
            "sha256": hashlib.sha256(tensors).hexdigest(),
            "record": point.record,
        }
        with new_folder(self.folder / f"iteration-{point.iteration:09d}", overwrite=True) as temporary:
            (temporary / STATE).write_bytes(tensors)
            (temporary / RECORD).write_text(json.dumps(record), encoding="utf-8")
        for old in self._found()[:-_KEPT]:
            shutil.rmtree(old, ignore_errors=True)

    def latest(self) -> Checkpoint | None:
        """Return the newest checkpoint that is whole; a damaged one is passed over with a note. None: there is none.

        Raises:
            UsageError: the checkpoint is of another run; the sentence names what differs.
            AtomhubError: all are damaged.
        """
        found = self._found() or self._finished()
        for folder in reversed(found):
            try:
                record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
                tensors = (folder / STATE).read_bytes()
                if hashlib.sha256(tensors).hexdigest() != record["sha256"]:
                    raise ValueError("its tensors are not those it was written with")
                self._check(record["identity"])
                return Checkpoint(record["iteration"], load(tensors), record["record"])
            except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
                if isinstance(error, UsageError):
                    raise
                note = f"The checkpoint {folder.name} is damaged ({error}): going back to the one before."
                warnings.warn(note, AtomhubWarning, stacklevel=3)
        if found:
            raise AtomhubError(f"No checkpoint in {self.folder} can be read.", "Start anew with `resume=False`.")
        return None

    def finish(self) -> None:
        """Keep the last checkpoint of a run that is over, from which a longer one may go on, and no others."""
        found = self._found()
        for old in [*self._finished(), *found[:-1]] if found else []:
            shutil.rmtree(old, ignore_errors=True)
        if found:
            with suppress(OSError):
                found[-1].rename(self.folder / found[-1].name.replace("iteration", "finished"))

    def _check(self, other: dict[str, Any]) -> None:
        """Raise UsageError for the checkpoint of another run; one may become longer where no step depends on that."""
        mine, before = self.identity.get("recipe") or {}, other.get("recipe") or {}
        if (ours := mine.get("iterations", 0)) > (theirs := before.get("iterations", 0)) and theirs:
            if before.get("image_schedule") == mine.get("image_schedule") == "cosine":
                raise UsageError(
                    f"The run in {self.folder} has {theirs} iterations, and cannot become one of {ours}: with "
                    "image_schedule cosine every step depends on their number.", _ANEW,
                )  # fmt: skip
            other = other | {"recipe": before | {"iterations": ours}}
        for key, ours in self.identity.items():
            theirs = other.get(key)
            if theirs != ours and isinstance(ours, dict) and isinstance(theirs, dict):
                field = next(k for k in {**ours, **theirs} if ours.get(k) != theirs.get(k))
                usual = getattr(Recipe.model_fields.get(field), "default", None)  # which is left out
                key, ours, theirs = f"{key} field {field!r}", ours.get(field, usual), theirs.get(field, usual)
            if theirs != ours:
                raise UsageError(f"The run in {self.folder} has another {key}: {theirs!r}, not {ours!r}.", _ANEW)

    def _found(self) -> list[Path]:
        return sorted(self.folder.glob("iteration-*"))

    def _finished(self) -> list[Path]:
        return sorted(self.folder.glob("finished-*"))

    def __bool__(self) -> bool:
        return bool(self._found())


_ANEW = "Use the same settings, choose another `name`, or start anew with `resume=False`."


def clear(folder: Path) -> None:
    """Delete the checkpoints of a run, and their folder if it holds nothing else."""
    sweep(folder)
    for path in [*folder.glob("iteration-*"), *folder.glob("finished-*")]:
        shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):
        folder.rmdir()
