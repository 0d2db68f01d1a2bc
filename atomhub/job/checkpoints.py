"""Checkpoints of a distillation: all or nothing, the last two kept, and never one of another run."""

import hashlib
import json
import shutil
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from atomhub.errors import AtomhubError, AtomhubWarning, UsageError
from atomhub.files import new_folder

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
        found = self._found()
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
            raise AtomhubError(f"No checkpoint in {self.folder} can be read.", "Start anew with --no-resume.")
        return None

    def _check(self, other: dict[str, Any]) -> None:
        for key, ours in self.identity.items():
            theirs = other.get(key)
            if theirs != ours and isinstance(ours, dict) and isinstance(theirs, dict):
                field = next(k for k in {**ours, **theirs} if ours.get(k) != theirs.get(k))
                key, ours, theirs = f"{key} field {field!r}", ours.get(field), theirs.get(field)
            if theirs != ours:
                raise UsageError(
                    f"The unfinished run in {self.folder} has another {key}: {theirs!r}, not {ours!r}.",
                    "Use the same settings, choose another --name, or start anew with --no-resume.",
                )

    def _found(self) -> list[Path]:
        return sorted(self.folder.glob("iteration-*"))

    def __bool__(self) -> bool:
        return bool(self._found())


def clear(folder: Path) -> None:
    """Delete the checkpoints of a run."""
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        folder.parent.rmdir()  # if this was the only run


@contextmanager
def signals() -> Iterator[Callable[[], bool]]:
    """Give a function that tells whether SIGINT or SIGTERM came, in place of what they do by default.

    Elsewhere than in the main thread, where Python has no signal handlers, it never does.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    came: list[int] = []
    before = {number: signal.signal(number, lambda n, _: came.append(n)) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
