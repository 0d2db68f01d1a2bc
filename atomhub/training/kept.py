"""Accuracies kept as they come: a measurement that was stopped or killed goes on where it was."""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from atomhub.errors import AtomhubError
from atomhub.files import replace_file
from atomhub.results import Score

_SCORES = TypeAdapter(dict[str, Score])


class Kept:
    """What was measured so far, of the set and of its baselines; a file that cannot be read or written is no loss.

    Args:
        folder: Where to keep it; None: nowhere.
        name: Of the set, the first part of the file's name.
        identity: All that decides the accuracies, as JSON has it: another measurement has another file.
    """

    def __init__(self, folder: Path | None, name: str, identity: Mapping[str, Any]) -> None:
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:24]
        self.path = folder / f"{name}-{digest}.json" if folder else None
        self.scores: dict[str, Score] = {}
        if self.path:
            with suppress(OSError, ValueError):
                self.scores = _SCORES.validate_json(self.path.read_bytes())

    def add(self, kind: str, score: Score) -> None:
        """Keep what was measured of one kind, in place of what was there of it."""
        self.scores[kind] = score
        if self.path:
            with suppress(AtomhubError):
                replace_file(self.path, _SCORES.dump_json(self.scores))

    def forget(self) -> None:
        """Delete the file: the measurement is complete."""
        if self.path:
            with suppress(OSError):
                self.path.unlink()
