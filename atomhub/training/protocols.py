"""The evaluation protocols of the literature as data. Results of different protocols are never comparable."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from atomhub.core.augment import DSA, IDC, NCFM, RDED, Stages
from atomhub.errors import UsageError, closest
from atomhub.results import REVISION, Measurement


@dataclass(frozen=True)
class Protocol:
    """How a network is trained on cross-entropy; its accuracy is taken after the last epoch.

    Attributes:
        epochs: Passes over the training set.
        batch: Images in a batch.
        source: Where the protocol comes from.
        norm: Norm of the ConvNet (width 128, depth by resolution) that the published figures are of; None: the network
            that a set was distilled with.
        optimizer: ``sgd``, with momentum and L2 weight decay, or ``adamw`` (betas 0.9 and 0.999).
        lr: Initial learning rate.
        momentum: SGD's.
        decay: Weight decay: in the gradient (SGD), or of the weights themselves (AdamW).
        drops: Epochs after which the learning rate is multiplied by ``factor``, counted from 1.
        factor: See ``drops``.
        restart: Whether the optimiser begins anew at a drop, and so forgets its momentum (DC's code).
        augmentation: Stages of operations; one of each is drawn for a batch, with parameters for every image.
        cosine: Epochs in which the rate would fall to 0 along half a cosine; 0: it follows ``drops``.
        decays_all: Whether norms and biases decay as well.
        temperature: Where it is above 0, networks learn what a teacher makes of each augmented and mixed batch, by the
            Kullback-Leibler divergence between the softmaxes of logits divided by it, in place of classes.
        network: The network that published figures are of, by name, where that is no ConvNet.
        frozen: Whether linear probes learn from the features of images as they are, found once.
        cutmix: Probability that a batch is mixed by CutMix (Yun et al., ICCV 2019), with a share from Beta(1, 1).
    """

    epochs: int
    batch: int
    source: str
    norm: Literal["instance", "batch"] | None = None
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.01
    momentum: float = 0.9
    decay: float = 5e-4
    drops: tuple[int, ...] = ()
    factor: float = 0.1
    restart: bool = False
    augmentation: Stages = DSA
    cutmix: float = 0.0
    cosine: int = 0
    decays_all: bool = True
    temperature: float = 0.0
    network: str | None = None
    frozen: bool = False

    @property
    def usual(self) -> str | None:
        """The network whose accuracies are published, by name; None: that of the set."""
        return self.network or (f"convnet:norm={self.norm}" if self.norm else None)


PROTOCOLS: dict[str, Protocol] = {
    # DC's code trains one epoch more than it says, and restarts its optimiser after epoch Epoch // 2 + 2
    "dm": Protocol(1001, 256, "DSA, DM (WACV 2023): the field's default", "instance", drops=(502,), restart=True),
    "datadam": Protocol(1801, 64, "DataDAM (ICCV 2023), its code", "batch", drops=(902,), restart=True),
    "idc": Protocol(
        1000, 64, "IDC (ICML 2022)", "instance", drops=(666, 833), factor=0.2, augmentation=IDC, cutmix=0.5
    ),
    "dance": Protocol(
        1500, 64, "DANCE (IJCAI 2024)", "instance", drops=(1000, 1250), factor=0.2, augmentation=IDC, cutmix=0.5
    ),
    "ncfm": Protocol(
        2000, 128, "NCFM (CVPR 2025)", "instance", "adamw", 0.001, decay=0.01, drops=(400, 800, 1200, 1600),
        factor=0.5, augmentation=NCFM, cutmix=0.5,
    ),
    "rded": Protocol(
        300, 50, "RDED (CVPR 2024), its code", optimizer="adamw", lr=0.001, decay=0.01, augmentation=RDED, cutmix=1.0,
        cosine=600, decays_all=False, temperature=20.0, network="resnet18:norm=batch",
    ),
    "quick": Protocol(
        201, 256, "atomhub: dm with a fifth of the epochs, for demos and smoke tests", drops=(102,), restart=True
    ),
    "probe": Protocol(
        300, 256, "atomhub: linear evaluation, on features that are found once", lr=1.0, decay=0.0, drops=(150,),
        augmentation=(), frozen=True,
    ),
}  # fmt: skip


def find_protocol(name: str, taught: bool = True) -> Protocol:
    """Return a protocol by its name.

    Raises:
        UsageError: there is none of that name, or it needs a teacher and there is none (not ``taught``).
    """
    if name not in PROTOCOLS:
        raise UsageError(f"There is no protocol {name!r}.", closest(name, PROTOCOLS))
    if PROTOCOLS[name].temperature and not taught:
        raise UsageError(f"The protocol {name!r} is for measuring alone: a teacher labels every batch.", "Use another.")
    return PROTOCOLS[name]


def for_set(protocol: str, ipc: int, classes: int) -> Protocol:
    """Return a protocol for a set: RDED's batch grows with it (10, 50, 100 at ipc 1, 10, 50; twice for 100 classes)."""
    rules = find_protocol(protocol)
    if protocol != "rded":
        return rules
    batch = 10 if ipc < 10 else 50 if ipc < 50 else 100
    return replace(rules, batch=batch * (2 if classes >= 100 else 1))


def of_whole_set(epochs: int, linear: bool = False) -> Protocol:
    """Return how a network is trained on a whole real training set: SGD as in ``dm``, its rate dropped at half.

    Args:
        epochs: Passes over it.
        linear: Whether it is a linear probe, which is trained as in ``probe``.
    """
    if linear:
        return replace(PROTOCOLS["probe"], epochs=epochs, drops=(round(epochs / 2),))
    return Protocol(epochs, 256, "dm's optimiser", drops=(round(epochs / 2),))


def column(protocol: str, network: str) -> str | None:
    """Return where an accuracy belongs in a table of sets: ``dm, ConvNet, instance norm``; None: nowhere.

    Accuracies of different protocols, networks or norms cannot be compared and have columns of their own. Tables of
    sets show the protocol's own network alone; ``quick`` has none, so that the column names the ConvNet.
    """
    rules = PROTOCOLS.get(protocol)
    if rules and rules.frozen:  # weights are told apart by their digest
        return f"{protocol}, {network}" if re.fullmatch(r"probe/[\w./:=, -]{1,200}@[0-9a-f]{12}", network) else None
    if rules and rules.norm:
        return f"{protocol}, ConvNet, {rules.norm} norm" if network == f"convnet:width=128,norm={rules.norm}" else None
    known = rules and re.fullmatch(r"convnet:width=\d{1,4}(,depth=\d)?,norm=(instance|batch|none)", network)
    return f"{protocol}, {network}" if known else None


def columns(measured: Iterable[Measurement]) -> dict[str, Measurement]:
    """Return those of a set's results that a table of sets shows, by :func:`column`; of each that of most networks."""
    good = sorted((r for r in measured if r.labels == "hard" and r.revision == REVISION), key=lambda r: r.score.runs)
    return {name: r for r in good if (name := column(r.protocol, r.network))}
