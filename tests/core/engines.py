"""Small engines in float64 that tests compare."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from atomhub.core.anynet import AnyEngine
from atomhub.core.augment import augment
from atomhub.core.bank import Bank
from atomhub.core.convnet import ConvNet
from atomhub.core.engine import Engine
from atomhub.core.whitening import Normalization, fit_zca
from atomhub.recipe import Recipe

SIZE, SIZES = 16, (5, 4, 7)
MANY = (34, 33, 37)
"""Real images of each class, and where more of them are needed."""
NORMALIZATION = Normalization((0.4, 0.5, 0.45), (0.2, 0.25, 0.3))


class Residual(nn.Module):
    """Three stages of a network as people write it: modules that are used twice, functions, in-place ones, dropout."""

    def __init__(self, classes=3):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6))
        self.branch = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6))
        self.down = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.last = nn.Sequential(nn.Conv2d(8, 10, 3, stride=2, padding=1), nn.BatchNorm2d(10), nn.ReLU(inplace=True))
        self.relu, self.dropout = nn.ReLU(inplace=True), nn.Dropout(0.5)
        self.hidden, self.head = nn.Linear(10, 12), nn.Linear(12, classes)

    def stages(self, x):
        """The last activation of every stage."""
        x = self.relu(self.stem(x))
        first = self.relu(self.branch(x) + x)
        second = F.gelu(self.down(first))
        return first, second, self.last(second)

    def forward(self, x):
        x = self.stages(x)[-1].mean((2, 3))
        return self.head(self.features(x))

    def features(self, x):
        return self.dropout(F.relu(self.hidden(x)))


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


def whole_batches(engine, draw):
    """Residual as an iteration has it, with batch norm's statistics of its real images; both sides; what these see."""
    recipe, network = engine.recipe, Residual().double().eval()
    for (_, own), given in zip(network.named_parameters(), engine.matcher.weights(draw.weights).values(), strict=True):
        own.data = given
    real = engine.real[draw.indices]
    seen = engine.synthetic.seen().requires_grad_()
    rows = slice(None) if draw.classes is None else draw.classes
    views = augment(real, draw.augmentation, recipe.stages), augment(seen[rows], draw.augmentation, recipe.stages)
    for norm in (m for m in network.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.train().momentum = 1.0
    x = views[0].flatten(0, 1)
    network(x)
    stages = network.stages(x)  # for how many values each norm saw, which PyTorch corrects its variance for
    for norm, values in zip((network.stem[1], network.branch[1], network.last[1]), (0, 0, 2), strict=True):
        n = stages[values][:, 0].numel()
        norm.eval().running_var.mul_((n - 1) / n)
    return network, views, seen


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
