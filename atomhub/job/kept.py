"""Accuracies, and networks under way, kept as they come: a measurement that was killed goes on where it was."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from atomhub.errors import AtomhubError
from atomhub.files import replace_file
from atomhub.results import Score
from atomhub.training.measure import Kept
from atomhub.training.progress import Halfway

_SCORES = TypeAdapter(dict[str, Score])
_EVERY = 60.0
"""Seconds between states of networks under way; more where writing one takes more than a twentieth of that."""


class KeptNetworks(Halfway):
    """Networks under way, in a file; one that cannot be read or written is no loss.

    Args:
        path: The file.
        kind: What they are trained on.
        seeds: Theirs.
        stop: Asked after every epoch.
    """

    def __init__(self, path: Path, kind: str, seeds: Sequence[int], stop: Callable[[], bool]) -> None:
        self.path, self.stop = path, stop
        self.about = {"kind": kind, "seeds": json.dumps(list(seeds))}
        self.state, self.seconds = dict[str, Tensor](), 0.0
        with suppress(OSError, SafetensorError, ValueError), safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if self.about.items() <= metadata.items():
                self.seconds = float(metadata["seconds"])
                self.state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 it is no dict
        self.start = time.perf_counter() - self.seconds
        self.next = time.perf_counter() + _EVERY

    def found(self) -> dict[str, Tensor]:
        """Return the state that was kept last, or nothing."""
        return self.state

    def after(self, state: Callable[[], dict[str, Tensor]]) -> bool:
        """Keep the state, once a minute or so or if the training is to stop, which is returned."""
        stop, begun = self.stop(), time.perf_counter()
        if stop or begun >= self.next:
            about = self.about | {"seconds": str(begun - self.start)}
            tensors = {name: tensor.contiguous().cpu() for name, tensor in state().items()}
            try:
                replace_file(self.path, save(tensors, about))
            except AtomhubError:  # then a network comes to its end
                stop = False
            now = time.perf_counter()
            self.next = now + max(_EVERY, 20 * (now - begun))
        return stop


class KeptFile(Kept):
    """What was measured so far, in a file; one that cannot be read or written is no loss.

    Args:
        folder: Where to keep it.
        name: Of the set, the first part of the file's name.
        identity: All that decides the accuracies, as JSON has it: another measurement has another file.
    """

    def __init__(self, folder: Path, name: str, identity: Mapping[str, Any]) -> None:
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:24]
        super().__init__()
        self.path = folder / f"{name}-{digest}.json"
        with suppress(OSError, ValueError):
            self.scores = _SCORES.validate_json(self.path.read_bytes())

    @property
    def networks(self) -> Path:
        """Where networks under way are kept."""
        return self.path.with_suffix(".safetensors")

    def halfway(self, kind: str, seeds: Sequence[int], stop: Callable[[], bool]) -> KeptNetworks:
        """Return what keeps these networks while they are trained."""
        return KeptNetworks(self.networks, kind, seeds, stop)

    def add(self, kind: str, score: Score) -> None:
        """Keep it, and write the file anew; the networks are measured."""
        super().add(kind, score)
        with suppress(AtomhubError):
            replace_file(self.path, _SCORES.dump_json(self.scores))
        with suppress(OSError):
            self.networks.unlink(missing_ok=True)

    def forget(self) -> None:
        """Delete the files."""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)
            self.networks.unlink(missing_ok=True)
