"""Fit networks on a small set of images, several at once."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol as Interface

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from atomhub.core import augment, draws
from atomhub.core.real import upload
from atomhub.errors import AtomhubError, UsageError, is_out_of_memory
from atomhub.memory import free_memory
from atomhub.training.accuracy import check_shape, logits
from atomhub.training.protocols import Protocol

_CHECK_EVERY = 20
"""Epochs between looks at the loss: each waits for the device."""
_FEW = 200_000
"""Parameters up to which networks are faster together than one by one on a CPU (``benchmarks/evaluate.py``)."""
_STORED = 6 * 128 * 4
"""Bytes that training keeps for every pixel of a batch and network: six maps of 128 channels in float32."""
_LONG = 10**8
"""Pixels a network must see on a CPU for compiling it to pay."""


class Rows(Interface):
    """Images to train on: a tensor (N, C, H, W), or what gives rows of one when they are asked for."""

    @property
    def device(self) -> torch.device:
        """Where the rows are given."""

    def __getitem__(self, rows: Any, /) -> Tensor:
        """Return normalised float images (B, C, H, W)."""


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators for the block, and put them back as they were."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def fit(
    models: Sequence[nn.Module], images: Sequence[Rows], labels: Tensor, protocol: Protocol,
    operations: Sequence[str], classes: int, seeds: Sequence[int], place: tuple[int, int] | None = None,
) -> None:  # fmt: skip
    """Train R networks of one architecture in place, in one vectorised pass (``torch.vmap``) where that is faster.

    Each is trained as it would be alone, up to rounding: its order of images, augmentation and CutMix follow from its
    own seed. What cannot be vectorised, such as dropout, is trained one by one, as large networks on a CPU are.

    Args:
        models: R modules from normalised (B, C, H, W) to (B, K) logits, or to an object that holds them as ``logits``;
            on the device of the images.
        images: R times N images, (C, H, W) float32, normalised; may be the same ones.
        labels: (N,) int64, or (N, K) float probabilities.
        protocol: Epochs, batch, optimiser, schedule, CutMix.
        operations: DSA operations, one drawn per image (the protocol's, less those that change a class).
        classes: K.
        seeds: R seeds.
        place: Which of how many networks the first one is, for errors.

    Raises:
        UsageError: a network that cannot take the images, or gives something else than (B, K).
        AtomhubError: a loss is not finite (names the network and the epoch).
    """
    arguments = (images, labels, protocol, operations, classes, seeds)
    first, total = place or (0, len(models))
    known = [p.numel() for p in models[0].parameters() if not isinstance(p, nn.UninitializedParameter)]
    large = images[0].device.type == "cpu" and sum(known) > _FEW
    if len(models) > 1 and not large and not any(_random(model) for model in models):
        try:
            _fit(_Together(models), *arguments, (first, total))
            return
        except _NotVectorised:
            pass
    pixels = protocol.epochs * len(labels) * images[0][:1][0, 0].numel()
    for r, model in enumerate(models):
        with seeded(seeds[r], images[r].device):  # for dropout
            network = _Alone(model, images[r].device, compiled=images[r].device.type == "cpu" and pixels >= _LONG)
            _fit(network, [images[r]], *arguments[1:-1], [seeds[r]], (first + r, total))


def fastest_group(device: torch.device, pixels: int) -> int:
    """Return how many networks to train in one pass, as ``benchmarks/evaluate.py`` measured, and as many as fit a GPU.

    Args:
        device: Where.
        pixels: Height times width times images of a batch: many keep a CPU busy with one network.
    """
    if device.type == "cuda":
        return max(1, min(20, int(0.8 * free_memory(device)) // (pixels * _STORED)))
    return 20 if pixels <= 4096 else 1


def _random(model: nn.Module) -> bool:
    return any(isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0 for m in model.modules())


class _NotVectorised(Exception):
    """The networks do something that has no vectorised form."""


class _Alone:
    """One network, called with (1, B, C, H, W)."""

    def __init__(self, model: nn.Module, device: torch.device, compiled: bool) -> None:
        batch_norm = any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
        lazy = any(isinstance(p, nn.UninitializedParameter) for p in model.parameters())
        if device.type == "cpu" and (compiled or batch_norm) and not lazy:
            # what benchmarks/evaluate.py found faster; group norm uncompiled is not
            model.to(memory_format=torch.channels_last)
        self.model, self.name = model.train(), type(model).__name__
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.fast: Any = torch.compile(model, dynamic=False) if compiled else None

    def __call__(self, batch: Tensor) -> Tensor:
        if self.fast is not None:
            try:
                return logits(self.fast, batch[0])[None]
            except Exception:  # whatever stopped the compiler; a fault of the network itself comes again below
                self.fast = None
        return logits(self.model, batch[0])[None]

    def finish(self) -> None:
        """Leave the network ready for use."""
        self.model.to(memory_format=torch.contiguous_format)
        self.model.eval()


class _Together:
    """R networks of one architecture as one, called with (R, B, C, H, W)."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        self.models, self.name = models, type(models[0]).__name__
        for model in models:
            model.train()
        try:
            self.weights, self.buffers = torch.func.stack_module_state(list(models))
        except (RuntimeError, ValueError) as error:
            raise _NotVectorised from error
        self.parameters = list(self.weights.values())

    def __call__(self, batch: Tensor) -> Tensor:
        def one(weights: Any, buffers: Any, images: Tensor) -> Tensor:
            output = torch.func.functional_call(self.models[0], (weights, buffers), (images,))
            return output if isinstance(output, Tensor) else output.logits

        try:
            return torch.vmap(one)(self.weights, self.buffers, batch)
        except (RuntimeError, AttributeError, TypeError, ValueError) as error:
            if is_out_of_memory(error):
                raise
            raise _NotVectorised from error  # or a fault of the network, which comes again when it is alone

    @torch.no_grad()
    def finish(self) -> None:
        """Give every network its own weights, and leave it ready for use."""
        for r, model in enumerate(self.models):
            for name, tensor in (*model.named_parameters(), *model.named_buffers()):
                tensor.copy_({**self.weights, **self.buffers}[name][r])
            model.eval()


def _fit(
    networks: _Alone | _Together, images: Sequence[Rows], labels: Tensor, protocol: Protocol,
    operations: Sequence[str], classes: int, seeds: Sequence[int], place: tuple[int, int],
) -> None:  # fmt: skip
    if not any(p.requires_grad for p in networks.parameters):
        raise UsageError(f"The network {networks.name} has nothing to train: all its weights are frozen or missing.")
    optimizer = torch.optim.SGD(
        networks.parameters, lr=protocol.lr, momentum=protocol.momentum, weight_decay=protocol.decay
    )
    milestones = [round(share * protocol.epochs) for share in protocol.drops]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, protocol.factor)
    generators = [torch.Generator().manual_seed(draws.generator_seed(seed, draws.TRAINING)) for seed in seeds]
    count, device = len(labels), images[0].device
    losses: list[Tensor] = []
    for epoch in range(protocol.epochs):
        order = upload(torch.stack([torch.randperm(count, generator=g) for g in generators]), device)  # (R, N)
        for rows in _batches(order, protocol.batch):
            batch = torch.stack([own[i] for own, i in zip(images, rows, strict=True)])  # (R, B, C, H, W)
            u = torch.cat([torch.rand(rows.shape[1], augment.DRAWS, generator=g) for g in generators])
            batch = augment.augment(batch.flatten(0, 1)[:, None], upload(u, device), operations)[:, 0].view_as(batch)
            targets = labels[rows] if labels.is_floating_point() else F.one_hot(labels[rows], classes).to(batch.dtype)
            batch, wanted = _cutmix(batch, targets, protocol.cutmix, generators)
            optimizer.zero_grad()
            output = networks(batch)
            check_shape(networks.name, output.shape[1:], (rows.shape[1], classes))
            loss = -(wanted * output.float().log_softmax(-1)).sum(-1).mean(1)  # (R,)
            loss.sum().backward()
            optimizer.step()
        losses.append(loss.detach())
        if len(losses) == _CHECK_EVERY or epoch == protocol.epochs - 1:
            _check(torch.stack(losses), epoch + 1 - len(losses), protocol.epochs, place)
            losses = []
        schedule.step()
    networks.finish()


def _batches(order: Tensor, size: int) -> list[Tensor]:
    """Return an order of images (R, N) in batches; one image alone, too few for batch norm, joins those before."""
    parts = list(order.split(size, dim=1))
    if len(parts) > 1 and parts[-1].shape[1] == 1:
        parts[-2:] = [torch.cat(parts[-2:], 1)]
    return parts


def _check(losses: Tensor, before: int, epochs: int, place: tuple[int, int]) -> None:
    """Raise AtomhubError if one of the losses (epochs, R) is not finite."""
    bad = (~losses.isfinite()).cpu().nonzero()
    if len(bad):
        epoch, network = bad[0].tolist()
        raise AtomhubError(
            f"The training loss of network {place[0] + network + 1} of {place[1]} is "
            f"{losses[epoch, network].item()} in epoch {before + epoch + 1} of {epochs}.",
            "Try another network, or one with norm layers.",
        )


def _cutmix(
    batch: Tensor, targets: Tensor, probability: float, generators: Sequence[torch.Generator]
) -> tuple[Tensor, Tensor]:
    """Mix each network's batch with probability ``probability`` by CutMix (Yun et al., ICCV 2019, section 3.1).

    Args:
        batch: (R, B, C, H, W).
        targets: (R, B, K) probabilities.
        probability: That a batch is mixed.
        generators: R.
    """
    if not probability:
        return batch, targets
    u = torch.stack([torch.rand(4, generator=g) for g in generators])
    u = upload(u, batch.device).to(batch.dtype)  # coin, share kept, centre
    reach = ((u[:, 0] < probability) * (1 - u[:, 1])).sqrt() / 2  # (R,)

    def inside(side: int, centre: Tensor) -> Tensor:  # (R, side): rows or columns that the box covers
        low, high = ((centre * side + sign * (reach * side)).round().clamp(0, side)[:, None] for sign in (-1, 1))
        span = torch.arange(side, device=batch.device)
        return (span >= low) & (span < high)

    x, y = inside(batch.shape[-1], u[:, 2]), inside(batch.shape[-2], u[:, 3])
    box = (y[:, :, None] & x[:, None, :])[:, None, None]  # (R, 1, 1, H, W)
    share = box.to(batch).mean((-1, -2)).view(-1, 1, 1)
    mixed = torch.where(box, batch.roll(1, 1), batch)
    return mixed, targets * (1 - share) + targets.roll(1, 1) * share
