"""What a GPU has to prove, in one command of under ten minutes: every line PASS or FAIL, with its number and its bound.

    python benchmarks/gpu.py [--device cuda] [--quick]

Results are written after every section: a run that is cut off keeps what it found. With ``--device cpu --quick``
it proves what can be proven without a GPU, on something small.
"""

import argparse
import time
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from common import bandwidth, convolution_rate, features, seconds, write

import atomhub
from atomhub.core.anynet import AnyEngine
from atomhub.core.convnet import ConvNet
from atomhub.core.engine import Engine
from atomhub.core.plan import flops
from atomhub.core.whitening import Normalization, fit_zca
from atomhub.devices import find_device, keep_large_buffers
from atomhub.memory import peak_memory
from atomhub.recipe import Recipe
from atomhub.training import fit as fitting
from atomhub.training.measure import measure
from atomhub.training.nets import InputSpec
from atomhub.training.networks import find_network
from atomhub.training.protocols import Protocol

NORMALIZATION = Normalization((0.5,) * 3, (0.25,) * 3)
GRADIENTS = {"norm": "instance", "gradient": 1.0, "spatial": 0.0, "channel": 0.0, "feature": 0.0, "formation": 2}
KINDS = (
    {"norm": "batch"}, GRADIENTS, {"norm": "instance"}, {"norm": "batch", "statistics": "real"}, {"norm": "none"},
    {"norm": "batch", "zca": True, "power": 4.0}, {"norm": "instance", "formation": 2, "augmentation": ()},
)  # fmt: skip


class Checks:
    """The lines of a run, and where they are kept."""

    def __init__(self, device):
        self.device, self.lines, self.section = device, [], ""

    def line(self, what, found, bound, good):
        """Print and keep one line."""
        verdict = "SKIP" if good is None else "PASS" if good else "FAIL"
        print(f"{verdict}  {self.section}: {what}: {found}  ({bound})", flush=True)
        self.lines.append({"section": self.section, "what": what, "found": found, "bound": bound, "verdict": verdict})

    def at_most(self, what, found, bound, unit=""):
        """Check that a number is at most a bound."""
        self.line(what, f"{found:.3g}{unit}", f"at most {bound:g}{unit}", found <= bound)

    @contextmanager
    def part(self, name):
        """Run a section; what it raises is a line, and the others go on."""
        self.section, start = name, time.perf_counter()
        try:
            yield
        except Exception as error:
            self.line("ran to its end", f"{type(error).__name__}: {error}"[:300], "no error", False)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.line("time", f"{time.perf_counter() - start:.0f} s", "", True)
        write("gpu", self.device, lines=self.lines)


def engine(device, classes=10, ipc=2, size=32, dtype=torch.float32, options=None, images=40, **fields):
    """Return an engine on generated images."""
    pixels = np.random.default_rng(0).integers(0, 256, (classes * images, 3, size, size), dtype=np.uint8)
    recipe = Recipe.named("atom", {"precision": "float32", "iterations": 40, **fields}).resolved(ipc, size)
    normalization = fit_zca(pixels, NORMALIZATION) if recipe.zca else NORMALIZATION
    offsets = np.arange(classes + 1) * images
    kind = Engine
    if recipe.gradient:
        build = partial(ConvNet, 3, classes, size, recipe.width, recipe.depth, recipe.norm)
        kind = partial(AnyEngine, build=build)
    return kind(pixels, offsets, recipe, ipc, normalization, device=device, dtype=dtype, **(options or {}))


SMOOTH = {"pixels": "float32", "augmentation": ()}
"""Without steps that turn the last bit of a sum, which a GPU adds up in any order, into another grey level."""


def difference(a, b):
    """Return the relative distance of two gradients."""
    a, b = (x.detach().double().cpu() for x in (a, b))
    return float((a - b).norm() / b.norm())


def equality(checks, quick):
    """The same draws and the same gradient as on a CPU in float64, by every way there is."""
    device, small = checks.device, {"width": 16, "real_batch": 8} if quick else {"width": 64, "real_batch": 32}
    for kind in KINDS[:2] if quick else KINDS:
        name = " ".join(f"{key}={value}" for key, value in kind.items())
        exact, here = engine("cpu", dtype=torch.float64, **small, **kind), engine(device, **small, **kind)
        exact.gradient(0)
        theirs, ours = exact.draw(3), here.draw(3)
        same = (
            torch.equal(theirs.indices, ours.indices.cpu())
            and torch.equal(theirs.augmentation, ours.augmentation.cpu())
            and torch.equal(theirs.weights, ours.weights.cpu())
        )
        checks.line(f"draws, {name}", "the same" if same else "others", "the same", same)
        ways = [("eager", "float32", False, 1e-4), ("bf16", "bfloat16", False, 2e-2)]
        if not quick:
            ways.append(("compiled", "float32", True, 1e-4))
        if device.type == "cuda":
            ways.append(("tf32", "tf32", False, 1.5e-2))
        for way, precision, compiled, bound in ways:
            if kind["norm"] == "none" and way == "bf16":
                continue
            fields = {**small, **kind, "precision": precision}
            e = engine(device, options={"compiled": compiled}, **fields)
            e.gradient(0)
            # units at ReLU's edge and what is left of a difference of means decide how far any device is off: at most
            # twice as far as a CPU in the same precision
            cpu = engine("cpu", options={"compiled": False}, **fields)
            cpu.gradient(0)
            most = max(bound, 2 * difference(cpu.gradients, exact.gradients))
            checks.at_most(f"gradient, {name}, {way}", difference(e.gradients, exact.gradients), most)


def recorded(checks, quick):
    """A run by recordings, where there are some, is the run of its steps one by one."""
    device, small = checks.device, {"width": 16 if quick else 64, "real_batch": 8, "iterations": 10, **SMOOTH}
    for kind in KINDS[:2] if quick else KINDS:
        run, steps = engine(device, **small, **kind), engine(device, **small, **kind)
        list(run.run())
        for iteration in range(10):
            steps.step(iteration)
        name = " ".join(f"{key}={value}" for key, value in kind.items())
        apart = float((run.synthetic.images - steps.synthetic.images).detach().abs().max())
        checks.at_most(f"largest difference of a pixel after 10 iterations, {name}", apart, 1e-4)


def resume(checks, quick):
    """A run that was interrupted ends as one that was not."""
    fields = {"width": 16, "real_batch": 8, "iterations": 6 if quick else 40, **SMOOTH}
    straight, first, second = (engine(checks.device, **fields) for _ in range(3))
    half = fields["iterations"] // 2
    list(straight.run())
    for iteration in range(half):
        first.step(iteration)
    second.restore(first.state())
    list(second.run(half))
    apart = float((straight.synthetic.images - second.synthetic.images).detach().abs().max())
    checks.at_most(f"largest difference of a pixel, {2 * half} against {half} + {half} iterations", apart, 1e-5)


def synchronisation(checks, quick):
    """No iteration waits for the GPU."""
    if checks.device.type != "cuda":
        checks.line("20 iterations", "there is no GPU", "no wait", None)
        return
    for options in ({"compiled": False}, {"compiled": False, "memory": 60 * 2**30}):  # with a limit nothing is recorded
        e = engine(checks.device, options=options)
        e.step(0)
        losses = e._losses(range(1, 31))
        for _ in range(6):  # until it is recorded
            next(losses)
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(20):
                next(losses)
            checks.line(f"20 iterations, {options}", "none waited", "no wait", True)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def speed(checks, quick):
    """Milliseconds an iteration of CIFAR-10's shape, and how far that is from the convolutions alone."""
    device, width, batch = checks.device, 16 if quick else 128, 16 if quick else 128
    precision = "bfloat16" if device.type == "cuda" else "float32"
    rate = 1e12 if quick else convolution_rate(device, getattr(torch, precision))
    if not quick:
        checks.line("machine", f"{rate / 1e12:.2f} TFLOP/s, {bandwidth(device) / 1e9:.0f} GB/s", "", True)
    bounds = {1: 2.0, 10: 2.0, 50: 4.0} if device.type == "cuda" else {}
    for ipc in (1,) if quick else (1, 10, 50):
        for norm in ("batch", "instance"):
            fields = {"width": width, "real_batch": batch, "norm": norm, "precision": precision}
            few = 2 if quick else 50  # iterations between looks at the clock, of which the first ones are not counted
            e = engine(device, ipc=ipc, images=200, options={"compiled": not quick}, iterations=5 * few, **fields)
            clock = {report.done: time.perf_counter() for report in e.run(report_every=few)}
            took = 1e3 * (clock[5 * few] - clock[few]) / (4 * few)
            floor = 1e3 * 10 * (batch + 2 * ipc) * sum(flops(width, 3, 3, 32)) / rate
            share = "" if quick else f", {floor / took:.0%} of the convolutions' rate"
            what = f"ipc {ipc}, {norm}, compiled {e.compiler.works}{share}"
            if ipc in bounds:
                checks.at_most(what, took, bounds[ipc], " ms")
            else:
                checks.line(what, f"{took:.1f} ms", "", True)


def memory(checks, quick):
    """A limit is held, and without one most of the GPU may be used."""
    device, gib = checks.device, 2**30
    sizes = ((10, 2, None),) if quick else ((200, 10, None), (200, 10, 20 * gib), (1000, 1, None), (1000, 1, 20 * gib))
    cases = [(*case, kind) for kind in ({}, GRADIENTS) for case in sizes]
    for classes, ipc, limit, kind in cases:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        fields = {"width": 16, "real_batch": 4} if quick else {"real_batch": 128, "precision": "bfloat16"}
        fields |= kind
        e = engine(device, classes, ipc, 64, options={"memory": limit, "compiled": False}, images=20, **fields)
        start = time.perf_counter()
        float(e.step(0))
        how = f"{'gradients' if kind else 'attention'}, limit {limit and limit // gib} GiB"
        what = f"{classes} classes, ipc {ipc}, {how}, {time.perf_counter() - start:.1f} s"
        most = (limit or (torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else 2**40)) / gib
        checks.at_most(what, (peak_memory(device) or 0) / gib, most, " GiB")


def scaling(checks, quick):
    """The time of an iteration grows with the classes, and no faster."""
    took = {}
    for classes in (2, 4) if quick else (10, 100):
        e = engine(checks.device, classes, images=64, real_batch=16 if quick else 64, width=16 if quick else 128)
        e.step(0)
        took[classes] = seconds(lambda e=e: [e.step(i) for i in range(3)], checks.device, 3)
    few, many = took
    what, ratio = f"{many} classes over {few}", took[many] / took[few]
    if quick:  # steps of milliseconds: whatever else the machine does decides
        checks.line(what, f"{ratio:.3g} times", "", True)
    else:
        checks.at_most(what, ratio, 11, " times")


def evaluation(checks, quick):
    """Networks trained at once, beside one by one."""
    device, shape, number = checks.device, InputSpec(3, 10, 32), 2 if quick else 20
    network, images = find_network("convnet:width=16" if quick else "convnet", shape), torch.randn(100, 3, 32, 32)
    labels, rules = (torch.arange(100) % 10).to(device), Protocol(2 if quick else 50, 256, "benchmark")
    images = images.to(device)

    def train(count):
        models = [network.build().to(device) for _ in range(count)]
        augmentation, seeds_of = [("flip", "crop", "color")], list(range(count))
        fitting.fit(models, [images] * count, labels, rules, augmentation, 10, seeds_of, record=True)

    each = {count: seconds(lambda count=count: train(count), device, 1) / count for count in (1, number)}
    faster = each[1] / each[number]
    wanted = 8.0 if device.type == "cuda" else 0.0
    checks.line(f"{number} at once, {1e3 * each[number]:.0f} ms each", f"{faster:.1f} times", f"at least {wanted:g}",
                faster >= wanted)  # fmt: skip
    found, runs = [], 2 if quick else 20  # the same seeds in both precisions
    for half in (False, True):
        with torch.autocast(device.type, torch.bfloat16, enabled=half, cache_enabled=False):
            digits = atomhub.load("digits-ipc1" if quick else "digits-ipc10")
            result = measure(digits, "convnet", "quick", runs, baseline=None, device=str(device))
        found.append(np.array(result.score.accuracies))
    apart = found[1] - found[0]
    error = 3 * apart.std(ddof=1) / np.sqrt(runs)
    what = f"accuracy in bfloat16 less that in float32, digits-ipc10, {runs} seeds"
    checks.line(what, f"{apart.mean():+.2f} points", f"{error:.2f} around 0", quick or abs(apart.mean()) <= error)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="small shapes, to see that it runs")
    arguments = parser.parse_args()
    checks = Checks(find_device(arguments.device))
    keep_large_buffers()
    with checks.part("environment"):
        checks.line("torch", torch.__version__, "", True)
        checks.line("device", features(checks.device), "", True)
    for section in (equality, recorded, resume, synchronisation, speed, memory, scaling, evaluation):
        with checks.part(section.__name__):
            section(checks, arguments.quick)
    failed = [line for line in checks.lines if line["verdict"] == "FAIL"]
    print(f"{len(checks.lines) - len(failed)} of {len(checks.lines)} lines hold")
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
