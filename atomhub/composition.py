"""Sets put together from classes of others: subsets, and several sets as one (for replay buffers, say)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from atomhub.distilled import DistilledDataset
from atomhub.errors import UsageError, check_whole, closest
from atomhub.manifest import Manifest, Origin, SourceInfo, check_name
from atomhub.sources import RealData, Split, reopen


def subset(
    distilled: DistilledDataset,
    classes: Sequence[int | str] | None = None,
    ipc: int | None = None,
    name: str | None = None,
) -> DistilledDataset:
    """Return some classes of a set, in the order given, and the first ``ipc`` images of each; in memory.

    Args:
        distilled: The set.
        classes: Numbers or names; None: all.
        ipc: Images a class, at most what there are; None: all.
        name: Of the new set; None: ``<name>-subset``.

    Raises:
        UsageError: a class that is not there or named twice, fewer than two, or an ipc that is not possible.
    """
    m = distilled.manifest
    chosen = [_class_number(m, k) for k in (range(len(m.class_names)) if classes is None else classes)]
    if len(set(chosen)) < len(chosen) or len(chosen) < 2:
        raise UsageError(f"The classes cannot be {list(classes or ())!r}: name two or more, each once.")
    count = m.ipc if ipc is None else check_whole("ipc", ipc, 1, m.ipc)
    rows = torch.tensor([k * m.ipc + i for k in chosen for i in range(count)])
    place = {old: new for new, old in enumerate(chosen)}
    origins = tuple(_moved(o, lambda label: place.get(label)) for o in _origins(distilled))
    words = {"classes": [m.class_names[k] for k in chosen], "ipc": count}
    call = f"{_expression(distilled)}.subset({', '.join(f'{key}={value!r}' for key, value in words.items())})"
    soft = distilled.soft_labels
    if soft is not None and chosen != list(range(len(m.class_names))):
        soft = None  # probabilities of classes that are gone or elsewhere
    manifest = _unmeasured(
        m,
        name=check_name(name or f"{m.name}-subset"),
        ipc=count,
        class_names=tuple(words["classes"]),  # type: ignore[arg-type]
        origins=origins,
        command=call,
        teacher=m.teacher if soft is not None else None,
    )
    return replace(
        distilled,
        images=distilled.images[rows],
        labels=torch.arange(len(chosen)).repeat_interleave(count),
        soft_labels=soft.unflatten(0, (len(chosen), -1, m.ipc))[:, :, :count].flatten(0, 2)
        if soft is not None
        else None,
        manifest=manifest,
        path=None,
        repo=None,
        checkpoints=None,
    )


def concat(
    sets: Sequence[DistilledDataset], by: Literal["name", "offset"] = "name", name: str | None = None
) -> DistilledDataset:
    """Return several sets as one, in memory; every class must end up with as many images.

    Args:
        sets: Two or more of the same size, channels and kind of pixels, without whitening and soft labels.
        by: ``name``: classes of the same name are one; ``offset``: every class stays one of its own, numbered after
            those of the sets before; a name that comes again gets the name of its set.
        name: Of the new set; None: the names joined by ``+``, made a possible name.

    Raises:
        UsageError: sets that do not fit together; the sentence says where.
    """
    if len(sets) < 2:
        raise UsageError(f"concat needs two sets or more, and was given {len(sets)}.")
    if by not in ("name", "offset"):
        raise UsageError(f"Classes cannot be put together by {by!r}.", "Use name or offset.")
    first = sets[0].manifest
    _check_alike(sets)
    names: list[str] = []
    labels: list[list[int]] = []  # of each class of each set, its label in the new one
    for other in sets:
        here = []
        for plain in other.class_names:
            new = plain if by == "name" or plain not in names else f"{plain} ({other.name})"
            if by == "offset" and new in names:
                raise UsageError(f"The class {new!r} would be there twice.", "Give the sets names that differ.")
            if new not in names:
                names.append(new)
            here.append(names.index(new))
        labels.append(here)
    where = torch.cat([torch.tensor(own)[s.labels] for own, s in zip(labels, sets, strict=True)])
    counts = torch.bincount(where, minlength=len(names))
    if counts.min() < counts.max():
        few, many = names[int(counts.argmin())], names[int(counts.argmax())]
        raise UsageError(
            f"The class {few!r} would have {int(counts.min())} images, and {many!r} {int(counts.max())}.",
            "Give each as many: subset(ipc=...).",
        )
    order = where.argsort(stable=True)
    origins = tuple(
        _moved(o, lambda label, own=own: own[label])  # type: ignore[misc]
        for own, s in zip(labels, sets, strict=True)
        for o in _origins(s)
    )
    _check_distinct(origins)
    joined = name or "+".join(s.name for s in sets).replace("+", "-and-")[:96]
    recipes = {s.manifest.recipe for s in sets}
    weights = np.array([len(s.class_names) for s in sets], dtype=float)
    mean, std = (
        tuple(np.average([getattr(s.manifest, key) for s in sets], axis=0, weights=weights).tolist())
        if len({getattr(s.manifest, key) for s in sets}) > 1
        else getattr(first, key)
        for key in ("mean", "std")
    )
    manifest = _unmeasured(
        first,
        name=check_name(joined),
        ipc=int(counts[0]),
        class_names=tuple(names),
        origins=origins,
        source=_joined([o.source for o in origins]),
        recipe=first.recipe if len(recipes) == 1 else first.recipe.replace(name="several"),
        mean=mean,
        std=std,
        imported=None,
        seconds=sum(s.manifest.seconds for s in sets),
        command=f"atomhub.concat([{', '.join(map(_expression, sets))}], by={by!r})",
    )
    images = torch.cat([s.images for s in sets])[order]
    return DistilledDataset(images, where[order], manifest)


def real_of(manifest: Manifest, source: str | Path | RealData | None = None) -> RealData:
    """Return the real images behind a set that was put together, with its classes; arguments as in ``reopen``.

    Its ``test`` is None if one of the sources has no test split.
    """
    if source is not None and len({o.source.fingerprint for o in manifest.origins}) > 1:
        raise UsageError(f"{manifest.name!r} has several sources, and --source names one.", "Distil them here first.")
    parts: dict[str, dict[int, list[np.ndarray]]] = {"train": {}, "test": {}}
    tested = True
    seen: set[tuple[str, int]] = set()  # a class of two sets of one source counts once
    for origin in manifest.origins:
        real = reopen(origin.source, origin.source_classes, source)
        tested = tested and real.test is not None
        for split, images in (("train", real.train), ("test", real.test)):
            if images is None:
                continue
            offsets = images.offsets(len(real.class_names))
            for old, new in enumerate(origin.classes):
                if new is not None and (origin.source.fingerprint + split, old) not in seen:
                    seen.add((origin.source.fingerprint + split, old))
                    parts[split].setdefault(new, []).append(images.images[offsets[old] : offsets[old + 1]])

    def split_of(found: dict[int, list[np.ndarray]]) -> Split:
        labels = [np.full(sum(map(len, found[label])), label) for label in sorted(found)]
        return Split(np.concatenate([part for label in sorted(found) for part in found[label]]), np.concatenate(labels))

    train, test = split_of(parts["train"]), split_of(parts["test"]) if tested else None
    return RealData(manifest.name, manifest.source, manifest.class_names, train, test, manifest.mean, manifest.std)


def _check_alike(sets: Sequence[DistilledDataset]) -> None:
    """Raise UsageError for sets that cannot be one."""
    first = sets[0].manifest
    for other in sets:
        m = other.manifest
        for what, mine, theirs in (
            ("image shape", tuple(sets[0].images.shape[1:]), tuple(other.images.shape[1:])),
            ("pixels", first.recipe.pixels, m.recipe.pixels),
            ("formation", first.formation, m.formation),
        ):
            if mine != theirs:
                raise UsageError(f"{m.name!r} does not fit {first.name!r}: its {what} is {theirs}, not {mine}.")
        if other.whitening is not None or other.soft_labels is not None:
            why = "is whitened" if other.whitening is not None else "has soft labels"
            raise UsageError(f"{m.name!r} {why}, and such sets cannot be put together with others.")


def _check_distinct(origins: Sequence[Origin]) -> None:
    """Raise UsageError if one class of a source would be two: nobody could tell them apart."""
    taken: dict[tuple[str, int], int] = {}
    for origin in origins:
        for old, label in enumerate(origin.classes):
            if label is not None and taken.setdefault((origin.source.fingerprint, old), label) != label:
                raise UsageError(
                    f"The class {origin.source_classes[old]!r} of {origin.source.id} would be two classes.",
                    "Put sets of one source together by name.",
                )


def _class_number(manifest: Manifest, given: int | str) -> int:
    names = manifest.class_names
    if isinstance(given, str):
        if given not in names:
            raise UsageError(f"{manifest.name!r} has no class {given!r}.", closest(given, names))
        return names.index(given)
    return check_whole("A class number", given, 0, len(names) - 1)


def _expression(distilled: DistilledDataset) -> str:
    """Return the Python expression that gives a set: how it was made if it was never kept, else that it is loaded."""
    command = distilled.manifest.command
    kept = distilled.path is not None or distilled.repo is not None or not command.startswith("atomhub.")
    return f"atomhub.load({distilled.repo or distilled.name!r})" if kept else command


def _origins(distilled: DistilledDataset) -> tuple[Origin, ...]:
    """Return where a set's classes come from; of a set as it was distilled, that is itself."""
    m = distilled.manifest
    return m.origins or (
        Origin(
            name=m.name,
            source=m.source,
            source_classes=m.class_names,
            classes=tuple(range(len(m.class_names))),
            recipe=m.recipe,
            seed=m.seed,
            tensors=m.files.get("distilled.safetensors"),
            imported=m.imported,
        ),
    )


def _moved(origin: Origin, label: Callable[[int], int | None]) -> Origin:
    return origin.model_copy(update={"classes": tuple(None if k is None else label(k) for k in origin.classes)})


def _joined(sources: Sequence[SourceInfo]) -> SourceInfo:
    """Return one description of several sources."""
    different = list({s.fingerprint: s for s in sources}.values())
    if len(different) == 1:
        return different[0]
    first = different[0]
    licenses = {s.license for s in different}
    return first.model_copy(
        update={
            "id": "+".join(dict.fromkeys(s.id for s in different)),
            "revision": None,
            "fingerprint": hashlib.sha256("".join(s.fingerprint for s in different).encode()).hexdigest(),
            "train_images": sum(s.train_images for s in different),
            "test_images": sum(s.test_images for s in different),
            "flip": all(s.flip for s in different),
            "license": first.license if len(licenses) == 1 else "other",
            "notes": tuple(note for s in different for note in s.notes),
        }
    )


def _unmeasured(manifest: Manifest, **fields: object) -> Manifest:
    """Return a manifest of another set: nothing of it was measured, and it has no curve of its own."""
    empty = {"history": (), "clipped_history": (), "accuracy_history": (), "files": {}, "results": (),
             "created": datetime.now(UTC).isoformat(timespec="seconds")}  # fmt: skip
    return manifest.model_copy(update=empty | fields)
