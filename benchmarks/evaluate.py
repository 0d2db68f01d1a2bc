"""Images per second in training: of evaluation, together and one by one, and of a bank's networks.

    python benchmarks/evaluate.py [--device cpu] [--networks 20]

One by one is the plain loop of the public scripts: a network, its DataLoader-like batches, eager, contiguous. All ways
run in turn in each of several rounds, with the same images, protocol and augmentation; the median round counts.
Steps of training alone are timed: the test images cost the same in all ways.
"""

import argparse
import statistics
import time

import torch
from common import features, seconds, write
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

from atomhub.core import augment
from atomhub.devices import find_device, keep_large_buffers
from atomhub.training import fit as fitting
from atomhub.training.bank import BATCH
from atomhub.training.nets import InputSpec
from atomhub.training.networks import find_network
from atomhub.training.protocols import Protocol

CIFAR, DIGITS = InputSpec(3, 10, 32), InputSpec(1, 10, 16)
SHAPES = [  # what, network, images of what kind, how many, batch, epochs
    ("CIFAR-10, ipc 10", "convnet:norm=batch", CIFAR, 100, 256, 8),
    ("CIFAR-10, ipc 10", "convnet:norm=instance", CIFAR, 100, 256, 8),
    ("CIFAR-10, ipc 1", "convnet:norm=batch", CIFAR, 10, 256, 40),
    ("digits, ipc 1", "convnet:width=32,norm=instance", DIGITS, 10, 256, 200),
    ("digits, ipc 10", "convnet:width=32,norm=instance", DIGITS, 100, 256, 100),
    ("CIFAR-10, networks of a bank", "convnet:norm=batch", CIFAR, 640, BATCH, 2),
]


def plain(network, images, labels, rules, device):
    """Train one network as a simple script does."""
    model = network.build().to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=rules.lr, momentum=rules.momentum, weight_decay=rules.decay)
    for _ in range(rules.epochs):
        for rows in torch.randperm(len(images)).to(device).split(rules.batch):
            optimizer.zero_grad()
            F.cross_entropy(model(augment.augment_batch(images[rows], augment.DSA)), labels[rows]).backward()
            optimizer.step()


def convolutions(network, images, device):
    """Return the seconds of a step's convolutions alone, forward and backward: what no way can go below."""
    model = network.build().to(device, memory_format=torch.channels_last)
    x, inputs = images.to(memory_format=torch.channels_last), []
    for convolution in model.convolutions:
        inputs.append(x.detach().requires_grad_(x is not images))
        x = F.avg_pool2d(convolution(x).relu(), 2)

    def step():
        for convolution, given in zip(model.convolutions, inputs, strict=True):
            out = convolution(given)
            out.backward(torch.ones_like(out))

    return seconds(step, device, 5)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--networks", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    device = find_device(options.device)
    keep_large_buffers()
    rows = []
    for name, spec, shape, count, batch, epochs in SHAPES:
        network = find_network(spec, shape)
        images = torch.randn(count, shape.channels, shape.size, shape.size, device=device)
        labels = (torch.arange(count) % 10).to(device)
        rules = Protocol(epochs, batch, "benchmark")
        together = options.networks if device.type == "cuda" or shape.size < 32 else 5

        def fit(number, long, network=network, images=images, labels=labels, rules=rules):
            fitting._LONG, fitting._FEW = long, 10**18
            models = [network.build().to(device) for _ in range(number)]
            fitting.fit(models, [images] * number, labels, rules, augment.DSA, 10, list(range(number)), record=True)

        ways = {
            "plain": (1, lambda network=network, i=images, t=labels, r=rules: plain(network, i, t, r, device)),
            "alone": (1, lambda fit=fit: fit(1, 10**18)),
            "together": (together, lambda fit=fit, n=together: fit(n, 10**18)),
        }
        if device.type == "cpu" and "batch" not in spec:  # which fit does not compile
            ways["compiled"] = (1, lambda fit=fit: fit(1, 0))
        start = time.perf_counter()
        for _, work in ways.values():
            work()
        warm_up = time.perf_counter() - start
        took = {way: [] for way in ways}
        for _ in range(options.rounds):
            for way, (number, work) in ways.items():
                took[way].append(seconds(work, device, 1, warm=False) / number / epochs)
        found = {way: statistics.median(values) for way, values in took.items()}
        floor = convolutions(network, images[:batch], device) * -(-count // batch)
        rows.append({"shape": name, "network": network.spec, "images": count, "together": together,
                     "seconds_an_epoch": found, "convolutions": floor, "warm_up": warm_up})  # fmt: skip
        print(".", end="", flush=True)
    print()
    table = Table(title=f"images per second, {features(device)} (in brackets: times as fast as the plain loop)")
    for column in ("shape", "network", "plain loop", "fit, one", "fit, R together", "R", "fit, one, compiled",
                   "convolutions alone"):  # fmt: skip
        table.add_column(column, justify="right")
    for r in rows:
        s = r["seconds_an_epoch"]
        cells = [
            f"{r['images'] / s[w]:.0f} ({s['plain'] / s[w]:.2f}x)" if w in s else "-"
            for w in ("alone", "together", "compiled")
        ]
        floor = f"{r['images'] / r['convolutions']:.0f} ({s['plain'] / r['convolutions']:.2f}x)"
        table.add_row(
            r["shape"], r["network"], f"{r['images'] / s['plain']:.0f}", *cells[:2], str(r["together"]), cells[2], floor
        )
    Console(width=200).print(table)
    print(write("evaluate", device, rows=rows))


if __name__ == "__main__":
    main()
