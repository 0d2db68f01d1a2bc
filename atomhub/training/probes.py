"""Linear probes: a linear layer that is trained on the features of a network that stays as it is."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

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


class OnFeatures:
    """The linear layers of probes in training, on features that are found once.

    Features are divided by their root mean square length, so that one rate suits the features of all networks; the
    layers are given back to the probes with that division in their weights.

    Args:
        models: R probes with the same network.
        images: R times N images, (C, H, W), normalised; may be the same ones.
        count: N.

    Attributes:
        layers: R modules from features (B, D, 1, 1) to (B, K) logits.
        features: R times (N, D, 1, 1).

    Raises:
        UsageError: a network that is no probe.
    """

    def __init__(self, models: Sequence[nn.Module], images: Sequence[Any], count: int) -> None:
        self.heads, self.lengths, self.features = list[nn.Linear](), list[Tensor](), list[Tensor]()
        for model, own in zip(models, images, strict=True):
            if not isinstance(model, Probe):
                hint = "Name one: probe/NETWORK:weights=FILE"
                raise UsageError(f"The protocol 'probe' is for linear probes, not for a {type(model).__name__}.", hint)
            if not self.features or own is not images[0]:
                found = _features(model.body, own, count)
                length = found.square().sum(1).mean().sqrt().clamp_min(1e-12)
                found = found[:, :, None, None] / length
            self.heads.append(model.head)
            self.lengths.append(length)
            self.features.append(found)
        self.layers = [nn.Sequential(nn.Flatten(), head) for head in self.heads]

    @torch.no_grad()
    def finish(self) -> None:
        """Leave the probes ready for use."""
        for head, length in zip(self.heads, self.lengths, strict=True):
            head.weight /= length


@torch.no_grad()
def _features(body: nn.Module, images: Any, count: int) -> Tensor:
    """Return what enters the linear layer, (N, D)."""
    numbers = torch.arange(count, device=images.device)
    return torch.cat([logits(body.eval(), images[rows]).flatten(1) for rows in numbers.split(_TOGETHER)])
