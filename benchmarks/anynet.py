"""Seconds an iteration of ``atom-photo`` under networks that are no ConvNets: as they are, compiled, and in bfloat16.

    python benchmarks/anynet.py [--matcher torchvision/resnet18 ...] [--size 64] [--ipc 1] [--device cuda]

Images are generated, ten classes of them, and networks are drawn afresh. All ways take their steps in turns.
"""

import argparse
import time

import numpy as np
from common import write
from rich.console import Console
from rich.table import Table
from step import NORMALIZATION, timed

from atomhub.core.anynet import AnyEngine
from atomhub.devices import fast_bfloat16, find_device, keep_large_buffers
from atomhub.recipe import Recipe
from atomhub.training.nets import InputSpec
from atomhub.training.networks import find_network

CLASSES, EACH = 10, 100


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--matcher", action="append", metavar="NAME")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--ipc", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeat", type=int, default=5)
    o = parser.parse_args()
    device, rows = find_device(o.device), []
    keep_large_buffers()
    images = np.random.default_rng(0).integers(0, 256, (CLASSES * EACH, 3, o.size, o.size), dtype=np.uint8)
    ways = [("float32", False), ("float32", True), ("bfloat16", False), ("bfloat16", True)]
    for matcher in o.matcher or ["torchvision/resnet18"]:
        build = find_network(matcher, InputSpec(3, CLASSES, o.size)).build
        steps = []
        for precision, compiled in ways[: None if fast_bfloat16(device) else 2]:
            fields = {"precision": precision, "matcher": matcher, "bank": 0, "calibration": 0, "init": "real"}
            recipe = Recipe.named("atom-photo", fields).resolved(o.ipc, o.size)
            offsets = np.arange(CLASSES + 1) * EACH
            e = AnyEngine(images, offsets, recipe, o.ipc, NORMALIZATION, device=device, build=build, compiled=compiled)
            start = time.perf_counter()
            float(e.step(0))
            rows.append({
                "matcher": matcher, "size": o.size, "ipc": o.ipc, "precision": precision, "compiled": compiled,
                "first": time.perf_counter() - start,
            })  # fmt: skip
            steps.append(e.step)
        for row, seconds in zip(rows[-len(steps) :], timed(steps, device, o.repeat), strict=True):
            row |= {"seconds": seconds, "faster": rows[-len(steps)].get("seconds", seconds) / seconds}
    table = Table(title=f"seconds an iteration of atom-photo, {o.size} pixels, ipc {o.ipc}, {device}")
    for column in ("matcher", "precision", "compiled", "first", "s/iteration", "times as fast"):
        table.add_column(column, justify="right")
    for r in rows:
        table.add_row(
            r["matcher"], r["precision"], "yes" if r["compiled"] else "no", f"{r['first']:.1f}", f"{r['seconds']:.3f}",
            f"{r['faster']:.2f}",
        )  # fmt: skip
    Console(width=120).print(table)
    print(write("anynet", device, rows=rows))


if __name__ == "__main__":
    main()
