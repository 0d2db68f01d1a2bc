"""Networks that were trained briefly on real images, and the line between their weights before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from atomhub.core.networks import ConvNet


@dataclass(frozen=True)
class Pool:
    """P networks of one kind (DANCE, IJCAI 2024, section 3.2).

    Attributes:
        initial: Name of a parameter of :class:`ConvNet` to its values before training, (P, ...) float.
        trained: The same, after. Norm layers are not in it: theirs stay the identity.
        seconds: What the training took.
    """

    initial: dict[str, Tensor]
    trained: dict[str, Tensor]
    seconds: float = 0.0

    def __len__(self) -> int:
        return len(next(iter(self.trained.values())))

    @classmethod
    def joined(cls, pools: Sequence[Pool]) -> Pool:
        """Return the networks of several pools of one kind as one."""
        initial, trained = (
            {name: torch.cat([getattr(pool, side)[name] for pool in pools]) for name in getattr(pools[0], side)}
            for side in ("initial", "trained")
        )
        return cls(initial, trained, round(sum(pool.seconds for pool in pools), 2))

    def to(self, device: torch.device, dtype: torch.dtype) -> Pool:
        """Return the same on a device."""
        initial, trained = (
            {name: tensor.to(device, dtype) for name, tensor in side.items()} for side in (self.initial, self.trained)
        )
        return Pool(initial, trained, self.seconds)

    @torch.no_grad()
    def put(self, network: ConvNet, member: int, share: float) -> None:
        """Give a network the weights ``(1 - share) * initial + share * trained`` of a member."""
        for name, parameter in network.named_parameters():
            if name in self.trained:
                parameter.copy_(torch.lerp(self.initial[name][member], self.trained[name][member], share))
