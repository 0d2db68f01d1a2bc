"""The shipped recipes, as data: what differs from the defaults of :class:`atomhub.recipe.Recipe`."""

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    # DM, WACV 2023, section 4: feature term alone, unscaled, 20 000 iterations, 256 real images per class
    "dm": {"feature": 1.0, "loss_scale": 1.0, "iterations": 20000, "real_batch": 256},
    "datadam": {"spatial": 1.0},
    "channel": {"channel": 1.0},
    "atom": {"spatial": 1.0, "channel": 1.0},
    # the default; DANCE, IJCAI 2024, as its code is: it has 20 networks of 60 epochs, 10 000 iterations at a constant
    # rate that is about 0.25 * ipc here, and the calibration a step of its own
    "dance": {
        "feature": 1.0, "loss_scale": 1.0, "calibration": 1.0, "norm": "instance", "formation": 2, "bank": 3,
        "bank_epochs": 6, "iterations": 600, "augmentation": ("color", "crop", "cutout"), "augmentation_draw": "all",
        "image_lr_scaling": "ipc", "image_schedule": "cosine",
    },
    # IDC, ICML 2022: its objective and views; networks of a bank, and steps of a size, are ours
    "idc": {
        "gradient": 1.0, "feature": 0.0, "loss_scale": 1.0, "norm": "instance", "formation": 2, "bank": 3,
        "bank_epochs": 6, "bank_reach": 0.5, "iterations": 400, "real_batch": 32,
        "augmentation": ("color", "crop", "cutout"), "augmentation_draw": "all", "image_step": "normalized",
        "image_lr": 0.2, "image_schedule": "cosine",
    },
    # Dataset Distillation, arXiv 1811.10959, for the last layer of a network that stays as it is; needs its weights.
    # Nothing is augmented, as where linear layers are trained on features
    "probe": {
        "augmentation": (), "layer": 1.0, "feature": 0.0, "loss_scale": 1.0, "matcher": "resnet18",
        "statistics": "running", "image_pyramid": True, "iterations": 1000, "real_batch": 1024,
        "image_step": "adam", "image_momentum": 0.9, "image_schedule": "cosine",
    },
    # RDED, CVPR 2024: no optimisation; its teacher is trained for hundreds of epochs
    "rded": {"init": "tiles", "iterations": 0, "matcher": "resnet18", "bank": 1, "bank_epochs": 20},
    # RDED's crops as views, then attention under their teacher and its way there; a step of a size for any network
    "atom-photo": {
        "spatial": 10.0, "channel": 10.0, "feature": 1.0, "loss_scale": 1.0, "init": "tiles", "formation": 2,
        "matcher": "resnet18", "bank": 1, "bank_epochs": 20, "iterations": 80, "real_batch": 32,
        "augmentation": ("color", "crop", "cutout"), "augmentation_draw": "all", "image_step": "normalized",
        "image_lr": 0.05, "image_schedule": "cosine",
    },
}  # fmt: skip
"""Recipe name to fields."""

PURPOSES: dict[str, str] = {
    "dm": "to reproduce DM, the field's baseline",
    "datadam": "to reproduce DataDAM",
    "channel": "to see what channel attention alone does",
    "atom": "to reproduce ATOM",
    "idc": "for sets of one image per class",
    "probe": "for a linear layer on a trained network's features; give its weights",
    "atom-photo": "for photographs that a network is to learn from scratch",
    "rded": "for real crops that a network is surest of",
    "dance": "for sets of several images per class; the default",
}
"""Recipe name to what it is for."""

TUNED: dict[str, dict[str, Any]] = {
    # 16x16 images on a CPU: small and short
    "digits": {
        "norm": "instance",
        "width": 32,
        "iterations": 300,
        "real_batch": 64,
        "bank_epochs": 30,
        "matcher": "convnet",
    }
}
"""What the size of a source asks for, by the source's name; applied to presets unless the user sets the field."""
