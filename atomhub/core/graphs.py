"""Work that a GPU does again and again in the same shapes, recorded once as CUDA graphs and then played.

A GPU finishes an iteration of CIFAR-10's size sooner than a CPU can ask for its hundreds of operations one by one.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Protocol as Interface, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from atomhub.core.blocks import Moments
from atomhub.core.real import upload
from atomhub.core.sampling import Draw
from atomhub.errors import AtomhubWarning, first_line

Outputs = list[Tensor]
Targets = tuple[list[Tensor], list[Moments]]
"""What the real side finds: class means (k, D) of all that is matched; under batch norm the moments of every level."""
T = TypeVar("T")
WARM = 3
"""Calls before a recording: compilers and libraries choose and allocate in them."""


class Recording:
    """A function of tensors, recorded at once where they are on a GPU; elsewhere it is called whenever it is played.

    Args:
        function: From tensors to tensors, without waits, in the same shapes every time; it may change others.
        inputs: Of those shapes.

    Attributes:
        inputs: Copies of them, which it reads when it is played.
        outputs: What it gave when it was played last.
    """

    def __init__(self, function: Callable[..., Outputs], inputs: Sequence[Tensor]) -> None:
        self.function, self.inputs = function, [x.detach().clone() for x in inputs]
        self.outputs: Outputs = []
        self.graph: torch.cuda.CUDAGraph | None = None
        if inputs[0].is_cuda:
            self.graph = torch.cuda.CUDAGraph()
            here, device = torch.cuda.current_stream(inputs[0].device), inputs[0].device
            # a stream each, as libraries have working memory for every stream, and two may be played at once; what
            # other threads do meanwhile is theirs; the outer block leaves the stream where a capture fails
            with (
                torch.cuda.stream(here),
                torch.cuda.graph(self.graph, stream=torch.cuda.Stream(device), capture_error_mode="thread_local"),
            ):
                self.outputs = function(*self.inputs)

    def load(self, inputs: Sequence[Tensor]) -> None:
        """Copy what is to be read next."""
        for own, x in zip(self.inputs, inputs, strict=True):
            own.copy_(x, non_blocking=True)

    def play(self) -> Outputs:
        """Run it; return what it gave, which the next time overwrites."""
        if self.graph is not None:
            self.graph.replay()
        else:
            self.outputs = self.function(*self.inputs)
        return self.outputs


def attempt(work: Callable[[], T]) -> T | None:
    """Return what some work that records gives, or None, with a warning, where it fails: what it is for goes on."""
    try:
        return work()
    except Exception as error:
        note = f"The work could not be recorded as a CUDA graph, so it is slower. torch said: {first_line(error)}"
        warnings.warn(note, AtomhubWarning, stacklevel=3)
        return None


class Replayed:
    """A function of tensors that is called as it is at first, and recorded then, once for all shapes of its inputs.

    Args:
        function: As for :class:`Recording`.
        wanted: Whether to record at all.
    """

    def __init__(self, function: Callable[..., Outputs], wanted: bool) -> None:
        self.function, self.wanted = function, wanted
        self.calls: Counter[tuple[torch.Size, ...]] = Counter()
        self.recordings: dict[tuple[torch.Size, ...], Recording] = {}

    def __call__(self, *inputs: Tensor) -> Outputs:
        """Return what the function gives, which the next call overwrites."""
        shapes = tuple(x.shape for x in inputs)
        self.calls[shapes] += 1
        if self.wanted and self.calls[shapes] > WARM and shapes not in self.recordings:
            made = attempt(partial(Recording, self.function, inputs))
            if made is None:
                self.wanted = False
            else:
                self.recordings[shapes] = made
        if shapes not in self.recordings:
            return self.function(*inputs)
        self.recordings[shapes].load(inputs)
        return self.recordings[shapes].play()


class Sides(Interface):
    """What takes the steps of a run."""

    @property
    def device(self) -> torch.device:
        """Where."""

    def real_side(self, draw: Draw) -> Targets:
        """Return what is to be matched, and batch-norm moments."""

    def synthetic_side(self, draw: Draw, targets: Targets) -> Tensor:
        """Take the step; return the loss before it, a scalar."""


class Pipeline:
    """The two sides of an iteration, recorded: the real one of the next iteration runs beside the synthetic one.

    The real side does not depend on the synthetic images, and either alone leaves part of a GPU idle.

    Args:
        sides: What is run, :data:`WARM` steps after its start.
        draw: Of the iteration to go on with, on the device.
    """

    def __init__(self, sides: Sides, draw: Draw) -> None:
        self.device = sides.device

        def real_side(block: Tensor) -> Outputs:
            flat, self.structure = tree_flatten(sides.real_side(draw.unpacked(block)))
            return flat

        def synthetic_side(block: Tensor, *flat: Tensor) -> Outputs:
            return [sides.synthetic_side(draw.unpacked(block), tree_unflatten(flat, self.structure))]

        self.real = Recording(real_side, [draw.packed()])
        self.synthetic = Recording(synthetic_side, [*self.real.inputs, *self.real.play()])

    def run(self, draws: Iterator[Draw]) -> Iterator[Tensor]:
        """Take the step of the draw it was made for, then those of others, on the CPU; yield the loss of each."""
        on_gpu = self.device.type == "cuda"
        beside = torch.cuda.Stream(self.device) if on_gpu else None
        here = torch.cuda.current_stream(self.device) if on_gpu else None

        def wait(one: torch.cuda.Stream | None, other: torch.cuda.Stream | None) -> None:
            if one is not None and other is not None:
                one.wait_stream(other)

        try:
            for following in chain(draws, [None]):
                wait(here, beside)
                self.synthetic.load([*self.real.inputs, *self.real.outputs])
                wait(beside, here)  # for these copies, not for the step that comes now
                if following is not None:
                    with torch.cuda.stream(beside):
                        self.real.load([upload(following.packed(), self.device)])
                        self.real.play()
                yield self.synthetic.play()[0]
        finally:  # a run that is left: nobody is to have this memory before the real side ends
            wait(here, beside)
