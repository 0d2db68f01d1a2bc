"""Networks trained on a distilled set, and what is needed to use them on pictures."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

import atomhub
from atomhub.core.whitening import Normalization
from atomhub.devices import describe_device, enough_memory, find_device, keep_large_buffers
from atomhub.distilled import DistilledDataset, PictureTransform
from atomhub.errors import check_whole
from atomhub.manifest import Measurement
from atomhub.sources import RealData
from atomhub.training.evaluation import Network, builder, images_of, summary, targets_of
from atomhub.training.protocols import find_protocol
from atomhub.training.trainer import accuracy as measure
from atomhub.training.trainer import fit, logits, seeded
from atomhub.training.zoo import Images, find_network

if TYPE_CHECKING:
    from PIL import Image


def train(
    model: nn.Module | Network,
    distilled: DistilledDataset,
    protocol: str = "dm",
    *,
    labels: Literal["hard", "soft"] = "hard",
    seed: int = 0,
    device: str = "auto",
) -> nn.Module:
    """Train one network on a distilled set, and return it ready for use (``eval()``), on the device.

    Args:
        model: A module, trained in place; a function that returns a new one; or the name of a network
            (:func:`atomhub.training.zoo.find_network`). It maps normalised (B, C, H, W) to (B, K) logits, or to an
            object that holds them as ``logits``.
        distilled: The set.
        protocol: ``dm``, ``datadam``, ``mix`` or ``quick``.
        labels: ``soft``: train on the set's soft labels.
        seed: Of the weights of a new network, of order and augmentation.
        device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        UsageError: an unknown network or protocol, or a network that cannot take the images or give K logits.
        NotFoundError: the set has no soft labels.
        AtomhubError: the loss is not finite.
    """
    check_whole("seed", seed, 0)
    rules, where, targets = find_protocol(protocol), find_device(device), targets_of(distilled, labels)
    build: Callable[[], nn.Module] = (lambda: model) if isinstance(model, nn.Module) else builder(model, distilled)[0]
    keep_large_buffers()
    with enough_memory("use a smaller network"):
        with seeded(seed, where):
            trained = build().to(where)
        operations = distilled.operations(rules.augmentation)
        images = distilled.as_tensors()[0].to(where)
        fit([trained], [images], targets.to(where), rules, operations, len(distilled.class_names), [seed])
    return trained


def accuracy(model: nn.Module, distilled: DistilledDataset, *, source: str | Path | RealData | None = None) -> float:
    """Return the accuracy in percent of a model on the real test images of a set's source.

    Args:
        model: Maps normalised (B, C, H, W) to (B, K) logits, or to an object that holds them.
        distilled: The set; it says where the test images are and how they are normalised.
        source: Where a local source lies now, or the source itself.

    Raises:
        NotFoundError: the source or its test split is not at hand.
        SourceError: the source has other classes than the set.
    """
    where = next((p.device for p in model.parameters()), torch.device("cpu"))
    return measure(model, *distilled.test_split(source), distilled.normalization, where)


class ModelConfig(BaseModel):
    """``config.json`` of a saved network: all that is needed to build it and to use it on pictures.

    Attributes:
        network: Its name, with options.
        channels: Of its images: 1 or 3.
        size: Side of its images in pixels.
        class_names: Of its K outputs.
        mean, std: Normalisation of its images.
        zca: Whether they are whitened; the matrix lies with the weights.
        trained_on: Name of the set, or its repository on the Hub.
        tensors: SHA-256 of the set's tensors, where it was on disk.
        seed: Of its weights, order and augmentation.
        result: Its accuracy.
        versions: Of the packages that matter.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    format_version: Literal[1] = 1
    network: str
    channels: Literal[1, 3]
    size: int = Field(ge=1, le=8192)
    class_names: tuple[str, ...] = Field(min_length=2)
    mean: tuple[float, ...]
    std: tuple[float, ...]
    zca: bool = False
    trained_on: str
    tensors: str | None = None
    seed: int
    result: Measurement | None = None
    versions: dict[str, str] = {}


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
    def predict(self, image: Image.Image) -> dict[str, float]:
        """Return the probability of every class for a PIL image, the likeliest first."""
        device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        found = logits(self.model.eval(), self.transform(image)[None].to(device))[0].float().softmax(0).cpu()
        return {self.class_names[k]: float(found[k]) for k in found.argsort(descending=True).tolist()}

    def save(self, folder: str | Path, overwrite: bool = False) -> Path:
        """Write weights (safetensors), config and model card to a folder, all or nothing.

        Raises:
            AtomhubError: the folder exists, or cannot be written.
        """
        from atomhub.hub import models

        return models.write(self, Path(folder), overwrite)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Publish it as a model repository in one commit, and return its address; options as in ``models.push``."""
        from atomhub.hub import models

        return models.push(self, repo_id, **options)


def train_classifier(
    distilled: DistilledDataset,
    network: str = "convnet",
    protocol: str = "dm",
    *,
    labels: Literal["hard", "soft"] = "hard",
    seed: int = 0,
    device: str = "auto",
    source: str | Path | RealData | None = None,
) -> Classifier:
    """Train a network on a set and measure it on the real test images; arguments and errors as in :func:`train`."""
    from atomhub.hub.cards import model_card

    found = find_network(network, images_of(distilled), distilled.manifest.recipe)
    test_images, test_labels = distilled.test_split(source)  # before the work, not after
    start = time.perf_counter()
    model = train(found.spec, distilled, protocol, labels=labels, seed=seed, device=device)
    seconds = time.perf_counter() - start
    where = find_device(device)
    percent = measure(model, test_images, test_labels, distilled.normalization, where)
    m, images = distilled.manifest, found.images
    result = Measurement(
        protocol=protocol, network=found.spec, labels=labels, score=summary([percent], seconds), seed=seed,
        test_images=len(test_labels), device=describe_device(where),
    )  # fmt: skip
    config = ModelConfig(
        network=found.spec,
        channels=m.source.channels,
        size=images.size,
        class_names=m.class_names,
        mean=m.mean,
        std=m.std,
        zca=distilled.whitening is not None,
        trained_on=distilled.repo or distilled.name,
        tensors=m.files.get("distilled.safetensors"),
        seed=seed,
        result=result,
        versions={"atomhub": atomhub.__version__} | {p: version(p) for p in ("torch", "torchvision")},
    )
    parameters = sum(p.numel() for p in model.parameters())
    return Classifier(model, config, distilled.normalization, model_card(m, result, parameters, distilled.repo))


def untrained(config: ModelConfig) -> nn.Module:
    """Return the network of a config with fresh weights.

    Raises:
        UsageError: it is not one that atomhub can build.
    """
    images = Images(config.channels, len(config.class_names), config.size)
    return find_network(config.network, images).build()
