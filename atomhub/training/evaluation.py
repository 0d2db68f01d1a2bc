"""How good is a distilled set: networks trained on it, tested on real images, beside baselines."""

from __future__ import annotations

import math
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from atomhub.core import draws
from atomhub.core.initial import herding
from atomhub.devices import describe_device, enough_memory, find_device, keep_large_buffers
from atomhub.distilled import DistilledDataset
from atomhub.errors import AtomhubWarning, NotFoundError, UsageError, check_whole
from atomhub.manifest import Kind, Measurement, Score
from atomhub.sources import RealData
from atomhub.training.protocols import find_protocol
from atomhub.training.trainer import accuracy, fastest_group, fit, seeded
from atomhub.training.zoo import Images, find_network

Baseline = Literal["random", "herding", "whole"]
Network = str | Callable[[], nn.Module]
Progress = Callable[[str, int, int], None]
"""Called with what is trained (``distilled``, a baseline, or ``rounded``), networks done and in all."""


def evaluate(
    distilled: DistilledDataset,
    network: Network = "convnet",
    protocol: str = "dm",
    runs: int = 5,
    *,
    baseline: Sequence[Baseline] | None = ("random",),
    labels: Literal["hard", "soft"] = "hard",
    seed: int = 0,
    device: str = "auto",
    together: int | None = None,
    source: str | Path | RealData | None = None,
    progress: Progress | None = None,
) -> Measurement:
    """Train fresh networks on a distilled set and test each, after its last epoch, on the real test split.

    The result goes into ``distilled.manifest`` and, if the set is on disk, into its manifest and card. Run r of the set
    and of every baseline uses seed ``seed + r`` for weights, order and augmentation, so they are paired. A float32 set
    is measured rounded to 8 bits as well, which is what its parquet holds.

    Args:
        distilled: The set.
        network: Name of a network, with options if need be (:func:`atomhub.training.zoo.find_network`; ``convnet`` is
            of the width, depth and norm the set was distilled with), or a function without arguments that returns a
            new untrained model from normalised (B, C, H, W) to (B, K) logits.
        protocol: ``dm``, ``datadam``, ``mix`` or ``quick``.
        runs: Networks to train; the literature asks for 5 or more.
        baseline: ``random``: as many random real images per class, drawn anew for every run; ``herding``: those whose
            mean is closest to the class mean; ``whole``: the whole training set; empty: none of them; None: not
            even the set rounded to 8 bits.
        labels: ``soft``: train on the set's soft labels, and report that apart; baselines have none.
        seed: Seed of the first run.
        device: ``auto``, ``cpu`` or ``cuda``.
        together: Networks to train in one vectorised pass; None: as many as the device is fastest with. It changes
            results by rounding only.
        source: Where a local source lies now, if it is not in this machine's cache, or the source itself.
        progress: Told after every network, or after those trained together.

    Raises:
        UsageError: an unknown network, protocol or baseline, a number that is not possible, or a network that cannot
            take the images.
        NotFoundError: the source or its test split is not at hand, or the set has no soft labels.
        SourceError: the source has other classes than the set.
        AtomhubError: a training loss is not finite.
    """
    check_whole("runs", runs, 1)
    check_whole("seed", seed, 0)
    check_whole("together", 1 if together is None else together, 1)
    rules, where = find_protocol(protocol), find_device(device)
    kinds = _kinds(distilled, baseline)
    targets = targets_of(distilled, labels)
    build, label = builder(network, distilled)
    real = distilled.real(source)
    test = real.test_tensors()
    operations = distilled.operations(rules.augmentation)
    classes = len(distilled.class_names)
    trained = 0
    keep_large_buffers()
    last: nn.Module | None = None

    def score(kind: str, training_set: Callable[[int], tuple[Tensor, Tensor]]) -> Score:
        nonlocal trained, last
        start, found = time.perf_counter(), []
        images, target = training_set(seed)
        group = together or fastest_group(where, min(rules.batch, len(images)) * images.shape[-1] ** 2)
        with enough_memory("use a smaller network, or train fewer at once (together=1)"):
            target = target.to(where)
            for first in range(0, runs, group):
                seeds = [seed + run for run in range(first, min(first + group, runs))]
                models: list[nn.Module] = []
                for s in seeds:
                    with seeded(s, where):
                        models.append(_new(build(), [*models, last], where))
                last = models[-1]
                # one tensor for all networks, but where every run has images of its own
                same = [images.to(where)] * len(seeds) if kind != "random" else []
                own = same or [training_set(s)[0].to(where) for s in seeds]
                fit(models, own, target, rules, operations, classes, seeds, (first, runs))
                found += [accuracy(m, *test, distilled.normalization, where, classes) for m in models]
                trained += len(seeds)
                if progress:
                    progress(kind, trained, runs * (1 + len(kinds)))
        return summary(found, time.perf_counter() - start)

    sets: dict[str, Callable[[int], tuple[Tensor, Tensor]]] = {
        "random": lambda s: random_real(distilled, real, s),
        "herding": lambda _: herding_real(distilled, real),
        "whole": lambda _: whole_real(distilled, real),
        "rounded": lambda _: (distilled.normalize(distilled.decoded(rounded=True)), targets),
    }
    result = Measurement(
        protocol=protocol,
        network=label,
        labels=labels,
        score=score("distilled", lambda _: (distilled.as_tensors()[0], targets)),
        baseline={kind: score(kind, sets[kind]) for kind in kinds},
        seed=seed,
        test_images=len(test[1]),
        device=describe_device(where),
    )
    _keep(distilled, result)
    return result


def _new(model: object, others: Sequence[nn.Module | None], device: torch.device) -> nn.Module:
    """Return a model on the device; UsageError if it is none, or not a new one."""
    if not isinstance(model, nn.Module):
        raise UsageError(f"The network function gives {type(model).__name__}, not a torch.nn.Module.")
    if any(model is other for other in others):
        raise UsageError(
            f"The network function gives the same {type(model).__name__} every time.",
            "Make a new one in it: every run needs fresh weights.",
        )
    return model.to(device)


def _kinds(distilled: DistilledDataset, baseline: Sequence[Baseline] | None) -> list[Kind]:
    """Return what to train beside the set itself; UsageError for an unknown baseline."""
    if baseline is None:
        return []
    baseline = (baseline,) if isinstance(baseline, str) else tuple(baseline)  # type: ignore[assignment]
    for kind in baseline:
        if kind not in ("random", "herding", "whole"):
            raise UsageError(f"There is no baseline {kind!r}.", "Use random, herding or whole.")
    rounded: list[Kind] = ["rounded"] if distilled.images.is_floating_point() else []
    return [*baseline, *rounded]


def targets_of(distilled: DistilledDataset, labels: str) -> Tensor:
    """Return the labels to train on: (N,) int64 or (N, K) float32."""
    if labels == "hard":
        return distilled.training_labels()
    if labels != "soft":
        raise UsageError(f"There are no {labels!r} labels.", "Use hard or soft.")
    if distilled.soft_labels is None:
        raise NotFoundError(f"{distilled.name!r} has no soft labels.", "Make a set that has: atomhub soften")
    return distilled.soft_labels.float()


def _keep(distilled: DistilledDataset, result: Measurement) -> None:
    """Record a result in the set and, where it is one's own, on disk; a measurement is never lost to a failed write."""
    from atomhub.hub import layout, store

    if distilled.path is not None and store.keeps_results(distilled):
        try:
            layout.add_result(distilled.path, distilled.manifest, result)
        except Exception as error:
            warnings.warn(f"The result was not stored with the set: {error}", AtomhubWarning, stacklevel=3)
    distilled.manifest = distilled.manifest.with_result(result)


def summary(accuracies: Sequence[float], seconds: float) -> Score:
    """Summarise accuracies in percent: mean and sample standard deviation (0 for one run)."""
    std = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
    mean = statistics.fmean(accuracies)
    return Score(
        mean=round(mean, 4),
        std=round(std, 4),
        runs=len(accuracies),
        accuracies=tuple(round(a, 4) for a in accuracies),
        seconds=round(seconds, 2),
    )


def random_real(distilled: DistilledDataset, real: RealData, seed: int) -> tuple[Tensor, Tensor]:
    """Return as many random real training images as the set has, normalised (N, C, H, W), with labels (N,)."""
    classes, ipc = len(real.class_names), distilled.manifest.ipc
    offsets = real.train.offsets(classes)
    members = draws.sample(seed, draws.BASELINE, 0, range(classes), offsets[1:] - offsets[:-1], ipc)
    rows = (members + offsets[:-1, None]).flatten()
    return distilled.normalize(torch.from_numpy(real.train.images[rows])), torch.from_numpy(real.train.labels[rows])


def herding_real(distilled: DistilledDataset, real: RealData) -> tuple[Tensor, Tensor]:
    """Return as many real training images as the set has, chosen by herding on normalised pixels; as random_real."""
    ipc, offsets = distilled.manifest.ipc, real.train.offsets(len(real.class_names))
    chosen = []
    for begin, end in zip(offsets, offsets[1:], strict=False):
        images = distilled.normalize(torch.tensor(real.train.images[begin:end])).flatten(1).numpy()
        chosen.append(begin + herding(images, ipc, 0))
    rows = np.concatenate(chosen)
    return distilled.normalize(torch.from_numpy(real.train.images[rows])), torch.from_numpy(real.train.labels[rows])


def whole_real(distilled: DistilledDataset, real: RealData) -> tuple[Tensor, Tensor]:
    """Return the whole training set, normalised (N, C, H, W), with labels (N,)."""
    return distilled.normalize(torch.tensor(real.train.images)), torch.from_numpy(real.train.labels)


def builder(network: Network, distilled: DistilledDataset) -> tuple[Callable[[], nn.Module], str]:
    """Return how to build a network, and the label it is reported under."""
    if not isinstance(network, str):
        if isinstance(network, nn.Module) or not callable(network):
            raise UsageError(
                f"The network cannot be {type(network).__name__}: every run needs a new one.",
                "Give a function that returns a new model, such as lambda: MyNet().",
            )
        named = getattr(network, "__name__", "<lambda>")
        if named == "<lambda>":
            with seeded(0, torch.device("cpu")):
                named = type(network()).__name__
        return network, f"{named}()"  # never the name of one of ours
    found = find_network(network, images_of(distilled), distilled.manifest.recipe)
    return found.build, found.spec


def images_of(distilled: DistilledDataset) -> Images:
    """Return what a network for a set is to classify."""
    source = distilled.manifest.source
    return Images(source.channels, len(distilled.class_names), source.size)


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
    distilled: DistilledDataset,
    runs: int | None = None,
    *,
    seed: int = 1000,
    device: str = "auto",
    source: str | Path | RealData | None = None,
    progress: Progress | None = None,
) -> list[Verdict]:
    """Train networks anew under the protocols that a set claims results for, and say whether the claims hold.

    Nothing is stored. Seeds differ from those of the claim, so agreement is no matter of luck.

    Args:
        distilled: The set; :func:`atomhub.load` has checked its digests.
        runs: Networks to train for each claim; None: as many as the claim, at most 5.
        seed: Seed of the first network.
        device: ``auto``, ``cpu`` or ``cuda``.
        source: Where a local source lies now.
        progress: Told after every network.

    Raises:
        NotFoundError: the set claims nothing, or its source is not at hand.
    """
    if not distilled.manifest.results:
        raise NotFoundError(f"{distilled.name!r} claims no accuracy.", "Measure it first: atomhub evaluate")
    verdicts = []
    for claim in distilled.manifest.results:
        try:
            find_network(claim.network, images_of(distilled), distilled.manifest.recipe)
            find_protocol(claim.protocol)
        except UsageError:  # a network of its author's own
            verdicts.append(Verdict(claim, None, False, 0.0))
            continue
        copy = replace(distilled, path=None)
        found = evaluate(
            copy, claim.network, claim.protocol, runs or min(5, claim.score.runs), baseline=None, labels=claim.labels,
            seed=seed, device=device, source=source, progress=progress,
        )  # fmt: skip
        allowed = max(1.0, 2 * math.hypot(claim.score.std, found.score.std))
        verdicts.append(Verdict(claim, found, abs(claim.score.mean - found.score.mean) <= allowed, allowed))
    return verdicts
