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
from atomhub.training.measure import Kept

_SCORES = TypeAdapter(dict[str, Score])


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

    def add(self, kind: str, score: Score) -> None:
        """Keep it, and write the file anew."""
        super().add(kind, score)
        with suppress(AtomhubError):
            replace_file(self.path, _SCORES.dump_json(self.scores))

    def forget(self) -> None:
        """Delete the file."""
        with suppress(OSError):
            self.path.unlink()
