"""Format v1 on disk: write, read and verify a distilled set."""

from __future__ import annotations

import hashlib
import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from atomhub.core.whitening import Whitening
from atomhub.distilled import DistilledDataset
from atomhub.errors import AtomhubError, IntegrityError, NotFoundError
from atomhub.files import check_target, new_folder, quiet_datasets, replace_file
from atomhub.hub import cards
from atomhub.manifest import FORMAT_VERSION, Manifest, Measurement, provenance

TENSORS = "distilled.safetensors"
MANIFEST = "manifest.json"
PARQUET = "data/train-00000-of-00001.parquet"
VIEWS = "data/views-00000-of-00001.parquet"
WHITENING = "whitening.safetensors"
PREVIEW = "preview.png"
CURVE = "curve.png"
CARD = "README.md"


def digested(manifest: Manifest) -> tuple[str, ...]:
    """Return the files whose SHA-256 the manifest holds: all but itself and the card, which its owner may edit."""
    return (TENSORS, PARQUET, PREVIEW, CURVE) + (WHITENING,) * manifest.recipe.zca + (VIEWS,) * (manifest.formation > 1)


def largest(path: str, manifest: Manifest) -> int:
    """Return the most bytes a file of a set may have: tensors and headers, or pictures that cannot be compressed."""
    numbers = manifest.source.channels * manifest.source.size**2
    classes = len(manifest.class_names)
    images = classes * manifest.ipc
    if path == WHITENING:
        return 4 * numbers * (numbers + 1) + 2**20
    if path == TENSORS:
        soft = 2 * classes * manifest.formation**2
        return images * (numbers * (4 if manifest.recipe.pixels == "float32" else 1) + 8 + soft) + 2**20
    return 2 * images * numbers * (manifest.formation**2 if path == VIEWS else 1) + 2**24


def write(distilled: DistilledDataset, folder: Path, overwrite: bool = False) -> DistilledDataset:
    """Write a set to a folder, all or nothing; return it with that path.

    Raises:
        AtomhubError: the folder exists and may not be replaced, or cannot be written.
    """
    manifest = distilled.manifest
    folder = folder.expanduser().absolute()
    check_target(folder, overwrite, MANIFEST)
    with new_folder(folder, overwrite) as temporary:
        digest = provenance(manifest.model_dump(mode="json"))
        header = {"format": FORMAT_VERSION, "name": manifest.name, "provenance": digest}
        tensors = {"images": distilled.images.contiguous(), "labels": distilled.labels}
        if distilled.soft_labels is not None:
            tensors["soft_labels"] = distilled.soft_labels
        # bytes written by ourselves: safetensors' own writer makes the file readable by its owner only
        (temporary / TENSORS).write_bytes(save(tensors, {"atomhub": json.dumps(header)}))
        (temporary / PARQUET).parent.mkdir()
        with quiet_datasets():
            distilled.as_hf_dataset(stored=True).to_parquet(str(temporary / PARQUET))
            if manifest.formation > 1:
                distilled.as_hf_dataset().to_parquet(str(temporary / VIEWS))
        distilled.preview().save(temporary / PREVIEW)
        _draw_curve(manifest, temporary / CURVE)
        if distilled.whitening is not None:
            arrays = {"center": distilled.whitening.center, "matrix": distilled.whitening.matrix}
            (temporary / WHITENING).write_bytes(save({name: array.contiguous() for name, array in arrays.items()}))
        files = {name: _digest(temporary / name) for name in digested(manifest)}
        manifest = manifest.model_copy(update={"files": files})
        (temporary / MANIFEST).write_bytes(_as_json(manifest.model_dump(mode="json")))
        (temporary / CARD).write_text(cards.dataset_card(manifest), encoding="utf-8")
    return replace(distilled, manifest=manifest, path=folder)


def read(folder: Path) -> DistilledDataset:
    """Read a set and verify it: every digest, and that the tensors are what the manifest says.

    Raises:
        NotFoundError: the folder holds no distilled set.
        IntegrityError: something does not match; the sentence names the file.
    """
    data = _read_json(folder)
    manifest = _validated(data, folder)
    if unknown := set(manifest.files) - set(digested(manifest)):
        raise IntegrityError(f"{folder / MANIFEST} names the file {min(unknown)!r}, which no set has.", _RESTORE)
    for name in digested(manifest):
        if name not in manifest.files:
            raise IntegrityError(f"{folder / MANIFEST} has no digest of {name}.", _RESTORE)
        try:
            digest = _digest(folder / name)
        except OSError as error:
            raise IntegrityError(f"{folder / name} cannot be read: {error.strerror}.", _RESTORE) from error
        if digest != manifest.files[name]:
            raise IntegrityError(f"{folder / name} is not the file its manifest describes (SHA-256 differs).", _RESTORE)
    images, labels, soft_labels = _read_tensors(folder / TENSORS, manifest, provenance(data))
    whitening = _read_whitening(folder / WHITENING, manifest) if manifest.recipe.zca else None
    return DistilledDataset(images, labels, manifest, folder, whitening, soft_labels)


def check_parquet(distilled: DistilledDataset, folder: Path) -> None:
    """Check that the parquet holds the images, labels and class names of the tensors; IntegrityError otherwise.

    Its digest says that it is the publisher's; this, that those who load it without atomhub get the same set.
    """
    stored = [distilled.pil(i) for i in range(len(distilled))]
    _check_table(folder / PARQUET, distilled, stored, distilled.labels.tolist())
    if distilled.manifest.formation > 1:
        _check_table(folder / VIEWS, distilled, distilled.pictures(), distilled.training_labels().tolist())


def _check_table(path: Path, distilled: DistilledDataset, pictures: list[Any], labels: list[int]) -> None:
    import pyarrow as pa
    from PIL import Image
    from pyarrow import parquet

    info = distilled.manifest.source
    # views are enlarged in floating point, which another processor may round otherwise
    slack = 0 if path.name == Path(PARQUET).name else 1
    try:
        table = parquet.read_table(path)
        features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
        same = tuple(features["label"]["names"]) == distilled.class_names
        same = same and table["label"].to_pylist() == labels
        for row, expected in zip(table["image"].to_pylist() if same else [], pictures, strict=False):
            picture = Image.open(io.BytesIO(row["bytes"]), formats=["PNG"])
            if picture.size != (info.size, info.size) or picture.mode != ("L" if info.channels == 1 else "RGB"):
                same = False
                break
            difference = np.abs(np.asarray(picture, dtype=int) - np.asarray(expected, dtype=int))
            same = bool(difference.max() <= slack)
            if not same:
                break
    except (OSError, ValueError, KeyError, TypeError, SyntaxError, pa.ArrowException) as error:
        raise IntegrityError(f"{path} cannot be read: {error}.", _RESTORE) from error
    if not same:
        raise IntegrityError(f"{path} does not hold the images and classes of {TENSORS}.", _RESTORE)


_RESTORE = "Distil the set again, or get a fresh copy."


def read_manifest(folder: Path) -> Manifest:
    """Read and validate ``manifest.json`` alone; errors as in :func:`read`."""
    return _validated(_read_json(folder), folder)


def _read_json(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(f"{folder} is not a distilled set: it has no {MANIFEST}.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise IntegrityError(f"{path} cannot be read: {error}.", _RESTORE) from error
    version = data.get("format_version") if isinstance(data, dict) else None
    if not isinstance(data, dict) or not isinstance(version, int) or isinstance(version, bool):
        raise IntegrityError(f"{path} is not a valid manifest: it names no format_version.", _RESTORE)
    if version > FORMAT_VERSION:
        raise IntegrityError(
            f"{path} has format version {version}; this atomhub reads {FORMAT_VERSION}.", "Upgrade atomhub."
        )
    return data


def _validated(data: dict[str, Any], folder: Path) -> Manifest:
    path = folder / MANIFEST
    try:
        return Manifest.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise IntegrityError(f"{path} is not a valid manifest: {where}: {first['msg']}.", _RESTORE) from error


def add_result(folder: Path, measured: Manifest, result: Measurement) -> None:
    """Store a measurement in the manifest, then in the card; each file is replaced in one step.

    Args:
        folder: Where the set is.
        measured: Manifest of the set that was measured.
        result: What was measured.

    Raises:
        AtomhubError: another set lies in the folder now, or it cannot be written.
    """
    data = _read_json(folder)
    manifest = _validated(data, folder)
    if manifest.files.get(TENSORS) != measured.files.get(TENSORS):
        raise AtomhubError(f"Another set lies in {folder} by now.", "Load and evaluate it anew.")
    manifest = manifest.with_result(result)
    path = folder / CARD
    card = cards.refresh(path.read_text(encoding="utf-8"), manifest) if path.exists() else cards.dataset_card(manifest)
    # the JSON as it was, so that its provenance stays whatever version wrote it
    replace_file(folder / MANIFEST, _as_json(data | manifest.model_dump(mode="json", include={"results"})))
    replace_file(path, card.encode())


def _read_tensors(path: Path, manifest: Manifest, digest: str) -> tuple[Tensor, Tensor, Tensor | None]:
    classes, source = len(manifest.class_names), manifest.source
    dtype = manifest.recipe.pixels
    shape = [classes * manifest.ipc, source.channels, source.size, source.size]
    expected = {"images": ("U8" if dtype == "uint8" else "F32", shape), "labels": ("I64", shape[:1])}
    if manifest.teacher is not None:
        expected["soft_labels"] = ("F16", [shape[0] * manifest.formation**2, classes])
    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {}).get("atomhub", "null"))
            found = {name: (s.get_dtype(), s.get_shape()) for name in file.keys() for s in [file.get_slice(name)]}  # noqa: SIM118
            for name, what in expected.items():
                if found.get(name) != what:
                    raise IntegrityError(f"{path}: {name!r} should be {what}, but is {found.get(name)}.", _RESTORE)
            images, labels = file.get_tensor("images"), file.get_tensor("labels")
            soft = file.get_tensor("soft_labels") if manifest.teacher is not None else None
    except (SafetensorError, ValueError, OSError, RecursionError) as error:
        raise IntegrityError(f"{path} is not a readable safetensors file: {error}.", _RESTORE) from error
    if not isinstance(header, dict) or header.get("provenance") != digest:
        raise IntegrityError(f"{path} belongs to another manifest: {MANIFEST} was changed.", _RESTORE)
    if not torch.equal(labels, torch.arange(classes).repeat_interleave(manifest.ipc)):
        raise IntegrityError(f"{path}: the labels are not {manifest.ipc} of each class in order.", _RESTORE)
    if images.is_floating_point() and not bool(((images >= 0) & (images <= 1)).all()):
        raise IntegrityError(f"{path}: pixels are not all within 0 and 1.", _RESTORE)
    if soft is not None and not bool((soft >= 0).all() and ((soft.float().sum(1) - 1).abs() < 0.01).all()):
        raise IntegrityError(f"{path}: the soft labels are not probabilities.", _RESTORE)
    return images, labels, soft


def _read_whitening(path: Path, manifest: Manifest) -> Whitening:
    size = manifest.source.channels * manifest.source.size**2
    try:
        arrays = load_file(path)
        center, matrix = arrays["center"], arrays["matrix"]
    except (SafetensorError, KeyError, OSError) as error:
        raise IntegrityError(f"{path} is not a readable safetensors file: {error}.", _RESTORE) from error
    good = center.shape == (size,) and matrix.shape == (size, size) and center.dtype == matrix.dtype == torch.float32
    if not good or not bool(center.isfinite().all() and matrix.isfinite().all()):
        raise IntegrityError(f"{path} is not the whitening of images of {size} numbers.", _RESTORE)
    return Whitening(manifest.mean, manifest.std, center, matrix)


def _as_json(manifest: dict[str, Any]) -> bytes:
    return (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _draw_curve(manifest: Manifest, path: Path) -> None:
    """Draw the loss over iterations and, where it was measured on the way, the accuracy."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5 + bool(manifest.clipped_history)), layout="constrained")
    if manifest.clipped_history:
        axes, below = figure.subplots(2, sharex=True, height_ratios=(4, 1))
        iterations, shares = zip(*manifest.clipped_history, strict=True)
        below.plot(iterations, [100 * share for share in shares], color="tab:red", linewidth=1)
        below.set_ylim(bottom=0)
        below.set_ylabel("clipped\npixels (%)", color="tab:red")
    else:
        axes = below = figure.subplots()
    if not manifest.history:
        axes.text(0.5, 0.5, "no losses are known of this set", ha="center", va="center", transform=axes.transAxes)
    else:
        iterations, losses = zip(*manifest.history, strict=True)
        axes.plot(iterations, losses, color="tab:blue", alpha=0.35, linewidth=1)
        axes.plot(iterations, _smooth(losses), color="tab:blue")
        axes.set_yscale("log")
    below.set_xlabel("iteration")
    axes.set_ylabel("loss", color="tab:blue")
    if manifest.accuracy_history:
        right = axes.twinx()
        right.plot(*zip(*manifest.accuracy_history, strict=True), "o-", color="tab:orange")
        right.set_ylabel("test accuracy of one network (%)", color="tab:orange")
    axes.set_title(manifest.name, loc="left")
    figure.savefig(path, dpi=120)


def _smooth(values: tuple[float, ...]) -> list[float]:
    """Return the geometric running mean over about a tenth of the curve."""
    reach = max(1, len(values) // 20)
    logs = [math.log(max(v, 1e-30)) for v in values]
    windows = (logs[max(0, i - reach) : i + reach + 1] for i in range(len(logs)))
    return [math.exp(sum(w) / len(w)) for w in windows]
