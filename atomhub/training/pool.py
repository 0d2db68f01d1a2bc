"""The pool of briefly trained networks, each trained once per source and kept in the cache."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from atomhub.core import draws
from atomhub.core.engine import fits
from atomhub.core.networks import ConvNet
from atomhub.core.pool import Pool
from atomhub.core.whitening import Normalization
from atomhub.files import home, replace_file
from atomhub.recipe import Recipe
from atomhub.sources import RealData
from atomhub.training.protocols import Protocol
from atomhub.training.trainer import fastest_group, fit

_VERSION = 1
"""Of the training below: another one finds no pool of this one."""
_SEED = 0
"""One pool serves all seeds of a source."""
_PART = ("pool_epochs", "width", "depth", "norm", "zca", "augmentation", "precision")
"""Fields of a recipe that a network of a pool depends on."""


class _Real:
    """Real images as :func:`fit` takes them: gathered and normalised when they are asked for."""

    def __init__(self, images: NDArray[np.uint8], normalization: Normalization, device: torch.device) -> None:
        self.device, self.images = device, images
        self.normalization = normalization.to(device, torch.float32)
        self.resident = torch.from_numpy(np.array(images)).to(device) if fits(images, device) else None

    def __getitem__(self, rows: Any) -> Tensor:
        if self.resident is not None:
            pixels = self.resident[rows]
        else:
            rows = rows.cpu().numpy() if isinstance(rows, Tensor) else rows
            pixels = torch.tensor(self.images[rows]).to(self.device)
        with torch.autocast(self.device.type, enabled=False):  # whitening is a product that needs float32
            return self.normalization.apply(pixels)


def find_pool(real: RealData, recipe: Recipe, normalization: Normalization, device: torch.device) -> Pool:
    """Return the pool of a resolved recipe for a source: networks from the cache, those it lacks trained now.

    Networks are trained with SGD (learning rate 0.01, momentum 0.9, decay 5e-4, batch 64) under the recipe's
    augmentation, one operation an image; their norm layers stay the identity. Each is kept as soon as it is trained, so
    an interrupted run goes on with the next, and a larger pool has the networks of a smaller one.

    Raises:
        AtomhubError: a loss is not finite, or the cache cannot be written.
    """
    part = {key: value for key, value in recipe.model_dump(mode="json").items() if key in _PART}
    part |= {"source": real.info.fingerprint, "device": device.type, "version": _VERSION}
    keys = [json.dumps(part | {"member": member}, sort_keys=True) for member in range(recipe.pool)]
    found = {member: kept for member, key in enumerate(keys) if (kept := _read(key)) is not None}
    missing = [member for member in range(recipe.pool) if member not in found]
    if missing:
        images, labels = _Real(real.train.images, normalization, device), torch.from_numpy(real.train.labels).to(device)
        # batches of 64: on a CPU their maps stay nearer to the caches, and a brief training takes more steps
        protocol = Protocol(recipe.pool_epochs, 64, "DANCE", drops=())
        group = fastest_group(device, protocol.batch * real.info.size**2)
        for i in range(0, len(missing), group):
            some = missing[i : i + group]
            for member, one in zip(some, _trained(real, recipe, images, labels, protocol, some), strict=True):
                tensors = {f"{s}.{name}": t for s in ("initial", "trained") for name, t in getattr(one, s).items()}
                replace_file(_path(keys[member]), save(tensors, {"key": keys[member], "seconds": str(one.seconds)}))
                found[member] = one
        if device.type == "cuda":
            del images
            torch.cuda.empty_cache()  # the engine asks how much is free
    return Pool.joined([found[member] for member in range(recipe.pool)])


def _trained(
    real: RealData, recipe: Recipe, images: _Real, labels: Tensor, protocol: Protocol, members: list[int]
) -> list[Pool]:
    """Return these networks, trained together, each as a pool of its own."""
    start, networks = time.perf_counter(), []
    seeds = [draws.generator_seed(_SEED, draws.POOL, 0, member) for member in members]
    for seed in seeds:
        network = ConvNet(
            real.info.channels, len(real.class_names), real.info.size, recipe.width, recipe.depth, recipe.norm
        )
        network.reinitialise(torch.Generator().manual_seed(seed))
        network.norms.requires_grad_(False)
        networks.append(network.to(images.device))
    initial = [_weights(network) for network in networks]
    half = recipe.precision == "bfloat16"
    # its cache would keep the weights of the first step to the end
    with torch.autocast(images.device.type, torch.bfloat16, enabled=half, cache_enabled=False):
        fit(
            networks, [images] * len(networks), labels, protocol, recipe.augmentation, len(real.class_names), seeds,
            (members[0], recipe.pool),
        )  # fmt: skip
    seconds = round((time.perf_counter() - start) / len(members), 2)
    return [Pool(before, _weights(network), seconds) for before, network in zip(initial, networks, strict=True)]


def _weights(network: ConvNet) -> dict[str, Tensor]:
    """Return a copy of the weights of a network but those of norm layers, name to (1, ...), on the CPU."""
    return {name: p.detach().cpu().clone()[None] for name, p in network.named_parameters() if p.requires_grad}


def _path(key: str) -> Path:
    return home() / "pools" / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.safetensors"


def _read(key: str) -> Pool | None:
    try:
        with safe_open(_path(key), "pt") as file:
            about = file.metadata() or {}
            if about.get("key") != key:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 not a dict
    except (OSError, SafetensorError):
        return None
    sides = {s: {n.removeprefix(s): t for n, t in tensors.items() if n.startswith(s)} for s in ("initial.", "trained.")}
    return Pool(sides["initial."], sides["trained."], float(about["seconds"]))
