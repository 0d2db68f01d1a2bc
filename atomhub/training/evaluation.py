"""How good is a distilled set: networks trained on it, tested on real images, beside baselines."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from atomhub.core import draws
from atomhub.core.networks import find_network
from atomhub.distilled import DistilledDataset
from atomhub.errors import UsageError
from atomhub.manifest import Measurement, Score
from atomhub.pipeline import describe_device, find_device
from atomhub.sources import RealData, reopen
from atomhub.training.protocols import find_protocol
from atomhub.training.trainer import accuracy, fit, seeded

Baseline = Literal["random", "whole"]
Network = str | Callable[[], nn.Module]
Progress = Callable[[str, int, int], None]
"""Called with what is trained (``distilled``, ``random`` or ``whole``), runs done and runs in all."""


def evaluate(
    distilled: DistilledDataset,
    network: Network = "convnet",
    protocol: str = "dm",
    runs: int = 5,
    *,
    baseline: Sequence[Baseline] = ("random",),
    seed: int = 0,
    device: str = "auto",
    source: str | None = None,
    progress: Progress | None = None,
) -> Measurement:
    """Train fresh networks on a distilled set and test each, after its last epoch, on the real test split.

    The result is stored in the set's manifest and card if the set is on disk. Run r of the set and of every baseline
    uses seed ``seed + r`` for weights, order and augmentation, so they are paired.

    Args:
        distilled: The set.
        network: ``convnet`` (of the width, depth and norm the set was distilled with), or a function without arguments
            that returns a new untrained model from normalised (B, C, H, W) to (B, K) logits.
        protocol: ``dm``, ``datadam``, ``mix`` or ``quick``.
        runs: Networks to train; the literature asks for 5 or more.
        baseline: ``random``: as many random real images per class, drawn anew for every run; ``whole``: the whole
            training set.
        seed: Seed of the first run.
        device: ``auto``, ``cpu`` or ``cuda``.
        source: Where a local source lies now, if it is not in this machine's cache.
        progress: Told after every run.

    Raises:
        UsageError: an unknown network, protocol or baseline, or no run at all.
        NotFoundError: the source or its test split is not at hand.
    """
    if runs < 1:
        raise UsageError(f"runs cannot be {runs}: train 1 or more networks.")
    for kind in baseline:
        if kind not in ("random", "whole"):
            raise UsageError(f"There is no baseline {kind!r}.", "Use random or whole.")
    rules, where = find_protocol(protocol), find_device(device)
    build, label = _builder(network, distilled)
    real = reopen(distilled.manifest.source, source)
    test_images, test_labels = distilled.test_split(source)
    operations = distilled.operations(rules.augmentation)
    classes = len(distilled.class_names)

    def score(kind: str, training_set: Callable[[int], tuple[Tensor, Tensor]]) -> Score:
        start, found = time.perf_counter(), []
        for run in range(runs):
            images, labels = training_set(seed + run)
            with seeded(seed + run, where):
                model = build().to(where)
                fit(model, images.to(where), labels.to(where), rules, operations, classes)
            found.append(accuracy(model, test_images, test_labels, distilled.normalization, where))
            if progress:
                progress(kind, run + 1, runs)
        return summary(found, time.perf_counter() - start)

    tensors = distilled.as_tensors()
    sets = {"random": lambda s: random_real(distilled, real, s), "whole": lambda s: whole_real(distilled, real)}
    result = Measurement(
        protocol=protocol,
        network=label,
        score=score("distilled", lambda _: tensors),
        baseline={kind: score(kind, sets[kind]) for kind in baseline},
        seed=seed,
        test_images=len(test_labels),
        device=describe_device(where),
    )
    if distilled.path is not None:
        from atomhub.hub import layout

        layout.add_result(distilled.path, result)
    return result


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
    members = draws.sample(seed, draws.INIT, 0, range(classes), offsets[1:] - offsets[:-1], ipc)
    rows = (members + offsets[:-1, None]).flatten()
    return distilled.normalize(torch.from_numpy(real.train.images[rows])), torch.from_numpy(real.train.labels[rows])


def whole_real(distilled: DistilledDataset, real: RealData) -> tuple[Tensor, Tensor]:
    """Return the whole training set, normalised (N, C, H, W), with labels (N,)."""
    return distilled.normalize(torch.from_numpy(real.train.images)), torch.from_numpy(real.train.labels)


def _builder(network: Network, distilled: DistilledDataset) -> tuple[Callable[[], nn.Module], str]:
    """Return how to build a network, and the label it is reported under."""
    if not isinstance(network, str):
        return network, getattr(network, "__name__", type(network).__name__)
    make, recipe, info = find_network(network), distilled.manifest.recipe, distilled.manifest.source
    options = {"width": recipe.width, "depth": recipe.depth, "norm": recipe.norm}
    label = f"{network} (width {recipe.width}, depth {recipe.depth}, {recipe.norm} norm)"
    return lambda: make(info.channels, len(distilled.class_names), info.size, **options), label
