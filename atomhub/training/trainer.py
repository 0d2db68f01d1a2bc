"""Fit networks on a small set of images, several at once, and measure them on real ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from typing import Protocol as Interface

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from atomhub.core import draws, siamese
from atomhub.core.whitening import Normalization
from atomhub.devices import is_out_of_memory
from atomhub.errors import AtomhubError, UsageError, first_line
from atomhub.training.protocols import Protocol

_TEST_BATCH = 512
_CHECK_EVERY = 20
"""Epochs between looks at the loss: each waits for the device."""
_FEW = 200_000
"""Parameters up to which networks are faster together than one by one on a CPU (``benchmarks/evaluate.py``)."""
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
    models: Sequence[nn.Module],
    images: Sequence[Rows],
    labels: Tensor,
    protocol: Protocol,
    operations: Sequence[str],
    classes: int,
    seeds: Sequence[int],
    place: tuple[int, int] | None = None,
) -> None:
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
    """Return how many networks to train in one pass, as ``benchmarks/evaluate.py`` measured.

    Args:
        device: Where.
        pixels: Height times width times images of a batch: many keep a CPU busy with one network.
    """
    return 20 if device.type == "cuda" or pixels <= 4096 else 1


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
    networks: _Alone | _Together,
    images: Sequence[Rows],
    labels: Tensor,
    protocol: Protocol,
    operations: Sequence[str],
    classes: int,
    seeds: Sequence[int],
    place: tuple[int, int],
) -> None:
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
        order = torch.stack([torch.randperm(count, generator=g) for g in generators]).to(device)  # (R, N)
        for rows in _batches(order, protocol.batch):
            batch = torch.stack([own[i] for own, i in zip(images, rows, strict=True)])  # (R, B, C, H, W)
            u = torch.stack([torch.rand(rows.shape[1], siamese.DRAWS, generator=g) for g in generators])
            batch = siamese.augment(batch.flatten(0, 1)[:, None], u.flatten(0, 1), operations)[:, 0].view_as(batch)
            targets = labels[rows] if labels.is_floating_point() else F.one_hot(labels[rows], classes).to(batch.dtype)
            batch, wanted = _cutmix(batch, targets, protocol.cutmix, generators)
            optimizer.zero_grad()
            output = networks(batch)
            _check_shape(networks.name, output.shape[1:], (rows.shape[1], classes))
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
    u = torch.stack([torch.rand(4, generator=g) for g in generators]).to(batch)  # coin, share kept, centre
    sides = torch.tensor(batch.shape[:-3:-1], device=batch.device)  # (W, H)
    reach = ((u[:, 0] < probability) * (1 - u[:, 1])).sqrt()[:, None] * sides / 2
    centre = u[:, 2:] * sides
    low, high = ((centre + sign * reach).round().clamp(min=0).minimum(sides) for sign in (-1, 1))  # (R, 2)
    spans = [torch.arange(int(n), device=batch.device) for n in sides]
    x, y = ((span >= a[:, None]) & (span < b[:, None]) for span, a, b in zip(spans, low.T, high.T, strict=True))
    box = (y[:, :, None] & x[:, None, :])[:, None, None]  # (R, 1, 1, H, W)
    share = box.to(batch).mean((-1, -2)).view(-1, 1, 1)
    mixed = torch.where(box, batch.roll(1, 1), batch)
    return mixed, targets * (1 - share) + targets.roll(1, 1) * share


def logits(model: nn.Module, images: Tensor) -> Tensor:
    """Return what a model makes of normalised images (B, C, H, W), as a tensor.

    Raises:
        UsageError: it cannot take them, or gives neither a tensor nor an object with ``logits``.
    """
    try:
        output = model(images)
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        if is_out_of_memory(error):
            raise
        raise UsageError(
            f"The network {type(model).__name__} cannot take images of {'x'.join(map(str, images.shape[1:]))}: "
            f"{first_line(error)}.",
            "Build it for this size, and for these channels.",
        ) from error
    output = getattr(output, "logits", output)
    if not isinstance(output, Tensor):
        raise UsageError(f"The network {type(model).__name__} gives {type(output).__name__}, not a tensor of logits.")
    return output


@torch.no_grad()
def accuracy(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    normalization: Normalization,
    device: torch.device,
    classes: int,
) -> float:
    """Return the top-1 accuracy in percent of a model on real images; it is left in the mode it was in.

    Args:
        model: Maps normalised (B, C, H, W) to logits.
        images: (M, C, H, W) uint8.
        labels: (M,) int64.
        normalization: The one the model was trained under.
        device: Where the model is.
        classes: K.

    Raises:
        UsageError: the model does not give (B, K).
        AtomhubError: it gives values that are not finite.
    """
    mode = model.training
    model.eval()
    right = torch.zeros((), dtype=torch.int64, device=device)
    finite = torch.ones((), dtype=torch.bool, device=device)
    for pixels, targets in zip(images.split(_TEST_BATCH), labels.split(_TEST_BATCH), strict=True):
        found = logits(model, normalization.apply(pixels.to(device)))
        _check_shape(type(model).__name__, found.shape, (len(pixels), classes))
        right += (found.argmax(1) == targets.to(device)).sum()
        finite &= found.isfinite().all()
    model.train(mode)
    if not bool(finite):
        raise AtomhubError(f"The network {type(model).__name__} gives values that are not finite.")
    return 100 * int(right) / len(labels)


def _check_shape(name: str, found: Sequence[int], wanted: tuple[int, int]) -> None:
    if tuple(found) != wanted:
        raise UsageError(
            f"The network {name} gives {tuple(found)} for {wanted[0]} images of {wanted[1]} classes, not {wanted}.",
            f"Make its last layer give {wanted[1]} logits.",
        )
