"""How good is a distilled set: networks trained on it, tested on real images, beside baselines."""

import hashlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from atomhub import limits
from atomhub.core.draws import seeded
from atomhub.data.real import RealData
from atomhub.dataset import DistilledDataset
from atomhub.devices import describe_device, enough_memory, find_device, keep_large_buffers
from atomhub.errors import NotFoundError, UsageError, check_whole
from atomhub.results import REVISION, Measurement, Score
from atomhub.stored import StoredLabels
from atomhub.training.accuracy import confusion, share_right
from atomhub.training.baselines import herding_real, random_real, whole_real
from atomhub.training.fit import fastest_group, fit
from atomhub.training.nets import InputSpec
from atomhub.training.networks import Network, check_claimed, check_probe, find_network
from atomhub.training.probes import begun
from atomhub.training.progress import Halfway, Paused
from atomhub.training.protocols import Protocol, find_protocol, for_set
from atomhub.version import versions

Baseline = Literal["random", "herding", "whole"]
Labels = Literal["hard", "soft", "stored"]
AnyNetwork = str | Callable[[], nn.Module]
Progress = Callable[[str, float, int], None]
"""Called with what is trained (``distilled``, a baseline, or ``rounded``), networks done, also in parts, and in all."""


class Kept:
    """What was measured so far, of the set and of its baselines.

    Attributes:
        scores: ``distilled`` or a baseline to what was measured of it.
    """

    def __init__(self) -> None:
        self.scores: dict[str, Score] = {}

    def add(self, kind: str, score: Score) -> None:
        """Keep what was measured of one kind, in place of what was there of it."""
        self.scores[kind] = score

    def halfway(self, kind: str, seeds: Sequence[int], stop: Callable[[], bool]) -> Halfway:
        """Return what keeps the networks of these seeds while they are trained."""
        return Halfway()

    def forget(self) -> None:
        """Let go of it: the measurement is complete."""


Keep = Callable[[Mapping[str, Any]], Kept]


@dataclass(frozen=True)
class Teacher:
    """What labels the batches of a protocol that wants it.

    Attributes:
        logits: From batches, normalised as those of the set, to logits, on the device; or stored labels of its.
        about: What it is, in words.
        identity: What tells it from others.
    """

    logits: Callable[[Tensor], Tensor] | StoredLabels
    about: str
    identity: str


def measure(
    distilled: DistilledDataset, network: AnyNetwork | None = None, protocol: str = "dm", runs: int = 5, *,
    baseline: Sequence[Baseline] | None = ("random",), labels: Labels = "hard", seed: int = 0,
    device: str = "auto", together: int | None = None, source: object = None,
    progress: Progress | None = None, stop: Callable[[], bool] = lambda: False, keep: Keep | None = None,
    teacher: Callable[[], Teacher] | None = None, per_class: bool = False,
) -> Measurement:  # fmt: skip
    """Train fresh networks on a distilled set and test each, after its last epoch, on the real test split.

    Run r of the set and of every baseline uses seed ``seed + r`` for weights, order and augmentation, so they are
    paired. A float32 set is measured rounded to 8 bits as well, which is what its parquet holds.

    Args:
        distilled: The set.
        network: Name of a network, with options if need be (:func:`atomhub.training.networks.find_network`); or a
            function without arguments that returns a new untrained model from normalised (B, C, H, W) to (B, K) logits;
            None: the protocol's own, a ConvNet with the norm that its published figures are of; ``quick`` has none, and
            takes the network that the set was distilled with.
        protocol: ``dm``, ``datadam``, ``idc``, ``dance``, ``ncfm``, ``rded``, ``quick`` or ``probe``, for linear
            probes (:data:`atomhub.training.protocols.PROTOCOLS`).
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
        progress: Called after every network, or after those trained together, and on the way.
        stop: Asked then, and after every epoch of networks that are kept: if it is true, the result is that of the
            networks measured so far.
        keep: Gives, for all that decides the accuracies (as JSON has it), where they are kept as they come: a
            measurement that was stopped continues from there. None: nothing is kept.
        teacher: Gives what labels the batches, of the set and of its baselines, where the protocol wants one.
        per_class: Count what the networks of the set take each class for (``score.confusion``), of 200 classes at most.

    Raises:
        UsageError: an unknown network, protocol or baseline, a number that is not possible, or a network that cannot
            take the images.
        NotFoundError: the source or its test split is not at hand, or the set has no soft labels.
        SourceError: the source has other classes than the set.
        AtomhubError: a training loss is not finite.
        Paused: ``stop`` said so before the first network was measured.
    """
    check_whole("runs", runs, 1)
    check_whole("seed", seed, 0)
    check_whole("together", 1 if together is None else together, 1)
    rules, where = for_set(protocol, distilled.ipc, len(distilled.class_names)), find_device(device)
    _check(distilled, protocol, teacher is not None, per_class)
    kinds = _kinds(distilled, baseline)
    targets = targets_of(distilled, labels)
    build, label = builder(network, distilled, rules)
    real = distilled.real(source)
    test = real.test_tensors()
    stages = distilled.safe(rules.augmentation)
    classes = len(distilled.class_names)
    # a function of the user's may give a network that does something else in every step, or another time
    known = network is None or isinstance(network, str)
    own = distilled.as_tensors()[0]
    taught = teacher() if teacher else None  # which may take long: all else was checked
    identity = _identity(own, targets, real, (rules, stages), label, taught, seed, where, per_class)
    kept = keep(identity) if keep and known else Kept()
    trained = 0
    keep_large_buffers()
    last: nn.Module | None = None
    begin, seen, test, space = begun(build, distilled.normalization, test, seed, where, rules.frozen and known)

    def part(kind: str, done: float) -> None:
        if progress:
            progress(kind, trained + done, runs * (1 + len(kinds)))

    def score(kind: str, training_set: Callable[[int], tuple[Tensor, Tensor]]) -> Score:
        nonlocal trained, last
        found, seconds, counts = _begun(kept.scores.get(kind), runs)
        start = time.perf_counter() - seconds
        trained += len(found)
        images, target = training_set(seed)
        with enough_memory("use a smaller network, or train fewer at once (together=1)"):
            images, target = seen(images), target.to(where)
            weights = rules.frozen * classes * images.shape[1]
            group = together or fastest_group(where, min(rules.batch, len(images)) * images.shape[-1] ** 2, weights)
            for first in range(len(found), runs, group):
                seeds = [seed + run for run in range(first, min(first + group, runs))]
                models = _models(begin, seeds, last, where)
                last = models[-1]
                # one tensor for all networks, but where every run has images of its own
                same = [images] * len(seeds) if kind != "random" else []
                inputs = same or [seen(training_set(s)[0]) for s in seeds]
                halfway = kept.halfway(kind, seeds, stop)
                start -= halfway.seconds
                try:
                    fit(
                        models, inputs, target, rules, stages, classes, seeds, (first, runs), known,
                        taught.logits if taught else None, partial(part, kind), halfway,
                    )  # fmt: skip
                except Paused:
                    break
                of_models = [confusion(m, *test, space, where, classes) for m in models]
                found += map(share_right, of_models)
                if per_class and kind == "distilled":
                    counts = counts + torch.stack(of_models).sum(0)
                kept.add(kind, summary(found, time.perf_counter() - start, counts))
                trained += len(seeds)
                part(kind, 0)
                if stop():
                    break
        if not found:
            raise Paused
        return summary(found, time.perf_counter() - start, counts)

    sets: dict[str, Callable[[int], tuple[Tensor, Tensor]]] = {
        "random": lambda s: random_real(distilled, real, s),
        "herding": lambda _: herding_real(distilled, real),
        "whole": lambda _: whole_real(distilled, real),
        "rounded": lambda _: (distilled.normalize(distilled.training_pixels(rounded=True)), targets),
    }
    found = score("distilled", lambda _: (own, targets))
    baselines: dict[str, Score] = {}
    for kind in kinds:
        if not stop():
            with suppress(Paused):
                baselines[kind] = score(kind, sets[kind])
    if not stop():
        kept.forget()
    return Measurement(
        protocol=protocol, network=label, labels="soft" if taught and labels == "hard" else labels, score=found,
        baseline=baselines, seed=seed, revision=REVISION, test_images=len(test[1]), device=describe_device(where),
        teacher=taught.about if taught else None,
    )  # fmt: skip


def _identity(
    images: Tensor, targets: Tensor, real: RealData, rules: tuple[Protocol, Any], label: str, teacher: Teacher | None,
    seed: int, device: torch.device, per_class: bool,
) -> dict[str, Any]:  # fmt: skip
    """Return all that decides what is measured, as JSON has it."""
    digests = [hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for tensor in (images, targets)]
    return {
        "set": digests, "source": real.info.fingerprint, "rules": repr((*rules, REVISION)), "network": label,
        "teacher": teacher and teacher.identity, "seed": seed, "device": str(device), "versions": versions("torch"),
        "per_class": per_class,
    }  # fmt: skip


def _begun(before: Score | None, runs: int) -> tuple[list[float], float, Tensor]:
    """Return accuracies, seconds and confusion matrix of the networks that were measured before; 0 stands for none."""
    if before is None or (before.confusion and before.runs > runs):  # which does not say whose errors are whose
        return [], 0.0, torch.tensor(0)
    found = list(before.accuracies[:runs])
    return found, before.seconds * len(found) / before.runs, torch.tensor(before.confusion or 0)


def _models(
    build: Callable[[], object], seeds: Sequence[int], last: nn.Module | None, device: torch.device
) -> list[nn.Module]:
    """Return a new network for each seed, other ones than the last of those before."""
    models: list[nn.Module] = []
    for seed in seeds:
        with seeded(seed, device):
            models.append(_new(build(), [*models, last], device))
    return models


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


def _check(distilled: DistilledDataset, protocol: str, taught: bool, per_class: bool) -> None:
    """Raise UsageError for a teacher too many or too few, or too many classes to tell."""
    if (wanted := bool(find_protocol(protocol).temperature)) is not taught:
        raise UsageError(f"The protocol {protocol!r} needs {'a' if wanted else 'no'} teacher.")
    if per_class and len(distilled.class_names) > limits.CONFUSION:
        raise UsageError(f"{distilled.name!r} has too many classes for per_class.", f"{limits.CONFUSION} are the most.")


def _kinds(distilled: DistilledDataset, baseline: Sequence[Baseline] | None) -> list[str]:
    """Return what to train beside the set itself; UsageError for an unknown baseline."""
    if baseline is None:
        return []
    given = [baseline] if isinstance(baseline, str) else list(baseline)
    for kind in given:
        if kind not in ("random", "herding", "whole"):
            raise UsageError(f"There is no baseline {kind!r}.", "Use random, herding or whole.")
    return [*given, *["rounded"] * distilled.images.is_floating_point()]


def rules_of(protocol: str, labels: str) -> Protocol:
    """Return a protocol for these labels; UsageError where they do not go together."""
    rules = find_protocol(protocol)
    if labels == "stored" and not rules.temperature:
        raise UsageError(f"Stored labels are for the protocol 'rded', not for {protocol!r}.")
    if labels == "soft" and rules.temperature:
        raise UsageError(f"Under {protocol!r} a teacher labels every batch.", "Leave `labels` out.")
    return rules


def targets_of(distilled: DistilledDataset, labels: str) -> Tensor:
    """Return the labels to train on: (N,) int64 or (N, K) float32; those of stored labels are not looked at."""
    if labels == "hard":
        return distilled.training_labels()
    if labels == "stored":
        distilled.stored_labels()
        return distilled.training_labels()
    if labels != "soft":
        raise UsageError(f"There are no {labels!r} labels.", "Use hard, soft or stored.")
    if distilled.soft_labels is None:
        raise NotFoundError(f"{distilled.name!r} has no soft labels.", "Make a set that has: atomhub soften")
    return distilled.soft_labels.float()


def summary(accuracies: Sequence[float], seconds: float, counts: Tensor | None = None) -> Score:
    """Summarise accuracies in percent, mean and sample standard deviation (0 for one run), and a confusion matrix."""
    std = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
    mean = statistics.fmean(accuracies)
    return Score(
        mean=round(mean, 4), std=round(std, 4), runs=len(accuracies),
        accuracies=tuple(round(a, 4) for a in accuracies), seconds=round(seconds, 2),
        confusion=tuple(map(tuple, counts.tolist())) if counts is not None and counts.dim() else (),
    )  # fmt: skip


def builder(
    network: AnyNetwork | None, distilled: DistilledDataset, rules: Protocol
) -> tuple[Callable[[], nn.Module], str]:
    """Return how to build a network, and the label it is reported under."""
    if network is None or isinstance(network, str):
        found = network_for(distilled, network, rules)
        return found.build, found.spec
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


def network_for(
    distilled: DistilledDataset, spec: str | None = None, rules: Protocol | None = None, tried: bool = True
) -> Network:
    """Return a network by name for the images of a set.

    Args:
        distilled: The set.
        spec: The name; None: the protocol's own network, or else the one that the set was distilled with, whose norm
            other networks have as well.
        rules: The protocol, if it is trained under one.
        tried: As in :func:`atomhub.training.networks.find_network`, where the errors are named.
    """
    f = distilled.manifest.format
    inputs = InputSpec(f.channels, len(f.class_names), f.size)
    usual = (rules and rules.usual) or distilled.manifest.results.network
    if spec is None:
        check_claimed(usual)
    if rules:
        check_probe(usual if spec is None else spec, rules.frozen)
    return find_network(spec, inputs, usual, tried)
