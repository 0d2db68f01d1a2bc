"""``verified.json``: what came out where somebody measured a set anew. It lies beside the set."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from atomhub import limits
from atomhub.errors import UsageError
from atomhub.files import locked, replace_file
from atomhub.manifest import Manifest
from atomhub.results import Score

VERIFIED = "verified.json"
_MOST = 100
_WIDE = 10.0
"""Points: who allows more has not looked."""


class Verification(BaseModel):
    """One claim of a set, measured anew.

    Attributes:
        by: Who did, as they call themselves: nobody checks that.
        date: UTC, ISO 8601.
        tensors: SHA-256 of the file of tensors that was measured.
        protocol, network, labels, teacher, claimed: The claim; its mean in percent.
        score: What came out.
        holds: Whether the means agree (:func:`atomhub.verify`).
        allowed: How far they may be apart, in points.
    """

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    by: limits.Word
    date: limits.Word
    tensors: limits.Word
    protocol: limits.Word
    network: limits.Word
    labels: limits.Word
    teacher: limits.Word | None = Field(default=None, exclude_if=lambda value: value is None)
    claimed: float = Field(ge=0, le=100)
    score: Score
    holds: bool
    allowed: float = Field(ge=0, le=1e6)


class _File(BaseModel):
    verified: tuple[Verification, ...] = Field(max_length=_MOST)


def parse(content: bytes, manifest: Manifest) -> list[Verification]:
    """Return what a ``verified.json`` says of the claims of a set and its tensors; nothing if it cannot be read."""
    with suppress(ValidationError, ValueError):
        claims = {(r.protocol, r.network, r.labels, r.teacher, r.score.mean) for r in manifest.results.measured}
        found = _File.model_validate_json(content).verified
        return [
            v for v in found
            if v.tensors == manifest.tensors and (v.protocol, v.network, v.labels, v.teacher, v.claimed) in claims
            and v.holds is (abs(v.score.mean - v.claimed) <= min(v.allowed, _WIDE)) and v.score.runs > 1
        ]  # fmt: skip
    return []


def _claim(v: Verification) -> tuple[str | None, ...]:
    return v.by, v.protocol, v.network, v.labels, v.teacher


def read(folder: Path, manifest: Manifest) -> list[Verification]:
    """Return what the ``verified.json`` beside a set says of it."""
    path = folder / VERIFIED
    with suppress(OSError):
        if path.is_file() and path.stat().st_size <= limits.MANIFEST:
            return parse(path.read_bytes(), manifest)
    return []


def merged(own: bytes, manifest: Manifest, theirs: bytes) -> bytes:
    """Return what two files say of a set together: of the same person's of the same claim the newer record."""
    found: dict[tuple[str | None, ...], Verification] = {}
    for v in sorted(parse(theirs, manifest) + parse(own, manifest), key=lambda v: v.date):
        found[_claim(v)] = v
    return _File(verified=tuple(found.values())[-_MOST:]).model_dump_json(indent=1).encode()


def add(path: Path, manifest: Manifest, new: list[Verification]) -> None:
    """Write records to a file, in place of the same person's of the same claims; what is not of this set goes.

    Raises:
        UsageError: there are too many.
        AtomhubError: it cannot be written.
    """
    with locked(path):
        try:
            content = path.read_bytes() if path.exists() else b""
            if content:
                _File.model_validate_json(content)
        except (OSError, ValidationError, ValueError):
            raise UsageError(
                f"{path} cannot be read.", "Mend it, or move it away: it may hold what others measured."
            ) from None
        same = {_claim(v) for v in new}
        kept = [v for v in parse(content, manifest) if _claim(v) not in same]
        if len(kept) + len(new) > _MOST:
            raise UsageError(f"{path} has {len(kept)} records already, of at most {_MOST}.", "Remove some.")
        replace_file(path, _File(verified=(*kept, *new)).model_dump_json(indent=1).encode())
