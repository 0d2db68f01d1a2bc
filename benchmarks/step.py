"""Seconds an iteration at CIFAR-10's shape: atomhub's engine, its stages and its floor, beside a naive implementation.

    python benchmarks/step.py [--device cuda]

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
from common import bandwidth, convolution_rate, features, write
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


def data(classes=CLASSES):
    """Return generated images of CIFAR's shape, 500 per class, with offsets."""
    images = np.random.default_rng(0).integers(0, 256, (classes * 500, 3, SIZE, SIZE), dtype=np.uint8)
    return images, np.arange(classes + 1) * 500


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
            real = augment.augment(self.real[rows][None], u, self.recipe.stages)[0]
            own = self.synthetic[k * self.ipc : (k + 1) * self.ipc]
            own = augment.augment(own[None], u, self.recipe.stages)[0]
            real_features, real_maps = self.maps(network, real)
            features, maps = self.maps(network, own)
            if self.recipe.spatial or self.recipe.channel:
                for a, b in zip(self.attention(real_maps), self.attention(maps), strict=True):
                    loss = loss + ((a - b) ** 2).sum().cpu()
            loss = loss + self.recipe.feature * ((real_features.mean(0) - features.mean(0)) ** 2).sum().cpu()
        self.optimizer.zero_grad()
        (self.recipe.loss_scale * loss).backward()
        self.optimizer.step()


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


STAGES = {
    "enter": "first layer", "through": "blocks", "leave": "last pool", "totals": "norm sums", "back": "gradient",
}  # fmt: skip


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

    plain, own = augment.augment, {name: getattr(e.passes, name) for name in STAGES}
    e.draw, e.real.pixels, e.synthetic.project = (
        clocked(name, function)
        for name, function in (("draws", e.draw), ("reading", e.real.pixels), ("update", e.synthetic.project))
    )
    engine_module.augment.augment = clocked("augmentation", plain)
    for name, stage in STAGES.items():
        setattr(e.passes, name, clocked(stage, own[name]))
    try:
        yield spent
    finally:
        augment.augment = plain
        for name, function in own.items():
            setattr(e.passes, name, function)
        del e.draw, e.real.pixels, e.synthetic.project


def floor(recipe, ipc, rate, speed, itemsize):
    """Return the least seconds an iteration could take: forward of both sides, backward of one, maps read once."""
    images = CLASSES * (recipe.real_batch + 2 * ipc)
    work = images * sum(flops(recipe.width, recipe.depth, 3, SIZE)) / rate
    maps = sum(recipe.width * (SIZE // 2**layer) ** 2 for layer in range(recipe.depth - 1)) * itemsize
    return work + (images * maps / speed if recipe.spatial or recipe.channel else 0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeat", type=int, default=5)
    arguments = parser.parse_args()
    device = find_device(arguments.device)
    naive = {}  # before large buffers are kept, so that it runs as scripts do
    for ipc in (1, 10, 50):
        for norm in ("instance", "batch"):
            recipe = Recipe.named("atom", {"real_batch": 64, "norm": norm}).resolved(ipc, SIZE)
            (naive[ipc, norm],) = timed([Naive(recipe, ipc, device).step], device, arguments.repeat)
            print(f"naive atom, ipc {ipc}, {norm} norm: {naive[ipc, norm]:.3f} s", flush=True)
    keep_large_buffers()
    rates = {d: convolution_rate(device, d) for d in (torch.float32, torch.bfloat16)}
    speed = bandwidth(device)
    print(f"convolutions: {rates[torch.float32] / 1e9:.0f} GFLOP/s in float32, {rates[torch.bfloat16] / 1e9:.0f} in "
          f"bfloat16; memory {speed / 1e9:.1f} GB/s; {features(device)}")  # fmt: skip
    fast = "bfloat16" if fast_bfloat16(device) else "float32"
    kinds = [("atom", fast, True, norm) for norm in ("batch", "instance")]
    kinds += [("atom", "float32", compiled, "batch") for compiled in (True, False) if fast != "float32" or not compiled]
    rows = []
    for classes, ipc in ((10, 1), (10, 10), (10, 50), (100, 10)):
        engines = []
        for name, precision, compiled, norm in kinds[: None if (classes, ipc) == (10, 10) else 2]:
            recipe = Recipe.named(name, {"real_batch": 64, "precision": precision, "norm": norm}).resolved(ipc, SIZE)
            images, offsets = data(classes)
            e = Engine(images, offsets, recipe, ipc, NORMALIZATION, device=device, compiled=compiled)
            engines.append((name, precision, compiled, norm, e))
        first = []
        for *_, e in engines:
            start = time.perf_counter()
            float(e.step(0))
            first.append(time.perf_counter() - start)
        times = timed([e.step for *_, e in engines], device, arguments.repeat if classes == 10 else 2)
        for (name, precision, compiled, norm, e), took, began in zip(engines, times, first, strict=True):
            with stages(e, device) as spent:
                for i in range(2):
                    e.step(100 + i)
            dtype = getattr(torch, precision)
            least = classes / CLASSES * floor(e.recipe, ipc, rates[dtype], speed, dtype.itemsize)
            beside = naive.get((ipc, norm)) if classes == 10 and name == "atom" else None
            rows.append({
                "recipe": name, "classes": classes, "ipc": ipc, "precision": precision, "compiled": compiled,
                "norm": norm, "seconds": took, "first": began, "floor": least, "share_of_floor": least / took,
                "naive": beside, "stages": {k: v / 2 for k, v in spent.items()},
            })  # fmt: skip
        print(".", end="", flush=True)
    print()
    table = Table(title=f"seconds an iteration, CIFAR's shape, width 128, real batch 64, {device}")
    names = ("draws", "reading", "augmentation", *STAGES.values(), "update")
    columns = (
        "recipe",
        "norm",
        "classes",
        "ipc",
        "precision",
        "compiled",
        "first",
        "s/iteration",
        "of floor",
        "x naive",
    )
    for column in columns + names:
        table.add_column(column, justify="right")
    for r in rows:
        table.add_row(
            r["recipe"], r["norm"], str(r["classes"]), str(r["ipc"]), r["precision"], "yes" if r["compiled"] else "no",
            f"{r['first']:.1f}", f"{r['seconds']:.3f}", f"{r['share_of_floor']:.0%}",
            f"{r['naive'] / r['seconds']:.1f}" if r["naive"] else "", *(f"{r['stages'].get(n, 0):.3f}" for n in names),
        )  # fmt: skip
    Console(width=200).print(table)
    for norm in ("batch", "instance"):
        took = {
            r["classes"]: r["seconds"]
            for r in rows
            if (r["recipe"], r["ipc"], r["compiled"], r["norm"], r["precision"]) == ("atom", 10, True, norm, fast)
        }
        print(f"100 classes take {took[100] / took[10]:.1f} times as long as 10, {norm} norm (at most 11)")  # fmt: skip
    print(write("step", device, rates={str(k): v for k, v in rates.items()}, bandwidth=speed, rows=rows))


if __name__ == "__main__":
    main()
