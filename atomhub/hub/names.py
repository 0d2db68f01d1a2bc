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
from atomhub.errors import AtomhubError, AtomhubWarning, IntegrityError, NotFoundError, first_line
from atomhub.files import home, read_regular, replace_file
from atomhub.hub.find import Claim
from atomhub.manifest import MANIFEST
from atomhub.provenance import SetName
from atomhub.storage import formats, store

INDEX = "atomhub/index"
"""The repository on the Hub that holds the index."""
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
                "Nothing of it is used. The newest index: atomhub list --update",
            )


class Index(BaseModel, frozen=True):
    """The sets that bare names mean.

    Attributes:
        version: Of this format.
        updated: When something was last changed in it, by the clock of who did.
        sets: Name to entry.
    """

    version: Literal[1] = 1
    updated: AwareDatetime = datetime.fromtimestamp(0, UTC)
    sets: dict[SetName, Entry] = Field(default={}, max_length=_MOST)


def manifest_digest(folder: Path) -> str:
    """Return the SHA-256 of the manifest in a folder."""
    with formats.open_file(folder, MANIFEST) as file:
        return hashlib.sha256(file.read(limits.MANIFEST)).hexdigest()


def place() -> str:
    """Return the repository on the Hub that holds the index: ``ATOMHUB_INDEX``, else the project's."""
    return os.environ.get("ATOMHUB_INDEX") or INDEX


def refreshed() -> Path:
    """Return where the index lies that was fetched last from :func:`place`."""
    return home() / "indexes" / f"{re.sub('[^A-Za-z0-9._-]', '--', place())}.json"


def read(path: Path) -> Index:
    """Return the index in a file; IntegrityError if there is none."""
    try:
        return Index.model_validate(limits.parse_json(read_regular(path, limits.MANIFEST)))
    except (OSError, ValidationError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else first_line(error)
        raise IntegrityError(f"{path} is not an index of names: {why}.") from None


def write(index: Index, path: Path) -> None:
    """Write an index in the order of its names; AtomhubError if that fails or it is too large; what was there stays."""
    ordered = index.model_copy(update={"sets": dict(sorted(index.sets.items()))})
    content = (ordered.model_dump_json(indent=1) + "\n").encode()
    if len(content) > limits.MANIFEST or len(index.sets) > _MOST:
        raise AtomhubError(f"An index of {len(index.sets)} names is too large ({len(content)} bytes).")
    replace_file(path, content)


def known() -> Index:
    """Return the index that was fetched last, or that came with atomhub if that is newer and of the same place."""
    shipped = read(SHIPPED) if place() == INDEX else Index()
    if not refreshed().exists():
        return shipped
    try:
        fetched = read(refreshed())
    except IntegrityError as error:
        note = f"{error.message} It is not used; a new one: atomhub list --update"
        warnings.warn(note, AtomhubWarning, stacklevel=2)
        return shipped
    return max(shipped, fetched, key=lambda index: index.updated)


def find(name: str) -> Entry | None:
    """Return what a bare name means for everybody; nothing for other names, and where bare names mean one's own."""
    if os.environ.get("ATOMHUB_NAMESPACE") or not re.fullmatch(r"[\w.-]+", name):
        return None
    return known().sets.get(name)


def unknown(name: str) -> NotFoundError:
    """Return the error for a bare name that is neither on this machine nor in the index."""
    error = store.missing(name, known().sets)
    newer = "Newer names on the Hub: atomhub list --update."
    return NotFoundError(error.message, f"{error.hint} Sets there are user/name, or have a name of the index. {newer}")
