"""The real images that a distilled set stands for, found again from its manifest."""

import warnings

import numpy as np

from atomhub.data.places import ALIASES, Alias, Place, hub_place, locate, locate_hub, locate_named, on_this_machine
from atomhub.data.real import RealData, SourceOptions, Split, kept_metas, open_kept
from atomhub.data.sources import kept_at, open_place, open_source
from atomhub.errors import AtomhubWarning, NotFoundError, SourceError, UsageError
from atomhub.manifest import Manifest
from atomhub.provenance import Part, SourceInfo, joined


def real_of(manifest: Manifest, source: object = None, tested: bool = True) -> RealData:
    """Return the real images that a set stands for, with its classes.

    Args:
        manifest: The manifest of the set.
        source: Where a local source lies now, if it is not in this machine's cache, or the source itself.
        tested: Whether there must be a test split.

    Raises:
        NotFoundError: the source is not at hand or not known, or has no test split.
        SourceError: what is there has other classes or another shape.
        UsageError: the set has several sources, and one was named.
    """
    parts, info, form = manifest.provenance.parts, manifest.provenance.source, manifest.format
    if (parts or info is None) and isinstance(source, RealData) and source.class_names == form.class_names:
        real = source
    elif parts:
        real = _put_together(manifest, source, parts)
    elif info is not None:
        real = reopen(info, form.class_names, source)
    elif source is None:
        raise NotFoundError(
            f"The manifest of {manifest.name!r} does not say which real images it was made from.",
            "Name them with `source`.",
        )
    else:
        real = source if isinstance(source, RealData) else open_source(source, size=form.size)
        names = form.class_names
        if not set(names) <= set(real.class_names):
            _check_classes(real, names)
        classes = tuple(names.index(name) if name in names else None for name in real.class_names)
        itself = Part(name=manifest.name, source=real.info, source_classes=real.class_names, classes=classes)
        real = real if real.class_names == names else _put_together(manifest, real, (itself,))
    if (real.info.channels, real.info.size) != (form.channels, form.size):
        found, wanted = (f"{i.channels} channels of {i.size}x{i.size}" for i in (real.info, form))
        raise SourceError(f"{real.info.id} has {found}, not {wanted} as in the manifest.")
    if tested and real.test is None:
        raise NotFoundError(
            f"The source of {manifest.name!r} has no test split.", "Distil it again with `test_fraction=0.2`."
        )
    return real


def _put_together(manifest: Manifest, source: object, origins: tuple[Part, ...]) -> RealData:
    """Return the real images behind the parts of a set; ``test`` is None if one of them has none."""
    if source is not None and len({o.source.fingerprint for o in origins}) > 1:
        raise UsageError(
            f"{manifest.name!r} has several sources, and `source` names one.",
            "Open each of them first: atomhub.open_source",
        )
    parts: dict[str, dict[int, list[np.ndarray]]] = {"train": {}, "test": {}}
    tested = True
    seen: set[tuple[str, int]] = set()  # a class of two sets of one source counts once
    for origin in origins:
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
    f = manifest.format
    return RealData(manifest.name, joined([o.source for o in origins]), f.class_names, train, test, f.mean, f.std)


def reopen(info: SourceInfo, class_names: tuple[str, ...], source: object = None) -> RealData:
    """Find again the source that a manifest names, with its test split, from the cache if it is there.

    Args:
        info: Provenance from a manifest.
        class_names: The classes of the manifest, which the source must have in this order.
        source: Where to look instead of ``info.id``, for local folders; or the source itself.

    Raises:
        NotFoundError: a local folder that is not in this machine's cache, and no ``source`` given.
        SourceError: the source has other classes.
    """
    real = source if isinstance(source, RealData) else _cached(info) if source is None else None
    real = real or _found_again(info, source)
    _check_classes(real, class_names)
    if real.info.fingerprint != info.fingerprint:
        warnings.warn(
            f"The images of {real.info.id} are not bit-equal to those the set was made from "
            "(another version of the data or of the decoder).",
            AtomhubWarning,
            stacklevel=2,
        )
    return real


def _check_classes(real: RealData, class_names: tuple[str, ...]) -> None:
    """Raise SourceError if a source does not have these classes in this order."""
    for ours, theirs in zip((*class_names, None), (*real.class_names, None), strict=False):
        if ours != theirs:
            other = f"it has the class {theirs!r} where the set has {ours!r}"
            hint = "Name the right one with `source`."
            raise SourceError(f"{real.info.id} is not the source of this set: {other}.", hint)


def _cached(info: SourceInfo) -> RealData | None:
    """Return the decoded copy of exactly these images, if there is one."""
    for folder, meta in kept_metas():
        if meta.info.fingerprint == info.fingerprint and (real := open_kept(folder)):
            return real
    return None


def _options(info: SourceInfo) -> SourceOptions:
    """Return how a source is to be read to become what a manifest describes."""
    return SourceOptions(
        size=info.size, image_column=info.image_column, label_column=info.label_column,
        train_split=None if info.train_split == "all" else info.train_split,
        test_split=None if info.test_fraction is not None else info.test_split, test_fraction=info.test_fraction,
        config=info.config, revision=info.revision, flip=info.flip, skip_unreadable=True,
    )  # fmt: skip


def _found_again(info: SourceInfo, source: object) -> RealData:
    options = _options(info)
    place: Place | None
    if source is not None:
        place = locate(source, options)
    # the manifest may be a stranger's: it names no path of this machine, and fetches nothing
    elif (place := _named_on_hub(info)) is not None:
        if not kept_at(place, options).is_dir():
            raise NotFoundError(
                f"The real images are the dataset {place.repo} on the Hub, which is not on this machine.",
                f'Say that you want to fetch it: `source="{info.id}"`',
            )
    else:
        place = locate_named(info.id, options)
    if place is None:
        raise NotFoundError(
            f"The real images of {info.called!r} are not on this machine.", "Say where they are with `source`."
        )
    return open_place(place, options)


def _named_on_hub(info: SourceInfo) -> Place | None:
    """Return the dataset of the Hub that a manifest names; None: it is none, or lies on this machine by its name."""
    alias = ALIASES.get(info.id) or (Alias(info.id) if info.kind == "hub" else None)
    return None if alias is None or on_this_machine(info.id) else hub_place(info.id, alias, str(info.revision))


def absent(manifest: Manifest) -> dict[str, SourceInfo]:
    """Return the datasets of the Hub, by repository, that would have to be fetched to measure a set."""
    p = manifest.provenance
    infos = [part.source for part in p.parts] or ([p.source] if p.source else [])
    places = [(place, info) for info in infos if (place := _named_on_hub(info))]
    return {
        place.repo: info for place, info in places if not (_cached(info) or kept_at(place, _options(info)).is_dir())
    }


def fetch(info: SourceInfo) -> None:
    """Fetch and decode a dataset of the Hub that a manifest names; errors as :func:`atomhub.open_source`."""
    options = _options(info)
    open_place(locate_hub(info.id, ALIASES.get(info.id) or Alias(info.id), options), options)
