"""Distilled sets in the files of other projects and tools: written and read, never unpickled without limits."""

from __future__ import annotations

import hashlib
import io
import json
import re
import warnings
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import atomhub
from atomhub.core.synthetic import decode
from atomhub.core.whitening import Normalization, fit_zca
from atomhub.distilled import DistilledDataset
from atomhub.errors import AtomhubWarning, IntegrityError, NotFoundError, UsageError, check_whole, first_line
from atomhub.files import check_target, new_folder
from atomhub.manifest import Imported, Manifest, check_name
from atomhub.recipe import Recipe
from atomhub.sources import RealData, open_source

Format = Literal["ddranking", "dc", "images", "npz"]
FORMATS: dict[str, str] = {
    "ddranking": "images.pt and labels.pt, normalised float32, class-major, with config.yaml for DD-Ranking",
    "dc": "one .pt file as DC, DSA, DM and DataDAM write them: {'data': [[images, labels]], ...}, normalised float32",
    "images": "a folder of PNGs for each class, its number and name",
    "npz": "one .npz file for NumPy: images uint8 or float32 in 0..1, labels, class_names, mean, std and the like",
}
"""What each format is."""
_MARKER = "atomhub-export.json"


def export(distilled: DistilledDataset, format: Format, folder: str | Path, overwrite: bool = False) -> Path:
    """Write a set as another project or tool wants it, all or nothing; return the folder.

    Tensors are those of ``as_tensors()``: normalised by mean and standard deviation, and whitened where the recipe is.

    Args:
        distilled: The set.
        format: One of :data:`FORMATS`.
        folder: Where.
        overwrite: Replace an earlier export.

    Raises:
        UsageError: an unknown format.
        AtomhubError: the folder exists, or cannot be written.
    """
    if format not in FORMATS:
        raise UsageError(f"There is no format {format!r}.", f"Known: {', '.join(FORMATS)}.")
    target = Path(folder).expanduser().absolute()
    check_target(target, overwrite, _MARKER)
    with new_folder(target, overwrite) as temporary:
        {"ddranking": _ddranking, "dc": _dc, "images": _images, "npz": _npz}[format](distilled, temporary)
        about = {"set": distilled.name, "format": format, "sha256": distilled.manifest.files}
        (temporary / _MARKER).write_text(json.dumps(about, indent=1) + "\n")
    return target


def _ddranking(distilled: DistilledDataset, folder: Path) -> None:
    """Tensors, and the YAML of DD-Ranking's evaluators (its documentation: label-robust score with hard labels)."""
    import yaml

    from atomhub.core import siamese
    from atomhub.training.protocols import PROTOCOLS

    m, rules = distilled.manifest, PROTOCOLS["dm"]
    images, labels = distilled.as_tensors()
    torch.save(images, folder / "images.pt")
    torch.save(labels, folder / "labels.pt")
    if distilled.soft_labels is not None:  # it wants logits; their softmax is what the set holds
        torch.save(distilled.soft_labels.float().clamp(min=1e-7).log(), folder / "soft_labels.pt")
    known = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "tiny-imagenet": "TinyImageNet", "mnist": "MNIST"}
    turned = {"flip": 0.5, "rotate": siamese.ANGLE, "saturation": 2.0, "brightness": 1.0, "contrast": 0.5,
              "scale": siamese.ZOOM, "crop": siamese.SHIFT, "cutout": siamese.HOLE}  # fmt: skip
    if not m.source.flip:
        turned.pop("flip")
    config = {
        "dataset": known.get(m.source.id, m.source.id), "real_data_path": "./dataset/", "ipc": m.ipc * m.formation**2,
        "im_size": [m.source.size] * 2, "model_name": f"ConvNet-{m.recipe.depth or 3}", "use_torchvision": False,
        "data_aug_func": "dsa", "aug_params": turned, "use_zca": m.recipe.zca, "custom_train_trans": None,
        "custom_val_trans": None, "optimizer": "sgd", "lr_scheduler": "step", "step_size": rules.epochs // 2,
        "weight_decay": rules.decay, "momentum": rules.momentum, "num_eval": 5, "num_epochs": rules.epochs,
        "syn_batch_size": rules.batch, "real_batch_size": 256, "num_workers": 4, "device": "cuda", "dist": False,
        "eval_full_data": True, "random_data_format": "tensor", "random_data_path": "./random_data",
        "save_path": f"./results/{m.name}.csv",
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


def _dc(distilled: DistilledDataset, folder: Path) -> None:
    torch.save({"data": [list(distilled.as_tensors())], "accs_all_exps": {}}, folder / f"{distilled.name}.pt")


def _images(distilled: DistilledDataset, folder: Path) -> None:
    pictures = distilled.pictures()
    each = len(pictures) // len(distilled.class_names)
    digits = len(str(each - 1))
    names = [re.sub(r"[^\w.-]+", "_", name).strip(".") or "_" for name in distilled.class_names]
    for i, picture in enumerate(pictures):
        label, number = divmod(i, each)
        # a number keeps the order of the classes, and apart those whose names became the same
        place = folder / f"{label:0{len(str(len(names) - 1))}d}_{names[label][:80]}"
        place.mkdir(exist_ok=True)
        picture.save(place / f"{number:0{digits}d}.png")


def _npz(distilled: DistilledDataset, folder: Path) -> None:
    m = distilled.manifest
    more: dict[str, Any] = {}
    if distilled.soft_labels is not None:
        more["soft_labels"] = distilled.soft_labels.numpy()
    if distilled.whitening is not None:
        more |= {"center": distilled.whitening.center.numpy(), "matrix": distilled.whitening.matrix.numpy()}
    np.savez_compressed(
        folder / f"{m.name}.npz", images=distilled.decoded().numpy(), labels=distilled.training_labels().numpy(),
        class_names=np.array(m.class_names), mean=np.array(m.mean), std=np.array(m.std), **more,
    )  # fmt: skip


def import_set(
    file: str | Path,
    like: str | Path | RealData,
    *,
    labels: str | Path | None = None,
    space: Literal["auto", "pixels", "normalized", "zca"] = "auto",
    formation: int = 1,
    name: str | None = None,
    network: Mapping[str, Any] | None = None,
    **options: Any,
) -> DistilledDataset:
    """Read synthetic images that another project published; in memory, with float32 pixels.

    Understood are the files of DC, DSA, DM and DataDAM (``{"data": [[images, labels], ...]}``, of which the last
    experiment is taken), of IDC, DREAM, DANCE and NCFM (``[images, labels]``), and of MTT and its family (a tensor
    of images, with the labels in a file of their own). ``torch.load(weights_only=True)`` reads them: nothing in a file
    can run.

    Args:
        file: The file, ``.pt`` or ``.pth``.
        like: The real dataset it was distilled from: what :func:`atomhub.open_source` understands.
        labels: File of the labels; None: where the name of ``file`` begins with ``images``, the one that begins with
            ``labels`` beside it.
        space: What the numbers are: ``pixels`` in 0..1, ``normalized`` by mean and standard deviation, or ``zca``:
            whitened after that, which is undone with a whitening fit on the real training images; ``auto``: pixels if
            they lie within 0..1 (or nearly), else normalised. Images of whole numbers, uint8, are pixels in 0..255.
        formation: Views a side in each stored image (IDC, DREAM, DANCE and NCFM: 2); they are decoded, so ipc grows by
            its square.
        name: Of the set; None: ``<source>-ipc<ipc>-<stem of the file>``.
        network: Recipe fields of the ConvNet to measure it with: ``width``, ``depth``, ``norm``; None: 128 channels,
            instance norm.
        options: Source options (:class:`atomhub.sources.SourceOptions`), such as ``test_fraction``.

    Raises:
        NotFoundError: the file or the labels are not there.
        IntegrityError: the file holds something else than tensors, which is never unpickled.
        UsageError: the tensors do not fit the source, or are not what ``space`` says.
    """
    if space not in ("auto", "pixels", "normalized", "zca"):
        raise UsageError(f"The space cannot be {space!r}.", "Use auto, pixels, normalized or zca.")
    if wrong := set(network or {}) - {"width", "depth", "norm"}:
        raise UsageError(f"A network to import for has no {min(wrong)!r}.", "Give width, depth or norm.")
    check_whole("The formation", formation, 1, 64)
    path = Path(file).expanduser()
    content = _load(path)
    layout, images, targets = _found(path, content, None if labels is None else Path(labels).expanduser())
    real = like if isinstance(like, RealData) else open_source(like, **options)
    images, order, ipc = _fitted(path, images, targets, real, formation)
    images = images[order]
    chosen = space if space != "auto" else _guessed(images)
    normalization = Normalization(real.mean, real.std)
    if chosen == "zca":
        normalization = fit_zca(real.train.images, normalization)
    pixels = images if chosen == "pixels" else normalization.undo(images)
    if formation > 1:
        missing = -pixels.shape[-1] % formation  # filled with grey, as IDC does
        padded = F.pad(pixels, (0, missing) * 2, value=0.5).unflatten(0, (-1, ipc))
        pixels = decode(padded, formation, real.info.size).flatten(0, 1)
        ipc *= formation**2
    clipped = float(((pixels < -1e-4) | (pixels > 1 + 1e-4)).float().mean())
    if clipped > 0.5:
        raise UsageError(
            f"{clipped:.0%} of the pixel values in {path} would lie outside 0..1: they are not {chosen}.",
            "Say what they are: --space pixels, normalized or zca.",
        )
    if clipped > 0.2:
        warnings.warn(
            f"{clipped:.0%} of the pixel values lie outside 0..1 and are clipped: are they really {chosen}?",
            AtomhubWarning, stacklevel=2,
        )  # fmt: skip
    recipe = Recipe.checked(
        {"norm": "instance", "zca": False, **(network or {}), "name": "imported", "pixels": "float32"}
    )
    manifest = Manifest(
        name=check_name(name or f"{real.name}-ipc{ipc}-{re.sub(r'[^A-Za-z0-9._-]+', '-', path.stem)}"[:96]),
        source=real.info,
        recipe=recipe.resolved(ipc, real.info.size, real.info.flip).replace(precision="float32"),
        seed=0,
        ipc=ipc,
        class_names=real.class_names,
        mean=real.mean,
        std=real.std,
        seconds=0,
        device="unknown",
        versions={"atomhub": atomhub.__version__} | {p: version(p) for p in ("torch", "torchvision")},
        command=f"atomhub import {path.name} --like {real.info.id.removeprefix('folder:')}"
        + f" --space {chosen}" + (f" --formation {formation}" if formation > 1 else ""),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        imported=Imported(
            file=path.name, sha256=hashlib.sha256(path.read_bytes()).hexdigest(), layout=layout, space=chosen,
            formation=formation, clipped=clipped,
        ),
    )  # fmt: skip
    return DistilledDataset(pixels.clamp(0, 1), torch.arange(len(real.class_names)).repeat_interleave(ipc), manifest)


def _load(path: Path) -> Any:
    """Return what a .pt file holds, if it is tensors, numbers and containers of them."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise NotFoundError(f"The file {str(path)!r} cannot be read: {error.strerror}.") from None
    # DC's files keep accuracies as NumPy numbers
    from numpy.dtypes import Float32DType, Float64DType, Int64DType

    scalar = np.float64(0).__reduce__()[0]
    safe: list[Any] = [
        scalar,
        (scalar, "numpy.core.multiarray.scalar"),
        np.dtype,
        Float32DType,
        Float64DType,
        Int64DType,
    ]
    try:
        with torch.serialization.safe_globals(safe), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old files use other versions of the protocol
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a stranger's bytes make of the reader
        if "WeightsUnpickler" in str(error) or "weights_only" in str(error).lower():
            found = re.search(r"GLOBAL ([\w.]+)", str(error))
            what = f": it needs {found[1]}" if found else ""
            raise IntegrityError(
                f"{path} holds more than tensors{what}, and is not unpickled.",
                "Save images and labels alone: torch.save([images, labels], ...)",
            ) from None
        raise IntegrityError(f"{path} is not a file of torch.save: {first_line(error)[:160]}.") from None


def _found(path: Path, content: Any, labels: Path | None) -> tuple[Literal["dc", "pair", "tensors"], Tensor, Tensor]:
    """Return how the tensors lie in a file, the images, and the labels."""
    layout: Literal["dc", "pair", "tensors"] = "tensors"
    if isinstance(content, dict) and isinstance(content.get("data"), list | tuple) and content["data"]:
        layout, data = "dc", content["data"]
        pair = data if isinstance(data[0], Tensor) else data[-1]
    elif isinstance(content, list | tuple) and len(content) == 2:
        layout, pair = "pair", content
    elif isinstance(content, Tensor):
        beside = path.with_name("labels" + path.name.removeprefix("images"))
        place = labels or (beside if path.name.startswith("images") else None)
        if place is None:
            raise NotFoundError(f"{path} holds images alone.", "Name the file of their labels: --labels FILE.")
        pair = (content, _load(place))
    else:
        raise IntegrityError(f"{path} holds {type(content).__name__}, not images and labels.", _KNOWN)
    if not (isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(t, Tensor) for t in pair)):
        raise IntegrityError(f"{path} does not hold a tensor of images and one of labels.", _KNOWN)
    return layout, pair[0], pair[1]


_KNOWN = "Known are the files of DC, DSA, DM, DataDAM, IDC, DREAM, DANCE, NCFM and MTT."


def _fitted(path: Path, images: Tensor, labels: Tensor, real: RealData, formation: int) -> tuple[Tensor, Tensor, int]:
    """Return images, their order by class, and ipc; UsageError if they do not fit the source."""
    info, classes = real.info, len(real.class_names)
    shape = (info.channels, info.size, info.size)
    for what, tensor in (("images", images), ("labels", labels)):
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
        # a view of one number can claim to be of any size
        if (
            not plain
            or tensor.is_complex()
            or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()
        ):
            raise UsageError(f"{path} has {what} that are not a plain tensor of numbers.")
    if not images.is_floating_point() and images.dtype != torch.uint8:
        raise UsageError(f"{path} has images of {images.dtype}.", "Known are floating point numbers and uint8.")
    if images.ndim != 4 or tuple(images.shape[1:]) != shape:
        raise UsageError(
            f"{path} has images of shape {tuple(images.shape)}, and {info.id} ones of {shape}.",
            "Name the source it was distilled from: --like.",
        )
    if labels.ndim == 2 and labels.shape == (len(images), classes):
        labels = labels.argmax(1)
        warnings.warn("The labels are soft: the class they say is taken.", AtomhubWarning, stacklevel=3)
    whole = labels.dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    if labels.ndim != 1 or len(labels) != len(images) or not whole:
        raise UsageError(
            f"{path} has labels of {labels.dtype} and shape {tuple(labels.shape)} for {len(images)} images."
        )
    if not len(labels) or int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise UsageError(f"{path} has labels that are not 0 to {classes - 1}, the classes of {info.id}.")
    labels = labels.long()
    images = images.detach().float() / 255 if images.dtype == torch.uint8 else images.detach().float()
    if not bool(images.isfinite().all()):
        raise UsageError(f"{path} has values that are not finite.")
    counts = torch.bincount(labels, minlength=classes)
    if counts.min() < counts.max():
        raise UsageError(f"{path} has between {int(counts.min())} and {int(counts.max())} images of a class: "
                         "a set needs as many of each.")  # fmt: skip
    if formation > info.size // 2:
        raise UsageError(f"The formation cannot be {formation}: use 1 to {info.size // 2}.")
    return images, labels.argsort(stable=True), int(counts[0])


def _guessed(images: Tensor) -> Literal["pixels", "normalized"]:
    """Pixels optimised in 0..1 stray a little; normalised ones have many values below 0."""
    outside = float(((images < -0.1) | (images > 1.1)).float().mean())
    return "pixels" if outside < 0.01 else "normalized"
