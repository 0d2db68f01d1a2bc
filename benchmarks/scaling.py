"""Seconds an iteration against classes, images per class, real images and processes; with a plot.

    python benchmarks/scaling.py [--width 32] [--processes 1 2] [--device cuda]

Cost should grow linearly with classes and ipc, and not at all with the size of the real set. Images are generated.
"""

import argparse
import time

import numpy as np
import torch
import torch.distributed as dist
from common import RESULTS, write
from matplotlib.figure import Figure

from atomhub.core.engine import Engine
from atomhub.core.parallel import Team
from atomhub.core.whitening import Normalization
from atomhub.devices import find_device, keep_large_buffers
from atomhub.recipe import Recipe

BASE = {"classes": 10, "ipc": 10, "real": 20_000}
SWEEPS = {"classes": (10, 25, 50, 100, 200), "ipc": (1, 3, 10, 30, 100), "real": (1_000, 10_000, 100_000, 1_000_000)}


def median_step(classes, ipc, real, width, device, norm="instance", compiled=False, repeat=5):
    """Return the median seconds of an iteration of ``atom`` on generated images of 32x32."""
    images = np.zeros((real, 3, 32, 32), dtype=np.uint8)
    images[:, 0, ::5] = np.arange(real, dtype=np.uint64)[:, None, None] % 251  # something to see
    offsets = np.linspace(0, real, classes + 1).astype(np.int64)
    batch = min(64, real // classes)
    fields = {"width": width, "real_batch": batch, "precision": "float32", "norm": norm}
    recipe = Recipe.named("atom", fields).resolved(ipc, 32)
    normalization, team = Normalization((0.5,) * 3, (0.25,) * 3), Team()
    engine = Engine(images, offsets, recipe, ipc, normalization, device=device, compiled=compiled, team=team)
    times = []
    for iteration in range(repeat + 1):
        team.wait()
        start = time.perf_counter()
        float(engine.step(iteration))
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:]))


def worker(rank, size, address, width, norm, queue):
    """Time one of several processes on one thread each."""
    torch.set_num_threads(1)
    keep_large_buffers()
    if size > 1:
        dist.init_process_group("gloo", f"tcp://{address}", rank=rank, world_size=size)
    took = median_step(10, 10, 10_000, width, torch.device("cpu"), norm, compiled=True, repeat=9)
    if size > 1:
        dist.destroy_process_group()
    queue.put(took)


def processes(sizes, width):
    """Return seconds an iteration, compiled, with several processes of one thread each; the slowest counts."""
    rows = []
    context = torch.multiprocessing.get_context("spawn")
    for norm in ("instance", "batch"):
        for size in sizes:
            queue = context.SimpleQueue()
            arguments = (size, f"127.0.0.1:{29600 + size}", width, norm, queue)
            torch.multiprocessing.start_processes(worker, arguments, nprocs=size)
            seconds = max(queue.get() for _ in range(size))
            first = next((row["seconds"] for row in rows if row["norm"] == norm), seconds)
            rows.append({"norm": norm, "processes": size, "seconds": seconds, "faster": first / seconds})
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2])
    arguments = parser.parse_args()
    device = find_device(arguments.device)
    keep_large_buffers()
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    rows = []
    for axes, (name, values) in zip(figure.subplots(1, 3), SWEEPS.items(), strict=True):
        took = []
        for value in values:
            took.append(median_step(**{**BASE, name: value}, width=arguments.width, device=device))
            rows.append({**BASE, name: value, "sweep": name, "seconds": took[-1]})
            print(f"{name:8} {value:9,}  {took[-1]:.4f} s an iteration", flush=True)
        axes.plot(values, took, "o-")
        axes.set_xlabel({"classes": "classes", "ipc": "images per class", "real": "real images"}[name])
        axes.set_ylim(bottom=0)
        if name == "real":
            axes.set_xscale("log")
    figure.axes[0].set_ylabel("seconds an iteration")
    shared = processes(arguments.processes, 128) if device.type == "cpu" else []
    for row in shared:
        print(f"{row['norm']} norm, {row['processes']} processes of one thread, compiled, width 128: "
              f"{row['seconds']:.4f} s an iteration, {row['faster']:.2f}x")  # fmt: skip
    path = write("scaling", device, width=arguments.width, rows=rows, processes=shared)
    figure.savefig(RESULTS / f"{path.stem}.png", dpi=120)
    print(path)


if __name__ == "__main__":
    main()
