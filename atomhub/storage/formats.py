"""Formats v1 and v2 on disk: write, read and check a distilled set. The one place that knows the names of its files.

Described in ``docs/format.md`` for readers in other languages.
"""

import errno
import hashlib
import json
import math
import os
import re
import warnings
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import ValidationError
from safetensors.torch import save

from atomhub import limits, stored
from atomhub.data.tables import quiet_datasets
from atomhub.dataset import DistilledDataset
from atomhub.errors import AtomhubError, AtomhubWarning, IntegrityError, NotFoundError, first_line, installed
from atomhub.files import carry_over, check_target, locked, new_folder, open_regular, replace_file, snapshot_of
from atomhub.manifest import FORMAT_VERSION, MANIFEST, TENSORS, File, Format, Manifest, digest
from atomhub.results import Measurement
from atomhub.storage import cards
from atomhub.storage.curve import draw_curve
from atomhub.storage.packing import pack
from atomhub.storage.tensors import RESTORE, read_tensors, read_whitening

PARQUET = "data/train-00000-of-00001.parquet"
VIEWS = "data/views-00000-of-00001.parquet"
WHITENING = "whitening.safetensors"
LABELS = "labels.safetensors"
"""Stored labels, described in ``provenance``: a set loads without them."""
PREVIEW = "preview.png"
CURVE = "curve.png"
CARD = "README.md"
_PICTURE = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}\.png")
"""Names of pictures, which a set may have or not."""
OPTIONAL = (VIEWS, WHITENING, CURVE, LABELS)
"""Files of ours that a set may have or not; a push deletes those of an earlier set."""


def tag(version: int) -> str:
    """Return the tag of a repository on the Hub that names its newest commit in a version of the format."""
    return f"format-v{version}"


def required(form: Format) -> tuple[str, ...]:
    """Return the files that a set of this format must have, besides its manifest."""
    return (TENSORS, PARQUET) + (WHITENING,) * (form.whitening == "zca") + (VIEWS,) * (form.formation > 1)


def largest(path: str, form: Format) -> int:
    """Return the most bytes a file of a set may have: tensors and headers, or pictures that cannot be compressed."""
    images, *shape = form.shape
    numbers, classes = math.prod(shape), len(form.class_names)
    if path == WHITENING:
        return min(4 * numbers * (numbers + 1) + 2**20, limits.WEIGHTS)
    if path == TENSORS:
        soft = 2 * classes * form.views_per_image
        return min(form.bytes + images * (8 + soft), limits.IMAGES) + 2**20
    if path in (PARQUET, VIEWS):
        rows = images * (form.views_per_image if path == VIEWS else 1)
        return min(rows * (2 * numbers + 1024), limits.IMAGES) + largest_footer(form)
    return min(2 * images * numbers + 2**24, limits.PICTURE)


def largest_footer(form: Format) -> int:
    """Return the most bytes of a parquet's footer, which has the class names twice, escaped or as Base64."""
    return 2**20 + 32 * sum(len(name) + 8 for name in form.class_names)


def open_file(folder: Path, name: str) -> BinaryIO:
    """Open a file of a set: a regular one in its folder. Links are those of huggingface_hub's cache alone.

    Raises:
        OSError: it is not there, or something else.
    """
    root = snapshot_of(folder)
    if root is None and (folder / name).resolve() != folder.resolve() / name:
        raise OSError(errno.EPERM, "it is a link", str(folder / name))
    return open_regular(folder / name, root or folder)


def read_card(folder: Path) -> str | None:
    """Return the card of a set, or None; IntegrityError for one that cannot be a card."""
    try:
        with open_file(folder, CARD) as file:
            content = file.read(limits.CARD + 1)
        if len(content) > limits.CARD:
            raise ValueError(f"it has more than {limits.CARD} bytes")
        return content.decode()
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else first_line(error)
        raise IntegrityError(f"{folder / CARD} cannot be read: {reason}.", "Mend it, or remove it.") from None


def write(distilled: DistilledDataset, folder: Path, overwrite: bool = False) -> DistilledDataset:
    """Write a set to a folder, all or nothing; return it with that path.

    Raises:
        AtomhubError: the folder exists and may not be replaced, or cannot be written.
    """
    manifest = distilled.manifest
    if distilled.stored is None and manifest.provenance.stored is not None:  # they were not downloaded
        manifest = manifest.replace(provenance={"stored": None})
    folder = folder.expanduser().absolute()
    check_target(folder, overwrite, MANIFEST)
    with new_folder(folder, overwrite) as temporary:
        about = digest(manifest.model_dump(mode="json"))
        header = {"format": manifest.format.version, "name": manifest.name, "manifest": about}
        form = manifest.format
        images = pack(distilled.images, form.bits) if form.packed else distilled.images.contiguous()
        tensors = {"images": images, "labels": distilled.labels}
        if distilled.soft_labels is not None:
            tensors["soft_labels"] = distilled.soft_labels.contiguous()
        # bytes written by ourselves: safetensors' own writer makes the file readable by its owner only
        (temporary / TENSORS).write_bytes(save(tensors, {"atomhub": json.dumps(header)}))
        (temporary / PARQUET).parent.mkdir()
        with quiet_datasets():
            distilled.as_hf_dataset(stored=True).to_parquet(str(temporary / PARQUET))
            if form.formation > 1:
                distilled.as_hf_dataset().to_parquet(str(temporary / VIEWS))
        distilled.preview().save(temporary / PREVIEW)
        if manifest.provenance.history and installed("matplotlib"):
            draw_curve(manifest.name, manifest.provenance, temporary / CURVE)
        elif manifest.provenance.history:
            note = f"{folder.name} is saved without {CURVE}, which needs matplotlib: pip install 'atomhub[distill]'"
            warnings.warn(note, AtomhubWarning, stacklevel=4)
        if distilled.whitening is not None:
            arrays = {"center": distilled.whitening.center, "matrix": distilled.whitening.matrix}
            (temporary / WHITENING).write_bytes(save({name: array.contiguous() for name, array in arrays.items()}))
        names = (p.relative_to(temporary).as_posix() for p in temporary.rglob("*") if p.is_file())
        files = {name: _described(temporary, name) for name in names}
        manifest = manifest.model_copy(update={"files": dict(sorted(files.items()))})
        if distilled.stored is not None:
            (temporary / LABELS).write_bytes(distilled.stored.content())
        (temporary / MANIFEST).write_bytes(_as_json(manifest.model_dump(mode="json")))
        (temporary / CARD).write_text(cards.dataset_card(manifest), encoding="utf-8")
        before: dict[str, File] = {}
        with suppress(AtomhubError):
            before = read_manifest(folder).files
        carry_over(folder, temporary, {MANIFEST, TENSORS, PARQUET, PREVIEW, CARD, *OPTIONAL, *before})
    return replace(distilled, manifest=manifest, path=folder)


def read(folder: Path) -> DistilledDataset:
    """Read a set and verify it: every digest, and that the tensors are what the manifest says.

    Raises:
        NotFoundError: the folder holds no distilled set.
        IntegrityError: something does not match; the sentence names the file.
    """
    before = _identity(folder)
    try:
        return _read(folder)
    except IntegrityError:
        if _identity(folder) == before:
            raise
    return _read(folder)  # another set took its place in between


def _identity(folder: Path) -> int | None:
    with suppress(OSError):
        return folder.stat().st_ino
    return None


def _read(folder: Path) -> DistilledDataset:
    data = _read_json(folder)
    manifest = _validated(data, folder)
    for name, expected in manifest.files.items():
        _check(folder, name, expected)
    images, labels, soft_labels = read_tensors(folder / TENSORS, manifest.format, digest(data))
    whitening = read_whitening(folder / WHITENING, manifest.format) if WHITENING in manifest.files else None
    distilled = DistilledDataset(images, labels, manifest, folder, whitening, soft_labels)
    return replace(distilled, stored=_read_stored(distilled, folder))


def _read_stored(distilled: DistilledDataset, folder: Path) -> stored.StoredLabels | None:
    """Return the stored labels of a set, where they lie beside it."""
    about = distilled.manifest.provenance.stored
    if about is None or not (folder / LABELS).exists():
        return None
    _check(folder, LABELS, File(sha256=about.sha256, size=about.size))
    images, classes = len(distilled.training_labels()), len(distilled.class_names)
    return stored.read(folder / LABELS, about.epochs, images, classes)


def _check(folder: Path, name: str, expected: File) -> None:
    """Raise IntegrityError if a file of a set is not the one that was described."""
    try:
        found = _described(folder, name, expected.size)
    except OSError as error:
        raise IntegrityError(f"{folder / name} cannot be read: {error.strerror}.", RESTORE) from error
    if found != expected:
        raise IntegrityError(f"{folder / name} is not the file its manifest describes (SHA-256 differs).", RESTORE)


def read_checked(folder: Path, name: str, manifest: Manifest) -> bytes:
    """Return the content of a file of a set; IntegrityError if it is not the one that its manifest describes."""
    expected = manifest.files[name]
    try:
        with open_file(folder, name) as file:
            content = file.read(expected.size + 1)
    except OSError as error:
        raise IntegrityError(f"{folder / name} cannot be read: {error.strerror}.", RESTORE) from error
    if hashlib.sha256(content).hexdigest() != expected.sha256:
        raise IntegrityError(f"{folder / name} is not the file its manifest describes (SHA-256 differs).", RESTORE)
    return content


def read_manifest(folder: Path) -> Manifest:
    """Read and validate ``manifest.json`` alone; errors as in :func:`read`."""
    return _validated(_read_json(folder), folder)


def add_result(folder: Path, measured: Manifest, result: Measurement) -> None:
    """Store a measurement in the manifest, then in the card; each file is replaced in one step.

    Args:
        folder: Where the set is.
        measured: Manifest of the set that was measured.
        result: What was measured.

    Raises:
        AtomhubError: another set lies in the folder now, or it cannot be written.
    """
    with locked(folder):
        data = _read_json(folder)
        manifest = _validated(data, folder)
        if manifest.tensors != measured.tensors:
            raise AtomhubError(f"Another set lies in {folder} by now.", "Load and evaluate it anew.")
        manifest = manifest.with_result(result)
        # the JSON as it was, so that its digest stays whatever version wrote it
        content = _as_json(data | manifest.model_dump(mode="json", include={"results"}))
        try:  # never what could not be read again
            if len(content) > limits.MANIFEST:
                raise ValueError(f"it would have more than {limits.MANIFEST} bytes")
            _validated(limits.parse_json(content), folder)
        except (ValueError, IntegrityError) as error:
            raise AtomhubError(f"{folder / MANIFEST} has no room for another result: {first_line(error)}.") from None
        replace_file(folder / MANIFEST, content)
        try:
            fresh = cards.dataset_card(manifest)
            old = read_card(folder)
            replace_file(folder / CARD, (fresh if old is None else cards.renewed(old, fresh)).encode())
        except AtomhubError as error:  # what its owner made of the card is no reason to lose a result
            note = f"The result is stored, but is not in the card: {error.message}"
            warnings.warn(note, AtomhubWarning, stacklevel=4)


def _read_json(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        with open_file(folder, MANIFEST) as file:
            content = file.read(limits.MANIFEST + 1)
        if len(content) > limits.MANIFEST:
            raise ValueError(f"it has more than {limits.MANIFEST} bytes")
        data = limits.parse_json(content)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(f"{folder} is not a distilled set: it has no {MANIFEST}.") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else first_line(error)
        raise IntegrityError(f"{path} cannot be read: {reason}.", RESTORE) from error
    form = data.get("format") if isinstance(data, dict) else None
    version = form.get("version") if isinstance(form, dict) else None
    if not isinstance(version, int) or isinstance(version, bool):
        raise IntegrityError(f"{path} is not a valid manifest: it names no version of its format.", RESTORE)
    if version > FORMAT_VERSION:
        raise IntegrityError(
            f"{path} has format version {version}; this atomhub reads 1 to {FORMAT_VERSION}.",
            "Upgrade atomhub, or load the set's last revision in an older format: "
            f"{' or '.join(f'@{tag(known)}' for known in range(FORMAT_VERSION, 0, -1))}.",
        )
    return dict(data)


def _validated(data: dict[str, Any], folder: Path) -> Manifest:
    path = folder / MANIFEST
    try:
        manifest = Manifest.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise IntegrityError(f"{path} is not a valid manifest: {where}: {first['msg']}.", RESTORE) from error
    needed = required(manifest.format)
    if missing := set(needed) - set(manifest.files):
        raise IntegrityError(f"{path} has no digest of {min(missing)}.", RESTORE)
    for name, file in manifest.files.items():
        if name not in needed and not _PICTURE.fullmatch(name):
            raise IntegrityError(f"{path} names the file {name!r}, which no set has.", RESTORE)
        if file.size > largest(name, manifest.format):
            raise IntegrityError(
                f"{path} says that {name} has {file.size} bytes, more than such a set can have.", RESTORE
            )
    return manifest


def _as_json(manifest: dict[str, Any]) -> bytes:
    return (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode()


def _described(folder: Path, name: str, expected: int | None = None) -> File:
    """Return size and digest of a file of a set; one of another size than expected is not read."""
    with open_file(folder, name) as file:
        size = os.fstat(file.fileno()).st_size
        if expected is not None and size != expected:
            return File(sha256="0" * 64, size=size)
        return File(sha256=hashlib.file_digest(file, "sha256").hexdigest(), size=size)  # type: ignore[arg-type]
