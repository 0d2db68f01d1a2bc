"""Write a distilled set as another project or tool wants it."""

import json
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from atomhub.core import augment
from atomhub.dataset import DistilledDataset
from atomhub.errors import UsageError
from atomhub.files import check_target, new_folder
from atomhub.training.protocols import PROTOCOLS

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
        digests = {path: file.sha256 for path, file in distilled.manifest.files.items()}
        about = {"set": distilled.name, "format": format, "sha256": digests}
        (temporary / _MARKER).write_text(json.dumps(about, indent=1) + "\n")
    return target


def _ddranking(distilled: DistilledDataset, folder: Path) -> None:
    """Tensors, and the YAML of DD-Ranking's evaluators (its documentation: label-robust score with hard labels)."""
    import yaml

    f, source, rules = distilled.manifest.format, distilled.manifest.provenance.source_id, PROTOCOLS["dm"]
    depth = re.search(r"depth=(\d+)", distilled.manifest.results.network)
    images, labels = distilled.as_tensors()
    torch.save(images, folder / "images.pt")
    torch.save(labels, folder / "labels.pt")
    if distilled.soft_labels is not None:  # it wants logits; their softmax is what the set holds
        torch.save(distilled.soft_labels.float().clamp(min=1e-7).log(), folder / "soft_labels.pt")
    known = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "tiny-imagenet": "TinyImageNet", "mnist": "MNIST"}
    turned = {"flip": 0.5, "rotate": augment.ANGLE, "saturation": 2.0, "brightness": 1.0, "contrast": 0.5,
              "scale": augment.ZOOM, "crop": augment.SHIFT, "cutout": augment.HOLE}  # fmt: skip
    if not f.flip:
        turned.pop("flip")
    config = {
        "dataset": known.get(source, source), "real_data_path": "./dataset/", "ipc": f.views_per_class,
        "im_size": [f.size] * 2, "model_name": f"ConvNet-{depth[1] if depth else 3}", "use_torchvision": False,
        "data_aug_func": "dsa", "aug_params": turned, "use_zca": f.whitening == "zca", "custom_train_trans": None,
        "custom_val_trans": None, "optimizer": "sgd", "lr_scheduler": "step", "step_size": rules.epochs // 2,
        "weight_decay": rules.decay, "momentum": rules.momentum, "num_eval": 5, "num_epochs": rules.epochs,
        "syn_batch_size": rules.batch, "real_batch_size": 256, "num_workers": 4, "device": "cuda", "dist": False,
        "eval_full_data": True, "random_data_format": "tensor", "random_data_path": "./random_data",
        "save_path": f"./results/{distilled.name}.csv",
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
    f = distilled.manifest.format
    more: dict[str, Any] = {}
    if distilled.soft_labels is not None:
        more["soft_labels"] = distilled.soft_labels.numpy()
    if distilled.whitening is not None:
        more |= {"center": distilled.whitening.center.numpy(), "matrix": distilled.whitening.matrix.numpy()}
    np.savez_compressed(
        folder / f"{distilled.name}.npz", images=distilled.training_pixels().numpy(),
        labels=distilled.training_labels().numpy(), class_names=np.array(f.class_names), mean=np.array(f.mean),
        std=np.array(f.std), **more,
    )  # fmt: skip
