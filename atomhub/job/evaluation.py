"""Measure a set and record the result where it lies; check the results that it claims."""

import math
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from atomhub.data.real import check_again
from atomhub.dataset import DistilledDataset, check_set
from atomhub.errors import AtomhubError, AtomhubWarning, MissingPackageError, NotFoundError, UsageError
from atomhub.files import home
from atomhub.interrupts import heeded
from atomhub.job.kept import KeptFile
from atomhub.job.teachers import taught
from atomhub.results import REVISION, Measurement, Score
from atomhub.storage import formats, store
from atomhub.storage.verified import VERIFIED, Verification, add
from atomhub.text import plain
from atomhub.training.measure import AnyNetwork, Progress, measure, network_for, targets_of
from atomhub.training.networks import check_claimed
from atomhub.training.progress import Paused
from atomhub.training.protocols import find_protocol


def evaluate(
    distilled: DistilledDataset, network: AnyNetwork | None = None, protocol: str = "dm", runs: int = 5, **options: Any
) -> Measurement:
    """Train fresh networks on a distilled set, test each on the real test split, and record the result.

    It goes into ``distilled.manifest`` and, if the set is on disk and not read-only, into its manifest and card. One
    that was stopped or killed goes on where it was, in the middle of a network as well: results and networks under way
    are kept in ``ATOMHUB_HOME`` till then, but not networks that a function makes.
    Arguments and errors as in :func:`atomhub.training.measure.measure`, but that ``teacher`` is the name of a network,
    for ``rded``: it is trained on the real images as that of the recipe ``rded`` is, once per source, from fresh
    weights or those of ``NAME:weights=FILE``. None: that one.
    """
    check_set(distilled)
    keep = partial(KeptFile, home() / "evaluations", distilled.name)
    options = taught(distilled, protocol, options)
    known = network is None or isinstance(network, str)
    with heeded("this epoch, whose networks are kept" if known else "this network") as stop:
        result = None
        with suppress(Paused):
            result = measure(distilled, network, protocol, runs, stop=stop, keep=keep, **options)
            record(distilled, result)
        if result is None or stop():
            kept = f"the result of the {result.score.runs} networks trained so far is kept" if result else "all is kept"
            note = f"Stopped: {kept}; the same again goes on."
            warnings.warn(note, AtomhubWarning, stacklevel=2)
            raise KeyboardInterrupt
    return result


def record(distilled: DistilledDataset, result: Measurement) -> None:
    """Add a result to a set and to its files, if they may be written; a failed write is a warning, and loses nothing.

    Args:
        distilled: The set that was measured.
        result: What was measured.
    """
    if distilled.path is not None and store.keeps_results(distilled):
        try:
            formats.add_result(distilled.path, distilled.manifest, result)
        except Exception as error:
            warnings.warn(f"The result was not stored with the set: {error}", AtomhubWarning, stacklevel=3)
    distilled.manifest = distilled.manifest.with_result(result)


@dataclass(frozen=True)
class Verdict:
    """Whether a claimed accuracy held when networks were trained anew.

    Attributes:
        claim: What the set's manifest claims.
        measured: What came out; None: it cannot be repeated.
        holds: Whether the means differ by no more than ``allowed``.
        allowed: Points: how far the means of true claims are apart, in 99 of 100 cases.
        seen: Points: a claim that is as much off would have been found out in 4 of 5 cases.
        why: Why it cannot be repeated, such as a network that atomhub does not know.
    """

    claim: Measurement
    measured: Measurement | None
    holds: bool
    allowed: float
    seen: float
    why: str = ""


def verify(
    distilled: DistilledDataset, runs: int | None = None, *, seed: int = 1000, device: str = "auto",
    source: object = None, progress: Progress | None = None,
) -> list[Verdict]:  # fmt: skip
    """Train networks anew under the protocols that a set claims results for, and say whether the claims hold.

    Nothing is stored. Seeds differ from those of the claim, so agreement is no matter of luck. Means are compared by
    their standard errors (Welch's t test, at the level of 1 %): more networks find out smaller lies.

    Args:
        distilled: The set; :func:`atomhub.load` has checked its digests.
        runs: Networks to train for each claim, 2 or more; None: as many as the claim, 2 to 5.
        seed: Seed of the first network.
        device: ``auto``, ``cpu`` or ``cuda``.
        source: Where a local source lies now.
        progress: Called after every network.

    Raises:
        NotFoundError: the set claims nothing, or its source is not at hand.
        UsageError: fewer than 2 runs.
    """
    if runs is not None and runs < 2:
        raise UsageError(f"runs cannot be {runs}: the spread of one network is not known.", "Use 2 or more.")
    claims = distilled.manifest.results.measured
    if not claims:
        raise NotFoundError(f"{distilled.name!r} claims no accuracy.", "Measure it first: atomhub evaluate")
    p = distilled.manifest.provenance
    check_again({s.fingerprint for s in (p.source, *(part.source for part in p.parts)) if s})
    verdicts = []
    for claim in claims:
        try:
            check_claimed(claim.network)
            network_for(distilled, claim.network, find_protocol(claim.protocol))
            if claim.revision != REVISION:
                raise UsageError("The protocol has changed since.")
            labels = claim.labels if claim.labels == "stored" or not claim.teacher else "hard"
            options: dict[str, Any] = {"source": source, "device": device, "progress": progress}
            if claim.teacher and labels != "stored":
                teacher = claim.teacher.split(", ")[0]
                check_claimed(teacher)
                options |= {"teacher": teacher, "expected": claim.teacher}
            options = taught(distilled, claim.protocol, options | {"baseline": None, "labels": labels})
            targets_of(distilled, labels)
        except MissingPackageError:  # which can be mended
            raise
        except AtomhubError as error:  # a network that only its author has, or weights that cannot be fetched, say
            verdicts.append(Verdict(claim, None, False, 0.0, 0.0, error.message))
            continue
        found = measure(
            distilled, claim.network, claim.protocol, runs or max(2, min(5, claim.score.runs)), seed=seed, **options
        )  # fmt: skip
        # a claim must not make its own test a weak one
        step = 100 / found.test_images
        spread = min(claim.score.std, 3 * max(found.score.std, step))
        allowed, seen = distances(claim.score.model_copy(update={"std": spread}), found.score, step)
        holds = abs(claim.score.mean - found.score.mean) <= allowed
        verdicts.append(Verdict(claim, found, holds, allowed, seen))
    return verdicts


def record_verdicts(distilled: DistilledDataset, verdicts: Sequence[Verdict], by: str) -> Path:
    """Keep verdicts where a gallery finds them, and return the file.

    That is ``verified.json`` beside a set of one's own, which is published with it; of any other set a file in the
    current folder, for a pull request.

    Args:
        distilled: The set, from :func:`atomhub.load`.
        verdicts: Of :func:`verify`.
        by: Who measured.

    Raises:
        UsageError: a name that is none, a set that is not on disk, or nothing was measured.
        AtomhubError: the file cannot be written.
    """
    name = plain(by, 100).strip()
    if not name or distilled.manifest.tensors is None:
        raise UsageError("A verdict needs a name, and a set that was saved.", 'Such as --record "Jane Doe".')
    found = [
        Verification(
            by=name, date=datetime.now(UTC).isoformat(timespec="seconds"), tensors=distilled.manifest.tensors,
            protocol=v.claim.protocol, network=v.claim.network, labels=v.claim.labels, teacher=v.claim.teacher,
            claimed=v.claim.score.mean,
            score=v.measured.score, holds=v.holds, allowed=round(v.allowed, 4),
        )
        for v in verdicts if v.measured
    ]  # fmt: skip
    if not found:
        raise UsageError("No claim could be repeated, so there is no verdict to keep.")
    own = distilled.path is not None and store.keeps_results(distilled)
    path = (
        Path(str(distilled.path)) / VERIFIED
        if own
        else Path(f"{(distilled.repo or distilled.name).replace('/', '--')}.{VERIFIED}")
    )
    add(path, distilled.manifest, found)
    return path


def distances(a: Score, b: Score, step: float, level: float = 0.01, power: float = 0.8) -> tuple[float, float]:
    """Return how far two means of accuracies may be apart by chance, and which difference would be noticed.

    Welch's t test (Biometrika, 1947), two-sided. One network alone has no spread: it is taken to have that of the
    others.

    Args:
        a: Accuracies of independent networks.
        b: The same; at least one of them is of 2 networks or more.
        step: What one test image is worth, in points: no spread is below that of rounding to it.
        level: Probability that means of equal accuracies are further apart than the first result.
        power: Probability that accuracies as far apart as the second are noticed.

    Returns:
        Two distances in points.
    """
    from scipy.stats import t

    stds = [max(own.std if own.runs > 1 else other.std, step / math.sqrt(12)) for own, other in ((a, b), (b, a))]
    parts = [std**2 / score.runs for std, score in zip(stds, (a, b), strict=True)]
    error = math.sqrt(sum(parts))
    freedom: float = max(a.runs, b.runs) - 1
    if min(a.runs, b.runs) > 1:
        freedom = sum(parts) ** 2 / sum(part**2 / (s.runs - 1) for part, s in zip(parts, (a, b), strict=True))
    allowed = float(t.ppf(1 - level / 2, freedom)) * error
    return allowed, allowed + float(t.ppf(power, freedom)) * error
