"""The networks that evaluation knows by name, in the sizes of the literature."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from atomhub.core.convnet import ConvNet

Size = Annotated[int, Field(ge=1, le=2048)]
Depth = Annotated[int, Field(ge=1, le=32)]
Norm = Literal["instance", "batch", "layer", "group", "none"]
PlainNorm = Literal["instance", "batch", "none"]


@dataclass(frozen=True)
class InputSpec:
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
    inputs: InputSpec, *, width: Size = 128, depth: Depth | None = None, norm: Norm = "instance",
    activation: Literal["relu", "leakyrelu", "sigmoid"] = "relu", pooling: Literal["avg", "max", "none"] = "avg",
) -> nn.Module:  # fmt: skip
    """ConvNet-D (DC, ICLR 2021, section 4); see :class:`atomhub.core.convnet.ConvNet`."""
    if depth is not None and pooling != "none" and inputs.size < 2**depth:
        raise ValueError(f"nothing is left of them after {depth} poolings")
    return ConvNet(inputs.channels, inputs.classes, inputs.size, width, depth, norm, activation, pooling)


def mlp(inputs: InputSpec, *, width: Size = 128) -> nn.Module:
    """Two hidden layers (DC, ICLR 2021, supplement)."""
    return nn.Sequential(
        nn.Flatten(),
        *(nn.Linear(inputs.channels * inputs.size**2, width), nn.ReLU()),
        *(nn.Linear(width, width), nn.ReLU()),
        nn.Linear(width, inputs.classes),
    )


def lenet(inputs: InputSpec) -> nn.Module:
    """LeNet with ReLU and max pooling (LeCun et al., 1998; as in DC); grey images are padded by 2."""
    padding = 2 if inputs.channels == 1 else 0
    side = ((inputs.size + 2 * padding - 4) // 2 - 4) // 2
    return nn.Sequential(
        *(nn.Conv2d(inputs.channels, 6, 5, padding=padding), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(16 * side**2, 120), nn.ReLU()),
        *(nn.Linear(120, 84), nn.ReLU()),
        nn.Linear(84, inputs.classes),
    )


def alexnet(inputs: InputSpec) -> nn.Module:
    """AlexNet for small images (Krizhevsky et al., 2012; in the sizes of DC)."""
    padding = 4 if inputs.channels == 1 else 2
    side = (inputs.size + 2 * padding - 4) // 8
    return nn.Sequential(
        *(nn.Conv2d(inputs.channels, 128, 5, padding=padding), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(128, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(192, 256, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(256, 192, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(192, 192, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(192 * side**2, inputs.classes)),
    )


def vgg11(inputs: InputSpec, *, norm: PlainNorm = "instance") -> nn.Module:
    """VGG-11 with norm layers and one linear head (Simonyan and Zisserman, 2015; as in DC); pads to 32x32 at least."""
    layers: list[nn.Module] = [_PadTo(32)]
    before = inputs.channels
    for block in ((64,), (128,), (256, 256), (512, 512), (512, 512)):
        for width in block:
            layers += [nn.Conv2d(before, width, 3, padding=1), _norm(norm, width), nn.ReLU()]
            before = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, inputs.classes))


def resnet18(inputs: InputSpec, *, norm: PlainNorm = "instance") -> nn.Module:
    """ResNet-18 (He et al., 2016); below 128 pixels with a 3x3 stem and no early pooling (as in DC)."""
    small = inputs.size < 128
    stem = nn.Conv2d(inputs.channels, 64, *((3, 1, 1) if small else (7, 2, 3)), bias=False)
    layers: list[nn.Module] = [stem, _norm(norm, 64), nn.ReLU()]
    if not small:
        layers.append(nn.MaxPool2d(3, 2, 1))
    before = 64
    for stage, width in enumerate((64, 128, 256, 512)):
        for block in range(2):
            layers.append(_Residual(before, width, 2 if stage and not block else 1, norm))
            before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, inputs.classes))


def vit(
    inputs: InputSpec, *, patch: Size | None = None, width: Size = 512, depth: Depth = 6, heads: Depth = 8,
    hidden: Size = 512, dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1,
) -> nn.Module:  # fmt: skip
    """Vision transformer (Dosovitskiy et al., 2021), of the size that GLaD and DataDAM's code use at 32x32.

    About 8x8 patches: 4x4 pixels at 32x32 and 8x8 at 64x64.
    """
    from torchvision.models import VisionTransformer

    side = patch or next(p for p in range(max(1, inputs.size // 8), inputs.size + 1) if inputs.size % p == 0)
    model: nn.Module = VisionTransformer(
        inputs.size, side, depth, heads, width, hidden, dropout, dropout, num_classes=inputs.classes
    )
    if inputs.channels != 3:
        model.conv_proj = nn.Conv2d(inputs.channels, width, side, side)
    return model


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


def _norm(norm: str, width: int) -> nn.Module:
    if norm == "instance":
        return nn.GroupNorm(width, width)
    return nn.BatchNorm2d(width) if norm == "batch" else nn.Identity()


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "convnet": convnet, "mlp": mlp, "lenet": lenet, "alexnet": alexnet, "vgg11": vgg11, "resnet18": resnet18,
    "vit": vit,
}  # fmt: skip
"""Called with :class:`InputSpec` and the keyword options of their signature."""
