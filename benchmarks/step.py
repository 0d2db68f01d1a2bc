"""Seconds an iteration at CIFAR-10's shape: atomhub's engine, its stages and its floor, beside a naive implementation.

    python benchmarks/step.py [--device cuda] [--full]

The naive one is written from the formulas the way research scripts are: a new network at every iteration, class by
class, feature maps caught by forward hooks, float32, contiguous layout, loss sums on the CPU. The floor is the time of
the convolutions alone at the machine's best measured rate, plus the time to read the maps of the statistics once.
"""

import argparse
import time
from collections import defaultdict
from contextlib import contextmanager

import numpy as np
import torch
from common import bandwidth, convolution_rate, write
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

from atomhub.core import augment, engine as engine_module
from atomhub.core.convnet import ConvNet
from atomhub.core.engine import Engine
from atomhub.core.plan import flops
from atomhub.core.whitening import Normalization
from atomhub.devices import fast_bfloat16, find_device, keep_large_buffers
from atomhub.recipe import Recipe

CLASSES, SIZE, NORMALIZATION = 10, 32, Normalization((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))


def data():
    """Return generated images of CIFAR-10's shape, 500 per class, with offsets."""
    images = np.random.default_rng(0).integers(0, 256, (CLASSES * 500, 3, SIZE, SIZE), dtype=np.uint8)
    return images, np.arange(CLASSES + 1) * 500


class Naive:
    """One iteration the way research scripts do it."""

    def __init__(self, recipe, ipc, device):
        images, offsets = data()
        self.recipe, self.ipc, self.device = recipe, ipc, device
        self.real = NORMALIZATION.apply(torch.from_numpy(images)).to(device)
        self.offsets, self.random = offsets, np.random.default_rng(0)
        start = torch.cat([self.real[o : o + ipc] for o in offsets[:-1]])
        self.synthetic = start.clone().requires_grad_()
        self.optimizer = torch.optim.SGD([self.synthetic], lr=1.0, momentum=0.5)

    def maps(self, network, images):
        """Return the features of the last block, and the maps before pooling that hooks catch."""
        caught = []
        hooks = [norm.register_forward_hook(lambda m, i, out: caught.append(F.relu(out))) for norm in network.norms]
        x = images
        for convolution, norm in zip(network.convolutions, network.norms, strict=True):
            x = F.avg_pool2d(F.relu(norm(convolution(x))), 2)
        for hook in hooks:
            hook.remove()
        return x.flatten(1), caught[:-1]

    def attention(self, maps):
        """Return the class means of the attention of every map."""
        p = self.recipe.power
        found = []
        for f in maps:
            a = f.abs().pow(p)
            if self.recipe.spatial:
                found.append(F.normalize(a.sum(1).flatten(1)).mean(0))
            if self.recipe.channel:
                found.append(F.normalize(a.sum((2, 3))).mean(0))
        return found

    def step(self, _):
        """Take one step on the images."""
        network = ConvNet(3, CLASSES, SIZE).to(self.device)
        network.requires_grad_(False)
        loss = torch.tensor(0.0)
        for k in range(CLASSES):
            rows = self.random.permutation(500)[: self.recipe.real_batch] + self.offsets[k]
            u = torch.rand(1, augment.DRAWS)
            real = augment.augment(self.real[rows][None], u, self.recipe.augmentation)[0]
            own = self.synthetic[k * self.ipc : (k + 1) * self.ipc]
            own = augment.augment(own[None], u, self.recipe.augmentation)[0]
            real_features, real_maps = self.maps(network, real)
            features, maps = self.maps(network, own)
            if self.recipe.spatial or self.recipe.channel:
                for a, b in zip(self.attention(real_maps), self.attention(maps), strict=True):
                    loss = loss + ((a - b) ** 2).sum().cpu()
            loss = loss + self.recipe.feature * ((real_features.mean(0) - features.mean(0)) ** 2).sum().cpu()
        self.optimizer.zero_grad()
        (self.recipe.loss_scale * loss).backward()
        self.optimizer.step()


def engine(recipe, ipc, device, compiled):
    """Return an engine on the generated images."""
    return Engine(*data(), recipe, ipc, NORMALIZATION, device=device, compiled=compiled)


def timed(steps, device, repeat):
    """Return the median seconds of each step function, taken in turns so that all see the same machine."""
    times = [[] for _ in steps]
    for i in range(2 + repeat):  # two to warm up and compile
        for step, found in zip(steps, times, strict=True):
            start = time.perf_counter()
            step(i)
            if device.type == "cuda":
                torch.cuda.synchronize()
            found.append(time.perf_counter() - start)
    return [float(np.median(found[2:])) for found in times]


@contextmanager
def stages(e, device):
    """Time the stages of the engine's iterations in the block, by putting clocks around them."""
    spent = defaultdict(float)

    def clocked(name, function):
        def call(*arguments, **options):
            if device.type == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            out = function(*arguments, **options)
            if device.type == "cuda":
                torch.cuda.synchronize()
            spent[name] += time.perf_counter() - start
            return out

        return call

    plain = augment.augment, torch.autograd.grad
    vectors = e.embedding.compiled[e.embedding.network]
    e.draw, e._pixels = clocked("sampling", e.draw), clocked("sampling", e._pixels)
    engine_module.augment.augment = clocked("augmentation", plain[0])
    e.embedding.compiled[e.embedding.network] = lambda *a: clocked(
        "synthetic forward" if torch.is_grad_enabled() else "real forward", vectors
    )(*a)
    torch.autograd.grad = clocked("synthetic backward", plain[1])
    e.optimizer.step, e.synthetic.project = clocked("step", e.optimizer.step), clocked("step", e.synthetic.project)
    try:
        yield spent
    finally:
        augment.augment, torch.autograd.grad = plain
        e.embedding.compiled[e.embedding.network] = vectors
        del e.draw, e._pixels, e.synthetic.project, e.optimizer.step


def floor(recipe, ipc, rate, speed, itemsize):
    """Return the least seconds an iteration could take: forward of both sides, backward of one, maps read once."""
    images = CLASSES * (recipe.real_batch + 2 * ipc)
    work = images * flops(recipe.width, recipe.depth, 3, SIZE) / rate
    maps = sum(recipe.width * (SIZE // 2**layer) ** 2 for layer in range(recipe.depth - 1)) * itemsize
    return work + (images * maps / speed if recipe.spatial or recipe.channel else 0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--full", action="store_true", help="time the naive implementation at every setting")
    parser.add_argument("--repeat", type=int, default=5)
    arguments = parser.parse_args()
    device = find_device(arguments.device)
    settings = [(ipc, batch) for ipc in (1, 10, 50) for batch in (64, 128, 256)]
    naive = {}  # before large buffers are kept, so that it runs as scripts do
    for ipc, batch in settings:
        if arguments.full or batch == 64:
            recipe = Recipe.named("atom", {"real_batch": batch, "power": 4, "norm": "instance"}).resolved(ipc, SIZE)
            (naive[ipc, batch],) = timed([Naive(recipe, ipc, device).step], device, arguments.repeat)
            print(f"naive atom, ipc {ipc}, batch {batch}: {naive[ipc, batch]:.3f} s", flush=True)
    keep_large_buffers()
    rates = {d: convolution_rate(device, d) for d in (torch.float32, torch.bfloat16)}
    speed = bandwidth(device)
    print(f"convolutions: {rates[torch.float32] / 1e9:.0f} GFLOP/s in float32, {rates[torch.bfloat16] / 1e9:.0f} in "
          f"bfloat16; memory {speed / 1e9:.1f} GB/s")  # fmt: skip
    fast = ("bfloat16" if fast_bfloat16(device) else "float32", True)
    kinds = [(name, *fast, "instance") for name in ("dm", "datadam", "atom")]
    kinds += [("atom", "float32", True, "instance"), ("atom", "float32", False, "instance"), ("atom", *fast, "batch")]
    rows = []
    for ipc, batch in settings:
        torch._dynamo.reset()
        engines = []
        for name, precision, compiled, norm in kinds:
            fields = {"real_batch": batch, "precision": precision, "norm": norm, "power": 4}
            recipe = Recipe.named(name, fields).resolved(ipc, SIZE)
            engines.append(engine(recipe, ipc, device, compiled))
        times = timed([e.step for e in engines], device, arguments.repeat)
        for (name, precision, compiled, norm), e, took in zip(kinds, engines, times, strict=True):
            with stages(e, device) as spent:
                for i in range(arguments.repeat):
                    e.step(100 + i)
            dtype = getattr(torch, precision)
            least = floor(e.recipe, ipc, rates[dtype], speed, dtype.itemsize)
            rows.append({
                "recipe": name, "ipc": ipc, "batch": batch, "precision": precision, "compiled": compiled,
                "norm": norm,
                "seconds": took, "floor": least, "share_of_floor": least / took,
                "naive": naive.get((ipc, batch)) if (name, norm) == ("atom", "instance") else None,
                "attention_share": 1 - times[0] / took if (precision, compiled, norm) == (*fast, "instance") else None,
                "stages": {k: v / arguments.repeat for k, v in spent.items()},
            })  # fmt: skip
        print(".", end="", flush=True)
    print()
    table = Table(title=f"seconds an iteration, CIFAR-10's shape, width 128, {device}")
    names = ("sampling", "augmentation", "real forward", "synthetic forward", "synthetic backward", "step")
    columns = (
        "recipe", "norm", "ipc", "batch", "precision", "compiled", "s/iteration", "of floor", "x naive", "attention",
    )  # fmt: skip
    for column in columns + names:
        table.add_column(column, justify="right")
    for r in rows:
        table.add_row(
            r["recipe"], r["norm"], str(r["ipc"]), str(r["batch"]), r["precision"], "yes" if r["compiled"] else "no",
            f"{r['seconds']:.4f}", f"{r['share_of_floor']:.0%}",
            f"{r['naive'] / r['seconds']:.1f}" if r["naive"] else "",
            f"{r['attention_share']:.0%}" if r["attention_share"] is not None else "",
            *(f"{r['stages'].get(n, 0):.4f}" for n in names),
        )  # fmt: skip
    Console(width=200).print(table)
    print(write("step", device, rates={str(k): v for k, v in rates.items()}, bandwidth=speed, rows=rows))


if __name__ == "__main__":
    main()
