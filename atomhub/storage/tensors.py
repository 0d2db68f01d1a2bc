"""The tensors of a set on disk, read and checked against what its manifest says of them."""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from atomhub import limits
from atomhub.core.whitening import Whitening
from atomhub.errors import IntegrityError
from atomhub.manifest import MANIFEST, Format
from atomhub.storage.packing import unpack

RESTORE = "Distil the set again, or get a fresh copy."


def read_tensors(path: Path, form: Format, about: str) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return images, labels and soft labels of a set as its format describes them, (N, C, H, W), (N,), (N, K) or None.

    Args:
        path: The file.
        form: The format.
        about: Digest of the manifest that it belongs to.

    Raises:
        IntegrityError: it is not what it should be.
    """
    classes, soft = len(form.class_names), form.labels == "soft"
    row = -(-form.size * form.bits // 8)
    expected = {
        "images": ("F32", list(form.shape)) if form.pixels == "float32" else ("U8", [*form.shape[:-1], row]),
        "labels": ("I64", [form.shape[0]]),
    }
    if soft:
        expected["soft_labels"] = ("F16", [form.shape[0] * form.views_per_image, classes])
    try:
        with safe_open(path, "pt") as file:
            header = limits.parse_json((file.metadata() or {}).get("atomhub", "null").encode())
            found = {name: (s.get_dtype(), s.get_shape()) for name in file.keys() for s in [file.get_slice(name)]}  # noqa: SIM118
            for name, what in expected.items():
                if found.get(name) != what:
                    raise IntegrityError(f"{path}: {name!r} should be {what}, but is {found.get(name)}.", RESTORE)
            images, labels = file.get_tensor("images"), file.get_tensor("labels")
            soft_labels = file.get_tensor("soft_labels") if soft else None
    except (SafetensorError, ValueError, OSError) as error:
        raise IntegrityError(f"{path} is not a readable safetensors file: {error}.", RESTORE) from error
    if not isinstance(header, dict) or header.get("manifest") != about:
        raise IntegrityError(f"{path} belongs to another manifest: {MANIFEST} was changed.", RESTORE)
    if not torch.equal(labels, torch.arange(classes).repeat_interleave(form.ipc)):
        raise IntegrityError(f"{path}: the labels are not {form.ipc} of each class in order.", RESTORE)
    if images.is_floating_point() and not bool(((images >= 0) & (images <= 1)).all()):
        raise IntegrityError(f"{path}: pixels are not all within 0 and 1.", RESTORE)
    if form.packed:
        images = unpack(images, form.bits, form.size)
    if soft_labels is not None:
        sums = soft_labels.float().sum(1)
        if not bool((soft_labels >= 0).all() and ((sums - 1).abs() < 0.01).all()):
            raise IntegrityError(f"{path}: the soft labels are not probabilities.", RESTORE)
    return images, labels, soft_labels


def read_whitening(path: Path, form: Format) -> Whitening:
    """Return the whitening of a set; IntegrityError for a file that holds none of its size."""
    size = form.channels * form.size**2
    try:
        arrays = load_file(path)
        center, matrix = arrays["center"], arrays["matrix"]
    except (SafetensorError, KeyError, OSError, ValueError, TypeError, RuntimeError) as error:
        raise IntegrityError(f"{path} is not a readable safetensors file: {error}.", RESTORE) from error
    good = center.shape == (size,) and matrix.shape == (size, size) and center.dtype == matrix.dtype == torch.float32
    if not good or not bool(center.isfinite().all() and matrix.isfinite().all()):
        raise IntegrityError(f"{path} is not the whitening of images of {size} numbers.", RESTORE)
    return Whitening(form.mean, form.std, center, matrix)
