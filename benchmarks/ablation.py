"""Which terms, power and norm match best: {feature, + spatial, + channel, both} x p x norm, and the precision.

    python benchmarks/ablation.py [--seeds 3] [--iterations 300] [--only digits]

Paired seeds, mean and standard deviation over them of the accuracy of 3 networks under ``quick``, measured on images
held out of the TRAINING split: the test split is never looked at, so recipes may follow what this says. CIFAR-10 is
read from ATOMHUB_DATA, at width 32; the precision is compared at the width of 128 at which bfloat16 is used.
"""

import argparse
import statistics
import time

import torch
from common import held_out, write
from rich.console import Console
from rich.table import Table

import atomhub

TERMS = {
    "feature": {"spatial": 0, "channel": 0},
    "+ spatial": {"spatial": 1, "channel": 0},
    "+ channel": {"spatial": 0, "channel": 1},
    "both": {"spatial": 1, "channel": 1},
}


def settings(iterations):
    """Yield (name, overrides): the grid at width 32, then both terms at width 128 in either precision."""
    base = {"width": 32, "real_batch": 64, "iterations": iterations, "precision": "float32"}
    for norm in ("instance", "batch"):
        for term, weights in TERMS.items():
            for power in (1, 2, 4) if term != "feature" else (1,):  # without attention there is no power
                yield f"{term}, p {power}, {norm}", {**base, **weights, "power": power, "norm": norm}


def precisions(iterations):
    """Yield (name, overrides) of the paired runs that compare the precision."""
    for precision in ("float32", "bfloat16"):
        fields = {"width": 128, "real_batch": 64, "iterations": iterations, "power": 1, "norm": "instance",
                  "precision": precision}  # fmt: skip
        yield f"both, p 1, instance, width 128, {precision}", fields


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--ipc", type=int, default=1)
    parser.add_argument("--only", choices=["digits", "cifar10"])
    arguments = parser.parse_args()
    rows, table = [], Table(title=f"accuracy (%) on held-out training images, ipc {arguments.ipc}")
    for column in ("source", "setting", "accuracy", "random", "s a run"):
        table.add_column(column, justify="right")
    for source in ("digits", "cifar10"):
        if arguments.only not in (None, source):
            continue
        real = held_out(atomhub.open_source(source), test=2500)
        runs = list(settings(arguments.iterations))
        if source == "cifar10":
            runs += precisions(arguments.iterations)
        for name, fields in runs:
            means, random, start = [], [], time.perf_counter()
            for seed in range(arguments.seeds):
                distilled = atomhub.distill(real, arguments.ipc, atomhub.Recipe.named("atom", fields), seed=seed)
                result = atomhub.evaluate(distilled, protocol="quick", runs=3, seed=100 * seed, source=real)
                means.append(result.score.mean)
                random.append(result.baseline["random"].mean)
            row = {
                "source": source, "setting": name, "recipe": fields, "accuracies": means,
                "mean": statistics.fmean(means), "std": statistics.stdev(means) if len(means) > 1 else 0.0,
                "random": statistics.fmean(random), "seconds": (time.perf_counter() - start) / arguments.seeds,
            }  # fmt: skip
            rows.append(row)
            table.add_row(source, name, f"{row['mean']:.1f} ± {row['std']:.1f}", f"{row['random']:.1f}",
                          f"{row['seconds']:.0f}")  # fmt: skip
            print(f"{source}  {name:45} {row['mean']:.1f} ± {row['std']:.1f}  ({row['seconds']:.0f} s)", flush=True)
            write("ablation", torch.device("cpu"), ipc=arguments.ipc, seeds=arguments.seeds, rows=rows)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
