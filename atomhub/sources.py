"""Real data: a name, path or Hub id becomes uint8 images sorted by class, memory-mapped."""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from atomhub import readers
from atomhub.decoding import LARGEST, SMALLEST, decode
from atomhub.errors import AtomhubWarning, NotFoundError, SourceError, UsageError, check_whole, closest, first_line
from atomhub.files import home, new_folder
from atomhub.manifest import SourceInfo

if TYPE_CHECKING:
    from torch import Tensor

CACHE_VERSION = 1
"""Part of every cache key: raised when decoding changes."""


@dataclass(frozen=True)
class SourceOptions:
    """How to read a source; None is detected or left at the source's own.

    Attributes:
        size: Side in pixels to which images are resized, 16 to 512.
        image_column: Column of the images.
        label_column: Column of the classes.
        train_split: Split, or folder, of the training images.
        test_split: Split, or folder, of the test images.
        test_fraction: Share of a single split that becomes the test split (stratified, seed 0); 0: no test split.
        config: Configuration of a Hub data set.
        revision: Branch, tag or commit of a Hub data set.
        skip_unreadable: Leave unreadable images out instead of failing.
        flip: Whether a mirrored image keeps its class.
    """

    size: int | None = None
    image_column: str | None = None
    label_column: str | None = None
    train_split: str | None = None
    test_split: str | None = None
    test_fraction: float | None = None
    config: str | None = None
    revision: str | None = None
    skip_unreadable: bool = False
    flip: bool | None = None

    def __post_init__(self) -> None:
        if self.size is not None:
            check_whole("The size", self.size, SMALLEST, LARGEST)
        if self.test_fraction is not None and not 0 <= self.test_fraction < 1:
            raise UsageError(f"The test fraction cannot be {self.test_fraction}: use 0 to below 1, such as 0.2.")


@dataclass(frozen=True)
class Split:
    """Images of one split.

    Attributes:
        images: (N, C, H, W) uint8, sorted by class, memory-mapped.
        labels: (N,) int64.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def offsets(self, classes: int) -> NDArray[np.int64]:
        """Return (classes + 1,): images of class k are ``offsets[k]`` to ``offsets[k + 1]``."""
        return np.concatenate([[0], np.cumsum(np.bincount(self.labels, minlength=classes))])


@dataclass(frozen=True)
class RealData:
    """A source ready for use.

    Attributes:
        name: Short name for sets made from it.
        info: Provenance, recorded in manifests.
        class_names: K names.
        train, test: The splits; ``test`` is None where there is none.
        mean, std: Normalisation, per channel, in units of pixels in 0..1.
    """

    name: str
    info: SourceInfo
    class_names: tuple[str, ...]
    train: Split
    test: Split | None
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def test_tensors(self) -> tuple[Tensor, Tensor]:
        """Return the test images, uint8 (M, C, H, W), and labels, int64 (M,); NotFoundError if there are none."""
        import torch

        if self.test is None:
            raise NotFoundError(f"{self.name!r} has no test split.", "Set some images aside: --test-fraction 0.2.")
        return torch.tensor(self.test.images), torch.from_numpy(self.test.labels)


@dataclass(frozen=True)
class Alias:
    """A well-known data set: its Hub id and what its users expect. ``columns`` are tried before detection."""

    repo: str
    columns: tuple[str, ...] = ()
    config: str | None = None
    data_dir: str | None = None
    revision: str | None = None
    size: int | None = None
    flip: bool = True
    license: str = "unknown"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


_IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
ALIASES: dict[str, Alias] = {
    "mnist": Alias("ylecun/mnist", flip=False, license="mit", mean=(0.1307,), std=(0.3081,)),
    "fashion-mnist": Alias("zalando-datasets/fashion_mnist", license="mit", mean=(0.2861,), std=(0.3530,)),
    "cifar10": Alias("uoft-cs/cifar10", mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010)),
    "cifar100": Alias(
        "uoft-cs/cifar100", ("img", "fine_label"), mean=(0.5071, 0.4866, 0.4409), std=(0.2673, 0.2564, 0.2762)
    ),
    "svhn": Alias(
        "ufldl-stanford/svhn", config="cropped_digits", flip=False,
        mean=(0.4377, 0.4438, 0.4728), std=(0.1980, 0.2010, 0.1970),
    ),
    "tiny-imagenet": Alias("zh-plus/tiny-imagenet", **_IMAGENET),
    # the repository itself is a loading script, which datasets 4 no longer runs: its parquet branch has the images
    "imagenette": Alias(
        "frgfm/imagenette", data_dir="160px", revision="refs/convert/parquet", size=128, license="apache-2.0",
        **_IMAGENET,
    ),
}  # fmt: skip
"""Names for Hub data sets; normalisation constants are the literature's (DC, DM, DataDAM code bases)."""


@dataclass(frozen=True)
class _Place:
    """Where a source was found. ``stamp`` changes when the data do."""

    id: str
    kind: str
    alias: Alias
    stamp: Any
    path: Path | None = None
    files: Mapping[str, list[str]] = field(default_factory=dict)
    repo: str = ""
    revision: str | None = None


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
    place = _locate(str(source), options)
    unused = [name for name in _UNUSED[place.kind] if getattr(options, name) is not None]
    if unused:
        raise UsageError(f"{place.id} has no use for the option {unused[0].replace('_', '-')}.", "Leave it out.")
    return _opened(place, options)


_UNUSED = {
    "digits": ("image_column", "label_column", "train_split", "test_split", "config", "revision"),
    "images": ("image_column", "label_column", "config", "revision"),
    "parquet": ("config", "revision"),
    "arrow": ("config", "revision"),
    "hub": (),
}
"""Options that mean nothing to a kind of source."""


def _opened(place: _Place, options: SourceOptions) -> RealData:
    """Decode a source unless that was done before."""
    stamp = {"id": place.id, "kind": place.kind, "stamp": place.stamp, "options": asdict(options), "v": CACHE_VERSION}
    key = hashlib.sha256(json.dumps(stamp, sort_keys=True, default=str).encode()).hexdigest()[:32]
    folder = _cache() / key
    real = _open_cache(folder)
    if real is None:
        with new_folder(folder, overwrite=True) as temporary, TemporaryDirectory(dir=folder.parent) as workspace:
            _prepare(place, options, temporary, Path(workspace))
        real = _open_cache(folder)
    if real is None:
        raise SourceError(f"The decoded images in {folder} cannot be read.", "Remove that folder and try again.")
    return real


def reopen(info: SourceInfo, class_names: tuple[str, ...], source: str | Path | RealData | None = None) -> RealData:
    """Find again the source that a manifest names, with its test split, from the cache if it is there.

    Args:
        info: Provenance from a manifest.
        class_names: The classes of the manifest, which the source must have in this order.
        source: Where to look instead of ``info.id``, for local folders; or the source itself.

    Raises:
        NotFoundError: a local folder that is not in this machine's cache, and no ``source`` given.
        SourceError: the source has other classes or channels.
    """
    real = source if isinstance(source, RealData) else _cached(info) if source is None else None
    real = real or _found_again(info, source)
    if real.class_names != class_names:
        ours, theirs = next(
            (a, b) for a, b in zip((*class_names, None), (*real.class_names, None), strict=False) if a != b
        )
        raise SourceError(
            f"{real.info.id} is not the source of this set: it has the class {theirs!r} where the set has {ours!r}.",
            "Name the right one with --source PATH.",
        )
    if (real.info.channels, real.info.size) != (info.channels, info.size):
        found, wanted = (f"{i.channels} channels of {i.size}x{i.size}" for i in (real.info, info))
        raise SourceError(f"{real.info.id} has {found}, not {wanted} as in the manifest.")
    if real.info.fingerprint != info.fingerprint:
        warnings.warn(
            f"The images of {real.info.id} are not bit-equal to those the set was made from "
            "(another version of the data or of the decoder).",
            AtomhubWarning,
            stacklevel=2,
        )
    return real


def _cached(info: SourceInfo) -> RealData | None:
    """Return the decoded copy of exactly these images, if there is one."""
    for folder, meta in _metas():
        if meta["info"]["fingerprint"] == info.fingerprint and (real := _open_cache(folder)):
            return real
    return None


def _found_again(info: SourceInfo, source: str | Path | RealData | None) -> RealData:
    options = SourceOptions(
        size=info.size,
        image_column=info.image_column,
        label_column=info.label_column,
        train_split=None if info.train_split == "all" else info.train_split,
        test_split=None if info.test_fraction is not None else info.test_split,
        test_fraction=info.test_fraction,
        config=info.config,
        revision=info.revision,
        flip=info.flip,
        skip_unreadable=True,
    )
    place: _Place | None
    if source is not None:
        place = _locate(str(source), options)
    else:  # the manifest may be a stranger's: it names no path of this machine
        named = _locate_named(info.id, options)
        place = named or (_locate_hub(info.id, Alias(info.id), options) if info.kind == "hub" else None)
    if place is None:
        raise NotFoundError(
            f"The real images of {info.id.removeprefix('folder:')!r} are not on this machine.",
            "Say where they are with --source PATH.",
        )
    return _opened(place, options)


def _cache() -> Path:
    return home() / "real"


def _metas() -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield folder and ``meta.json`` of all that was decoded, newest first; damaged ones are passed over."""
    files = [(path.stat().st_mtime, path) for path in _cache().glob("[!.]*/meta.json")]
    for _, path in sorted(files, reverse=True):
        with suppress(OSError, ValueError):
            yield path.parent, json.loads(path.read_text())


def _locate(source: str, options: SourceOptions) -> _Place:
    try:
        source.encode()
    except UnicodeEncodeError:
        raise UsageError(f"The name {source!r} is not UTF-8 text.", "Rename the folder.") from None
    path = Path(source).expanduser()
    if named := _locate_named(source, options):
        return named
    if path.exists():
        return _locate_folder(f"folder:{path.resolve().name}", path.resolve(), Alias(""))
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", source):
        return _locate_hub(source, Alias(source), options)
    raise NotFoundError(
        f"There is no source {source!r}: it is neither a folder here, nor a known name, nor a Hub id (user/name).",
        closest(source, [*ALIASES, "digits"]),
    )


def _locate_named(name: str, options: SourceOptions) -> _Place | None:
    """Find what has a name: the digits, a folder of ``ATOMHUB_DATA``, a known data set of the Hub."""
    if name == "digits":
        alias = Alias("", size=SMALLEST, flip=False, license="cc-by-4.0")
        return _Place("digits", "digits", alias, "scikit-learn", None)
    data = os.environ.get("ATOMHUB_DATA")
    if data and re.fullmatch(r"[\w-][\w.-]*", name) and (Path(data) / name).is_dir():
        return _locate_folder(name, Path(data) / name, ALIASES.get(name, Alias("")))
    return _locate_hub(name, ALIASES[name], options) if name in ALIASES else None


def _locate_folder(name: str, path: Path, alias: Alias) -> _Place:
    def hidden(file: Path) -> bool:
        return any(part.startswith(".") for part in file.relative_to(path).parts)

    found = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file() and not hidden(p))
    stamp = [str(path), [(str(p), (s := p.stat()).st_size, s.st_mtime_ns) for p in found]]
    tables = [p for p in found if p.suffix == ".parquet"]
    if tables:
        files: dict[str, list[str]] = {}
        for table in tables:
            files.setdefault(_split_of(table, path), []).append(str(table))
        return _Place(name, "parquet", alias, stamp, path, files)
    if path.is_file():
        raise SourceError(f"{path} is not a parquet file.", "Give a .parquet file or a folder.")
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return _Place(name, "arrow", alias, stamp, path)
    return _Place(name, "images", alias, stamp, path)


def _split_of(table: Path, root: Path) -> str:
    """Guess the split of a parquet file from its name or its folder: ``mnist_train-00000``, ``test/0000``."""
    parts = [table.stem, *(p for p in table.parent.parts[len(root.parts) :])] if root.is_dir() else [table.stem]
    words = [word for part in parts for word in re.split(r"[^A-Za-z]+", part.lower())]
    return next((w for w in words if w in readers.TRAIN_NAMES + readers.TEST_NAMES), words[0] or "all")


def _locate_hub(name: str, alias: Alias, options: SourceOptions) -> _Place:
    """Ask the Hub for the commit behind a revision; when it cannot be reached, use what was decoded before."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    wanted = options.revision or alias.revision
    try:
        sha = HfApi().dataset_info(alias.repo, revision=wanted).sha
    except RepositoryNotFoundError as error:
        raise NotFoundError(
            f"There is no data set {alias.repo!r} on the Hub, or it is private.",
            "Check the name; for a private one log in with: hf auth login",
        ) from error
    except RevisionNotFoundError as error:
        raise NotFoundError(f"The data set {alias.repo!r} has no revision {wanted!r}.") from error
    except HFValidationError as error:
        raise UsageError(
            f"{alias.repo!r} is not the id of a data set on the Hub.", "Ids look like user/name."
        ) from error
    except Exception as error:  # no network, no answer, a server's error: each client library has its own
        sha = _decoded_before(name, options)
        if sha is None:
            raise SourceError(
                f"The Hub cannot be reached to read {alias.repo!r}: {first_line(error)}.",
                f"Check the network, or put parquet files in $ATOMHUB_DATA/{name}/."
                if name in ALIASES
                else "Check the network.",
            ) from error
        note = f"The Hub cannot be reached: using {name} as decoded before (commit {sha[:8]})."
        warnings.warn(note, AtomhubWarning, stacklevel=4)
    return _Place(name, "hub", alias, sha, repo=alias.repo, revision=sha)


def _decoded_before(name: str, options: SourceOptions) -> str | None:
    """Return the commit of the newest decoded copy of a Hub source under the same options."""
    for _, meta in _metas():
        if meta["info"]["id"] == name and meta["info"]["kind"] == "hub" and meta["options"] == asdict(options):
            return str(meta["info"]["revision"])
    return None


def _read(place: _Place, options: SourceOptions, workspace: Path) -> readers.Raw:
    columns = readers.Columns(
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


def _prepare(place: _Place, options: SourceOptions, folder: Path, workspace: Path) -> None:
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
        id=place.id,
        kind=place.kind,  # type: ignore[arg-type]
        revision=place.revision,
        config=options.config or place.alias.config,
        train_split=raw.train_split,
        test_split=raw.test_split,
        test_fraction=fraction,
        image_column=raw.image_column,
        label_column=raw.label_column,
        fingerprint=decoded.fingerprint,
        size=decoded.size,
        channels=decoded.channels,  # type: ignore[arg-type]
        train_images=decoded.counts["train"],
        test_images=decoded.counts.get("test", 0),
        flip=place.alias.flip if options.flip is None else options.flip,
        license=place.alias.license,
        notes=notes,
    )
    meta = {
        "info": info.model_dump(mode="json"),
        "class_names": raw.class_names,
        "mean": place.alias.mean if usual else decoded.mean,
        "std": place.alias.std if usual else decoded.std,
        "options": asdict(options),
    }
    (folder / "meta.json").write_text(json.dumps(meta, indent=1))


def _set_aside(raw: readers.Raw, fraction: float) -> tuple[readers.Rows, readers.Rows]:
    """Split the training rows by class: the same rows every time."""
    from sklearn.model_selection import train_test_split

    labels = raw.train.labels
    try:
        train, test = train_test_split(np.arange(len(labels)), test_size=fraction, stratify=labels, random_state=0)
    except ValueError as error:
        raise SourceError(f"A test fraction of {fraction} does not fit these classes: {error}") from error
    return raw.train.take(np.sort(train)), raw.train.take(np.sort(test))


def _open_cache(folder: Path) -> RealData | None:
    """Open decoded images; None where there are none, or damaged ones."""

    def split(name: str) -> Split:
        return Split(np.load(folder / f"{name}.npy", mmap_mode="r"), np.load(folder / f"{name}_labels.npy"))

    try:
        meta = json.loads((folder / "meta.json").read_text())
        info = SourceInfo.model_validate(meta["info"])
        train, test = split("train"), split("test") if info.test_images else None
    except (OSError, ValueError, EOFError, KeyError):
        return None
    return RealData(
        re.sub(r"[^a-z0-9._-]+", "-", re.split(r"[:/]", info.id)[-1].lower()).strip("-._") or "images",
        info,
        tuple(meta["class_names"]),
        train,
        test,
        tuple(meta["mean"]),
        tuple(meta["std"]),
    )
