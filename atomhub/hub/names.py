"""The index of names: which set on the Hub a bare name means, for everybody, pinned to a commit and a digest."""

import hashlib
import os
import re
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, Field, StringConstraints, ValidationError

from atomhub import limits
from atomhub.errors import AtomhubWarning, IntegrityError, first_line
from atomhub.files import home, read_regular, replace_file
from atomhub.hub.find import Claim
from atomhub.manifest import MANIFEST
from atomhub.provenance import SetName
from atomhub.storage import formats

SHIPPED = Path(__file__).with_name("index.json")
"""The index as it was when this atomhub was released."""
_MOST = 10_000
Repo = Annotated[str, StringConstraints(pattern=r"^[\w.-]{1,96}/[\w.-]{1,96}$")]


class Entry(BaseModel, frozen=True):
    """What a name means.

    Attributes:
        repo: ``user/name`` on the Hub.
        commit: The one commit.
        manifest: SHA-256 of its ``manifest.json``, which has the digests of all other files.
        source, ipc: Of the set.
        claims: The accuracies that it claims.
    """

    repo: Repo
    commit: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")]
    manifest: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    source: limits.Word
    ipc: int = Field(ge=1, le=limits.IPC)
    claims: tuple[Claim, ...] = Field(default=(), max_length=20)

    def check(self, folder: Path) -> None:
        """Raise an IntegrityError if the manifest in a folder is not the one that the name means."""
        if manifest_digest(folder) != self.manifest:
            raise IntegrityError(
                f"{self.repo} at {self.commit[:8]} is not the set that the index of names means: its manifest differs.",
                "Nothing of it is used. Is the index newer? atomhub list --update",
            )


class Index(BaseModel, frozen=True):
    """The sets that bare names mean.

    Attributes:
        version: Of this format.
        updated: When something was last changed in it.
        sets: Name to entry.
    """

    version: Literal[1] = 1
    updated: AwareDatetime = datetime.fromtimestamp(0, UTC)
    sets: dict[SetName, Entry] = Field(default={}, max_length=_MOST)


def manifest_digest(folder: Path) -> str:
    """Return the SHA-256 of the manifest in a folder."""
    with formats.open_file(folder, MANIFEST) as file:
        return hashlib.sha256(file.read(limits.MANIFEST)).hexdigest()


def refreshed() -> Path:
    """Return where the index lies that was fetched last."""
    return home() / "index.json"


def read(path: Path) -> Index:
    """Return the index in a file; IntegrityError if there is none."""
    try:
        return Index.model_validate(limits.parse_json(read_regular(path, limits.MANIFEST)))
    except (OSError, ValidationError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else first_line(error)
        raise IntegrityError(f"{path} is not an index of names: {why}.") from None


def write(index: Index, path: Path) -> None:
    """Write an index in the order of its names; AtomhubError if that fails, and what was there stays."""
    ordered = index.model_copy(update={"sets": dict(sorted(index.sets.items()))})
    replace_file(path, (ordered.model_dump_json(indent=1) + "\n").encode())


def known() -> Index:
    """Return the newer of the index that came with atomhub and the one that was fetched last."""
    shipped = read(SHIPPED)
    if not refreshed().exists():
        return shipped
    try:
        fetched = read(refreshed())
    except IntegrityError as error:
        note = f"{error.message} The one that came with atomhub is used; a new one: atomhub list --update"
        warnings.warn(note, AtomhubWarning, stacklevel=2)
        return shipped
    return max(shipped, fetched, key=lambda index: index.updated)


def find(name: str) -> Entry | None:
    """Return what a bare name means for everybody; nothing for other names, and where bare names mean one's own."""
    if os.environ.get("ATOMHUB_NAMESPACE") or not re.fullmatch(r"[\w.-]+", name):
        return None
    return known().sets.get(name)
