"""Small engines in float64 that tests compare."""

import numpy as np
import torch

from atomhub.core.anynet import AnyEngine
from atomhub.core.bank import Bank
from atomhub.core.convnet import ConvNet
from atomhub.core.engine import Engine
from atomhub.core.whitening import Normalization, fit_zca
from atomhub.recipe import Recipe

SIZE, SIZES = 16, (5, 4, 7)
MANY = (34, 33, 37)
"""Real images of each class, and where more of them are needed."""
NORMALIZATION = Normalization((0.4, 0.5, 0.45), (0.2, 0.25, 0.3))


def given(preset, channels, ipc, overrides):
    """Random images of three classes, where each begins, and a small recipe."""
    rng, sizes = np.random.default_rng(1), MANY if "formation" in overrides else SIZES
    images = rng.integers(0, 256, (sum(sizes), channels, SIZE, SIZE), dtype=np.uint8)
    fields = {"width": 6, "real_batch": 4, "iterations": 5, "norm": "instance", **overrides}
    return images, np.cumsum([0, *sizes]), Recipe.named(preset, fields).resolved(ipc, SIZE)


def make_engine(preset="atom", channels=3, ipc=2, seed=0, dtype=torch.float64, options=None, **overrides):
    images, offsets, recipe = given(preset, channels, ipc, overrides)
    normalization = Normalization((0.4, 0.5, 0.45)[:channels], (0.2, 0.25, 0.3)[:channels])
    if recipe.zca:
        normalization = fit_zca(images, normalization)
    bank = make_bank(recipe, channels) if recipe.bank else None
    return Engine(images, offsets, recipe, ipc, normalization, seed, dtype=dtype, bank=bank, **(options or {}))


def engine_of(
    build, channels=3, ipc=2, options=None, trained=None, seed=0, dtype=torch.float64, **fields
):  # fmt: skip
    """Like make_engine, under any network."""
    known = given("atom", channels, ipc, fields)
    return AnyEngine(*known, ipc, NORMALIZATION, seed, dtype=dtype, build=build, bank=trained, **(options or {}))


def make_bank(recipe, channels=3):
    """Networks before and after a training that is pretended: both ends are drawn."""
    ends = []
    for end in range(2):
        states = []
        for member in range(recipe.bank):
            network = ConvNet(channels, len(SIZES), SIZE, recipe.width, recipe.depth, recipe.norm)
            network.reinitialise(torch.Generator().manual_seed(10 * member + end))
            states.append({n: p.detach() for n, p in network.named_parameters() if not n.startswith("norms")})
        ends.append({name: torch.stack([state[name] for state in states]) for name in states[0]})
    return Bank(*ends)


def named(engine, draw, flat):
    """The weights of a draw as a state dict of its network, float64."""
    parameters = dict(engine.embedding.networks[draw.network].named_parameters())
    names = sorted((n for n in parameters if n.startswith("convolutions")), key=lambda n: (n.endswith("bias"), n))
    names += ["head.weight", "head.bias"]
    shapes, found = [parameters[name].shape for name in names], {}
    for name, shape in zip(names, shapes, strict=True):
        own, flat = flat[: shape.numel()], flat[shape.numel() :]
        if len(own):  # the head is drawn where it is used
            found[name] = own.view(shape).double()
    return found
