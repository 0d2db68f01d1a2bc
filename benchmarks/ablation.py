"""Which terms, power and norm match best: {feature, + spatial, + channel, both} x p x norm, and the precision.

    python benchmarks/ablation.py [--seeds 3] [--iterations 300] [--only digits]
    python benchmarks/ablation.py --parts [--seeds 2] [--iterations 300] [--ipc 1] [--lines atom-plus --lines ...]
    python benchmarks/ablation.py --fields --only digits [--seeds 2] [--iterations 300] [--ipc 1]

The second takes ``atom-plus`` apart on CIFAR-10, and compares stored pixels of 8 and 32 bits; ``--lines`` picks some
lines of it. The third varies single fields on the digits. Paired seeds, mean and standard deviation over them of the
accuracy of 3 networks under ``quick``, measured on images held out of the TRAINING split: the test split is never
looked at, so recipes may follow what this says. CIFAR-10 is read from ATOMHUB_DATA, at width 32 or 64; the precision is
compared at the width of 128 at which bfloat16 is used.
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


PARTS = {
    "atom": ("atom", {}),
    "atom-plus": ("atom-plus", {}),
    "without views": ("atom-plus", {"formation": 1}),
    "without calibration": ("atom-plus", {"calibration": 0.0}),
    "without calibration and bank": ("atom-plus", {"calibration": 0.0, "bank": 0}),
    "without schedule": ("atom-plus", {"image_schedule": "constant"}),
    "without attention": ("atom-plus", {"spatial": 0.0, "channel": 0.0}),
    "without real statistics": ("atom-plus", {"statistics": "own"}),
    "atom-plus, float32 pixels": ("atom-plus", {"pixels": "float32"}),
    "atom, float32 pixels": ("atom", {"pixels": "float32"}),
}
"""The second table: recipe and what is changed."""
FIELDS = {
    "base": {}, "feature 0.1": {"feature": 0.1}, "feature 1": {"feature": 1.0}, "power 2": {"power": 2.0},
    "power 4": {"power": 4.0}, "lr 0.3": {"image_lr": 0.3}, "lr 3": {"image_lr": 3.0},
    "batch 128": {"real_batch": 128}, "no augmentation": {"augmentation": ()}, "width 64": {"width": 64},
}  # fmt: skip
"""The third table: what is changed in ``atom`` at width 32, batch 64, instance norm."""


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


def measured(real, ipc, recipe, seeds):
    """Distil and measure with paired seeds; return a row of a table."""
    means, random, start = [], [], time.perf_counter()
    for seed in range(seeds):
        distilled = atomhub.distill(real, ipc, recipe, seed=seed)
        result = atomhub.evaluate(distilled, protocol="quick", runs=3, seed=100 * seed, source=real)
        means.append(result.score.mean)
        random.append(result.baseline["random"].mean)
    return {
        "accuracies": means, "mean": statistics.fmean(means), "std": statistics.stdev(means) if seeds > 1 else 0.0,
        "random": statistics.fmean(random), "seconds": (time.perf_counter() - start) / seeds,
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--ipc", type=int, default=1)
    parser.add_argument("--only", choices=["digits", "cifar10"])
    parser.add_argument("--parts", action="store_true")
    parser.add_argument("--fields", action="store_true")
    parser.add_argument("--lines", action="append", choices=PARTS, metavar="LINE")
    arguments = parser.parse_args()
    if arguments.lines and not arguments.parts:
        parser.error("--lines picks lines of the second table: give --parts as well.")
    rows, table = [], Table(title=f"accuracy (%) on held-out training images, ipc {arguments.ipc}")
    for column in ("source", "setting", "accuracy", "random", "s a run"):
        table.add_column(column, justify="right")
    for source in ("digits", "cifar10") if not arguments.parts else ("cifar10",):
        if arguments.only not in (None, source):
            continue
        real = held_out(atomhub.open_source(source), test=2500)
        if arguments.parts:
            base = {"width": 64, "real_batch": 64, "iterations": arguments.iterations, "precision": "float32"}
            runs = [(name, PARTS[name][0], base | PARTS[name][1]) for name in arguments.lines or PARTS]
        elif arguments.fields:
            base = {"width": 32, "real_batch": 64, "iterations": arguments.iterations, "norm": "instance"}
            runs = [(name, "atom", base | fields) for name, fields in FIELDS.items()]
        else:
            runs = [(name, "atom", fields) for name, fields in settings(arguments.iterations)]
            if source == "cifar10":
                runs += [(name, "atom", fields) for name, fields in precisions(arguments.iterations)]
        for name, recipe, fields in runs:
            row = {"source": source, "setting": name, "recipe": {"name": recipe, **fields}}
            row |= measured(real, arguments.ipc, atomhub.Recipe.named(recipe, fields), arguments.seeds)
            rows.append(row)
            table.add_row(source, name, f"{row['mean']:.1f} ± {row['std']:.1f}", f"{row['random']:.1f}",
                          f"{row['seconds']:.0f}")  # fmt: skip
            print(f"{source}  {name:45} {row['mean']:.1f} ± {row['std']:.1f}  ({row['seconds']:.0f} s)", flush=True)
            kind = "lines" if arguments.lines else "parts" if arguments.parts else "fields"
            kind = f"{kind}-ipc{arguments.ipc}" if arguments.parts or arguments.fields else "ablation"
            write(kind, torch.device("cpu"), ipc=arguments.ipc, seeds=arguments.seeds, rows=rows)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
