"""Networks that were trained briefly on real images, and the line between their weights before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Bank:
    """P networks of one kind (DANCE, IJCAI 2024, section 3.2).

    Attributes:
        initial: Name of a parameter to its values before training, (P, ...) float.
        trained: The same, after.
        seconds: What the training took.
    """

    initial: dict[str, Tensor]
    trained: dict[str, Tensor]
    seconds: float = 0.0

    def __len__(self) -> int:
        return len(next(iter(self.trained.values())))

    @classmethod
    def joined(cls, banks: Sequence[Bank]) -> Bank:
        """Return the networks of several banks of one kind as one."""
        initial, trained = (
            {name: torch.cat([getattr(bank, side)[name] for bank in banks]) for name in getattr(banks[0], side)}
            for side in ("initial", "trained")
        )
        return cls(initial, trained, round(sum(bank.seconds for bank in banks), 2))

    def to(self, device: torch.device, dtype: torch.dtype) -> Bank:
        """Return the same on a device."""
        initial, trained = (
            {name: tensor.to(device, dtype) for name, tensor in side.items()} for side in (self.initial, self.trained)
        )
        return Bank(initial, trained, self.seconds)

    def weights(self, member: int, share: float) -> dict[str, Tensor]:
        """Return the weights ``(1 - share) * initial + share * trained`` of a member, by name."""
        return {name: torch.lerp(self.initial[name][member], end[member], share) for name, end in self.trained.items()}

    @torch.no_grad()
    def put(self, network: nn.Module, member: int, share: float) -> None:
        """Give a network the :meth:`weights` of a member; what they do not name stays as it is."""
        network.load_state_dict(self.weights(member, share), strict=False)
