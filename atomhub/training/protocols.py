"""The evaluation protocols of the literature as data. Results of different protocols are never comparable."""

from dataclasses import dataclass

from atomhub.errors import UsageError, closest
from atomhub.recipe import Operation

_DSA: tuple[Operation, ...] = ("color", "crop", "cutout", "flip", "scale", "rotate")


@dataclass(frozen=True)
class Protocol:
    """How a network is trained: SGD with momentum on cross-entropy, accuracy taken after the last epoch.

    Attributes:
        epochs: Passes over the training set.
        batch: Images in a batch.
        lr: Initial learning rate.
        momentum, decay: SGD's momentum and L2 weight decay.
        drops: Shares of the epochs after which the learning rate is multiplied by ``factor``.
        factor: See ``drops``.
        augmentation: DSA operations, one drawn for every image of a batch.
        cutmix: Probability that a batch is mixed by CutMix (Yun et al., ICCV 2019).
        source: Where the protocol comes from.
    """

    epochs: int
    batch: int
    source: str
    lr: float = 0.01
    momentum: float = 0.9
    decay: float = 5e-4
    drops: tuple[float, ...] = (1 / 2,)
    factor: float = 0.1
    augmentation: tuple[Operation, ...] = _DSA
    cutmix: float = 0.0


PROTOCOLS: dict[str, Protocol] = {
    "dm": Protocol(1000, 256, "DM (WACV 2023): the field's default"),
    "datadam": Protocol(1800, 64, "DataDAM (ICCV 2023)"),
    "mix": Protocol(
        1500, 64, "DANCE (IJCAI 2024), NCFM (CVPR 2025), but for the last epoch in place of the best",
        drops=(2 / 3, 5 / 6), factor=0.2, cutmix=0.5, augmentation=tuple(op for op in _DSA if op != "cutout"),
    ),
    "quick": Protocol(200, 256, "atomhub: dm with a fifth of the epochs, for demos and smoke tests"),
}  # fmt: skip


def find_protocol(name: str) -> Protocol:
    """Return a protocol; UsageError with the closest match when there is none of that name."""
    if name not in PROTOCOLS:
        raise UsageError(f"There is no protocol {name!r}.", closest(name, PROTOCOLS))
    return PROTOCOLS[name]
