"""Networks by name: those of the literature and torchvision's classifiers, with options."""

import inspect
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from atomhub.core.draws import seeded
from atomhub.errors import UsageError, check_installed, closest, first_line
from atomhub.training.nets import NETWORKS, InputSpec
from atomhub.training.probes import Probe, no_probe
from atomhub.weights import TORCHVISION, digest_of, read_weights, with_weights

TIMM = "timm/"
"""Prefix of timm's models, where it is installed."""

PROBE = "probe/"
"""Prefix of a linear layer on the features of a network, which is frozen with the weights of a file."""


@dataclass(frozen=True)
class Network:
    """A network by name, with every option spelt out.

    Attributes:
        spec: ``name`` or ``name:option=value,...``; :func:`find_network` reads it back.
        build: Makes a new one with fresh weights, from torch's global generator.
        inputs: What it classifies.
        pretrained: Makes one with the weights that its library has for it, if it has any.
    """

    spec: str
    build: Callable[[], nn.Module]
    inputs: InputSpec
    pretrained: Callable[[], nn.Module] | None = None

    def parameters(self) -> int:
        """Return how many numbers it has, learnt or frozen."""
        return sum(p.numel() for p in self.sketch().parameters())

    def sketch(self) -> nn.Module:
        """Return it without memory for its weights, where it can be built so."""
        return _sketch(self.build)


def split_spec(spec: str) -> tuple[str, dict[str, str]]:
    """Return name and options of ``name:option=value,...``; UsageError for anything else."""
    name, colon, text = spec.partition(":")
    options: dict[str, str] = {}
    for part in text.split(",") if colon else ():
        key, sign, value = part.partition("=")
        if not sign and list(options)[-1:] == ["weights"]:  # the name of a file may have commas
            options["weights"] += f",{part}"
            continue
        if not sign or not key.strip() or not value.strip() or key.strip() in options:
            raise UsageError(
                f"The network {spec!r} cannot be read at {part!r}.",
                "Write options as name=value, once each: convnet:width=64,norm=batch",
            )
        options[key.strip()] = value.strip()
    return name.strip(), options


def find_network(spec: str | None, inputs: InputSpec, usual: str = "convnet", tried: bool = True) -> Network:
    """Return a network by name.

    Args:
        spec: One of :data:`NETWORKS`, with options: ``convnet:width=64,norm=batch``; a classifier of torchvision; a
            model of timm, as ``timm/NAME``; a linear probe on one of these, as ``probe/NAME:weights=FILE``; None: the
            usual one.
        inputs: What it is to classify.
        usual: The network of a set (``manifest.results.network``), whose options count where ``spec`` names the same
            network without them; other networks have its norm.
        tried: Whether to see that it takes the inputs, and to read the weights of a probe.

    Raises:
        UsageError: an unknown name or option (with the closest match), a value that is not possible, or a network that
            cannot take images of that size.
    """
    name, given = split_spec(usual if spec is None else spec)
    if name.startswith(PROBE):
        return _probe(name.removeprefix(PROBE), given, inputs, usual, tried)
    make = NETWORKS.get(name)
    if make is None:
        network = (_timm if name.startswith(TIMM) else _torchvision)(name, given, inputs)
        return _tried(network) if tried else network
    hints = get_type_hints(make, include_extras=True)
    signature = inspect.signature(make).parameters
    defaults = {key: p.default for key, p in signature.items() if p.kind is p.KEYWORD_ONLY}
    for key, value in _inherited(name, usual).items():
        with suppress(UsageError):  # a norm that this network does not have, say
            defaults |= {key: _read(name, key, value, defaults, hints)}
    chosen = defaults | {key: _read(name, key, value, defaults, hints) for key, value in given.items()}
    known = {key: value for key, value in chosen.items() if value is not None}
    # a spec names what may differ between two results: all that the set or the user chose
    named = [f"{k}={v}" for k, v in known.items() if v != signature[k].default or k in ("width", "depth", "norm")]
    full = name + (":" + ",".join(named) if named else "")
    network = Network(full, lambda: make(inputs, **known), inputs)
    return _tried(network) if tried else network


def _inherited(name: str, usual: str) -> dict[str, str]:
    """Return the options that a network takes over from a set's usual one; none if nobody can read that."""
    try:
        model, options = split_spec(usual)
    except UsageError:
        return {}
    return options if name == model else {key: value for key, value in options.items() if key == "norm"}


def _read(name: str, key: str, value: str, defaults: Mapping[str, Any], hints: Mapping[str, Any]) -> Any:
    if key not in defaults:
        hint = closest(key, defaults) if defaults else f"{name} has no options."
        raise UsageError(f"The network {name!r} has no option {key!r}.", hint)
    try:
        return TypeAdapter(hints[key], config=ConfigDict(strict=False)).validate_python(value)
    except ValidationError as error:
        reason = first_line(ValueError(error.errors()[0]["msg"]))
        raise UsageError(f"{key} of the network {name!r} cannot be {value!r}.", f"{reason}.") from None


def torchvision_names() -> list[str]:
    """Return the names of torchvision's classifiers."""
    from torchvision import models

    return list(models.list_models(module=models))


def _torchvision(name: str, options: Mapping[str, str], inputs: InputSpec) -> Network:
    from torchvision import models

    plain = name.removeprefix(TORCHVISION)
    names = torchvision_names()
    if plain not in names:
        shown = closest(plain, [*NETWORKS, *names])
        hint = shown if shown.startswith("Did") else f"Known: {', '.join(NETWORKS)}, and torchvision's classifiers."
        raise UsageError(f"There is no network {name!r}.", hint)
    if options:
        raise UsageError(
            f"The network {name!r} has no option {min(options)!r}.", "torchvision's networks have none here."
        )
    extra: dict[str, Any] = {}
    if plain in ("googlenet", "inception_v3"):
        extra = {"aux_logits": False, "init_weights": True}
    elif plain.startswith("vit_"):
        extra = {"image_size": inputs.size}
    elif plain.startswith("maxvit"):
        extra = {"input_size": (inputs.size, inputs.size)}

    def build() -> nn.Module:
        model: nn.Module = models.get_model(plain, weights=None, num_classes=inputs.classes, **extra)
        return model if inputs.channels == 3 else _AsColour(model)

    return Network(TORCHVISION + plain if plain in NETWORKS else plain, build, inputs)


def _timm(name: str, options: Mapping[str, str], inputs: InputSpec) -> Network:
    check_installed(f"The network {name!r}", "models", "timm")
    import timm

    plain = name.removeprefix(TIMM)
    if not timm.is_model(plain):
        raise UsageError(f"timm has no model {plain!r}.", closest(plain, timm.list_models()))
    if options:
        raise UsageError(f"The network {name!r} has no option {min(options)!r}.", "timm's models have none here.")

    def build(pretrained: bool = False) -> nn.Module:
        shape: dict[str, Any] = {"num_classes": inputs.classes, "in_chans": inputs.channels, "pretrained": pretrained}
        try:
            return timm.create_model(plain, img_size=inputs.size, **shape)
        except TypeError:  # most take images of any size
            return timm.create_model(plain, **shape)

    return Network(name, build, inputs, partial(build, pretrained=True))


def check_claimed(spec: str) -> None:
    """Raise a UsageError if a network that a set names would be read from a place of the set's own choice."""
    if re.search(r"[/\\~]", split_spec(spec)[1].get("weights", "")):
        raise UsageError(f"The set names a network whose weights are a path: {spec!r}.", "Name the network yourself.")


def check_probe(spec: str, wanted: bool) -> None:
    """Raise a UsageError where a protocol wants a linear probe and a name is not that of one."""
    if wanted and not split_spec(spec)[0].startswith(PROBE):
        raise no_probe(repr(spec))


def _probe(name: str, options: dict[str, str], inputs: InputSpec, usual: str, tried: bool) -> Network:
    """Return a linear probe; its name has the file of the weights and their digest, which is checked if given."""
    weights = re.fullmatch(r"(.*?)(?:@([0-9a-f]{12}))?", options.pop("weights", ""), re.DOTALL)
    given, digest = (weights[1], weights[2] or "") if weights else ("", "")
    if not given:
        raise UsageError(f"The network {PROBE + name!r} needs weights.", f"Give them: {PROBE}{name}:weights=FILE")
    others = ",".join(f"{key}={value}" for key, value in options.items())
    body = find_network(f"{name}:{others}" if others else name, inputs, usual, tried)
    start = f"{PROBE}{body.spec}{',' if ':' in body.spec else ':'}weights="
    if not tried:
        return Network(f"{start}{Path(given).name}@{digest}", lambda: Probe(body.build()), inputs)
    with seeded(0, torch.device("cpu")):  # what is fresh in it is the same every time, and nobody's draws are used up
        state = read_weights(given, body.spec, body.pretrained)
        found = digest_of(state)[:12]
        if digest and digest != found:
            raise UsageError(f"The weights {given!r} have the digest {found}, not {digest}.", "Find the file.")
        build = with_weights(body.build, state, given, running=True)
        return _tried(Network(f"{start}{Path(given).name}@{found}", lambda: Probe(build()), inputs))


def _sketch(build: Callable[[], nn.Module]) -> nn.Module:
    """Return a network without memory for its weights, where it can be built so."""
    try:
        with torch.device("meta"):
            return build()
    except (NotImplementedError, RuntimeError):  # some compute with tensors; what else is wrong comes again
        with torch.random.fork_rng([]), _Weightless():
            return build().to("meta")


class _Weightless(TorchFunctionMode):
    """Layers make their weights by ``torch.empty``: give those no memory, and all other tensors theirs."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}) | ({"device": "meta"} if func is torch.empty else {}))


def _tried(network: Network) -> Network:
    """Return a network that can be built and takes its images; UsageError otherwise. Costs no memory."""
    inputs = network.inputs
    shape = (2, inputs.channels, inputs.size, inputs.size)
    try:
        model = _sketch(network.build).eval()
        with torch.no_grad():
            device = next((p.device for p in model.parameters()), torch.device("cpu"))
            found = model(torch.empty(shape, device=device)).shape
    except (RuntimeError, ValueError, AssertionError, ZeroDivisionError, TypeError) as error:
        reason = re.sub(r"\s+", " ", first_line(error))[:200]
        raise UsageError(
            f"The network {network.spec!r} cannot take images of {inputs.size}x{inputs.size}: {reason}.",
            "Use another network, or a set of larger images.",
        ) from error
    if tuple(found) != (2, inputs.classes):
        raise UsageError(f"The network {network.spec!r} gives {tuple(found)}, not (2, {inputs.classes}).")
    return network


class _AsColour(nn.Module):
    """Give a network for colour images grey ones."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    @property
    def coloured(self) -> nn.Module:
        """The network for colour images."""
        return self.model

    def forward(self, x: Tensor) -> Any:
        return self.model(x.expand(-1, 3, -1, -1))
