"""Where a distilled set comes from: the part of its manifest that decides nothing. Plain data."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints

from atomhub import limits
from atomhub.recipe import Recipe

SetName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class _Open(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)


class SourceInfo(_Open):
    """Where the real images come from and how they were read: enough to find the same test split again.

    Attributes:
        id: ``digits``, an alias, a Hub id, ``folder:NAME`` for local files (never a path of someone's machine), or
            ``memory:NAME`` for an object of Python.
        kind: Which reader read it: ``digits``, ``images``, ``metadata``, ``parquet``, ``arrow``, ``memory`` or ``hub``.
        revision: Commit of a Hub dataset.
        fingerprint: SHA-256 of the decoded images, labels and class names.
        size: Side of the square images in pixels.
        channels: 1 or 3.
        flip: Whether a mirrored image keeps its class.
        license: Identifier of the source's licence as the Hub spells it.
        notes: What was converted or left out, a sentence each.
    """

    id: limits.Text
    kind: limits.Word
    revision: limits.Word | None = None
    config: limits.Word | None = None
    train_split: limits.Word = "train"
    test_split: limits.Word | None = "test"
    test_fraction: float | None = None
    image_column: limits.Word | None = None
    label_column: limits.Word | None = None
    fingerprint: Sha256
    size: int = Field(ge=1, le=limits.SIDE)
    channels: Literal[1, 3]
    train_images: limits.Count
    test_images: limits.Count
    flip: bool = True
    license: limits.Word = "unknown"
    notes: tuple[limits.Text, ...] = Field(default=(), max_length=1000)

    @property
    def called(self) -> str:
        """The id as a command would have it: of local files and objects the name alone."""
        return self.id.removeprefix("folder:").removeprefix("memory:")


class Teacher(_Open):
    """What gave a set its soft labels.

    Attributes:
        network: Its name, with options.
        epochs: Passes over the real training set.
        temperature: What its logits were divided by.
        seed: Seed of its weights, order and augmentation.
        accuracy: Its own, in percent on the real test images; None: there are none.
    """

    network: limits.Word
    epochs: int = Field(ge=1, le=10**9)
    temperature: float = Field(default=1.0, gt=0, le=1e9)
    seed: limits.Seed
    accuracy: float | None = Field(default=None, ge=0, le=100)


class Stored(_Open):
    """A teacher's labels for every batch of some epochs, in a file beside the set (:mod:`atomhub.stored`).

    Attributes:
        teacher: What it is, in words.
        protocol: How batches were drawn.
        epochs: How many are stored.
        seed: Of order and augmentation.
        size: Bytes of the file.
        sha256: SHA-256 of the file.
    """

    teacher: Annotated[limits.Word, Field(max_length=400)]
    protocol: limits.Word
    epochs: int = Field(ge=1, le=limits.EPOCHS)
    seed: limits.Seed
    size: int = Field(ge=1, le=limits.LABELS + 2**20)
    sha256: Sha256


class Imported(_Open):
    """A file of another project that a set was read from.

    Attributes:
        file: Name of the file.
        sha256: SHA-256 of the file.
        layout: How the images lay in it: ``dc`` (DC, DSA, DM, DataDAM), ``pair`` (IDC, DREAM, DANCE, NCFM) or
            ``tensors`` (MTT and its family).
        space: What its numbers were: ``pixels`` in 0..1, ``normalized``, or ``zca``, whitened.
        formation: Views per side that each stored image held; they became images (IDC, ICML 2022, section 3).
        clipped: Share of pixel values outside 0..1, which were clipped.
    """

    file: limits.Word
    sha256: Sha256
    layout: limits.Word
    space: limits.Word
    formation: int = Field(ge=1, le=limits.SIDE)
    clipped: float = Field(ge=0, le=1)


AnyRecipe = Annotated[Recipe | dict[str, JsonValue], Field(union_mode="left_to_right")]
"""A recipe, or the fields of one that only a later atomhub understands."""


class Part(_Open):
    """A set that classes of this one were taken from (:mod:`atomhub.combine`).

    Attributes:
        name: Name of that set.
        source: Its real images.
        source_classes: All classes of its source, in order.
        classes: For each of ``source_classes``, its label in this set, or None where it was left out.
        recipe: Its recipe, if it was distilled with one.
        seed: Its seed.
        tensors: SHA-256 of its tensors' file, where it was on disk.
        imported: The file of another project that it was read from, if it was.
    """

    name: SetName
    source: SourceInfo
    source_classes: tuple[limits.Word, ...] = Field(max_length=limits.CLASSES)
    classes: tuple[limits.Count | None, ...] = Field(max_length=limits.CLASSES)
    recipe: AnyRecipe | None = None
    seed: limits.Seed | None = None
    tensors: Sha256 | None = None
    imported: Imported | None = None


Curve = Annotated[tuple[tuple[limits.Count, float], ...], Field(max_length=limits.POINTS)]


class Provenance(_Open):
    """How a set was made; all of it may be absent.

    Attributes:
        source: The real images that the set stands for.
        recipe: How it was distilled, with every field resolved.
        seed: Seed of the distillation.
        parts: The sets it was put together from.
        imported: The file of another project that it was read from.
        teacher: What gave it its soft labels.
        stored: Its stored labels, in a file that a set may be without.
        command: What to type to make it again.
        versions: Versions of the packages that matter.
        device: Where it was distilled.
        created: UTC time, ISO 8601.
        compiled: Whether it was compiled (``torch.compile``) to the end; None: nobody knows.
        seconds: Wall time of the distillation.
        peak_memory: Most bytes used by it: of a GPU by tensors, of a CPU by the process; with several, by the first.
        history: (iteration, loss) pairs of the distillation, thinned.
        clipped_history: (iteration, share of pixel values that a step pushed out of 0..1) pairs.
        accuracy_history: (iteration, accuracy in percent) of one network under ``quick``, where it was asked for;
            drawn, never used to choose anything.
    """

    source: SourceInfo | None = None
    recipe: AnyRecipe | None = None
    seed: limits.Seed | None = None
    parts: tuple[Part, ...] = Field(default=(), max_length=limits.PARTS)
    imported: Imported | None = None
    teacher: Teacher | None = None
    stored: Stored | None = Field(default=None, exclude_if=lambda value: value is None)
    command: limits.Text | None = None
    versions: dict[limits.Word, limits.Word] = Field(default={}, max_length=100)
    device: limits.Word | None = None
    created: limits.Word | None = None
    compiled: bool | None = Field(default=None, exclude_if=lambda value: value is None)
    seconds: limits.Seconds | None = None
    peak_memory: limits.Count | None = None
    history: Curve = ()
    clipped_history: Curve = ()
    accuracy_history: Curve = ()

    @property
    def source_id(self) -> str:
        """The id of the source, or ``unknown``."""
        return self.source.id if self.source else "unknown"

    @property
    def license(self) -> str:
        """The source's licence as the Hub spells it, or ``unknown``."""
        return self.source.license if self.source else "unknown"

    @property
    def method(self) -> str:
        """How the set was made, in a word or two: the name of its recipe or those of its parts' recipes."""
        if self.imported:
            return "imported"
        if self.parts:
            return " and ".join(dict.fromkeys("imported" if p.imported else recipe_name(p.recipe) for p in self.parts))
        return recipe_name(self.recipe)


def recipe_name(recipe: Recipe | Mapping[str, Any] | None) -> str:
    """Return the name of a recipe, of whatever version, or ``unknown``."""
    return recipe.name if isinstance(recipe, Recipe) else str((recipe or {}).get("name", "unknown"))


def joined(sources: Sequence[SourceInfo]) -> SourceInfo:
    """Return one description of one or more sources."""
    different = list({s.fingerprint: s for s in sources}.values())
    if len(different) == 1:
        return different[0]
    first = different[0]
    licenses = {s.license for s in different}
    return first.model_copy(
        update={
            "id": "+".join(dict.fromkeys(s.id for s in different)),
            "revision": None,
            "fingerprint": hashlib.sha256("".join(s.fingerprint for s in different).encode()).hexdigest(),
            "train_images": sum(s.train_images for s in different),
            "test_images": sum(s.test_images for s in different),
            "flip": all(s.flip for s in different),
            "license": first.license if len(licenses) == 1 else "other",
            "notes": tuple(note for s in different for note in s.notes),
        }
    )
