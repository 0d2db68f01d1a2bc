"""Peak memory and seconds an iteration as the classes grow, at 64x64 pixels, under a limit.

    python benchmarks/memory.py [--limit 8GiB] [--real-batch 16]

Every line is a process of its own on generated images; the peak is that of the whole process, libraries included.
"""

import argparse
import json
import subprocess
import sys
import time

import numpy as np
import torch
from common import write
from rich.console import Console
from rich.table import Table

from atomhub.core.engine import Engine
from atomhub.core.whitening import Normalization
from atomhub.devices import keep_large_buffers, parse_size
from atomhub.memory import peak_memory
from atomhub.recipe import Recipe

SIZE, IMAGES = 64, 20
SPARE = 300 * 2**20
"""Bytes that a process may take beyond its limit."""
SLOPE = 1.15
"""Most seconds a class at 200 classes, over those at 10."""


def measure(classes, norm, batch, limit, iterations):
    """Run a few iterations in this process; return its peak and the median seconds of all but the first."""
    keep_large_buffers()
    images = np.random.default_rng(0).integers(0, 256, (classes * IMAGES, 3, SIZE, SIZE), dtype=np.uint8)
    recipe = Recipe.named("atom", {"norm": norm, "real_batch": batch, "precision": "float32"}).resolved(1, SIZE)
    offsets, normalization = np.arange(classes + 1) * IMAGES, Normalization((0.5,) * 3, (0.25,) * 3)
    engine = Engine(images, offsets, recipe, 1, normalization, memory=limit, compiled=True)
    times = []
    for iteration in range(iterations):
        start = time.perf_counter()
        engine.step(iteration)
        times.append(time.perf_counter() - start)
    plan = engine.plan(classes)
    return {
        "classes": classes, "norm": norm, "seconds": float(np.median(times[1:])), "peak": peak_memory(engine.device),
        "pieces": len(plan.real), "kept": sorted(plan.keep),
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", default="8GiB")
    parser.add_argument("--real-batch", type=int, default=16)
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    limit = parse_size(arguments.limit)
    if arguments.one:
        classes, norm = arguments.one.split(",")
        print(json.dumps(measure(int(classes), norm, arguments.real_batch, limit, arguments.iterations)))
        return
    rows = []
    for norm in ("batch", "instance"):
        for classes in (10, 100, 200, 1000):
            out = subprocess.run(
                [sys.executable, *sys.argv, "--one", f"{classes},{norm}"], capture_output=True, text=True, check=True
            )
            rows.append(json.loads(out.stdout.splitlines()[-1]))
            print(rows[-1], flush=True)
    table = Table(title=f"limit {arguments.limit}, {SIZE}x{SIZE} pixels, width 128, real batch {arguments.real_batch}")
    for column in ("norm", "classes", "s/iteration", "ms a class", "peak GiB", "within limit + 300 MiB", "kept levels"):
        table.add_column(column, justify="right")
    for row in rows:
        row["held"] = row["peak"] < limit + SPARE
        each, kept = 1000 * row["seconds"] / row["classes"], " ".join(map(str, row["kept"]))
        table.add_row(
            row["norm"], str(row["classes"]), f"{row['seconds']:.2f}", f"{each:.0f}", f"{row['peak'] / 2**30:.2f}",
            "PASS" if row["held"] else "FAIL", kept,
        )  # fmt: skip
    Console(width=120).print(table)
    for norm in ("batch", "instance"):
        each = {row["classes"]: row["seconds"] / row["classes"] for row in rows if row["norm"] == norm}
        print(f"{norm}: a class takes {each[200] / each[10]:.2f} times as long at 200 classes as at 10 "
              f"(at most {SLOPE}): {'PASS' if each[200] / each[10] <= SLOPE else 'FAIL'}")  # fmt: skip
    print(write("memory", torch.device("cpu"), limit=limit, real_batch=arguments.real_batch, rows=rows))


if __name__ == "__main__":
    main()
