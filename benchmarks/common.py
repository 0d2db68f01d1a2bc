"""What the benchmarks share: the machine's rates, held-out data, and results written beside their command."""

import argparse
import hashlib
import json
import platform
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from atomhub.data.real import RealData, Split
from atomhub.devices import describe_device, fast_bfloat16

RESULTS = Path(__file__).parent / "results"


def seconds(work: Callable[[], object], device: torch.device, repeat: int = 3, warm: bool = True) -> float:
    """Return the median wall time of a call, after one call to warm up."""
    times = []
    for _ in range(repeat + warm):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return float(np.median(times[warm:]))


def convolution_rate(device: torch.device, dtype: torch.dtype, width: int = 128, side: int = 16) -> float:
    """Return the operations a second of the ConvNet's middle convolution, at the batch that suits it best."""
    best = 0.0
    for batch in (16, 64, 512) if device.type == "cpu" else (256, 1024, 4096):
        x = torch.randn(batch, width, side, side, device=device, dtype=dtype).to(memory_format=torch.channels_last)
        w = torch.randn(width, width, 3, 3, device=device, dtype=dtype).to(memory_format=torch.channels_last)
        with torch.no_grad():
            took = seconds(lambda x=x, w=w: F.conv2d(x, w, padding=1), device, 10)
        best = max(best, 2 * 9 * width * width * side * side * batch / took)
    return best


def bandwidth(device: torch.device) -> float:
    """Return the bytes a second at which a large tensor is read and summed."""
    x = torch.ones(2**27, device=device)
    return 4 * 2**27 / seconds(lambda: x.sum(), device, 5)


def setting(text: str) -> tuple[str, str]:
    """Read KEY=VALUE, as an argument's type."""
    key, sign, value = text.partition("=")
    if not (key and sign):
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


def held_out(real: RealData, fraction: float = 0.25, test: int | None = None) -> RealData:
    """Return a source whose test split is taken from the TRAINING images; the true test images are never looked at.

    Args:
        real: The source.
        fraction: Share of the training images to test on.
        test: Most images to test on.
    """
    from sklearn.model_selection import train_test_split

    labels = real.train.labels
    kept, out = train_test_split(np.arange(len(labels)), test_size=fraction, stratify=labels, random_state=0)
    splits = [Split(real.train.images[rows], labels[rows]) for rows in (np.sort(kept), np.sort(out[:test]))]
    mark = hashlib.sha256(f"{real.info.fingerprint} held out {fraction} {test}".encode()).hexdigest()
    info = real.info.model_copy(update={"fingerprint": mark, "id": f"{real.info.id}-held-out"})
    return replace(real, info=info, train=splits[0], test=splits[1])


def features(device: torch.device) -> str:
    """Return what decides how fast a machine is: cores, vector units, memory."""
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        return f"{found.multi_processor_count} multiprocessors, {found.total_memory / 2**30:.0f} GiB"
    bf16 = "fast bfloat16" if fast_bfloat16(device) else "no fast bfloat16"
    return f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}, {bf16}"


def environment(device: torch.device) -> dict:
    """Return what a reader of results needs to know: command, device, versions."""
    return {
        "command": shlex.join(["python", *sys.argv]),
        "device": describe_device(device),
        "features": features(device),
        "versions": {p: version(p) for p in ("torch", "numpy")} | {"python": platform.python_version()},
    }


def write(name: str, device: torch.device, **results: object) -> Path:
    """Write results with device, versions and command to ``benchmarks/results/NAME-DEVICE.json``."""
    cpu = "cpu-bfloat16" if fast_bfloat16(device) else "cpu"  # two machines, two tables
    kind = cpu if device.type == "cpu" else torch.cuda.get_device_name(device).lower().replace(" ", "-")
    path = RESULTS / f"{name}-{kind}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(environment(device) | results, indent=1) + "\n")
    return path
