"""Sets put together from classes of others: subsets, and several sets as one (for replay buffers, say)."""

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
import torch

from atomhub.command import expression, python_command
from atomhub.dataset import DistilledDataset, check_set
from atomhub.errors import UsageError, check_whole, closest
from atomhub.manifest import Format, Manifest, check_name
from atomhub.provenance import Part, Provenance, joined
from atomhub.results import Results
from atomhub.version import versions


def subset(
    distilled: DistilledDataset, classes: Sequence[int | str] | None = None, ipc: int | None = None,
    name: str | None = None,
) -> DistilledDataset:  # fmt: skip
    """Return some classes of a set, in the order given, and the first ``ipc`` images of each; in memory.

    Args:
        distilled: The set.
        classes: Numbers or names; None: all.
        ipc: Images per class, at most what there are; None: all.
        name: Name of the new set; None: ``<name>-subset``.

    Raises:
        UsageError: a class that is not there or named twice, fewer than two, or an ipc that is not possible.
    """
    f = distilled.manifest.format
    chosen = [_class_number(distilled, k) for k in (range(len(f.class_names)) if classes is None else classes)]
    if len(set(chosen)) < len(chosen) or len(chosen) < 2:
        raise UsageError(f"The classes cannot be {list(classes or ())!r}: name two or more, each once.")
    count = f.ipc if ipc is None else check_whole("ipc", ipc, 1, f.ipc)
    rows = torch.tensor([k * f.ipc + i for k in chosen for i in range(count)])
    names = tuple(f.class_names[k] for k in chosen)
    soft = distilled.soft_labels
    if soft is not None and chosen != list(range(len(f.class_names))):
        soft = None  # probabilities of classes that are gone or elsewhere
    if soft is not None:
        soft = soft.unflatten(0, (len(chosen), -1, f.ipc))[:, :, :count].flatten(0, 2)
    given, before = _expression(distilled)
    place = {old: new for new, old in enumerate(chosen)}
    p = distilled.manifest.provenance
    provenance = Provenance(
        source=p.source,
        parts=tuple(_moved(part, place.get) for part in _parts(distilled)),
        teacher=p.teacher if soft is not None else None,
        command=python_command(f"{given}.subset({list(names)!r}, {count}, {name!r})", *before),
        **_now(distilled),
    )
    manifest = Manifest(
        name=check_name(name or f"{distilled.name}-subset"),
        format=f.model_copy(update={"class_names": names, "ipc": count, "labels": "hard" if soft is None else "soft"}),
        provenance=provenance,
        results=Results(network=distilled.manifest.results.network),
    )
    labels = torch.arange(len(chosen)).repeat_interleave(count)
    return DistilledDataset(distilled.images[rows], labels, manifest, whitening=distilled.whitening, soft_labels=soft)


def concat(
    sets: Sequence[DistilledDataset], by: Literal["name", "offset"] = "name", name: str | None = None
) -> DistilledDataset:
    """Return several sets as one, in memory; every class must end up with as many images.

    Args:
        sets: Two or more of the same size, channels and kind of pixels, without whitening and soft labels.
        by: ``name``: classes of the same name become one; ``offset``: every class stays one by itself, numbered after
            those of the sets before; a name that comes again gets the name of its set.
        name: Name of the new set; None: the names joined by ``-and-``.

    Raises:
        UsageError: sets that do not fit together; the sentence says where.
    """
    sets = list(sets)
    for one in sets:
        check_set(one)
    if len(sets) < 2:
        raise UsageError(f"concat needs two sets or more, and was given {len(sets)}.")
    if by not in ("name", "offset"):
        raise UsageError(f"Classes cannot be put together by {by!r}.", "Use name or offset.")
    _check_alike(sets)
    names, labels = _numbered(sets, by)
    where = torch.cat([torch.tensor(own)[s.labels] for own, s in zip(labels, sets, strict=True)])
    counts = torch.bincount(where, minlength=len(names))
    if counts.min() < counts.max():
        few, many = names[int(counts.argmin())], names[int(counts.argmax())]
        raise UsageError(
            f"The class {few!r} would have {int(counts.min())} images, and {many!r} {int(counts.max())}.",
            "Give each the same number: subset(ipc=...).",
        )
    parts = tuple(_moved(part, own.__getitem__) for own, s in zip(labels, sets, strict=True) for part in _parts(s))
    _check_distinct(parts)
    known = all(s.manifest.provenance.source for s in sets)
    manifest = Manifest(
        name=check_name(name or "-and-".join(s.name for s in sets)[:96]),
        format=_joined_format([s.manifest.format for s in sets], tuple(names), int(counts[0])),
        provenance=Provenance(
            source=joined([part.source for part in parts]) if known else None,
            parts=parts if known else (),
            command=_joined_command(sets, by, name),
            **_now(*sets),
        ),
        results=Results(network=sets[0].manifest.results.network),
    )
    order = where.argsort(stable=True)
    return DistilledDataset(torch.cat([s.images for s in sets])[order], where[order], manifest)


def _numbered(sets: Sequence[DistilledDataset], by: str) -> tuple[list[str], list[list[int]]]:
    """Return the classes of several sets as one, and for each class of each set its number among them."""
    names: list[str] = []
    labels: list[list[int]] = []
    for one in sets:
        here = []
        for plain in one.class_names:
            new = plain if by == "name" or plain not in names else f"{plain} ({one.name})"
            if by == "offset" and new in names:
                raise UsageError(f"The class {new!r} would be there twice.", "Give the sets names that differ.")
            if new not in names:
                names.append(new)
            here.append(names.index(new))
        labels.append(here)
    return names, labels


def _joined_format(formats: Sequence[Format], names: tuple[str, ...], ipc: int) -> Format:
    """Return the format of several sets as one; where their normalisations differ, their mean by number of classes."""
    weights = [len(f.class_names) for f in formats]
    mean, std = (
        tuple(np.average([getattr(f, key) for f in formats], axis=0, weights=weights).tolist())
        if len({getattr(f, key) for f in formats}) > 1
        else getattr(formats[0], key)
        for key in ("mean", "std")
    )
    flip = all(f.flip for f in formats)
    update = {"class_names": names, "ipc": ipc, "mean": mean, "std": std, "flip": flip}
    return formats[0].model_copy(update=update)


def _check_alike(sets: Sequence[DistilledDataset]) -> None:
    """Raise UsageError for sets that cannot be one."""
    first = sets[0].manifest.format
    for one in sets:
        f = one.manifest.format
        for what, mine, theirs in (
            ("image shape", first.shape[1:], f.shape[1:]),
            ("pixels", first.pixels, f.pixels),
            ("formation", first.formation, f.formation),
        ):
            if mine != theirs:
                raise UsageError(f"{one.name!r} does not fit {sets[0].name!r}: its {what} is {theirs}, not {mine}.")
        if f.whitening != "none" or f.labels == "soft":
            why = "is whitened" if f.whitening != "none" else "has soft labels"
            raise UsageError(f"{one.name!r} {why}, and such sets cannot be put together with others.")


def _check_distinct(parts: Sequence[Part]) -> None:
    """Raise UsageError if one class of a source would be two: nobody could tell them apart."""
    taken: dict[tuple[str, int], int] = {}
    for part in parts:
        for old, label in enumerate(part.classes):
            if label is not None and taken.setdefault((part.source.fingerprint, old), label) != label:
                raise UsageError(
                    f"The class {part.source_classes[old]!r} of {part.source.id} would be two classes.",
                    "Put sets of one source together by name.",
                )


def _class_number(distilled: DistilledDataset, given: int | str) -> int:
    names = distilled.class_names
    if isinstance(given, str):
        if given not in names:
            raise UsageError(f"{distilled.name!r} has no class {given!r}.", closest(given, names))
        return names.index(given)
    return check_whole("A class number", given, 0, len(names) - 1)


def _expression(distilled: DistilledDataset) -> tuple[str, list[str]]:
    """Return the Python expression that gives a set, and the commands to run before; a saved one is loaded."""
    kept = distilled.path is not None or distilled.repo is not None
    made = None if kept else distilled.manifest.provenance.command
    return expression(made, f"atomhub.load({distilled.repo or distilled.name!r})")


def _joined_command(sets: Sequence[DistilledDataset], by: str, name: str | None) -> str | None:
    """Return the command that puts sets together; None where two that were never saved have one name."""
    made: dict[str, list[str]] = {}
    given = [_expression(s) for s in sets]
    for text, before in given:
        for loaded in re.findall(r"atomhub\.load\(('[^']*'|\"[^\"]*\")\)", text):
            if made.setdefault(loaded, before) != before:
                return None
    text = f"atomhub.concat([{', '.join(text for text, _ in given)}], {by!r}, {name!r})"
    return python_command(text, *(line for _, before in given for line in before))


def _parts(distilled: DistilledDataset) -> tuple[Part, ...]:
    """Return where a set's classes come from; for a set that was not put together, that is itself."""
    m, p = distilled.manifest, distilled.manifest.provenance
    if p.parts or p.source is None:
        return p.parts
    itself = Part(
        name=m.name, source=p.source, source_classes=m.format.class_names,
        classes=tuple(range(len(m.format.class_names))), recipe=p.recipe, seed=p.seed, tensors=m.tensors,
        imported=p.imported,
    )  # fmt: skip
    return (itself,)


def _moved(part: Part, label: Callable[[int], int | None]) -> Part:
    return part.model_copy(update={"classes": tuple(None if k is None else label(k) for k in part.classes)})


def _now(*sets: DistilledDataset) -> dict[str, Any]:
    """Return when, with what and out of how many seconds of distillation a set is put together."""
    seconds = [s.manifest.provenance.seconds for s in sets]
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions("torch", "torchvision"),
        "seconds": None if None in seconds else sum(filter(None, seconds)),
    }
