"""Networks in training: one alone, or several of one architecture as one."""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from atomhub.errors import is_out_of_memory
from atomhub.training.accuracy import logits


class NotVectorised(Exception):
    """The networks do something that has no vectorised form."""


class Alone:
    """One network, called with (1, B, C, H, W)."""

    def __init__(self, model: nn.Module, device: torch.device, compiled: bool) -> None:
        batch_norm = any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
        lazy = any(isinstance(p, nn.UninitializedParameter) for p in model.parameters())
        compiled = compiled and not batch_norm  # which is as fast as it is: benchmarks/evaluate.py
        self.reordered = device.type == "cpu" and (compiled or batch_norm) and not lazy
        if self.reordered:
            # what benchmarks/evaluate.py found faster; group norm uncompiled is not
            model.to(memory_format=torch.channels_last)
        self.model, self.name = model.train(), type(model).__name__
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.fast: Any = torch.compile(model, dynamic=False) if compiled else None

    @property
    def tensors(self) -> list[Tensor]:
        """All weights and buffers."""
        return [*self.model.parameters(), *self.model.buffers()]

    def __call__(self, batch: Tensor) -> Tensor:
        """Return logits (1, B, K)."""
        if self.fast is not None:
            try:
                return logits(self.fast, batch[0])[None]
            except Exception:  # whatever stopped the compiler; a fault of the network itself comes again below
                self.fast = None
        return logits(self.model, batch[0])[None]

    def finish(self) -> None:
        """Leave the network ready for use."""
        if self.reordered:
            self.model.to(memory_format=torch.contiguous_format)
        self.model.eval()


class Together:
    """R networks of one architecture as one, called with (R, B, C, H, W)."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        self.models, self.name = models, type(models[0]).__name__
        for model in models:
            model.train()
        try:
            self.weights, self.buffers = torch.func.stack_module_state(list(models))
        except (RuntimeError, ValueError) as error:
            raise NotVectorised from error
        self.parameters = [stacked for stacked in self.weights.values() if stacked.requires_grad]
        self.products: bool | None = None

    @property
    def tensors(self) -> list[Tensor]:
        """All weights and buffers."""
        return [*self.weights.values(), *self.buffers.values()]

    def __call__(self, batch: Tensor) -> Tensor:
        """Return logits (R, B, K)."""
        if self.products is None:
            self.products = batch.is_cuda and self._faster_as_products(batch)
        with _AsProducts() if self.products else nullcontext():
            return self._forward(batch)

    def _faster_as_products(self, batch: Tensor) -> bool:
        """Return whether convolutions are faster as products of matrices than as one of many groups: both are tried."""
        before, took = {name: b.clone() for name, b in self.buffers.items()}, []

        def trial(products: bool) -> float:
            with _AsProducts() if products else nullcontext():
                for _ in range(2):  # the first one is not counted
                    torch.cuda.synchronize(batch.device)
                    start = time.perf_counter()
                    for _ in range(3):
                        torch.autograd.grad(self._forward(batch).sum(), self.parameters, allow_unused=True)
                    torch.cuda.synchronize(batch.device)
            return time.perf_counter() - start

        took.append(trial(False))
        try:
            took.append(trial(True))
        except RuntimeError as error:  # products take more memory
            if not is_out_of_memory(error):
                raise
            took.append(float("inf"))
        for name, b in before.items():  # batch norm's, which every pass changes
            self.buffers[name].copy_(b)
        return took[1] < took[0]

    def _forward(self, batch: Tensor) -> Tensor:
        def one(weights: Any, buffers: Any, images: Tensor) -> Tensor:
            output = torch.func.functional_call(self.models[0], (weights, buffers), (images,))
            return output if isinstance(output, Tensor) else output.logits

        try:
            return torch.vmap(one)(self.weights, self.buffers, batch)
        except (RuntimeError, AttributeError, TypeError, ValueError) as error:
            if is_out_of_memory(error):
                raise
            raise NotVectorised from error  # or a fault of the network, which comes again when it is alone

    @torch.no_grad()
    def finish(self) -> None:
        """Give every network its own weights, and leave it ready for use."""
        for r, model in enumerate(self.models):
            for name, tensor in (*model.named_parameters(), *model.named_buffers()):
                tensor.copy_({**self.weights, **self.buffers}[name][r])
            model.eval()


class _AsProducts(TorchFunctionMode):
    """Convolutions as products of matrices: of many networks at once a GPU may be faster with these."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (_convolve if func is torch.conv2d else func)(*args, **(kwargs or {}))


def _convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> Tensor:  # fmt: skip
    """Return ``F.conv2d`` of the same arguments."""
    if groups != 1 or isinstance(padding, str):
        return torch.conv2d(x, weight, bias, stride, padding, dilation, groups)
    size, *others = (
        v if isinstance(v, tuple) else (int(v), int(v)) for v in (tuple(weight.shape[2:]), padding, dilation, stride)
    )
    sides = [
        (side + 2 * p - d * (k - 1) - 1) // s + 1
        for side, k, p, d, s in zip(x.shape[-2:], size, *others, strict=True)
    ]  # fmt: skip
    columns = F.unfold(x, size, others[1], others[0], others[2])  # (B, C*k*k, H*W)
    out = torch.einsum("ok,bkl->bol", weight.flatten(1), columns).unflatten(-1, sides)
    return out if bias is None else out + bias[:, None, None]
