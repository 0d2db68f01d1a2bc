"""The teacher of the protocol ``rded``: live while networks are measured, or its labels stored with a set."""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from atomhub import limits
from atomhub.command import chain, command
from atomhub.core import augment, cutmix
from atomhub.core.whitening import Normalization
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
from atomhub.training.networks import PROBE, split_spec
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
    chosen, where = check_name(name or f"{distilled.name}-labels"), find_device(device)
    images, count = distilled.as_tensors()[0], len(distilled.training_labels())
    classes = len(distilled.class_names)
    rules = replace(for_set("rded", distilled.ipc, classes), epochs=epochs)
    each = file_size(1, count, rules.batch, classes)
    if epochs * each > limits.LABELS:
        most = min(limits.LABELS // each, limits.EPOCHS)
        hint = f"Use epochs={most} or less." if most else "Use a smaller set."
        raise UsageError(f"The labels of {epochs} epochs would take more than {limits.LABELS >> 30} GiB.", hint)
    told = progress or (lambda what, done, total: None)
    _check_teacher(distilled, teacher)
    believed, about, _ = _network(
        distilled, {"device": device, "source": source, "progress": progress, "teacher": teacher}
    )
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
    made = command("label", distilled.repo or distilled.name, epochs=epochs, seed=seed, teacher=teacher, name=chosen)
    before = None if distilled.repo else distilled.manifest.provenance.command
    others = tuple(r for r in distilled.manifest.results.measured if r.labels != "stored")  # those are of other labels
    manifest = distilled.manifest.replace(
        name=chosen, provenance={"stored": record, "command": chain(before or "", made)}, files={},
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


def _network(
    distilled: DistilledDataset, options: Mapping[str, Any]
) -> tuple[Callable[[Tensor], Tensor], str, str]:  # fmt: skip
    """Return logits of a network trained as that of the recipe ``rded``, once per source; its name, its identity."""
    real, device = distilled.real(options.get("source")), find_device(options.get("device", "auto"))
    progress = options.get("progress") or (lambda what, done, total: None)
    usual = choose_recipe("rded", real.info.id, {"init": "real"})
    resolved, matching = resolved_for(usual, real, 1, device)
    wanted = options.get("teacher")
    if wanted not in (None, _spec(resolved, matching)):
        name, given = split_spec(wanted)
        weights = re.sub(r"@[0-9a-f]{12}$", "", given.pop("weights", ""))  # their digest was checked
        matcher = name + ":" * bool(given) + ",".join(f"{key}={value}" for key, value in given.items())
        recipe = usual.replace(matcher=matcher, **({"weights": weights} if weights else {}))
        resolved, matching = resolved_for(recipe, real, 1, device)
    theirs, own = Normalization(real.mean, real.std), distilled.normalization.to(device, torch.float32)
    arguments = (real, resolved, theirs, device, matching)
    network = teacher_of(find_bank(*arguments, partial(progress, "teacher")), *arguments)
    theirs = theirs.to(device, torch.float32)
    about = f"{_spec(resolved, matching)}, {resolved.bank_epochs} epochs on {real.info.called}"
    identity = digest_of(network.state_dict())

    def logits(images: Tensor) -> Tensor:
        return network(theirs.apply(own.undo(images)))

    return logits, about, identity


def _spec(resolved: Recipe, matching: Matching | None) -> str:
    """Return a teacher's name, with the file or name of the weights that it started from."""
    if matching is None or matching.weights is None:
        return matching.spec if matching else resolved.network()
    file, _, digest = matching.weights.partition(" sha256:")
    return f"{matching.spec}{',' if ':' in matching.spec else ':'}weights={file}{f'@{digest[:12]}' if digest else ''}"


def _check_teacher(distilled: DistilledDataset, named: str | None) -> None:
    """Raise a UsageError where no network of this name, and from its weights, can be trained as a teacher."""
    if named is not None and named.startswith(PROBE):
        raise UsageError(f"The teacher cannot be {named!r}: it is trained whole.", "Name the network alone.")
    if named is not None:
        network_for(distilled, f"{PROBE}{named}" if "weights=" in named else named)


def taught(distilled: DistilledDataset, protocol: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a measurement, with a teacher where its protocol or its labels want one.

    Raises:
        UsageError: a name of a teacher (``teacher``) where there is none to choose.
    """
    named = options.get("teacher")
    if named is not None and not find_protocol(protocol).temperature:
        raise UsageError(f"The protocol {protocol!r} has no teacher, so it cannot be {named!r}.", "Use protocol rded.")
    _check_teacher(distilled, named)
    if options.get("labels") == "stored":
        rules_of(protocol, "stored")
        if named is not None:
            raise UsageError(f"Stored labels are those of their own teacher, not of {named!r}.")
        if other := set(options.get("baseline") or ()) - {"random"}:
            raise UsageError(f"Only the set has stored labels, so there is no baseline {min(other)!r} under them.")
        stored, about = distilled.stored_labels(), distilled.manifest.provenance.stored
        epochs = f" ({stored.epochs} epochs)"
        found = Teacher(stored, about.teacher + epochs if about else epochs, about.sha256 if about else "")
        return {**options, "baseline": None, "teacher": lambda: found}
    if not find_protocol(protocol).temperature:
        return {key: value for key, value in options.items() if key != "teacher"}
    return {**options, "teacher": lambda: Teacher(*_network(distilled, options))}
