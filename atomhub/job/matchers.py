"""What images are matched under: ConvNets, or networks by name, from a function, with weights; and their engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from atomhub.core.anynet import AnyEngine
from atomhub.core.draws import seeded
from atomhub.core.engine import Engine
from atomhub.core.iterations import Iterations
from atomhub.data.real import RealData
from atomhub.errors import UsageError
from atomhub.recipe import Recipe
from atomhub.training.accuracy import check_shape, logits
from atomhub.training.bank import convnet_of
from atomhub.training.nets import InputSpec
from atomhub.training.networks import PROBE, find_network
from atomhub.weights import FILE, digest_of, read_weights, with_weights


@dataclass(frozen=True)
class Matching:
    """How to make the networks that images are matched under.

    Attributes:
        spec: Their name, with options; of a function, its name and brackets.
        build: Makes one, with fresh weights or the recipe's, from torch's global generator.
        identity: A digest of the weights that a seed gives, and of what the network makes of some images.
        weights: The recipe's, a file with its digest.
        network: What sets are measured under that were matched so: they, or where nobody else has them a ConvNet.
    """

    spec: str
    build: Callable[[], nn.Module]
    identity: str
    weights: str | None
    network: str


def name_of(function: Callable[[], nn.Module]) -> str:
    """Return what a recipe calls a function that makes matchers: its name and brackets."""
    return f"{getattr(function, '__name__', 'matcher').strip('<>')}()"


def engine_for(
    real: RealData, recipe: Recipe, ipc: int, *given: Any, matching: Matching | None = None, **named: Any
) -> Iterations:  # fmt: skip
    """Return the engine of a resolved recipe for a source; further arguments are those of :class:`Iterations`."""
    offsets = real.train.offsets(len(real.class_names))
    kind: Callable[..., Iterations] = Engine
    if matching is not None or recipe.gradient:  # which has no closed form
        kind = partial(AnyEngine, build=matching.build if matching else partial(convnet_of, real, recipe))
    return kind(real.train.images, offsets, recipe, ipc, *given, **named)


def find_matcher(
    recipe: Recipe, real: RealData, function: Callable[[], nn.Module] | None = None
) -> Matching | None:  # fmt: skip
    """Return how to make the networks that a recipe matches images under; None: they are its ConvNets.

    Args:
        recipe: Says which (``matcher``, ``weights``, ``norm``).
        real: The source.
        function: Makes one, in place of a name.

    Raises:
        UsageError: there is no such network, it cannot take the images, or the weights are missing or not its own.
    """
    if recipe.statistics == "running" and not recipe.weights:
        raise UsageError(
            f"The recipe {recipe.name!r} has running statistics, which come with trained weights.",
            "Set weights to a .safetensors file of such a network, or statistics to real.",
        )
    inputs = InputSpec(real.info.channels, len(real.class_names), real.info.size)
    plain = f"convnet:norm={recipe.norm}"
    if function is not None:
        if isinstance(function, nn.Module) or not callable(function):
            raise UsageError(
                f"The matcher cannot be of type {type(function).__name__}: it is a function that makes networks.",
                "Give one, such as `lambda: MyNetwork()`, or name a network: overrides={'matcher': 'resnet18'}.",
            )
        spec, build, usual = name_of(function), function, plain
        pretrained = None
    elif recipe.convnet:
        return None
    elif recipe.matcher.startswith(PROBE):
        raise UsageError(
            f"The matcher cannot be {recipe.matcher!r}: no gradient reaches the images through it.",
            "Give the network itself as the matcher, its weights as weights, and the recipe probe.",
        )
    else:
        network = find_network(recipe.matcher, inputs, plain)
        spec, build, usual, pretrained = network.spec, network.build, network.spec, network.pretrained
    weights = recipe.weights
    if weights:
        with seeded(0, torch.device("cpu")):
            state = read_weights(weights, spec, pretrained)
            build = with_weights(build, state, weights, running=recipe.statistics == "running")
        file = weights.partition(" sha256:")[0]
        if file.endswith(FILE):
            weights = f"{Path(file).name} sha256:{digest_of(state)}"
    with seeded(0, torch.device("cpu")), torch.no_grad():
        model: Any = build()
        if not isinstance(model, nn.Module) or model is build():
            what = "the same network every time" if isinstance(model, nn.Module) else type(model).__name__
            raise UsageError(f"The matcher {spec} gives {what}.", "Return a new torch.nn.Module from it.")
    with seeded(1, torch.device("cpu")), torch.no_grad():
        made = logits(model.eval(), torch.rand(1, inputs.channels, inputs.size, inputs.size))
    check_shape(spec, made.shape, (1, inputs.classes))
    return Matching(spec, build, digest_of({"": made, **dict(model.named_parameters())}), weights, usual)
