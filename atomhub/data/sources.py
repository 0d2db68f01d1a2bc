"""Real data: a name, path or Hub id becomes uint8 images sorted by class, memory-mapped."""

import hashlib
import json
import shutil
import warnings
from collections import Counter
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from atomhub.data import objects, readers, tables
from atomhub.data.cache import Progress, Survey, decode, survey
from atomhub.data.places import Place, locate
from atomhub.data.real import META, Kept, RealData, SourceOptions, kept_folder, open_kept
from atomhub.errors import AtomhubWarning, SourceError, UsageError, check_installed, closest
from atomhub.files import new_folder, temporary_folder
from atomhub.provenance import SourceInfo

CACHE_VERSION = 4
"""Part of every cache key: raised when decoding changes."""


def open_source(
    source: object, options: SourceOptions | None = None, *, progress: Progress = lambda done, total: None,
    **given: Any,
) -> RealData:  # fmt: skip
    """Find real data, decode them once, and return them memory-mapped.

    Args:
        source: ``digits``; an alias of :data:`ALIASES` or a folder of ``$ATOMHUB_DATA``; the path of an image folder, a
            parquet file or folder, or an arrow folder; a Hub id ``user/name``; or an object: a ``datasets.Dataset``, a
            torch dataset of (image, label), a pair (images, labels), or a dict of these by split. Images are Pillow's,
            uint8, or floats in 0..1, (H, W), (H, W, C) or (C, H, W), of any sizes and the same at every look; labels
            are class numbers or names.
        options: How to read it.
        progress: Called now and then with the images that were read and all that there are, where they are decoded.
        given: The same as keywords, in place of ``options``.

    Raises:
        NotFoundError: there is no such source.
        SourceError: it cannot be used as it is.
        UsageError: an option that is not possible.
    """
    unknown = set(given) - {f.name for f in fields(SourceOptions)}
    if unknown:
        name = min(unknown)
        raise UsageError(f"There is no source option {name!r}.", closest(name, [f.name for f in fields(SourceOptions)]))
    options = options or SourceOptions(**given)
    place = locate(source, options)
    unused = [name for name in _UNUSED[place.kind] if getattr(options, name) is not None]
    if unused:
        raise UsageError(f"{place.id} has no use for the option {unused[0].replace('_', '-')}.", "Leave it out.")
    real = open_place(place, options, progress)
    for note in real.info.notes:
        warnings.warn(note, AtomhubWarning, stacklevel=2)
    return real


_UNUSED = {
    "memory": ("config", "revision"),
    "digits": ("image_column", "label_column", "train_split", "test_split", "config", "revision"),
    "images": ("image_column", "label_column", "config", "revision"),
    "metadata": ("config", "revision"),
    "parquet": ("config", "revision"),
    "arrow": ("config", "revision"),
    "hub": (),
}
"""Options that mean nothing to a kind of source."""


def open_place(place: Place, options: SourceOptions, progress: Progress = lambda done, total: None) -> RealData:
    """Return the real data of a place; they are decoded unless that was done before."""
    folder = kept_at(place, options)
    real = open_kept(folder)
    if real is None and options.size is not None:  # the size that was chosen without a wish is kept once
        usual = open_kept(kept_at(place, replace(options, size=None)))
        if usual is not None and usual.info.size == options.size:
            return usual
    if real is None:
        if folder.exists():
            note = f"The decoded images of {place.id} are damaged: they are decoded again."
            warnings.warn(note, AtomhubWarning, stacklevel=3)
        with new_folder(folder, overwrite=True) as temporary:
            workspace = temporary_folder(folder)
            try:
                _prepare(place, options, temporary, workspace, progress)
            finally:
                shutil.rmtree(workspace, ignore_errors=True)
        real = open_kept(folder)
    if real is None:
        raise SourceError(f"The decoded images in {folder} cannot be read.", "Remove that folder and try again.")
    return real


def kept_at(place: Place, options: SourceOptions) -> Path:
    """Return where the decoded images of a place are kept."""
    stamp = {"id": place.id, "kind": place.kind, "stamp": place.stamp, "options": asdict(options), "v": CACHE_VERSION}
    return kept_folder() / hashlib.sha256(json.dumps(stamp, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _read(place: Place, options: SourceOptions, workspace: Path) -> tables.Raw:
    columns = tables.Columns(
        options.image_column, options.label_column, options.train_split, options.test_split, place.alias.columns
    )
    if place.given is not None:
        return objects.read(place.given, columns)
    if place.kind == "digits":
        return readers.digits()
    if place.kind == "hub":
        config = options.config or place.alias.config
        return readers.hub(place.repo, config, str(place.revision), place.alias.data_dir, place.token, columns)
    if place.path is None:
        raise AssertionError("a local source has a path")
    if place.kind == "parquet":
        return readers.parquet(place.files, columns, workspace)
    if place.kind == "metadata":
        return readers.listed(place.path, columns, workspace)
    return readers.arrow(place.path, columns) if place.kind == "arrow" else readers.images(place.path, columns)


def _prepare(place: Place, options: SourceOptions, folder: Path, workspace: Path, progress: Progress) -> None:
    """Read, split where asked, decode, and write ``meta.json`` last."""
    raw = _read(place, options, workspace)
    fraction = 0.2 if place.kind == "digits" and options.test_fraction is None else options.test_fraction
    if raw.test is not None and fraction is not None:
        raise UsageError(f"{place.id} has the test split {raw.test_split!r} already.", "Drop `test_fraction`.")
    side = options.size or place.alias.size
    found = survey(raw, options.skip_unreadable, workspace, side, progress)
    if faults := found.faults + _untestable(place, found, fraction):
        raise _together(place, faults)
    raw = found.raw
    if twice := [name for name, n in Counter(raw.class_names).items() if n > 1]:
        raise SourceError(f"{place.id} has several classes called {twice[0]!r}.", "Give each a name of its own.")
    train, test = _set_aside(raw, fraction) if fraction else (raw.train, raw.test)
    decoded = decode(replace(found, raw=replace(raw, train=train, test=test)), folder, side, bool(fraction))
    usual = len(place.alias.mean) == decoded.channels
    notes = (*raw.notes, *decoded.notes, *_untested(raw))
    if fraction:
        notes = (*notes, f"{decoded.counts['test']} images were set aside as the test split (stratified, seed 0).")
    info = SourceInfo(
        id=place.id, kind=place.kind, revision=place.revision, config=options.config or place.alias.config,
        train_split=raw.train_split, test_split=raw.test_split, test_fraction=fraction, image_column=raw.image_column,
        label_column=raw.label_column, fingerprint=decoded.fingerprint, size=decoded.size,
        channels=3 if decoded.channels == 3 else 1, train_images=decoded.counts["train"],
        test_images=decoded.counts.get("test", 0), flip=place.alias.flip if options.flip is None else options.flip,
        license=place.alias.license, notes=notes,
    )  # fmt: skip
    mean, std = (place.alias.mean, place.alias.std) if usual else (decoded.mean, decoded.std)
    try:
        kept = Kept(info=info, class_names=raw.class_names, mean=mean, std=std, options=asdict(options)).signed()
    except ValidationError as error:
        first = error.errors()[0]
        raise SourceError(
            f"{place.id}: {first['loc'][0]} cannot be {str(first['input'])[:80]!r}: {first['msg']}."
        ) from None
    (folder / META).write_text(kept.model_dump_json(indent=1), encoding="utf-8")


def _untestable(place: Place, found: Survey, fraction: float | None) -> list[SourceError]:
    """Return why there would be no test images."""
    if found.raw.test is None and fraction is None:
        return [SourceError(
            f"{place.id} has no test split, so nothing could be measured on it.",
            "Set some aside with `test_fraction=0.2`, name a split with `test_split`, or go without: `test_fraction=0`",
        )]  # fmt: skip
    counts = np.bincount(found.raw.train.labels, minlength=len(found.raw.class_names))
    if fraction and (alone := np.flatnonzero(counts == 1)).size:
        more = f" (and {len(alone) - 1} more)" if len(alone) > 1 else ""
        return [SourceError(
            f"The class {found.raw.class_names[alone[0]]!r}{more} has one image, which cannot be for training and for "
            "tests at once.", "Add images of it, or leave it out.",
        )]  # fmt: skip
    return []


def _untested(raw: tables.Raw) -> list[str]:
    """Return a note on the classes that a given test split leaves out."""
    if raw.test is None:
        return []
    counts = np.bincount(raw.test.labels, minlength=len(raw.class_names))
    missing = [name for name, n in zip(raw.class_names, counts, strict=True) if n == 0]
    more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    return [f"No test image is of the classes {', '.join(missing[:3])}{more}."] * bool(missing)


def _together(place: Place, faults: list[SourceError]) -> SourceError:
    """Return one error for all that is wrong with a source."""
    if len(faults) == 1:
        return faults[0]
    listed = " ".join(f"({n}) {fault.message}" for n, fault in enumerate(faults, 1))
    hints = " ".join(dict.fromkeys(fault.hint for fault in faults if fault.hint))
    return SourceError(f"{len(faults)} things are wrong with {place.id}: {listed}", hints)


def _set_aside(raw: tables.Raw, fraction: float) -> tuple[tables.Rows, tables.Rows]:
    """Split the training rows by class: the same rows every time."""
    check_installed("Setting images aside for a test", "distill", "sklearn")
    from sklearn.model_selection import train_test_split

    labels = raw.train.labels
    try:
        train, test = train_test_split(np.arange(len(labels)), test_size=fraction, stratify=labels, random_state=0)
    except ValueError as error:
        raise SourceError(f"A test fraction of {fraction} does not fit these classes: {error}") from error
    return raw.train.take(np.sort(train)), raw.train.take(np.sort(test))
