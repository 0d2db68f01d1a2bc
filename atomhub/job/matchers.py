"""What images are matched under: ConvNets, or networks by name, from a function, with weights; and their engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from atomhub.core.anynet import AnyEngine
from atomhub.core.bank import digest_of
from atomhub.core.draws import seeded
from atomhub.core.engine import Engine
from atomhub.core.iterations import Iterations
from atomhub.data.real import RealData
from atomhub.errors import AtomhubError, UsageError, first_line
from atomhub.files import read_regular, user_path
from atomhub.recipe import Recipe
from atomhub.training.accuracy import check_shape, logits
from atomhub.training.nets import InputSpec
from atomhub.training.networks import TORCHVISION, find_network

_FILE = ".safetensors"
_LARGEST = 2**33
"""Bytes of a file of weights."""


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


def engine_for(
    real: RealData, recipe: Recipe, ipc: int, *given: Any, matching: Matching | None = None, **named: Any
) -> Iterations:  # fmt: skip
    """Return the engine of a resolved recipe for a source; further arguments are those of :class:`Iterations`."""
    offsets = real.train.offsets(len(real.class_names))
    kind: Callable[..., Iterations] = Engine if matching is None else partial(AnyEngine, build=matching.build)
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
        UsageError: there is no such network, it cannot take the images, or the weights are not its own.
    """
    inputs = InputSpec(real.info.channels, len(real.class_names), real.info.size)
    plain = f"convnet:norm={recipe.norm}"
    if function is not None:
        spec, build, usual = f"{getattr(function, '__name__', 'matcher').strip('<>')}()", function, plain
    elif recipe.convnet:
        return None
    else:
        network = find_network(recipe.matcher, inputs, plain)
        spec, build, usual = network.spec, network.build, network.spec
    weights = recipe.weights
    if weights:
        state = _read_weights(weights, spec)
        build = _with_weights(build, state, weights)
        if weights.endswith(_FILE):
            weights = f"{Path(weights).name} sha256:{digest_of(state)}"
    with seeded(0, torch.device("cpu")), torch.no_grad():
        model: Any = build()
        if not isinstance(model, nn.Module) or model is build():
            what = "the same network every time" if isinstance(model, nn.Module) else type(model).__name__
            raise UsageError(f"The matcher {spec} gives {what}.", "Return a new torch.nn.Module from it.")
    with seeded(1, torch.device("cpu")), torch.no_grad():
        made = logits(model.eval(), torch.rand(1, inputs.channels, inputs.size, inputs.size))
    check_shape(spec, made.shape, (1, inputs.classes))
    return Matching(spec, build, digest_of({"": made, **dict(model.named_parameters())}), weights, usual)


def _with_weights(
    build: Callable[[], nn.Module], state: dict[str, Tensor], source: str
) -> Callable[[], nn.Module]:  # fmt: skip
    """Return how to make a network with given weights; its last layer stays fresh where it has other classes."""

    def loaded() -> nn.Module:
        model = build()
        last = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1:]
        for name, own in model.named_parameters():
            given = state.get(name)
            if given is not None and given.shape == own.shape:
                own.data.copy_(given)
            elif name.rpartition(".")[0] not in last:
                found = (
                    f"has the shape {tuple(given.shape)}, not {tuple(own.shape)}" if given is not None else "is missing"
                )
                raise UsageError(
                    f"The weights {source!r} are not those of this network: {name} {found}.",
                    "Use those of the recipe's matcher.",
                )
        return model

    loaded()  # now, if they do not fit
    return loaded


def _read_weights(weights: str, spec: str) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors file, or those that torchvision has under a name."""
    if weights.endswith(_FILE):
        try:
            return load(read_regular(user_path(weights), _LARGEST))
        except (OSError, SafetensorError, ValueError) as error:
            raise UsageError(f"Cannot read the weights {weights!r}: {first_line(error)}.") from None
    from torchvision import models

    name = spec.removeprefix(TORCHVISION)
    try:
        known: Any = models.get_model_weights(name)  # of its networks alone: ours have options, or its prefix
        chosen = known[weights]
    except (KeyError, ValueError):
        raise UsageError(
            f"There are no weights {weights!r} of the network {spec!r}.",
            "Give a .safetensors file, or one of torchvision's names such as IMAGENET1K_V1.",
        ) from None
    try:
        return dict(chosen.get_state_dict(progress=False, check_hash=True))
    except Exception as error:  # urllib's, and those of torch.hub
        raise AtomhubError(f"Cannot fetch the weights {weights!r} of {name!r}: {first_line(error)}.") from error
