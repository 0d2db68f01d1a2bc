"""Networks trained on a distilled set, and what is needed to use them on pictures."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from atomhub import limits
from atomhub.core.draws import seeded
from atomhub.core.whitening import Normalization
from atomhub.data.pictures import open_picture
from atomhub.dataset import DistilledDataset
from atomhub.devices import describe_device, enough_memory, find_device, keep_large_buffers
from atomhub.errors import UsageError, check_whole
from atomhub.manifest import Images
from atomhub.results import REVISION, Measurement
from atomhub.storage import cards
from atomhub.training.accuracy import accuracy as right, logits
from atomhub.training.fit import fit
from atomhub.training.measure import AnyNetwork, Labels, builder, network_for, rules_of, summary, targets_of
from atomhub.training.nets import InputSpec
from atomhub.training.networks import Network, find_network
from atomhub.training.protocols import find_protocol
from atomhub.version import versions
from atomhub.views import PictureTransform

if TYPE_CHECKING:
    from PIL import Image


def train(
    model: nn.Module | AnyNetwork | None, distilled: DistilledDataset, protocol: str = "dm", *,
    labels: Labels = "hard", seed: int = 0, device: str = "auto",
) -> nn.Module:  # fmt: skip
    """Train one network on a distilled set, and return it ready for use (``eval()``), on the device.

    Args:
        model: A module, trained in place; a function that returns a new one; the name of a network
            (:func:`atomhub.training.networks.find_network`); or None: the protocol's own. It maps normalised
            (B, C, H, W) to (B, K) logits, or to an object that holds them as ``logits``.
        distilled: The set.
        protocol: One of :data:`atomhub.training.protocols.PROTOCOLS`.
        labels: ``soft``: train on the set's soft labels; ``stored``: on its stored ones, under the protocol ``rded``.
        seed: Seed of the weights of a new network, and of order and augmentation.
        device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        UsageError: an unknown network or protocol, or a network that cannot take the images or give K logits.
        NotFoundError: the set has no soft labels.
        AtomhubError: the loss is not finite.
    """
    check_whole("seed", seed, 0)
    rules = rules_of(protocol, labels) if labels == "stored" else find_protocol(protocol, taught=False)
    where, targets = find_device(device), targets_of(distilled, labels)
    build: Callable[[], nn.Module] = (
        (lambda: model) if isinstance(model, nn.Module) else builder(model, distilled, rules)[0]
    )
    keep_large_buffers()
    with enough_memory("use a smaller network"):
        with seeded(seed, where):
            trained = build().to(where)
        stages = distilled.safe(rules.augmentation)
        images = distilled.as_tensors()[0].to(where)
        teacher = distilled.stored if labels == "stored" else None
        classes = len(distilled.class_names)
        fit([trained], [images], targets.to(where), rules, stages, classes, [seed], teacher=teacher)
    return trained


def accuracy(model: nn.Module, distilled: DistilledDataset, *, source: object = None) -> float:
    """Return the accuracy in percent of a model on the real test images of a set's source.

    Args:
        model: Maps normalised (B, C, H, W) to (B, K) logits, or to an object that holds them.
        distilled: The set; it says where the test images are and how they are normalised.
        source: Where a local source lies now, or the source itself.

    Raises:
        NotFoundError: the source or its test split is not at hand.
        SourceError: the source has other classes than the set.
        UsageError: the model is no network, or does not give K logits for every image.
        AtomhubError: it gives values that are not finite.
    """
    if not isinstance(model, nn.Module):
        raise UsageError(
            f"The model cannot be of type {type(model).__name__}.", "Give a torch.nn.Module; `evaluate` takes names."
        )
    where = next((p.device for p in model.parameters()), torch.device("cpu"))
    classes = len(distilled.class_names)
    return right(model, *distilled.test_split(source), distilled.normalization, where, classes)


class ModelConfig(Images, frozen=True):
    """``atomhub.json`` of a saved network: all that is needed to build it and to use it on pictures.

    Attributes:
        network: Its name, with options.
        parameters: Numbers it has, learnt or frozen.
        trained_on: Name of the set, or its repository on the Hub.
        tensors: SHA-256 of the set's tensors, where it was on disk.
        seed: Seed of its weights, order and augmentation.
        result: Its accuracy.
        versions: Versions of the packages that matter.
    """

    format_version: Literal[1] = 1
    network: limits.Word
    parameters: int = Field(ge=0, le=limits.PARAMETERS)
    trained_on: limits.Word
    tensors: limits.Word | None = None
    seed: limits.Seed
    result: Measurement | None = None
    versions: dict[limits.Word, limits.Word] = Field(default={}, max_length=100)


@dataclass(eq=False)
class Classifier:
    """A trained network that answers for pictures.

    Attributes:
        model: Maps normalised (B, C, H, W) to (B, K) logits.
        config: What it is.
        normalization: What brings pixels to its space.
        card: Its model card.
    """

    model: nn.Module
    config: ModelConfig
    normalization: Normalization
    card: str

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the K classes."""
        return self.config.class_names

    @property
    def transform(self) -> Callable[[Image.Image], Tensor]:
        """What brings a PIL image of any size and mode to a normalised (C, H, W) tensor."""
        return PictureTransform(self.config.size, self.config.channels, self.normalization)

    @torch.no_grad()
    def predict(self, image: Any) -> Any:
        """Return the probability of every class for a picture, the likeliest first; for a list, a list of those.

        Args:
            image: A PIL image, the file of one, or an array or tensor of uint8 in 0..255: (H, W), (H, W, C) with C 1,
                3 or 4, or (C, H, W) with C 1 or 3; or a list or tuple of such.

        Raises:
            UsageError: it is none of these.
        """
        if isinstance(image, list | tuple):
            return [self.predict(one) for one in image]
        device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        pixels = self.transform(_picture(image, self.config.size))[None].to(device)
        found = logits(self.model.eval(), pixels)[0].float().softmax(0).cpu()
        return {self.class_names[k]: float(found[k]) for k in found.argsort(descending=True).tolist()}


def _picture(image: Any, side: int) -> Image.Image:
    from PIL import Image

    if isinstance(image, Image.Image):
        return image
    if isinstance(image, str | Path):
        return open_picture(image, side)
    array = np.asarray(image.cpu() if isinstance(image, Tensor) else image)
    if array.ndim == 3 and array.shape[2] not in (1, 3, 4) and array.shape[0] in (1, 3):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        raise UsageError(
            f"A picture cannot be {type(image).__name__} of {array.dtype} and shape {array.shape}.",
            "Give a PIL image, a file, or uint8 in 0..255 of shape (H, W), (H, W, C) or (C, H, W).",
        )
    return Image.fromarray(np.ascontiguousarray(array))


def train_classifier(
    distilled: DistilledDataset, network: str | None = None, protocol: str = "dm", *,
    labels: Labels = "hard", seed: int = 0, device: str = "auto", source: object = None, tested: bool = True,
) -> Classifier:  # fmt: skip
    """Train a network on a set, to keep, and measure it on the real test images.

    Args:
        distilled: The set.
        network: Name of a network; None: the protocol's own.
        protocol: One of :data:`atomhub.training.protocols.PROTOCOLS`.
        labels: ``soft``: train on the set's soft labels; ``stored``: on its stored ones, under the protocol ``rded``.
        seed: Seed of weights, order and augmentation.
        device: ``auto``, ``cpu`` or ``cuda``.
        source: Where a local source lies now.
        tested: Whether to measure it, which needs the real test images.

    Raises:
        UsageError, AtomhubError: as :func:`train`.
        NotFoundError: the source or its test split is not at hand.
    """
    if not isinstance(network, str | None):
        raise UsageError(
            f"The network cannot be {type(network).__name__}: one that is kept is built again by its name.",
            "Give a name, such as resnet18, or use atomhub.train for a network of your own.",
        )
    found = network_for(distilled, network, find_protocol(protocol))
    test = distilled.test_split(source) if tested else None  # before the work, not after
    start = time.perf_counter()
    model = train(found.build, distilled, protocol, labels=labels, seed=seed, device=device)
    seconds = time.perf_counter() - start
    where = find_device(device)
    m, f = distilled.manifest, distilled.manifest.format
    parameters = sum(p.numel() for p in model.parameters())
    result = None
    if test is not None:
        percent = right(model, *test, distilled.normalization, where, len(distilled.class_names))
        result = Measurement(
            protocol=protocol, network=found.spec, labels=labels, score=summary([percent], seconds), seed=seed,
            revision=REVISION, test_images=len(test[1]), device=describe_device(where),
            teacher=m.provenance.stored.teacher if m.provenance.stored and labels == "stored" else None,
        )  # fmt: skip
    config = ModelConfig(
        network=found.spec, channels=f.channels, size=f.size, class_names=f.class_names, mean=f.mean, std=f.std,
        whitening=f.whitening, parameters=parameters, trained_on=distilled.repo or distilled.name,
        tensors=m.tensors, seed=seed, result=result, versions=versions("torch", "torchvision"),
    )  # fmt: skip
    card = cards.model_card(m, found.spec, result, parameters, distilled.repo)
    return Classifier(model, config, distilled.normalization, card)


def planned(config: ModelConfig, numbers: int) -> Network:
    """Return the network of a config, not built yet.

    Args:
        config: The config, perhaps of a stranger.
        numbers: How many numbers there are to fill it with: weights, and buffers besides.

    Raises:
        UsageError: it is not one that atomhub can build.
        ValueError: it has another number of parameters.
    """
    if not config.parameters <= numbers <= 2 * config.parameters + 2**20:
        raise ValueError(f"there are {numbers} numbers for {config.parameters} parameters")
    inputs = InputSpec(config.channels, len(config.class_names), config.size)
    found = find_network(config.network, inputs, tried=False)
    if found.parameters() != config.parameters:
        raise ValueError(f"{config.network} has {found.parameters()} parameters, not {config.parameters}")
    return found
