"""Fit networks on a small set of images, several at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any, Protocol as Interface

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR

from atomhub.core import augment, cutmix, draws
from atomhub.core.draws import seeded
from atomhub.core.graphs import Replayed
from atomhub.core.real import upload
from atomhub.errors import AtomhubError, UsageError
from atomhub.memory import free_memory
from atomhub.stored import StoredLabels, batch_sizes
from atomhub.training.accuracy import check_shape
from atomhub.training.probes import OnFeatures
from atomhub.training.progress import Halfway, Paused, Told
from atomhub.training.protocols import Protocol
from atomhub.training.together import Alone, NotVectorised, Together

_CHECK_EVERY = 20
"""Epochs between looks at the loss: each waits for the device."""
_FEW = 200_000
"""Parameters up to which networks are faster together than one by one on a CPU (``benchmarks/evaluate.py``)."""
_STORED = 6 * 128 * 4
"""Bytes that training keeps for every pixel of a batch and network: six maps of 128 channels in float32."""
_DRAWN = 2**24
"""Bytes of draws that go to the device at once, in whole epochs."""
_LONG = 10**8
"""Pixels a network must see on a CPU for compiling it to pay."""


class Rows(Interface):
    """Images to train on: a tensor (N, C, H, W), or what gives rows of one when they are asked for."""

    @property
    def device(self) -> torch.device:
        """Where the rows are given."""

    def __getitem__(self, rows: Any, /) -> Tensor:
        """Return normalised float images (B, C, H, W)."""


def fit(
    models: Sequence[nn.Module], images: Sequence[Rows], labels: Tensor, protocol: Protocol,
    stages: augment.Stages, classes: int, seeds: Sequence[int], place: tuple[int, int] | None = None,
    record: bool = False, teacher: Callable[[Tensor], Tensor] | StoredLabels | None = None,
    told: Callable[[float], None] | None = None, halfway: Halfway | None = None,
) -> None:  # fmt: skip
    """Train R networks of one architecture in place, in one vectorised pass (``torch.vmap``) where that is faster.

    Each is trained as it would be alone, up to rounding: its order of images, augmentation and CutMix follow from its
    own seed. A GPU tries at the start which way of convolving is faster, so there results may differ by rounding. What
    cannot be vectorised, such as dropout, is trained one by one, as large networks on a CPU are.

    Args:
        models: R modules from normalised (B, C, H, W) to (B, K) logits, or to an object that holds them as ``logits``;
            on the device of the images.
        images: R times N images, (C, H, W) float32, normalised; may be the same ones.
        labels: (N,) int64, or (N, K) float probabilities.
        protocol: Epochs, batch, optimiser, schedule, CutMix.
        stages: The augmentation: the protocol's, less what changes a class.
        classes: K.
        seeds: R seeds.
        place: Which of how many networks the first one is, for errors.
        record: Whether a GPU may record steps and play them: the networks are to do the same in every one.
        teacher: From a batch to logits, for a protocol that wants one: the labels are then not looked at. Or stored
            labels, whose batches then take the place of drawn ones, epoch after epoch and then again.
        told: Called every second or so with how much is done, in networks.
        halfway: Keeps networks that are trained in one pass, after an epoch now and then.

    Raises:
        Paused: ``halfway`` said so.
        UsageError: a network that cannot take the images, or gives something else than (B, K); or is no probe, where
            the protocol is for probes.
        AtomhubError: a loss is not finite (names the network and the epoch).
    """
    if protocol.frozen:
        probes = OnFeatures(models, images, len(labels))
        rules = replace(protocol, frozen=False)
        fit(probes.layers, probes.features, labels, rules, (), classes, seeds, place, record, None, told, halfway)
        probes.finish()
        return
    arguments = (images, labels, protocol, stages, classes, seeds)
    halfway = halfway or Halfway()
    first, total = place or (0, len(models))
    known = [p.numel() for p in models[0].parameters() if not isinstance(p, nn.UninitializedParameter)]
    large = images[0].device.type == "cpu" and sum(known) > _FEW
    if len(models) > 1 and not large and not any(_random(model) for model in models):
        try:
            every = Told(told and (lambda share: told(len(models) * share)))
            _fit(Together(models), *arguments, (first, total), record, teacher, every, halfway)
            return
        except NotVectorised:
            pass
    pixels = protocol.epochs * len(labels) * images[0][:1][0, 0].numel()
    for r, model in enumerate(models):
        with seeded(seeds[r], images[r].device):  # for dropout
            network = Alone(model, images[r].device, compiled=images[r].device.type == "cpu" and pixels >= _LONG)
            _fit(
                network,
                [images[r]],
                *arguments[1:-1],
                [seeds[r]],
                (first + r, total),
                record and not _random(model),
                teacher,
                Told(told and partial(_after, told, r)),
                halfway if len(models) == 1 else Halfway(),
            )


def fastest_group(device: torch.device, pixels: int, weights: int = 0) -> int:
    """Return how many networks to train in one pass, as ``benchmarks/evaluate.py`` measured, and as many as fit a GPU.

    Args:
        device: Where.
        pixels: Height times width times images of a batch: many keep a CPU busy with one network.
        weights: That a network learns, where they may be many.
    """
    if device.type == "cuda":
        return max(1, min(20, int(0.8 * free_memory(device)) // (pixels * _STORED)))
    return 20 if pixels <= 4096 and weights <= _FEW else 1


def _random(model: nn.Module) -> bool:
    return any(isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0 for m in model.modules())


def _fit(
    networks: Alone | Together, images: Sequence[Rows], labels: Tensor, protocol: Protocol,
    stages: augment.Stages, classes: int, seeds: Sequence[int], place: tuple[int, int], record: bool,
    teacher: Callable[[Tensor], Tensor] | StoredLabels | None, told: Told, halfway: Halfway,
) -> None:  # fmt: skip
    if not any(p.requires_grad for p in networks.parameters):
        raise UsageError(f"The network {networks.name} has nothing to train: all its weights are frozen or missing.")
    optimizer = _optimizer(networks, protocol)
    schedule = (
        CosineAnnealingLR(optimizer, protocol.cosine) if protocol.cosine
        else MultiStepLR(optimizer, protocol.drops, protocol.factor)
    )  # fmt: skip
    device = images[0].device
    losses: list[Tensor] = []

    stored = teacher if isinstance(teacher, StoredLabels) else None

    def gradients(*given: Tensor) -> list[Tensor]:
        """Return the losses (R,) of a batch, and the gradients of all parameters that have one."""
        batch, wanted = given if stored else _augmented(images, labels, one_hot, protocol, stages, *given)
        output = networks(batch)
        check_shape(networks.name, output.shape[1:], (batch.shape[1], classes))
        precise = output if output.dtype == torch.float64 else output.float()
        if teacher is not None:
            precise = precise / protocol.temperature
            with torch.no_grad():
                believed = wanted if isinstance(teacher, StoredLabels) else teacher(batch.flatten(0, 1))
                wanted = (believed.view_as(precise).to(precise.dtype) / protocol.temperature).softmax(-1)
        loss = -(wanted * precise.log_softmax(-1)).sum(-1).mean(1)
        if teacher is not None:
            loss = loss + (wanted * wanted.clamp_min(1e-38).log()).sum(-1).mean(1)
        if not loss.requires_grad:
            raise UsageError(
                f"The network {networks.name} gives outputs without a gradient.", "Do not detach them in forward()."
            )
        found = torch.autograd.grad(loss.sum(), networks.parameters, allow_unused=True)
        used[:] = [p for p, g in zip(networks.parameters, found, strict=True) if g is not None]
        return [loss.detach(), *(g for g in found if g is not None)]

    used: list[Tensor] = []
    one_hot = torch.eye(classes, device=device)
    step = Replayed(gradients, record and all(_on_gpu(own) for own in images))
    done = _restored(networks, optimizer, schedule, halfway.found(), device)
    epochs = (
        (stored.epoch(images[0], epoch, len(seeds)) for epoch in range(done, protocol.epochs)) if stored
        else islice(drawn(len(labels), protocol, seeds, device), done, None)
    )  # fmt: skip
    for epoch, batches in enumerate(epochs, done):
        for number, batch in enumerate(batches):
            told(epoch, number, protocol.epochs, -(-len(labels) // protocol.batch))
            loss, *found = step(*batch)
            for p, g in zip(used, found, strict=True):
                p.grad = g
            optimizer.step()
        losses.append(loss.clone())
        if len(losses) == _CHECK_EVERY or epoch == protocol.epochs - 1:
            _check(torch.stack(losses), epoch + 1 - len(losses), protocol.epochs, place)
            losses = []
        schedule.step()
        if protocol.restart and epoch + 1 in protocol.drops:
            optimizer.state.clear()
        state = partial(_state, networks, optimizer, epoch + 1, device)
        if epoch + 1 < protocol.epochs and halfway.after(state):
            raise Paused
    networks.finish()


def _state(
    networks: Alone | Together, optimizer: torch.optim.Optimizer, done: int, device: torch.device
) -> dict[str, Tensor]:
    """Return all that the epochs after ``done`` of them depend on, but for what the seeds give."""
    state = {"done": torch.tensor(done), "random": torch.get_rng_state()}
    if device.type == "cuda":
        state["random.cuda"] = torch.cuda.get_rng_state(device)
    state["rates"] = torch.tensor([group["lr"] for group in optimizer.param_groups], dtype=torch.float64)
    state |= {f"networks.{i}": tensor.detach() for i, tensor in enumerate(networks.tensors)}
    for i, parameter in enumerate(networks.parameters):
        own = optimizer.state.get(parameter, {})
        state |= {f"optimizer.{i}.{name}": value for name, value in own.items() if isinstance(value, Tensor)}
    return state


@torch.no_grad()
def _restored(
    networks: Alone | Together, optimizer: torch.optim.Optimizer, schedule: CosineAnnealingLR | MultiStepLR,
    state: dict[str, Tensor], device: torch.device,
) -> int:  # fmt: skip
    """Go back to a state, if it is one of these networks, and return the epochs done."""
    own = {f"networks.{i}": tensor for i, tensor in enumerate(networks.tensors)}
    if not state or any(name not in state or state[name].shape != tensor.shape for name, tensor in own.items()):
        return 0
    for name, tensor in own.items():
        tensor.copy_(state[name])
    for name, value in state.items():
        kind, *place = name.split(".")
        if kind == "optimizer":
            parameter = networks.parameters[int(place[0])]
            alike = value.shape == parameter.shape  # in memory as well, or the last bits differ
            optimizer.state[parameter][place[1]] = torch.empty_like(parameter).copy_(value) if alike else value
    for group, rate in zip(optimizer.param_groups, state["rates"].tolist(), strict=True):
        group["lr"] = rate
    torch.set_rng_state(state["random"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["random.cuda"], device)
    schedule.last_epoch = int(state["done"])
    return schedule.last_epoch


def _augmented(
    images: Sequence[Rows], labels: Tensor, one_hot: Tensor, protocol: Protocol, stages: augment.Stages,
    rows: Tensor, u: Tensor, mix: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return a batch of each network, augmented and mixed, (R, B, C, H, W), and what is to be learnt of it."""
    batch = torch.stack([own[i] for own, i in zip(images, rows, strict=True)])
    batch = augment.augment(batch.flatten(0, 1)[:, None], u.flatten(0, 1), stages)[:, 0].view_as(batch)
    targets = labels[rows] if labels.is_floating_point() else one_hot[labels[rows]].to(batch.dtype)
    if protocol.cutmix:
        box = cutmix.boxes(mix.to(batch.dtype), protocol.cutmix, batch.shape[-2:])
        batch, targets = cutmix.paste(batch, targets, box, u[..., augment.DRAWS].argsort(-1))
    return batch, targets


def _after(told: Callable[[float], None], before: int, share: float) -> None:
    told(before + share)


def _optimizer(networks: Alone | Together, protocol: Protocol) -> torch.optim.Optimizer:
    own = networks.parameters
    groups: list[dict[str, Any]] = [{"params": own}]
    if not protocol.decays_all:  # weights have two dimensions or more, and those of several networks another one
        least = 3 if isinstance(networks, Together) else 2
        groups = [
            {"params": [p for p in own if p.dim() >= least]},
            {"params": [p for p in own if p.dim() < least], "weight_decay": 0.0},
        ]
    if protocol.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=protocol.lr, weight_decay=protocol.decay)
    return torch.optim.SGD(groups, lr=protocol.lr, momentum=protocol.momentum, weight_decay=protocol.decay)


def _on_gpu(images: Rows) -> bool:
    where = images if isinstance(images, Tensor) else getattr(images, "resident", None)
    return where is not None and where.device.type == "cuda"


def drawn(
    count: int, protocol: Protocol, seeds: Sequence[int], device: torch.device
) -> Iterator[Iterator[tuple[Tensor, ...]]]:
    """Yield the batches of every epoch, for R networks: rows (R, B), draws (R, B, DRAWS + 1), draws (R, 4) of CutMix.

    The first draws are for every image, and the last of them orders the partners of CutMix.
    Every network has them from its own seed: an order of the images, then of each batch the one and the other.
    """
    generators = [torch.Generator().manual_seed(draws.generator_seed(seed, draws.TRAINING)) for seed in seeds]
    sizes = batch_sizes(count, protocol.batch)

    def epoch(g: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        order, u, mix = torch.randperm(count, generator=g), [], []
        for size in sizes:
            u.append(augment.one_choice(torch.rand(size, augment.DRAWS + 1, generator=g)))
            mix.append(torch.rand(4 if protocol.cutmix else 0, generator=g))  # coin, share kept, centre
        return order, torch.cat(u), torch.stack(mix)

    each = len(seeds) * count * (12 + 4 * augment.DRAWS)
    for ahead in torch.arange(protocol.epochs).split(max(1, _DRAWN // each)):
        parts = [[epoch(g) for g in generators] for _ in ahead]
        orders, us, mixes = (
            upload(torch.stack([torch.stack([own[j] for own in e]) for e in parts]), device) for j in range(3)
        )
        for order, u, mix in zip(orders, us, mixes, strict=True):
            yield zip(order.split(sizes, 1), u.split(sizes, 1), mix.unbind(1), strict=True)


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
