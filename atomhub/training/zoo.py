"""The networks that evaluation knows by name, in the sizes of the literature, and torchvision's classifiers."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_type_hints

import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from atomhub.core.networks import ConvNet
from atomhub.errors import UsageError, closest, first_line
from atomhub.recipe import Recipe

Size = Annotated[int, Field(ge=1, le=2048)]
Depth = Annotated[int, Field(ge=1, le=32)]
Norm = Literal["instance", "batch", "layer", "group", "none"]
PlainNorm = Literal["instance", "batch", "none"]


@dataclass(frozen=True)
class Images:
    """What a network is to classify.

    Attributes:
        channels: 1 or 3.
        classes: K.
        size: Side of the square images in pixels.
    """

    channels: int
    classes: int
    size: int


def convnet(
    images: Images,
    *,
    width: Size = 128,
    depth: Depth | None = None,
    norm: Norm = "instance",
    activation: Literal["relu", "leakyrelu", "sigmoid"] = "relu",
    pooling: Literal["avg", "max", "none"] = "avg",
) -> nn.Module:
    """ConvNet-D (DC, ICLR 2021, section 4); see :class:`atomhub.core.networks.ConvNet`."""
    if depth is not None and pooling != "none" and images.size < 2**depth:
        raise ValueError(f"nothing is left of them after {depth} poolings")
    return ConvNet(images.channels, images.classes, images.size, width, depth, norm, activation, pooling)


def mlp(images: Images, *, width: Size = 128) -> nn.Module:
    """Two hidden layers (DC, ICLR 2021, supplement)."""
    return nn.Sequential(
        nn.Flatten(),
        *(nn.Linear(images.channels * images.size**2, width), nn.ReLU()),
        *(nn.Linear(width, width), nn.ReLU()),
        nn.Linear(width, images.classes),
    )


def lenet(images: Images) -> nn.Module:
    """LeNet with ReLU and max pooling (LeCun et al., 1998; as in DC); grey images are padded by 2."""
    padding = 2 if images.channels == 1 else 0
    side = ((images.size + 2 * padding - 4) // 2 - 4) // 2
    return nn.Sequential(
        *(nn.Conv2d(images.channels, 6, 5, padding=padding), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(16 * side**2, 120), nn.ReLU()),
        *(nn.Linear(120, 84), nn.ReLU()),
        nn.Linear(84, images.classes),
    )


def alexnet(images: Images) -> nn.Module:
    """AlexNet for small images (Krizhevsky et al., 2012; in the sizes of DC)."""
    padding = 4 if images.channels == 1 else 2
    side = (images.size + 2 * padding - 4) // 8
    return nn.Sequential(
        *(nn.Conv2d(images.channels, 128, 5, padding=padding), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(128, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(192, 256, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(256, 192, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(192, 192, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(192 * side**2, images.classes)),
    )


def vgg11(images: Images, *, norm: PlainNorm = "instance") -> nn.Module:
    """VGG-11 with norm layers and one linear head (Simonyan and Zisserman, 2015; as in DC); pads to 32x32 at least."""
    layers: list[nn.Module] = [_PadTo(32)]
    before = images.channels
    for block in ((64,), (128,), (256, 256), (512, 512), (512, 512)):
        for width in block:
            layers += [nn.Conv2d(before, width, 3, padding=1), _norm(norm, width), nn.ReLU()]
            before = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, images.classes))


def resnet18(images: Images, *, norm: PlainNorm = "instance") -> nn.Module:
    """ResNet-18 with a 3x3 stem and no early pooling (He et al., 2016; for small images as in DC)."""
    layers: list[nn.Module] = [nn.Conv2d(images.channels, 64, 3, padding=1, bias=False), _norm(norm, 64), nn.ReLU()]
    before = 64
    for stage, width in enumerate((64, 128, 256, 512)):
        for block in range(2):
            layers.append(_Residual(before, width, 2 if stage and not block else 1, norm))
            before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, images.classes))


def vit(
    images: Images,
    *,
    patch: Size | None = None,
    width: Size = 512,
    depth: Depth = 6,
    heads: Depth = 8,
    hidden: Size = 512,
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1,
) -> nn.Module:
    """Vision transformer (Dosovitskiy et al., 2021), of the size that GLaD and DataDAM's code use at 32x32.

    About 8x8 patches: 4x4 pixels at 32x32 and 8x8 at 64x64.
    """
    from torchvision.models import VisionTransformer

    side = patch or next(p for p in range(max(1, images.size // 8), images.size + 1) if images.size % p == 0)
    model: nn.Module = VisionTransformer(
        images.size, side, depth, heads, width, hidden, dropout, dropout, num_classes=images.classes
    )
    if images.channels != 3:
        model.conv_proj = nn.Conv2d(images.channels, width, side, side)
    return model


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "convnet": convnet, "mlp": mlp, "lenet": lenet, "alexnet": alexnet, "vgg11": vgg11, "resnet18": resnet18,
    "vit": vit,
}  # fmt: skip
"""Called with :class:`Images` and the keyword options of their signature."""

TORCHVISION = "torchvision/"
"""Prefix of torchvision's classifiers; needed only for those that have a namesake above."""


class _PadTo(nn.Module):
    """Zero-pad images around, to a side of at least ``size``."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        missing = max(0, self.size - x.shape[-1])
        before, after = missing // 2, missing - missing // 2
        return F.pad(x, (before, after, before, after)) if missing else x


class _Residual(nn.Module):
    """Basic block of ResNet: two 3x3 convolutions, and a 1x1 one beside them where the shape changes."""

    def __init__(self, before: int, width: int, stride: int, norm: str) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            *(nn.Conv2d(before, width, 3, stride, 1, bias=False), _norm(norm, width), nn.ReLU()),
            *(nn.Conv2d(width, width, 3, 1, 1, bias=False), _norm(norm, width)),
        )
        same = stride == 1 and before == width
        self.beside: nn.Module = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), _norm(norm, width))
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.branch(x) + self.beside(x))


class _AsColour(nn.Module):
    """Give a network for colour images grey ones."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        return self.model(x.expand(-1, 3, -1, -1))


def _norm(norm: str, width: int) -> nn.Module:
    if norm == "instance":
        return nn.GroupNorm(width, width)
    return nn.BatchNorm2d(width) if norm == "batch" else nn.Identity()


@dataclass(frozen=True)
class Network:
    """A network by name, with every option spelt out.

    Attributes:
        spec: ``name`` or ``name:option=value,...``; :func:`find_network` reads it back.
        build: Makes a new one with fresh weights, from torch's global generator.
        images: What it classifies.
    """

    spec: str
    build: Callable[[], nn.Module]
    images: Images

    def parameters(self) -> int:
        """Return how many numbers it learns."""
        return sum(p.numel() for p in _sketch(self.build).parameters())


def split_spec(spec: str) -> tuple[str, dict[str, str]]:
    """Return name and options of ``name:option=value,...``; UsageError for anything else."""
    name, colon, text = spec.partition(":")
    options: dict[str, str] = {}
    for part in text.split(",") if colon else ():
        key, sign, value = part.partition("=")
        if not sign or not key.strip() or not value.strip() or key.strip() in options:
            raise UsageError(
                f"The network {spec!r} cannot be read at {part!r}.",
                "Write options as name=value, once each: convnet:width=64,norm=batch",
            )
        options[key.strip()] = value.strip()
    return name.strip(), options


def find_network(spec: str, images: Images, recipe: Recipe | None = None, tried: bool = True) -> Network:
    """Return a network by name.

    Args:
        spec: One of :data:`NETWORKS` or a classifier of torchvision, with options: ``convnet:width=64,norm=batch``.
        images: What it is to classify.
        recipe: What a set was distilled with: width, depth and norm where the spec does not say.
        tried: Whether to see that it takes the images.

    Raises:
        UsageError: an unknown name or option (with the closest match), a value that is not possible, or a network that
            cannot take images of that size.
    """
    name, given = split_spec(spec)
    make = NETWORKS.get(name)
    if make is None:
        network = _torchvision(name, given, images)
        return _tried(network) if tried else network
    hints = get_type_hints(make, include_extras=True)
    signature = inspect.signature(make).parameters
    defaults = {key: p.default for key, p in signature.items() if p.kind is p.KEYWORD_ONLY}
    if recipe is not None:
        own = {"width", "depth", "norm"} if name == "convnet" else {"norm"}
        defaults |= {key: getattr(recipe, key) for key in own & set(defaults)}
    chosen = defaults | {key: _read(name, key, value, defaults, hints) for key, value in given.items()}
    known = {key: value for key, value in chosen.items() if value is not None}
    # a spec names what may differ between two results: all that recipe or user chose
    named = [f"{k}={v}" for k, v in known.items() if v != signature[k].default or k in ("width", "depth", "norm")]
    full = name + (":" + ",".join(named) if named else "")
    network = Network(full, lambda: make(images, **known), images)
    return _tried(network) if tried else network


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


def _torchvision(name: str, options: Mapping[str, str], images: Images) -> Network:
    from torchvision import models

    plain = name.removeprefix(TORCHVISION)
    names = torchvision_names()
    if plain not in names:
        shown = closest(plain, [*NETWORKS, *names])
        hint = shown if shown.startswith("Did") else f"Known: {', '.join(NETWORKS)}, and torchvision's classifiers."
        raise UsageError(f"There is no network {name!r}.", hint)
    if options:
        raise UsageError(
            f"The network {name!r} has no option {min(options)!r}.", "torchvision's are taken as they are."
        )
    extra: dict[str, Any] = {}
    if plain in ("googlenet", "inception_v3"):
        extra = {"aux_logits": False, "init_weights": True}
    elif plain.startswith("vit_"):
        extra = {"image_size": images.size}
    elif plain.startswith("maxvit"):
        extra = {"input_size": (images.size, images.size)}

    def build() -> nn.Module:
        model: nn.Module = models.get_model(plain, weights=None, num_classes=images.classes, **extra)
        return model if images.channels == 3 else _AsColour(model)

    return Network(TORCHVISION + plain if plain in NETWORKS else plain, build, images)


def _sketch(build: Callable[[], nn.Module]) -> nn.Module:
    """Return a network without memory for its weights, where it can be built so."""
    try:
        with torch.device("meta"):
            return build()
    except NotImplementedError:  # some draw their sizes as tensors
        with torch.random.fork_rng([]):
            return build()


def _tried(network: Network) -> Network:
    """Return a network that can be built and takes its images; UsageError otherwise. Costs no memory."""
    images = network.images
    shape = (2, images.channels, images.size, images.size)
    try:
        model = _sketch(network.build).eval()
        with torch.no_grad():
            device = next((p.device for p in model.parameters()), torch.device("cpu"))
            found = model(torch.empty(shape, device=device)).shape
    except (RuntimeError, ValueError, AssertionError, ZeroDivisionError, TypeError) as error:
        reason = re.sub(r"\s+", " ", first_line(error))[:200]
        raise UsageError(
            f"The network {network.spec!r} cannot take images of {images.size}x{images.size}: {reason}.",
            "Use another network, or a set of larger images.",
        ) from error
    if tuple(found) != (2, images.classes):
        raise UsageError(f"The network {network.spec!r} gives {tuple(found)}, not (2, {images.classes}).")
    return network
