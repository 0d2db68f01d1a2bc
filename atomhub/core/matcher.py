"""Any network as matcher: where attention is taken in it, and the gradients, by autograd.

The networks of :mod:`atomhub.core.passes` are ConvNets, whose backward pass is in closed form. Here a network is a
module whose forward pass is watched. Its batch-norm layers normalise both sides by the statistics of real images, so
that no image depends on another and the work can be cut anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from atomhub.core import blocks, draws
from atomhub.core.bank import Bank
from atomhub.core.blocks import Kind, Moments
from atomhub.core.passes import Compiler
from atomhub.core.watch import Watch, dry_run
from atomhub.errors import UsageError, first_line, is_out_of_memory

Build = Callable[[], nn.Module]
"""Makes a classifier with fresh weights, from torch's global generator."""
Weights = dict[str, Tensor]
"""Parameter name to value."""


class Matcher:
    """The networks that a recipe draws from, where they are not ConvNets or gradients are matched.

    Attention is taken at the last activation of every stage, a run of activations of one resolution, but for the last
    stage; features are what enters the last linear layer. In a ConvNet these are the same as those of
    :mod:`atomhub.core.blocks`.

    Args:
        build: Makes one.
        kind: What is matched, and p.
        shape: C, H, W of the images.
        device: Where they compute.
        dtype: Precision of their weights.
        half: Whether they compute in bfloat16.
        bank: Networks to draw from; None: fresh ones.
        running: Whether batch norms have the statistics that came with the weights, and no others.
        head: Whether a random linear layer is drawn with every network.
        fixed: Whether all networks have the same weights.
        reach: Share of the line from initial to trained weights of a bank that is used.

    Raises:
        UsageError: there is nothing in the network to match.
    """

    def __init__(
        self, build: Build, kind: Kind, shape: tuple[int, int, int], device: torch.device, dtype: torch.dtype,
        half: bool = False, bank: Bank | None = None, running: bool = False, head: bool = False, fixed: bool = False,
        reach: float = 1.0,
    ) -> None:  # fmt: skip
        self.build, self.kind, self.device, self.dtype, self.half, self.bank = build, kind, device, dtype, half, bank
        self.reach = reach
        self.model = _still(_fresh(build, 0))
        self.parameters = [(name, p.shape) for name, p in self.model.named_parameters()]
        self.lock = Lock()  # several threads may draw
        self.look = dry_run(self.model, kind, shape)
        self.norms = 0 if running else self.look.norms
        """Batch norms whose statistics are those of real images."""
        self.fixed = self._flat(dict(self.model.named_parameters())) if fixed else None
        self.heads = (self.look.classes, self.look.features) if head else (0, 0)
        self.model.to(device, dtype).requires_grad_(False)
        self._seen, self._found, self._sloped, self._pulled = self._see, self._moments, self._slope, self._pull

    def compile(self, compiler: Compiler) -> None:
        """Run networks compiled, where the compiler is wanted."""
        self._seen, self._found = compiler.traced(self._see), compiler.traced(self._moments)
        # with their backward passes, as torch.compile has no gradient of a gradient
        self._sloped, self._pulled = compiler.traced(self._slope), compiler.traced(self._pull)

    def draw(self, seed: int, iteration: int, trained: bool = False) -> tuple[int, Tensor, Tensor | None]:
        """Draw the weights of an iteration, as :meth:`atomhub.core.embedding.Embedding.draw`; (n,) float32.

        A linear layer that is drawn with them comes last, of independent standard normal numbers.
        """
        key = draws.generator_seed(seed, draws.WEIGHTS, iteration)
        own = torch.Generator().manual_seed(draws.generator_seed(seed, draws.HEAD, iteration))
        head = torch.randn(self.heads[0] * self.heads[1], generator=own)
        if self.fixed is not None:
            return 0, torch.cat([self.fixed, head]), None
        with self.lock:
            if self.bank is None:
                return 0, torch.cat([self._flat(dict(_fresh(self.build, key).named_parameters())), head]), None
            member, share = key % len(self.bank), self.reach * float(draws.uniform(seed, draws.BANK, iteration)[0])
            end = self._flat(self.bank.weights(member, 1.0)) if trained else None
            return 0, torch.cat([self._flat(self.bank.weights(member, share)), head]), end

    def _flat(self, weights: Weights) -> Tensor:
        return torch.cat([weights[name].detach().flatten().float() for name, _ in self.parameters])

    def weights(self, flat: Tensor) -> Weights:
        """Return weights of :meth:`draw`, on whatever device they are, by name."""
        sizes = [shape.numel() for _, shape in self.parameters]
        parts = flat[: sum(sizes)].to(self.dtype).split(sizes)
        return {name: part.view(shape) for (name, shape), part in zip(self.parameters, parts, strict=True)}

    def head(self, flat: Tensor) -> Tensor:
        """Return the random linear layer that lies behind weights of :meth:`draw`, (K, D)."""
        return flat[len(flat) - self.heads[0] * self.heads[1] :].to(self.dtype).view(self.heads)

    @torch.no_grad()
    def moments(self, weights: Weights, images: Tensor) -> list[Moments]:
        """Return mean and variance (C,) that every batch norm of a network finds for some images (N, C, H, W)."""
        return self._found(weights, images)

    def _moments(self, weights: Weights, images: Tensor) -> list[Moments]:
        found: list[Moments] = []

        def norm(_: int, x: Tensor) -> Moments:
            variance, mean = torch.var_mean(blocks.at_least_float32(x), [0, *range(2, x.dim())], correction=0)
            found.append((mean, variance))
            return found[-1]

        with self._computing(), Watch(norm=norm):
            functional_call(self.model, weights, (images,))
        return found

    def see(self, weights: Weights, moments: list[Moments], images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return what is matched of images (N, C, H, W): attention (N, D) of every stage, features; and logits."""
        return self._seen(weights, moments, images)

    def _see(self, weights: Weights, moments: list[Moments], images: Tensor) -> tuple[list[Tensor], Tensor]:
        taps = set(self.look.taps)
        found: list[Tensor] = []

        def look(count: int, z: Tensor) -> None:
            if count in taps:
                found.extend(blocks.attention(blocks.at_least_float32(z).abs(), self.kind))

        norm = (lambda count, _: moments[count]) if self.norms else None
        with self._computing(), Watch(look, norm=norm) as watch:
            logits = functional_call(self.model, weights, (images,))
        assert watch.entered is not None
        return [*found, blocks.at_least_float32(watch.entered).flatten(1)], blocks.at_least_float32(logits)

    def slope(self, weights: Weights, moments: list[Moments], images: Tensor, labels: Tensor) -> Tensor:
        """Return the gradient of the summed cross-entropy of images by the weights of :class:`Look`, (n,).

        Args:
            weights: Of the network.
            moments: What its batch norms take.
            images: (N, C, H, W), augmented.
            labels: (N,) class numbers.
        """
        return self._sloped(weights, moments, images, labels)

    def pull(
        self, weights: Weights, moments: list[Moments], images: Tensor, labels: Tensor, apart: Tensor, alone: Tensor
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Return what a gradient is apart from a wanted one, (n,), and the gradient of half its square by the images.

        Args:
            weights: As for :meth:`slope`, as are the next three.
            moments: Of batch norms.
            images: Augmented.
            labels: Theirs.
            apart: (n,) what gradients are apart, less that of these images where they are ``alone``.
            alone: 1 if it is to be added, 0 if it is a part of ``apart``.
        """
        return self._pulled(weights, moments, images, labels, apart, alone)

    def _slope(
        self, weights: Weights, moments: list[Moments], images: Tensor, labels: Tensor, graph: bool = False
    ) -> Tensor:  # fmt: skip
        own = {name: weights[name].detach().requires_grad_() for name in self.look.weights}
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # the attention that has a gradient of a gradient
            _, logits = self._see(weights | own, moments, images)
            loss = F.cross_entropy(logits, labels, reduction="sum")
            found = torch.autograd.grad(loss, list(own.values()), create_graph=graph, materialize_grads=True)
            return torch.cat([g.flatten() for g in found])

    def _pull(
        self, weights: Weights, moments: list[Moments], images: Tensor, labels: Tensor, apart: Tensor, alone: Tensor
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        images = images.detach().requires_grad_()
        slope = self._slope(weights, moments, images, labels, graph=True)
        apart = apart + alone * slope.detach()
        return apart, torch.autograd.grad(slope, images, apart)[0]

    def check_slope(self, shape: tuple[int, int, int], learnt: bool) -> None:
        """Raise UsageError if images cannot be moved by the gradient of a gradient through this network.

        Args:
            shape: (C, H, W) of an image.
            learnt: Whether networks are those of a bank, which may be trained later.
        """
        name = type(self.model).__name__
        images = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0)).to(self.device, self.dtype)
        weights: Weights = {n: p.detach() for n, p in self.model.named_parameters()}
        labels = torch.zeros(2, dtype=torch.long, device=self.device)
        moments = self.moments(weights, images) if self.norms else []
        try:
            slope = self._slope(weights, moments, images.requires_grad_(), labels, graph=True)
            torch.autograd.grad(slope.sum(), images)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise UsageError(
                f"The network {name} has no gradient of a gradient: {first_line(error)}",
                "Set gradient to 0, or use another matcher, such as resnet18.",
            ) from error
        if not learnt and not slope.any():
            raise UsageError(
                f"No gradient reaches the weights of {name}, as that of a last layer that begins at 0.",
                "Set bank above 0, whose networks have learnt, or use another matcher.",
            )

    @contextmanager
    def _computing(self) -> Iterator[None]:
        # a cache of converted weights would outlive them
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half, cache_enabled=False):
            yield


def flops(build: Build, shape: tuple[int, int, int]) -> int:
    """Return the floating point operations (two a multiply-add) of a network for one image (C, H, W), forward."""
    from torch.utils.flop_counter import FlopCounterMode  # takes tens of megabytes

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        _still(_fresh(build, 0))(torch.zeros(1, *shape))
    return counter.get_total_flops()


def _fresh(build: Build, seed: int) -> nn.Module:
    """Return a network with weights that are a function of a seed."""
    with draws.seeded(seed, torch.device("cpu")):
        return build()


def _still(model: nn.Module) -> nn.Module:
    """Return a network without dropout, whose activations stay what they were."""
    for module in model.modules():
        if getattr(module, "inplace", False):
            setattr(module, "inplace", False)  # noqa: B010 torch's modules declare no such attribute
    return model.eval()
