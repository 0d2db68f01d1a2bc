"""The manifest of a distilled set: everything known about it but the pixels. Plain data, versioned."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError, model_validator

from atomhub.errors import UsageError
from atomhub.recipe import Recipe

FORMAT_VERSION = 1

SetName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


def check_name(name: str) -> str:
    """Return a possible name of a set as it is; UsageError for another."""
    try:
        return TypeAdapter(SetName).validate_python(name)
    except ValidationError:
        hint = "Use letters, digits, dots, dashes and underscores, at most 96, beginning with a letter or digit."
        raise UsageError(f"A set cannot be named {name!r}.", hint) from None


def provenance(manifest: Mapping[str, Any]) -> str:
    """Return the SHA-256 of all in a manifest's JSON that does not change later; the tensors carry it in their header.

    Taken from the JSON as it is, so that fields a later atomhub adds leave the digests of older sets alone.
    """
    kept = {key: value for key, value in manifest.items() if key not in ("files", "results")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SourceInfo(_Data):
    """Where the real images come from and how they were read: enough to find the same test split again.

    Attributes:
        id: ``digits``, an alias, a Hub id, or ``folder:NAME`` for local files (never a path of someone's machine).
        kind: Which reader read it.
        revision: Commit of a Hub dataset.
        fingerprint: SHA-256 of the decoded images, labels and class names.
        size: Side of the square images in pixels.
        channels: 1 or 3.
        flip: Whether a mirrored image keeps its class.
        license: Identifier of the source's licence as the Hub spells it.
        notes: What was converted or left out, a sentence each.
    """

    id: str
    kind: Literal["digits", "images", "parquet", "arrow", "hub"]
    revision: str | None = None
    config: str | None = None
    train_split: str = "train"
    test_split: str | None = "test"
    test_fraction: float | None = None
    image_column: str | None = None
    label_column: str | None = None
    fingerprint: Sha256
    size: int = Field(ge=1, le=8192)
    channels: Literal[1, 3]
    train_images: int
    test_images: int
    flip: bool = True
    license: str = "unknown"
    notes: tuple[str, ...] = ()


class Score(_Data):
    """Test accuracy in percent after the last epoch, over independently trained networks.

    Attributes:
        mean: Mean over the networks.
        std: Sample standard deviation over the networks; 0 for one.
        runs: Number of networks.
        accuracies: Each network's accuracy, in the order of the seeds.
        seconds: Wall time of all of them.
    """

    mean: float = Field(ge=0, le=100)
    std: float = Field(ge=0)
    runs: int = Field(ge=1)
    accuracies: tuple[float, ...]
    seconds: float

    @property
    def interval(self) -> float:
        """Half the width of the 95 % confidence interval of the mean, in points (Student's t); infinite for one run."""
        from scipy.stats import t

        return float(t.ppf(0.975, self.runs - 1)) * self.std / math.sqrt(self.runs) if self.runs > 1 else math.inf


Kind = Literal["random", "herding", "whole", "rounded"]
"""What is measured beside a set."""


class Measurement(_Data):
    """Result of one network under one protocol, with baselines under the same protocol and seeds.

    Attributes:
        protocol: Name of the protocol.
        network: Name of the network, with what was chosen for it; atomhub's own are read back by that name.
        labels: What the networks were trained on: the classes, or the set's soft labels.
        score: Networks trained on the distilled set.
        baseline: ``random``: as many random real images, drawn anew for every run; ``herding``: as many of those
            nearest the class means; ``whole``: the whole training set; ``rounded``: the set itself rounded to 8 bits,
            for float32 sets.
        seed: Seed of the first run; run r uses ``seed + r``.
        test_images: Real test images behind each accuracy.
        device: Where it ran.
    """

    protocol: str
    network: str
    labels: Literal["hard", "soft"] = "hard"
    score: Score
    baseline: dict[Kind, Score] = {}
    seed: int
    test_images: int
    device: str


class Teacher(_Data):
    """What gave a set its soft labels.

    Attributes:
        network: Its name, with options.
        epochs: Passes over the real training set.
        temperature: What its logits were divided by.
        seed: Of its weights, order and augmentation.
        accuracy: Its own, in percent on the real test images; None: there are none.
    """

    network: str
    epochs: int = Field(ge=1)
    temperature: float = Field(default=1.0, gt=0)
    seed: int
    accuracy: float | None = Field(default=None, ge=0, le=100)


class Imported(_Data):
    """A file of another project that a set was read from; of the manifest's recipe, only the network is known.

    Attributes:
        file: Its name.
        sha256: Of the file.
        layout: How the images lay in it: ``dc`` (DC, DSA, DM, DataDAM), ``pair`` (IDC, DREAM, DANCE, NCFM) or
            ``tensors`` (MTT and its family).
        space: What its numbers were: ``pixels`` in 0..1, ``normalized``, or ``zca``, whitened.
        formation: Views a side that each stored image held; they were decoded (IDC, ICML 2022, section 3).
        clipped: Share of pixel values outside 0..1, which were clipped.
    """

    file: str
    sha256: Sha256
    layout: Literal["dc", "pair", "tensors"]
    space: Literal["pixels", "normalized", "zca"]
    formation: int = Field(ge=1)
    clipped: float = Field(ge=0, le=1)


class Origin(_Data):
    """A set that classes of this one were taken from (:mod:`atomhub.composition`).

    Attributes:
        name: Of that set.
        source: Its real images.
        source_classes: All classes of its source, in order.
        classes: For each of ``source_classes``, its label in this set, or None where it was left out.
        recipe: Its recipe.
        seed: Its seed.
        tensors: SHA-256 of its tensors' file, where it was on disk.
        imported: The file of another project that it was read from, if it was.
    """

    name: SetName
    source: SourceInfo
    source_classes: tuple[str, ...]
    classes: tuple[int | None, ...]
    recipe: Recipe
    seed: int
    tensors: Sha256 | None = None
    imported: Imported | None = None


class Manifest(_Data):
    """What ``manifest.json`` holds.

    Attributes:
        name: Name of the set.
        ipc: Synthetic images a class, as they are stored.
        formation: Views a side that each image holds; networks are trained on the views.
        seed: Seed of the distillation.
        mean: Per channel, in units of pixels in 0..1; with ``std`` the normalisation networks expect.
        history: (iteration, loss) pairs of the distillation, thinned.
        clipped_history: (iteration, share of pixel values that a step pushed out of 0..1) pairs.
        accuracy_history: (iteration, accuracy in percent) of one network under ``quick``, where it was asked for;
            drawn, never used to choose anything.
        seconds: Wall time of the distillation.
        peak_memory: Most bytes used by it: of a GPU by tensors, of a CPU by the process; with several, by the first.
        versions: Of the packages that matter.
        command: How to make the set again.
        created: UTC time, ISO 8601.
        origins: The sets this one was put together from; empty: it was distilled (or imported) as it is.
        teacher: What gave the set its soft labels, if it has any.
        imported: The file of another project that the set was read from, if it was.
        files: SHA-256 of every other file, but the card, which its owner may edit.
        results: Measured accuracies.
    """

    format_version: Literal[1] = 1
    name: SetName
    source: SourceInfo
    recipe: Recipe
    seed: int
    ipc: int = Field(ge=1)
    formation: int = Field(default=1, ge=1)
    class_names: tuple[str, ...] = Field(min_length=2)
    mean: tuple[float, ...]
    std: tuple[float, ...]
    history: tuple[tuple[int, float], ...] = ()
    clipped_history: tuple[tuple[int, float], ...] = ()
    accuracy_history: tuple[tuple[int, float], ...] = ()
    seconds: float
    peak_memory: int | None = None
    device: str
    versions: dict[str, str]
    command: str
    created: str
    origins: tuple[Origin, ...] = ()
    teacher: Teacher | None = None
    imported: Imported | None = None
    files: dict[str, Sha256] = {}
    results: tuple[Measurement, ...] = ()

    @model_validator(mode="after")
    def _channels_agree(self) -> Manifest:
        if not len(self.mean) == len(self.std) == self.source.channels:
            raise ValueError("mean and std need one number for each channel")
        if not all(s > 0 for s in self.std):
            raise ValueError("std must be above 0")
        labels = {label for o in self.origins for label in o.classes if label is not None}
        fitting = all(len(o.classes) == len(o.source_classes) for o in self.origins)
        if self.origins and not (fitting and labels == set(range(len(self.class_names)))):
            raise ValueError("the origins must give each class, and no other")
        if self.formation != self.recipe.formation:
            raise ValueError("formation and the recipe's formation must be the same")
        if len(set(self.class_names)) < len(self.class_names):
            raise ValueError("class names must differ")
        return self

    def with_result(self, new: Measurement) -> Manifest:
        """Return a copy with a result added, in place of one of the same network and protocol with no more runs."""

        def replaced(old: Measurement) -> bool:
            same = (old.network, old.protocol, old.labels) == (new.network, new.protocol, new.labels)
            return same and old.score.runs <= new.score.runs

        return self.model_copy(update={"results": (*(r for r in self.results if not replaced(r)), new)})
