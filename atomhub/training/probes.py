"""Linear probes: a linear layer that is trained on the features of a network that stays as it is."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from atomhub.core.draws import seeded
from atomhub.core.real import RealImages
from atomhub.core.whitening import Normalization
from atomhub.devices import enough_memory
from atomhub.errors import UsageError
from atomhub.training.accuracy import logits
from atomhub.weights import last_linear

_TOGETHER = 256
"""Images whose features are found at once."""


class Probe(nn.Module):
    """A fresh linear layer in place of a network's last one; all else of the network stays as it is.

    Args:
        model: Has a linear layer; its last one gives the classes.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        last = last_linear(model)
        if last is None:
            raise UsageError(f"The network {type(model).__name__} has no linear layer to put a probe in place of.")
        old: Any = model.get_submodule(last)
        self.head = nn.Linear(old.in_features, old.out_features)
        model.set_submodule(last, nn.Identity())
        self.body = model.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "Probe":
        """Set the mode of the linear layer; the network's batch norms and dropout stay as in use."""
        super().train(mode)
        self.body.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, K)."""
        with torch.no_grad():
            features = self.body(images)
        logits: Tensor = self.head(features)
        return logits


def no_probe(what: str) -> UsageError:
    """Return the error of a network that is no linear probe, under the protocol for these."""
    hint = "Name one: probe/NETWORK:weights=FILE"
    return UsageError(f"The protocol 'probe' is for linear probes, not for {what}.", hint)


class LinearLayer(nn.Sequential):
    """A linear layer as a network: from features (B, D, 1, 1) to (B, K) logits."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__(nn.Flatten(), head)


class OnFeatures:
    """The linear layers of probes in training, on features that are found once.

    Features are divided by their root mean square length, so that one rate suits the features of all networks; the
    layers are given back to the probes with that division in their weights.

    Args:
        models: R probes.
        images: R times N images, (C, H, W), normalised; may be the same ones.
        count: N.

    Attributes:
        layers: R modules from features (B, D, 1, 1) to (B, K) logits.
        features: R times (N, D, 1, 1).

    Raises:
        UsageError: a network that is no probe.
    """

    def __init__(self, models: Sequence[nn.Module], images: Sequence[Any], count: int) -> None:
        self.probes, self.lengths, self.features = list[Probe](), list[Tensor](), list[Tensor]()
        for model in models:
            if not isinstance(model, Probe):
                raise no_probe(f"a {type(model).__name__}")
            self.probes.append(model)
        before: tuple[Any, Any] = (None, None)
        for model, own in zip(self.probes, images, strict=True):
            if not (model.body is before[0] and own is before[1]):
                found, before = features(model.body, own, count, own.device), (model.body, own)
                length = (found.norm() / count**0.5).clamp_min(1e-12)
                found /= length
            self.lengths.append(length)
            self.features.append(found)
        self.layers = [LinearLayer(model.head) for model in self.probes]

    @torch.no_grad()
    def finish(self) -> None:
        """Leave the probes ready for use."""
        for model, length in zip(self.probes, self.lengths, strict=True):
            model.head.weight /= length
            model.eval()


@torch.no_grad()
def features(body: nn.Module, images: Any, count: int, device: torch.device) -> Tensor:
    """Return what a network makes of images, (N, D, 1, 1) on the device.

    Args:
        body: Maps normalised (B, C, H, W) to (B, D); on the device.
        images: Gives rows of N normalised images.
        count: N.
        device: Where.
    """
    found = torch.empty(0)
    for rows in torch.arange(count).split(_TOGETHER):
        own = logits(body.eval(), images[rows.to(images.device)].to(device)).flatten(1)
        if not len(found):
            found = own.new_empty(count, own.shape[1])
        found[rows[0] : rows[-1] + 1] = own
    return found[:, :, None, None]


Begun = tuple[Callable[[], Any], Callable[[Tensor], Tensor], tuple[Tensor, Tensor], Normalization | None]


def begun(
    build: Callable[[], Any], normalization: Normalization, test: tuple[Tensor, Tensor], seed: int,
    device: torch.device, frozen: bool,
) -> Begun:  # fmt: skip
    """Return what measures networks: probes on the same network from its features on, found once for all of them.

    Args:
        build: Gives a network.
        normalization: That it wants.
        test: (M, C, H, W) uint8 images and (M,) labels.
        seed: Of the probe that is built for its features.
        device: Where.
        frozen: Whether they are such probes; others begin at images.

    Returns:
        What builds a network; what gives, for normalised images, what it begins with; test images and labels for it;
        and how these are to be normalised still.
    """
    if not frozen:
        return build, lambda images: images.to(device), test, normalization
    with enough_memory("use a smaller network"):
        with seeded(seed, device):
            body = build().to(device).body
        pixels = RealImages(test[0].numpy(), normalization, device)
        seen = features(body, pixels, len(test[1]), device)
    flat = nn.Flatten()

    def begin() -> Probe:
        probe: Probe = build()
        probe.body = flat
        return probe

    return begin, lambda images: features(body, images, len(images), device), (seen, test[1]), None
