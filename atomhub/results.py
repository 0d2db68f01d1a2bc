"""What was measured of a distilled set: a part of its manifest. Plain data."""

import math
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from atomhub import limits

REVISION = 2
"""Grows when a protocol changes its meaning: accuracies of another revision are not repeated, nor shown beside ours."""


def shown(mean: float, std: float, runs: int) -> str:
    """Return an accuracy in percent, ``mean ± std``; one network has no spread, and two are said to be few."""
    spread = f" ± {std:.1f}" if runs > 1 else ""
    return f"{mean:.1f}{spread}" + (f" ({runs} network{'s' * (runs > 1)})" if runs < 3 else "")


class _Open(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)


class Score(_Open):
    """Test accuracy in percent after the last epoch, over independently trained networks.

    Attributes:
        mean: Mean over the networks.
        std: Sample standard deviation over the networks; 0 for one.
        runs: Number of networks.
        accuracies: Each network's accuracy, in the order of the seeds.
        seconds: Wall time of all of them.
        confusion: If that was asked for, (K, K) test images by class and by what the networks took them for, of all
            networks together.
    """

    mean: float = Field(ge=0, le=100)
    std: float = Field(ge=0, le=100)
    runs: int = Field(ge=1, le=limits.RUNS)
    accuracies: tuple[float, ...] = Field(max_length=limits.RUNS)
    seconds: limits.Seconds
    confusion: tuple[tuple[limits.Count, ...], ...] = Field(
        default=(), max_length=limits.CONFUSION, exclude_if=lambda value: value == ()
    )

    @field_validator("confusion")
    @classmethod
    def _square(cls, value: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
        if any(len(row) != len(value) for row in value):
            raise ValueError("a confusion matrix is square")
        return value

    def of_class(self, k: int) -> tuple[float, int | None]:
        """Return the accuracy on class k in percent, and the class its images are most often mistaken for, if any."""
        row = self.confusion[k]
        others = [count if i != k else -1 for i, count in enumerate(row)]
        return 100 * row[k] / max(1, sum(row)), others.index(max(others)) if max(others) > 0 else None

    @property
    def interval(self) -> float:
        """Half the width of the 95 % confidence interval of the mean, in points (Student's t); infinite for one run."""
        from scipy.stats import t

        return float(t.ppf(0.975, self.runs - 1)) * self.std / math.sqrt(self.runs) if self.runs > 1 else math.inf

    @property
    def text(self) -> str:
        """As :func:`shown` has it."""
        return shown(self.mean, self.std, self.runs)


class Measurement(_Open):
    """Result of one network under one protocol, with baselines under the same protocol and seeds.

    Attributes:
        protocol: Name of the protocol.
        network: Name of the network, with what was chosen for it; atomhub's own are read back by that name.
        labels: What the networks were trained on: ``hard`` (the classes), ``soft`` (the set's soft labels, or a live
            teacher's), or ``stored`` (a teacher's, of every batch).
        score: Networks trained on the distilled set.
        baseline: ``random``: as many random real images, drawn anew for every run; ``herding``: as many of those
            nearest the class means; ``whole``: the whole training set; ``rounded``: the set itself rounded to 8 bits,
            for float32 sets.
        seed: Seed of the first run; run r uses ``seed + r``.
        revision: Of atomhub's protocols (:data:`REVISION`): others cannot be compared.
        test_images: Real test images behind each accuracy.
        device: Where it ran.
        teacher: What labelled the batches, where the protocol has a teacher.
    """

    protocol: limits.Word
    network: limits.Word
    labels: limits.Word = "hard"
    score: Score
    baseline: dict[limits.Word, Score] = Field(default={}, max_length=20)
    seed: limits.Seed
    revision: int = Field(default=1, exclude_if=lambda value: value == 1)  # as before there was one
    test_images: limits.Count
    device: limits.Word
    teacher: limits.Word | None = Field(default=None, exclude_if=lambda value: value is None)

    @property
    def taught(self) -> str:
        """What labels the networks learnt from, in words; nothing for hard ones."""
        kind = self.labels if self.labels == "stored" or not self.teacher else ""
        return "" if self.labels == "hard" else f"{kind} labels{f' of {self.teacher}' if self.teacher else ''}".strip()

    @property
    def ior(self) -> float | None:
        """Improvement over random images in points, as DD-Ranking names it (arXiv 2505.13300), of last epochs' means.

        DD-Ranking itself takes the best epoch and learning rate on the test images. None: random was not measured.
        """
        random = self.baseline.get("random")
        return round(self.score.mean - random.mean, 4) if random and self.labels == "hard" else None

    @property
    def beats_random(self) -> bool | None:
        """Whether the set is above random images by more than two standard errors; None: that is not known."""
        random = self.baseline.get("random")
        if random is None or self.ior is None or min(self.score.runs, random.runs) < 2:
            return None
        error = math.sqrt(sum(score.std**2 / score.runs for score in (self.score, random)))
        return self.ior > max(2 * error, 1e-9)

    @property
    def hlr(self) -> float | None:
        """Points that hard labels lose against the whole training set (DD-Ranking's HLR; see :attr:`ior`)."""
        whole = self.baseline.get("whole")
        return round(whole.mean - self.score.mean, 4) if whole and self.labels == "hard" else None


class Results(_Open):
    """What was measured.

    Attributes:
        network: The network that the set was distilled with.
        measured: Accuracies, in the order in which they were measured.
    """

    network: limits.Word = "convnet"
    measured: tuple[Measurement, ...] = Field(default=(), max_length=limits.RESULTS)


def claimed(measured: Sequence[Measurement]) -> list[dict[str, Any]]:
    """Return the newest results of hard labels as cards and the index of names claim them."""
    return [
        {"protocol": r.protocol, "revision": r.revision, "network": r.network, "mean": r.score.mean,
         "std": r.score.std, "runs": r.score.runs}
        for r in measured[-20:]
        if r.labels == "hard"
    ]  # fmt: skip
