"""The manifest of a distilled set: everything known about it but the pixels. Plain data, versioned.

Three parts that do not know each other. ``format`` is all that a reader needs and is read strictly: a field that this
atomhub does not know is refused, as it may change what the pixels mean. ``provenance`` and ``results`` decide nothing:
fields they have beyond those known here are kept as they are.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, Field, TypeAdapter, ValidationError, model_validator

from atomhub import limits
from atomhub.errors import UsageError
from atomhub.provenance import Provenance, SetName, Sha256
from atomhub.results import Measurement, Results

FORMAT_VERSION = 2
"""The latest: of sets with several pixels in a byte. All others are of version 1, for readers that know no other."""
BITS = {"uint8": 8, "uint4": 4, "uint2": 2, "float32": 32}
"""Kinds of stored pixels to the bits of one."""
MANIFEST = "manifest.json"
"""The file that holds all of the below."""
TENSORS = "distilled.safetensors"
"""The file that holds the images of a set."""


def check_name(name: str) -> str:
    """Return a possible name of a set as it is; UsageError for another."""
    try:
        return TypeAdapter(SetName).validate_python(name)
    except ValidationError:
        hint = "Use letters, digits, dots, dashes and underscores, at most 96, beginning with a letter or digit."
        raise UsageError(f"A set cannot be named {name!r}.", hint) from None


def digest(manifest: Mapping[str, Any]) -> str:
    """Return the SHA-256 of all in a manifest's JSON that does not change later; the tensors carry it in their header.

    Taken from the JSON as it is, so that fields a later atomhub adds leave the digests of older sets alone.
    """
    kept = {key: value for key, value in manifest.items() if key not in ("files", "results")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, separators=(",", ":")).encode("ascii")).hexdigest()


class Images(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """What images are, and how networks are to see them.

    Attributes:
        class_names: Names of the K classes; label k is the name at place k.
        channels: 1 (grey) or 3 (RGB).
        size: Side of the square images in pixels.
        mean, std: Per channel, in units of pixels in 0..1: the normalisation that networks expect.
        whitening: ``zca``: images are whitened after that, by a matrix that is kept apart.
    """

    class_names: tuple[limits.Word, ...] = Field(min_length=2, max_length=limits.CLASSES)
    channels: Literal[1, 3]
    size: int = Field(ge=1, le=limits.SIDE)
    mean: tuple[limits.Mean, ...] = Field(max_length=3)
    std: tuple[limits.Std, ...] = Field(max_length=3)
    whitening: Literal["none", "zca"] = "none"

    @model_validator(mode="after")
    def _agree(self) -> Images:
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError("mean and std need one number for each channel")
        if len(set(self.class_names)) < len(self.class_names):
            raise ValueError("class names must differ")
        return self


class Format(Images, frozen=True):
    """All that a reader needs: what the tensors are, and how networks are to see them (``docs/format.md``).

    Attributes:
        version: Version of the format: 2 where pixels have 4 or 2 bits, else 1.
        ipc: Stored images per class.
        pixels: ``uint8`` in 0..255, ``uint4`` or ``uint2`` (16 or 4 levels of them), or ``float32`` in 0..1.
        formation: Views per side that each image holds; networks are trained on the views.
        labels: ``soft``: a teacher's probabilities lie with the labels.
        flip: Whether a mirrored image keeps its class; false for digits and text.
    """

    version: Literal[1, 2] = 1
    ipc: int = Field(ge=1, le=limits.IPC)
    pixels: Literal["uint8", "uint4", "uint2", "float32"] = "uint8"
    formation: int = Field(default=1, ge=1, le=8)
    labels: Literal["hard", "soft"] = "hard"
    flip: bool = True

    @model_validator(mode="after")
    def _possible(self) -> Format:
        if self.packed is not (self.version == 2):
            raise ValueError(f"pixels of {self.pixels} are not in version {self.version}")
        if self.size % self.formation:
            raise ValueError("formation must divide size")
        if self.bytes > limits.IMAGES:
            raise ValueError(f"the images have {self.bytes} bytes, more than a set may have")
        return self

    @property
    def bytes(self) -> int:
        """Size of the stored images in bytes."""
        return math.prod(self.shape[:-1]) * -(-self.size * self.bits // 8)

    @property
    def bits(self) -> int:
        """Bits of a stored pixel and channel."""
        return BITS[self.pixels]

    @property
    def packed(self) -> bool:
        """Whether a byte of the file holds several pixels."""
        return self.bits < 8

    @property
    def bytes_per_class(self) -> int:
        """Bytes of a class's stored images: what accuracies are to be compared at, as a float32 image weighs four."""
        return self.bytes // len(self.class_names)

    @property
    def views_per_image(self) -> int:
        """Views that one stored image holds."""
        return self.formation**2

    @property
    def views_per_class(self) -> int:
        """Images of a class that networks see: its views, or its images where they hold no views."""
        return self.ipc * self.views_per_image

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape (N, C, H, W) of the stored images."""
        return (len(self.class_names) * self.ipc, self.channels, self.size, self.size)


class File(BaseModel, extra="allow", frozen=True, allow_inf_nan=False):
    """A file of a set: its SHA-256, and its size in bytes."""

    sha256: Sha256
    size: int = Field(ge=0)


class Manifest(BaseModel, extra="allow", frozen=True, allow_inf_nan=False):
    """What ``manifest.json`` holds.

    Attributes:
        name: Name of the set.
        format: What a reader needs.
        provenance: How the set was made.
        results: What was measured.
        files: Every other file but the card, which its owner may edit.
    """

    name: SetName
    format: Format
    provenance: Provenance = Provenance()
    results: Results = Results()
    files: dict[limits.Word, File] = Field(default={}, max_length=100)

    @model_validator(mode="after")
    def _parts_fit(self) -> Manifest:
        parts = self.provenance.parts
        labels = {label for part in parts for label in part.classes if label is not None}
        whole = all(len(part.classes) == len(part.source_classes) for part in parts)
        if parts and not (whole and labels == set(range(len(self.format.class_names)))):
            raise ValueError("the parts must give each class, and no other")
        return self

    @property
    def tensors(self) -> str | None:
        """SHA-256 of the file of tensors, where the set was on disk."""
        file = self.files.get(TENSORS)
        return file.sha256 if file else None

    def replace(self, **changes: Any) -> Manifest:
        """Return a copy with fields replaced: ``name`` and ``files`` by values, the parts field by field from dicts."""
        update = {
            key: getattr(self, key).model_copy(update=value) if key in ("format", "provenance", "results") else value
            for key, value in changes.items()
        }
        return self.model_copy(update=update)

    def with_result(self, new: Measurement) -> Manifest:
        """Return a copy with a result added, in place of one of the same network, protocol, labels and teacher.

        Unless that has more runs, of the same revision of the protocol. Baselines of the old one that were not measured
        again stay where the seed is the same.
        """
        same = (new.network, new.protocol, new.labels, new.teacher)
        old = self.results.measured
        for r in old:
            if (r.network, r.protocol, r.labels, r.teacher, r.revision, r.seed) == (*same, new.revision, new.seed):
                new = new.model_copy(update={"baseline": {**r.baseline, **new.baseline}})
        kept = (
            r for r in old
            if (r.network, r.protocol, r.labels, r.teacher) != same
            or (r.score.runs > new.score.runs and r.revision == new.revision)
        )  # fmt: skip
        return self.replace(results={"measured": (*kept, new)})
