"""Measure a set and record the result where it lies; check the results that it claims."""

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atomhub.data.real import RealData, check_again
from atomhub.dataset import DistilledDataset
from atomhub.errors import AtomhubWarning, NotFoundError, UsageError
from atomhub.interrupts import heeded
from atomhub.results import Measurement
from atomhub.storage import format_v1, store
from atomhub.training.measure import AnyNetwork, Progress, measure, network_for, targets_of
from atomhub.training.protocols import find_protocol


def evaluate(
    distilled: DistilledDataset, network: AnyNetwork | None = None, protocol: str = "dm", runs: int = 5, **options: Any
) -> Measurement:
    """Train fresh networks on a distilled set, test each on the real test split, and record the result.

    It goes into ``distilled.manifest`` and, if the set is on disk and not read-only, into its manifest and card.
    Arguments and errors as in :func:`atomhub.training.measure.measure`.
    """
    with heeded("this network, whose result is kept") as stop:
        result = measure(distilled, network, protocol, runs, stop=stop, **options)
        record(distilled, result)
        if stop():
            note = f"Stopped: the result of the {result.score.runs} networks trained so far is kept."
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
            format_v1.add_result(distilled.path, distilled.manifest, result)
        except Exception as error:
            warnings.warn(f"The result was not stored with the set: {error}", AtomhubWarning, stacklevel=3)
    distilled.manifest = distilled.manifest.with_result(result)


@dataclass(frozen=True)
class Verdict:
    """Whether a claimed accuracy held when networks were trained anew.

    Attributes:
        claim: What the set's manifest claims.
        measured: What came out; None: the network is not one that atomhub can build.
        holds: Whether the means differ by no more than ``allowed``.
        allowed: Points: twice the spread of claim and measurement together, at least 1.
    """

    claim: Measurement
    measured: Measurement | None
    holds: bool
    allowed: float


def verify(
    distilled: DistilledDataset, runs: int | None = None, *, seed: int = 1000, device: str = "auto",
    source: str | Path | RealData | None = None, progress: Progress | None = None,
) -> list[Verdict]:  # fmt: skip
    """Train networks anew under the protocols that a set claims results for, and say whether the claims hold.

    Nothing is stored. Seeds differ from those of the claim, so agreement is no matter of luck.

    Args:
        distilled: The set; :func:`atomhub.load` has checked its digests.
        runs: Networks to train for each claim; None: as many as the claim, at most 5.
        seed: Seed of the first network.
        device: ``auto``, ``cpu`` or ``cuda``.
        source: Where a local source lies now.
        progress: Called after every network.

    Raises:
        NotFoundError: the set claims nothing, or its source is not at hand.
    """
    claims = distilled.manifest.results.measured
    if not claims:
        raise NotFoundError(f"{distilled.name!r} claims no accuracy.", "Measure it first: atomhub evaluate")
    p = distilled.manifest.provenance
    check_again({s.fingerprint for s in (p.source, *(part.source for part in p.parts)) if s})
    verdicts = []
    for claim in claims:
        try:
            network_for(distilled, claim.network)
            find_protocol(claim.protocol)
            labels: Any = claim.labels
            targets_of(distilled, labels)
        except UsageError:  # a network that only its author has, say
            verdicts.append(Verdict(claim, None, False, 0.0))
            continue
        found = measure(
            distilled, claim.network, claim.protocol, runs or min(5, claim.score.runs), baseline=None,
            labels=labels, seed=seed, device=device, source=source, progress=progress,
        )  # fmt: skip
        allowed = max(1.0, 2 * math.hypot(claim.score.std, found.score.std))
        verdicts.append(Verdict(claim, found, abs(claim.score.mean - found.score.mean) <= allowed, allowed))
    return verdicts
