"""The size of a run's work, and how it is cut so that it fits memory and caches."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from itertools import combinations

import torch

from atomhub.core.convnet import ConvNet
from atomhub.errors import AtomhubError
from atomhub.recipe import Recipe

_WORTH_COMPILING = {"cpu": 10**13, "cuda": 10**15}
"""Floating point operations of a run from which compiling (some 20 s) pays: about 40 s of work of two cores."""
_LAYERS = 8
"""The same, as a multiple, of networks that are no ConvNets, and of gradients: that is much to compile, for minutes."""
_CACHED = 5 * 2**20
"""Bytes of the largest feature map that a piece of work has for every CPU core, where it should stay in the caches."""
_LARGE = 4 * 2**30
"""The same on a GPU, which is busy with less."""
_MAPS = 10
"""Maps of the largest kind that the work on a piece takes while it is not compiled."""
_GATHERED = 512
"""Real images that are gathered and augmented at once, where memory is not short."""
_REUSED = 2**30
"""Bytes of a buffer up to which :func:`atomhub.devices.keep_large_buffers` lets a process have it again."""
LIBRARIES = 256 * 2**20
"""Bytes that a limit is charged with for libraries: 230 to 430 MiB of them are in a process, as the system likes."""

Piece = tuple[slice, slice]
"""Classes, and the images of each."""


def worth_compiling(
    recipe: Recipe, classes: int, ipc: int, operations: int, device: torch.device, gradients: bool = True
) -> bool:
    """Return whether a run is long enough for ``torch.compile`` to pay.

    Args:
        recipe: Of the run.
        classes: Of the set.
        ipc: Images per class.
        operations: Of a network for one image.
        device: Where it runs.
        gradients: Whether gradients of gradients are to be compiled as well, if they are matched.
    """
    passes = 6 if recipe.calibration else 3  # forward and backward, once or twice
    images = min(classes, recipe.classes_per_iteration or classes)
    # the features of real images are found once where the network stays as it is
    others = recipe.linear or recipe.feature or recipe.spatial or recipe.channel or recipe.gradient
    once = recipe.layer and recipe.statistics == "running" and not others
    images *= (0 if once else recipe.real_batch) + passes * ipc * recipe.views_per_image
    least = _WORTH_COMPILING["cuda" if device.type == "cuda" else "cpu"]
    least *= _LAYERS if not recipe.convnet or (gradients and recipe.gradient) else 1
    return recipe.iterations * images * operations >= least


def convnet_flops(recipe: Recipe, channels: int, size: int) -> int:
    """Return the floating point operations of a recipe's largest ConvNet for one image, forward."""
    width, depth = max(recipe.widths or (recipe.width,)), max(recipe.depths or (recipe.depth or 1,))
    return sum(flops(width, depth, channels, size))


def flops(width: int, depth: int, channels: int, size: int) -> list[int]:
    """Return the floating point operations (two a multiply-add) of every convolution for one image, forward."""
    sides = [-(-size // 2**depth) * 2**depth // 2**level for level in range(depth)]
    return [2 * 9 * (width if level else channels) * width * side**2 for level, side in enumerate(sides)]


def piece(total: int, most: int) -> int:
    """Return a divisor of ``total`` near below ``most``, so that all pieces have one shape; else ``most``."""
    if most >= total:
        return total
    return next((n for n in range(most, most // 2, -1) if total % n == 0), most)


def slices(total: int, size: int) -> list[slice]:
    """Return slices of ``size`` that cover ``total``; the last may be shorter."""
    return [slice(i, min(i + size, total)) for i in range(0, total, size)]


def cut(classes: int, each: int, most: int) -> list[Piece]:
    """Cut ``each`` images of some classes into pieces of at most ``most`` images: whole classes, or parts of one."""
    if most >= each:
        return [(k, slice(0, each)) for k in slices(classes, piece(classes, most // each))]
    members = slices(each, piece(each, most))
    return [(slice(k, k + 1), m) for k in range(classes) for m in members]


def inside(part: Piece, most: int) -> list[Piece]:
    """Cut a piece into smaller ones, as :func:`cut` does."""
    k, m = part
    smaller = cut(k.stop - k.start, m.stop - m.start, most)
    return [
        (slice(a.start + k.start, a.stop + k.start), slice(b.start + m.start, b.stop + m.start)) for a, b in smaller
    ]


def length(part: Piece) -> int:
    """Return how many images a piece has."""
    return (part[0].stop - part[0].start) * (part[1].stop - part[1].start)


@dataclass(frozen=True)
class Plan:
    """How the work of an iteration is cut.

    Attributes:
        real: Pieces of the real batch.
        chunks: For each, the larger piece with which it is gathered and augmented.
        keep: Levels of the network that are kept of it, see :class:`atomhub.core.passes.Side`.
        some: Pieces of it of which level 0, the largest, is kept where it is not kept of all.
        first: Whether level 0, the largest, is kept of synthetic images, as the others are.
        groups: Pieces of the synthetic images, by those that are held until their gradient is known.
    """

    real: list[Piece]
    chunks: list[Piece]
    keep: frozenset[int]
    some: int
    first: bool
    groups: list[list[Piece]]

    def members(self, i: int) -> list[int]:
        """Return the pieces of the real batch, neighbours, that are gathered with piece ``i``."""
        first = last = i
        while first and self.chunks[first - 1] == self.chunks[i]:
            first -= 1
        while last + 1 < len(self.chunks) and self.chunks[last + 1] == self.chunks[i]:
            last += 1
        return list(range(first, last + 1))

    @property
    def spans(self) -> list[slice]:
        """The classes of the synthetic pieces, every class once."""
        return sorted({(k.start, k.stop): k for group in self.groups for k, _ in group}.values(), key=lambda k: k.start)


_FILLED = 7 / 8
"""Share of a limit that the work is cut to fill: freed pieces and scratch of the libraries lie between its tensors."""


def plan(
    recipe: Recipe, network: ConvNet, classes: int, views: int, itemsize: int, budget: int, device: torch.device,
    memory: int | None = None,
) -> Plan:  # fmt: skip
    """Return how to cut an iteration's work.

    Args:
        recipe: A resolved recipe.
        network: The largest of its networks.
        classes: Classes of an iteration that this process owns.
        views: Synthetic images of a class as networks see them.
        itemsize: Bytes of a number of the maps.
        budget: Bytes that the work may take.
        device: Where to compute.
        memory: The limit that left the budget, for the message that names a better one.

    Raises:
        AtomhubError: the budget is too small.
    """
    if classes == 0:
        return Plan([], [], frozenset(), 0, False, [[]])
    width, channels = network.widths
    side, coupled = network.size + network.padding, recipe.norm == "batch"
    maps = [itemsize * width * (side >> level) ** 2 for level in range(network.depth)]
    images = itemsize * channels * side**2  # an image as networks get it
    work = _MAPS * max(maps[0], 4 * width * side**2)  # of one image; computed in float32
    vectors = 4 * sum((side >> level) ** 2 + width for level in range(network.depth))  # what is matched of an image
    held = images + sum(maps[1:]) + 3 * vectors  # of a synthetic image until its gradient is known
    together = coupled and (recipe.statistics == "own" or bool(recipe.calibration))
    least = 2 * vectors * classes + work + held * views * (classes if together else 1)
    if least > budget:
        fewer = "Or set the recipe field classes_per_iteration, or norm=instance." if together else ""
        count = classes * views if together else views
        raise too_small(f"{count} synthetic image{'s' * (count > 1)}", least, budget, memory, fewer)
    if memory is not None:
        budget = max(least, int(budget * _FILLED))
    free = budget - (least - work)
    largest = _LARGE if device.type == "cuda" else _CACHED * torch.get_num_threads()
    most = max(1, min(largest // maps[0], free // 2 // work))
    gathered = cut(classes, recipe.real_batch, max(most, min(_GATHERED, free // 8 // (16 * channels * side**2))))
    real = [(part, chunk) for chunk in gathered for part in inside(chunk, most)]
    split = [part for part, _ in real], [chunk for _, chunk in real]
    keep, some = frozenset[int](), 0
    # a CPU reads level 0 faster than it computes it, but for what the system must clear anew in every iteration
    first_real, first = (device.type == "cpu" and maps[0] * classes * n <= _REUSED for n in (recipe.real_batch, views))
    if coupled:
        costs = flops(width, network.depth, channels, network.size)
        left = budget - 2 * vectors * classes - most * work - max(map(length, gathered)) * 16 * channels * side**2
        keep = kept(costs, [images, *maps], classes * recipe.real_batch, left, first_real)
        if device.type == "cpu" and 0 not in keep and memory is None:  # a limit is better kept with some room
            left -= classes * recipe.real_batch * sum([images, *maps][at + 1] for at in keep)
            some = min(_REUSED, left) // (maps[0] * most)
    pieces = cut(classes, views, most)
    if together:
        spare = free - most * work - maps[0] * classes * views
        return Plan(*split, keep, some, first and spare > 0, [pieces])
    fit = max(views, (free - most * work) // held)
    groups = [inside(group, most) for group in cut(classes, views, max(views, min(most, fit)))]
    return Plan(*split, keep, some, first and maps[0] * max(views, most) < free - most * work, groups)


def too_small(what: str, least: int, budget: int, memory: int | None, or_else: str = "") -> AtomhubError:
    """Return the error for a budget of bytes that is smaller than the least that the work on some images at once needs.

    Args:
        what: The images, in words.
        least: Bytes that are needed.
        budget: Bytes that there are.
        memory: The limit that left them; None: there is none.
        or_else: Another way out.
    """
    more = "Free some, or use another device."
    if memory is not None:
        more = f'Give `memory="{math.ceil((memory + least - budget) / 2**20)}MiB"` or more.'
    left = f"{budget / 2**20:.0f} MiB are" if budget > 0 else "nothing is"
    return AtomhubError(
        f"The memory is too small: the work on {what} at once needs {least / 2**20:.1f} MiB, and {left} left beside "
        "the program, its libraries and its images.",
        f"{more} {or_else}".strip(),
    )


def kept(costs: list[int], sizes: list[int], images: int, budget: int, first: bool = False) -> frozenset[int]:
    """Return the levels to keep of ``images`` under batch norm so that the least is computed twice.

    Args:
        costs: Operations that bring an image to every level, from the one before it.
        sizes: Bytes of an image at every level, first those of the image itself, level -1.
        images: How many there are.
        budget: Bytes that what is kept may take.
        first: Whether level 0, the largest, may be kept: it is cheap to compute.
    """
    depth = len(costs)
    steps = [costs[0] // 3, *costs]  # reading and augmenting an image is work too
    options = [-1, *range(0 if first else 1, depth)]

    def work(keep: Collection[int]) -> int:
        total = 0
        for level in range(depth + 1):  # the moments of each, then the features, from the last
            start = max((at for at in keep if at < level), default=-2)
            total += sum(steps[at + 1] for at in range(start + 1, min(level, depth - 1) + 1))
        return total

    fitting: list[tuple[int, ...]] = [
        choice
        for count in range(depth + 1)
        for choice in combinations(options, count)
        if images * sum(sizes[at + 1] for at in choice) <= budget
    ]
    best = min((work(choice), len(choice), choice) for choice in fitting)
    return frozenset(best[2])


def budget(memory: int | None, free: int, used: int, resident: int, libraries: int = LIBRARIES) -> int:
    """Return the bytes that the work of an iteration may take.

    Args:
        memory: The limit for this process; None: there is none.
        free: Bytes that are free on the device.
        used: Bytes that this process has taken already, without the pages of files such as libraries.
        resident: Bytes that its images will take.
        libraries: Bytes for libraries, which a GPU does not hold.
    """
    if memory is None:
        return int(0.8 * free) - resident
    return memory - used - libraries - resident
