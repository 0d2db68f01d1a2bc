"""The networks of a bank, each trained once per source and kept in the cache."""

import hashlib
import json
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn
from torch.optim.swa_utils import update_bn

from atomhub.core.bank import Bank
from atomhub.core.real import RealImages
from atomhub.core.whitening import Normalization
from atomhub.data.real import RealData
from atomhub.errors import AtomhubWarning
from atomhub.files import home, replace_file
from atomhub.interrupts import heeded
from atomhub.job.matchers import Matching
from atomhub.recipe import Recipe
from atomhub.training.bank import BATCH, DEPENDS, VERSION, convnet_of, train_bank
from atomhub.training.fit import fastest_group
from atomhub.weights import digest_of


def find_bank(
    real: RealData, recipe: Recipe, normalization: Normalization, device: torch.device,
    matching: Matching | None = None, progress: Callable[[float, int], None] = lambda done, total: None,
) -> Bank:  # fmt: skip
    """Return the bank of a resolved recipe for a source: networks from the cache, and those it lacks trained now.

    Each network is kept as soon as it is trained, so an interrupted run continues with the next, and a larger bank has
    the networks of a smaller one.

    Args:
        real: The source.
        recipe: A resolved recipe.
        normalization: From pixels to the space of the networks.
        device: Where to train.
        matching: How to make them; None: they are ConvNets.
        progress: Called with the networks there are and those there will be, also with parts of networks.

    Raises:
        AtomhubError: a loss is not finite, or the cache cannot be written.
    """
    keys = _keys(real, recipe, device, matching)
    found = {member: kept for member, key in enumerate(keys) if (kept := _read(key)) is not None}
    missing = [member for member in range(recipe.bank) if member not in found]
    if missing:
        images, build = RealImages(real.train.images, normalization, device), matching.build if matching else None
        group = fastest_group(device, BATCH * real.info.size**2)
        with heeded("this network" if group == 1 else "these networks") as stop:
            for i in range(0, len(missing), group):
                some = missing[i : i + group]
                progress(len(found), recipe.bank)
                told = partial(_further, progress, len(found), recipe.bank)
                for member, one in zip(some, train_bank(real, recipe, images, some, build, told), strict=True):
                    tensors = {f"{s}.{name}": t for s in ("initial", "trained") for name, t in getattr(one, s).items()}
                    about = {"key": keys[member], "seconds": str(one.seconds), "sha256": digest_of(tensors)}
                    replace_file(_path(keys[member]), save(tensors, about))
                    found[member] = one
                if stop():
                    note = f"Stopped: {len(found)} of {recipe.bank} networks are trained and kept."
                    warnings.warn(note, AtomhubWarning, stacklevel=3)
                    raise KeyboardInterrupt
        progress(len(found), recipe.bank)
        if device.type == "cuda":
            del images
            with suppress(RuntimeError):  # torch 2.11's, where a network could not be recorded
                torch.cuda.empty_cache()  # the engine asks how much is free
    return Bank.joined([found[member] for member in range(recipe.bank)])


def _further(progress: Callable[[float, int], None], before: int, total: int, done: float) -> None:
    progress(before + done, total)


_STATISTICS = 2048
"""Real images that a teacher's batch norm takes its statistics of."""


def teacher_of(
    bank: Bank, real: RealData, recipe: Recipe, normalization: Normalization, device: torch.device,
    matching: Matching | None = None,
) -> nn.Module:  # fmt: skip
    """Return the first trained network of a bank, ready to classify normalised images; arguments as find_bank's.

    Its batch norms take their statistics of real images, 2 048 spread over the classes.
    """
    network = matching.build() if matching else convnet_of(real, recipe)
    bank.put(network, 0, 1.0)
    images, count = RealImages(real.train.images, normalization, device), len(real.train.labels)
    rows = np.unique(np.linspace(0, count - 1, _STATISTICS).astype(int))
    update_bn((images[some] for some in np.array_split(rows, -(-len(rows) // BATCH))), network.to(device))
    return network.eval().requires_grad_(False)


def lacking(real: RealData, recipe: Recipe, device: torch.device, matching: Matching | None = None) -> int:
    """Return how many networks of a bank are not in the cache."""
    return sum(not _path(key).exists() for key in _keys(real, recipe, device, matching))


def _keys(real: RealData, recipe: Recipe, device: torch.device, matching: Matching | None) -> list[str]:
    """Return what tells the networks of a bank from all others."""
    part = {key: value for key, value in recipe.model_dump(mode="json").items() if key in DEPENDS}
    part |= {"source": real.info.fingerprint, "device": device.type, "version": VERSION}
    # some classes of a source, or in another order, have its fingerprint
    part["classes"] = hashlib.sha256(repr(real.class_names).encode() + real.train.labels.tobytes()).hexdigest()
    if matching is not None:
        # some options of a network show in training alone
        part |= {"matcher": matching.identity, "network": matching.spec}
    return [json.dumps(part | {"member": member}, sort_keys=True) for member in range(recipe.bank)]


def _path(key: str) -> Path:
    return home() / "banks" / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.safetensors"


def _read(key: str) -> Bank | None:
    try:
        with safe_open(_path(key), "pt") as file:
            about = file.metadata() or {}
            if about.get("key") != key:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 not a dict
            if about.get("sha256") != digest_of(tensors):
                raise ValueError("its weights are not those it was written with")
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, ValueError) as error:
        note = f"A trained network in the cache is damaged, and is trained again ({_path(key)}: {error})."
        warnings.warn(note, AtomhubWarning, stacklevel=4)
        return None
    sides = {s: {n.removeprefix(s): t for n, t in tensors.items() if n.startswith(s)} for s in ("initial.", "trained.")}
    return Bank(sides["initial."], sides["trained."], float(about["seconds"]))
