"""The teacher of the protocol ``rded``: live while networks are measured, or its labels stored with a set."""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from atomhub import limits
from atomhub.command import chain, command
from atomhub.core import augment, cutmix
from atomhub.core.whitening import Normalization
from atomhub.data.real import RealData
from atomhub.dataset import DistilledDataset
from atomhub.devices import enough_memory, find_device
from atomhub.errors import UsageError, check_whole
from atomhub.job.banks import find_bank, teacher_of
from atomhub.job.forecast import resolved_for
from atomhub.job.matchers import Matching
from atomhub.manifest import check_name
from atomhub.provenance import Stored
from atomhub.recipe import Recipe, choose_recipe
from atomhub.stored import StoredLabels, file_size
from atomhub.training.fit import drawn
from atomhub.training.measure import Teacher, network_for, rules_of
from atomhub.training.nets import InputSpec
from atomhub.training.networks import PROBE, find_network, split_spec
from atomhub.training.protocols import find_protocol, for_set
from atomhub.weights import digest_of


def label(
    distilled: DistilledDataset, epochs: int = 300, *, name: str | None = None, seed: int = 0, device: str = "auto",
    source: object = None, teacher: str | None = None, progress: Any = None,
) -> DistilledDataset:  # fmt: skip
    """Return a copy of a set, in memory, with a teacher's labels for every augmented batch of some epochs (FKD).

    Batches are those of the protocol ``rded``, and so is the teacher, trained once per source. Networks then learn as
    under a live teacher, without it and without the real training images: ``loader(labels="stored")``,
    ``train(..., protocol="rded", labels="stored")``; to measure them needs real ones.

    Args:
        distilled: The set.
        epochs: Epochs to store; training that goes on begins with the first again.
        name: Name of the new set; None: ``<name>-labels``.
        seed: Keys order and augmentation.
        device: ``auto``, ``cpu`` or ``cuda``.
        source: Where a local source lies now.
        teacher: The network that gives the labels, by name, trained as that of the recipe ``rded``, from fresh weights
            or those of ``NAME:weights=FILE``; None: that one.
        progress: Called with ``teacher`` or ``labels``, what is done of it, and in all.

    Raises:
        UsageError: a number that is not possible, or labels larger than 2 GiB.
        NotFoundError: the source is not at hand.
    """
    check_whole("epochs", epochs, 1, limits.EPOCHS)
    check_whole("seed", seed, 0)
    new, where = check_name(name or f"{distilled.name}-labels"), find_device(device)
    images, count = distilled.as_tensors()[0], len(distilled.training_labels())
    classes = len(distilled.class_names)
    rules = replace(for_set("rded", distilled.ipc, classes), epochs=epochs)
    each = file_size(1, count, rules.batch, classes)
    if epochs * each > limits.LABELS:
        most = min(limits.LABELS // each, limits.EPOCHS)
        hint = f"Use epochs={most} or less." if most else "Use a smaller set."
        raise UsageError(f"The labels of {epochs} epochs would take more than {limits.LABELS >> 30} GiB.", hint)
    told = progress or (lambda what, done, total: None)
    check_teacher(distilled, "rded", "hard", teacher)
    chosen = _choose(distilled, {"device": device, "source": source, "teacher": teacher})
    believed, about, _ = _trained(distilled, chosen, progress)
    found: list[dict[str, Any]] = []
    stages = distilled.safe(rules.augmentation)
    with enough_memory("use a smaller batch"), torch.no_grad():
        for number, batches in enumerate(drawn(count, rules, [seed], torch.device("cpu"))):
            found.append(_epoch(images, batches, rules.cutmix, ("flip",) in [tuple(stage) for stage in stages]))
            stored = StoredLabels(
                **{key: value[None] for key, value in found[-1].items()},
                logits=torch.zeros(1, count, classes), batch=rules.batch,
            )  # fmt: skip
            logits = [believed(batch[0].to(where)).cpu() for batch, _ in stored.epoch(images, 0)]
            found[-1]["logits"] = torch.cat(logits).clamp(-60_000, 60_000).to(torch.float16)
            told("labels", number + 1, epochs)
    whole: dict[str, Any] = {key: torch.stack([e[key] for e in found]) for key in found[0]}
    stored = StoredLabels(**whole, batch=rules.batch)
    content = stored.content()
    record = Stored(
        teacher=about[:400], protocol="rded", epochs=epochs, seed=seed, size=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )  # fmt: skip
    named = teacher and chosen.spec  # without a folder of this machine
    made = command("label", distilled.repo or distilled.name, epochs=epochs, seed=seed, teacher=named, name=new)
    before = None if distilled.repo else distilled.manifest.provenance.command
    others = tuple(r for r in distilled.manifest.results.measured if r.labels != "stored")  # those are of other labels
    manifest = distilled.manifest.replace(
        name=new, provenance={"stored": record, "command": chain(before or "", made)}, files={},
        results={"measured": others},
    )  # fmt: skip
    return replace(distilled, manifest=manifest, stored=stored, path=None, repo=None)


def _epoch(images: Tensor, batches: Any, probability: float, flips: bool) -> dict[str, Tensor]:
    """Return what is stored of an epoch but the logits, from its draws."""
    parts: dict[str, list[Tensor]] = {}
    for rows, u, mix in batches:
        own, order = u[0], u[0, :, augment.DRAWS].argsort()
        quarters = augment.quarters(own)
        if images.shape[-1] % 2:
            quarters = torch.arange(4).expand_as(quarters)
        for key, value in {
            "order": rows[0].int(), "quarters": quarters.to(torch.uint8), "parts": augment.part(own),
            "mirrored": (augment.mirrored(own) & flips).to(torch.uint8), "partners": order.int(),
            "boxes": cutmix.boxes(mix, probability, images.shape[-2:]).short(),
        }.items():  # fmt: skip
            parts.setdefault(key, []).append(value)
    return {key: torch.cat(values) for key, values in parts.items()}


@dataclass(frozen=True)
class _Chosen:
    """What network labels batches, before it is trained."""

    real: RealData
    recipe: Recipe
    matching: Matching | None
    device: torch.device

    @property
    def spec(self) -> str:
        """Its name, with the file or name of the weights that it starts from."""
        if self.matching is None or self.matching.weights is None:
            return self.matching.spec if self.matching else self.recipe.network()
        (file, _, digest), name = self.matching.weights.partition(" sha256:"), self.matching.spec
        return f"{name}{',' if ':' in name else ':'}weights={file}{f'@{digest[:12]}' if digest else ''}"

    @property
    def about(self) -> str:
        """What it is, in words."""
        return f"{self.spec}, {self.recipe.bank_epochs} epochs on {self.real.info.called}"


def _choose(distilled: DistilledDataset, options: Mapping[str, Any]) -> _Chosen:
    """Return the network that is trained as that of the recipe ``rded``: that one, or the one that is named."""
    real, device, named = (
        distilled.real(options.get("source")), find_device(options.get("device", "auto")), options.get("teacher")
    )  # fmt: skip
    usual = choose_recipe("rded", real.info.id, {"init": "real"})
    chosen = _Chosen(real, *resolved_for(usual, real, 1, device), device)
    if named is None:
        return chosen
    name, weights, digest = _parted(named)
    inputs = InputSpec(real.info.channels, len(real.class_names), real.info.size)
    spec = find_network(name, inputs, f"convnet:norm={usual.norm}").spec  # a name means one network
    if weights or spec != chosen.spec:
        fields = {"matcher": spec, **({"weights": weights} if weights else {})}
        chosen = _Chosen(real, *resolved_for(usual.replace(**fields), real, 1, device), device)
    if digest and not chosen.spec.endswith(f"@{digest}"):
        found = chosen.spec.rpartition("@")[2]
        raise UsageError(f"The weights {weights!r} have the digest {found}, not {digest}.", "Find the file.")
    return chosen


def _trained(
    distilled: DistilledDataset, chosen: _Chosen, progress: Any
) -> tuple[Callable[[Tensor], Tensor], str, str]:  # fmt: skip
    """Return logits of a network, trained once per source; what it is, what identifies it."""
    theirs = Normalization(chosen.real.mean, chosen.real.std)
    own = distilled.normalization.to(chosen.device, torch.float32)
    arguments = (chosen.real, chosen.recipe, theirs, chosen.device, chosen.matching)
    told = progress or (lambda what, done, total: None)
    with enough_memory("use a smaller teacher"):
        network = teacher_of(find_bank(*arguments, partial(told, "teacher")), *arguments)
    theirs = theirs.to(chosen.device, torch.float32)
    identity = digest_of(network.state_dict())

    def logits(images: Tensor) -> Tensor:
        return network(theirs.apply(own.undo(images)))

    return logits, chosen.about, identity


def _parted(named: Any) -> tuple[str, str, str]:
    """Return the name of a teacher without its weights, these, and the digest that they are to have."""
    name, options = split_spec(named) if isinstance(named, str) else ("", {})
    if not name:
        raise UsageError(f"The teacher cannot be {named!r}.", "Give the name of a network, such as resnet18.")
    if name.startswith(PROBE):
        raise UsageError(f"The teacher cannot be {named!r}: it is trained whole.", "Name the network alone.")
    given = options.pop("weights", "")
    weights = re.sub(r"@[0-9a-f]{12}$", "", given)
    plain = name + ":" * bool(options) + ",".join(f"{key}={value}" for key, value in options.items())
    return plain, weights, given[len(weights) + 1 :]


def check_teacher(distilled: DistilledDataset, protocol: str, labels: str, named: str | None) -> None:
    """Raise a UsageError where a teacher's name is none, or there is none to choose; nothing is fetched for that."""
    rules = rules_of(protocol, labels)
    if named is None:
        return
    name = _parted(named)[0]
    if not rules.temperature:
        raise UsageError(f"The protocol {protocol!r} has no teacher, so it cannot be {named!r}.", "Use protocol rded.")
    if labels == "stored":
        raise UsageError(f"Stored labels are those of their own teacher, not of {named!r}.")
    network_for(distilled, name)


def taught(distilled: DistilledDataset, protocol: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a measurement, with a teacher where its protocol or its labels want one.

    Args:
        distilled: The set.
        protocol: Name of the protocol.
        options: Those of :func:`atomhub.evaluate`, which names the teacher (``teacher``); and ``expected``: what a
            claim says that its teacher was.

    Raises:
        UsageError: a name of a teacher that is none, or where there is none to choose; or another one was expected.
        NotFoundError: the source is not at hand.
    """
    given = {key: value for key, value in options.items() if key not in ("teacher", "expected")}
    labels, named = str(options.get("labels", "hard")), options.get("teacher")
    check_teacher(distilled, protocol, labels, named)
    if labels == "stored":
        if other := set(options.get("baseline") or ()) - {"random"}:
            raise UsageError(f"Only the set has stored labels, so there is no baseline {min(other)!r} under them.")
        stored, about = distilled.stored_labels(), distilled.manifest.provenance.stored
        epochs = f" ({stored.epochs} epochs)"
        found = Teacher(stored, about.teacher + epochs if about else epochs, about.sha256 if about else "")
        return {**given, "baseline": None, "teacher": lambda: found}
    if not find_protocol(protocol).temperature:
        return given
    chosen = _choose(distilled, options)
    mine, theirs = (text.partition(" on ")[0] for text in (chosen.about, options.get("expected") or chosen.about))
    if mine != theirs:
        raise UsageError(f"Its teacher was {theirs}, and is {mine} here.")
    return {**given, "teacher": lambda: Teacher(*_trained(distilled, chosen, options.get("progress")))}
