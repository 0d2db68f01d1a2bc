"""Real data: a name, path or Hub id becomes uint8 images sorted by class, memory-mapped."""

import hashlib
import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from atomhub.data import readers, tables
from atomhub.data.cache import decode
from atomhub.data.places import Place, locate
from atomhub.data.real import RealData, SourceOptions, kept_folder, open_kept
from atomhub.errors import SourceError, UsageError, closest
from atomhub.files import new_folder
from atomhub.provenance import SourceInfo

CACHE_VERSION = 1
"""Part of every cache key: raised when decoding changes."""


def open_source(source: str | Path, options: SourceOptions | None = None, **given: Any) -> RealData:
    """Find real data, decode them once, and return them memory-mapped.

    Args:
        source: ``digits``; an alias of :data:`ALIASES` or a folder of ``$ATOMHUB_DATA``; the path of an image folder, a
            parquet file or folder, or an arrow folder; or a Hub id ``user/name``.
        options: How to read it.
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
    place = locate(str(source), options)
    unused = [name for name in _UNUSED[place.kind] if getattr(options, name) is not None]
    if unused:
        raise UsageError(f"{place.id} has no use for the option {unused[0].replace('_', '-')}.", "Leave it out.")
    return open_place(place, options)


_UNUSED = {
    "digits": ("image_column", "label_column", "train_split", "test_split", "config", "revision"),
    "images": ("image_column", "label_column", "config", "revision"),
    "parquet": ("config", "revision"),
    "arrow": ("config", "revision"),
    "hub": (),
}
"""Options that mean nothing to a kind of source."""


def open_place(place: Place, options: SourceOptions) -> RealData:
    """Return the real data of a place; they are decoded unless that was done before."""
    stamp = {"id": place.id, "kind": place.kind, "stamp": place.stamp, "options": asdict(options), "v": CACHE_VERSION}
    key = hashlib.sha256(json.dumps(stamp, sort_keys=True, default=str).encode()).hexdigest()[:32]
    folder = kept_folder() / key
    real = open_kept(folder)
    if real is None:
        with new_folder(folder, overwrite=True) as temporary, TemporaryDirectory(dir=folder.parent) as workspace:
            _prepare(place, options, temporary, Path(workspace))
        real = open_kept(folder)
    if real is None:
        raise SourceError(f"The decoded images in {folder} cannot be read.", "Remove that folder and try again.")
    return real


def _read(place: Place, options: SourceOptions, workspace: Path) -> tables.Raw:
    columns = tables.Columns(
        options.image_column, options.label_column, options.train_split, options.test_split, place.alias.columns
    )
    if place.kind == "digits":
        return readers.digits()
    if place.kind == "hub":
        config = options.config or place.alias.config
        return readers.hub(place.repo, config, str(place.revision), place.alias.data_dir, columns)
    if place.path is None:
        raise AssertionError("a local source has a path")
    if place.kind == "parquet":
        return readers.parquet(place.files, columns, workspace)
    return readers.arrow(place.path, columns) if place.kind == "arrow" else readers.images(place.path, columns)


def _prepare(place: Place, options: SourceOptions, folder: Path, workspace: Path) -> None:
    """Read, split where asked, decode, and write ``meta.json`` last."""
    raw = _read(place, options, workspace)
    fraction = 0.2 if place.kind == "digits" and options.test_fraction is None else options.test_fraction
    if raw.test is None and fraction is None:
        raise SourceError(
            f"{place.id} has no test split, so nothing could be measured on it.",
            "Set some aside with --test-fraction 0.2, name a split with --test-split, or go without: --test-fraction 0",
        )
    if raw.test is not None and fraction is not None:
        raise UsageError(f"{place.id} has the test split {raw.test_split!r} already.", "Drop --test-fraction.")
    train, test = _set_aside(raw, fraction) if fraction else (raw.train, raw.test)
    raw = replace(raw, train=train, test=test)
    decoded = decode(raw, folder, options.size or place.alias.size, options.skip_unreadable)
    usual = len(place.alias.mean) == decoded.channels
    notes = (*raw.notes, *decoded.notes)
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
    meta = {"info": info.model_dump(mode="json"), "class_names": raw.class_names, "mean": mean, "std": std,
            "options": asdict(options)}  # fmt: skip
    (folder / "meta.json").write_text(json.dumps(meta, indent=1))


def _set_aside(raw: tables.Raw, fraction: float) -> tuple[tables.Rows, tables.Rows]:
    """Split the training rows by class: the same rows every time."""
    from sklearn.model_selection import train_test_split

    labels = raw.train.labels
    try:
        train, test = train_test_split(np.arange(len(labels)), test_size=fraction, stratify=labels, random_state=0)
    except ValueError as error:
        raise SourceError(f"A test fraction of {fraction} does not fit these classes: {error}") from error
    return raw.train.take(np.sort(train)), raw.train.take(np.sort(test))
