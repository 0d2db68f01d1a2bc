"""Brief training of a bank's networks on real images. Nothing is kept here: see ``job/banks.py``."""

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from atomhub.core import draws
from atomhub.core.bank import Bank
from atomhub.core.convnet import ConvNet
from atomhub.core.draws import seeded
from atomhub.core.real import RealImages
from atomhub.data.real import RealData
from atomhub.recipe import Recipe
from atomhub.training.fit import fit
from atomhub.training.protocols import Protocol

VERSION = 3
"""Version of the training below: networks of another version are trained anew."""
DEPENDS = ("bank_epochs", "width", "depth", "norm", "zca", "precision", "matcher")
"""Fields of a recipe that a network of a bank depends on."""
_SEED = 0
"""One bank serves all seeds of a source."""
BATCH = 64
"""On a CPU the maps of so few images stay nearer to the caches, and a brief training takes more steps."""
_STAGES = (("color",), ("crop",))
"""Of every image, always, and neither changes a class."""


def train_bank(
    real: RealData, recipe: Recipe, images: RealImages, members: list[int],
    build: Callable[[], nn.Module] | None = None, told: Callable[[float], None] | None = None,
) -> list[Bank]:  # fmt: skip
    """Train some networks of a bank together, and return each as a bank of one.

    As in DANCE's code: SGD (learning rate 0.01, a fifth of it after two and again after five sixths of the epochs,
    momentum 0.9, decay 5e-4, batch 64), colour and crop with parameters for every image, and CutMix with probability
    0.5. Norm layers of ConvNets stay the identity, which is ours.

    Args:
        real: The source.
        recipe: A resolved recipe.
        images: Its training images.
        members: Numbers of the networks, which key their weights, order and augmentation.
        build: Makes one, from torch's global generator; None: they are ConvNets.
        told: Called every second or so with how much is done, in networks.

    Raises:
        AtomhubError: a loss is not finite.
    """
    start, networks = time.perf_counter(), list[nn.Module]()
    seeds = [draws.generator_seed(_SEED, draws.BANK, 0, member) for member in members]
    for seed in seeds:
        if build is None:
            network = convnet_of(real, recipe)
            network.reinitialise(torch.Generator().manual_seed(seed))
            network.norms.requires_grad_(False)
            networks.append(network.to(images.device))
        else:
            with seeded(seed, torch.device("cpu")):
                networks.append(build().to(images.device))
    initial = [_weights(network) for network in networks]
    labels = torch.from_numpy(real.train.labels).to(images.device)
    drops = (-(-recipe.bank_epochs * 2 // 3), -(-recipe.bank_epochs * 5 // 6))
    protocol = Protocol(recipe.bank_epochs, BATCH, "DANCE", drops=drops, factor=0.2, cutmix=0.5)
    half = recipe.precision == "bfloat16"
    # its cache would keep the weights of the first step to the end
    with torch.autocast(images.device.type, torch.bfloat16, enabled=half, cache_enabled=False):
        fit(
            networks, [images] * len(networks), labels, protocol, _STAGES, len(real.class_names), seeds,
            (members[0], recipe.bank), record=True, told=told,
        )  # fmt: skip
    seconds = round((time.perf_counter() - start) / len(members), 2)
    return [Bank(before, _weights(network), seconds) for before, network in zip(initial, networks, strict=True)]


def convnet_of(real: RealData, recipe: Recipe) -> ConvNet:
    """Return the ConvNet of a resolved recipe for a source, with torch's fresh weights."""
    return ConvNet(
        real.info.channels, len(real.class_names), real.info.size, recipe.width, recipe.depth, recipe.norm
    )  # fmt: skip


def _weights(network: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the weights of a network, name to (1, ...), on the CPU."""
    return {name: p.detach().cpu().clone()[None] for name, p in network.named_parameters()}
