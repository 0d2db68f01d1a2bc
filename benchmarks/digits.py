"""Which recipe fields suit the embedded digits: paired seeds, measured on images held out of the TRAINING split.

    python benchmarks/digits.py [--seeds 2] [--output benchmarks/results/digits.json]

The digits' test split is never looked at. The table behind ``atomhub.recipe.TUNED["digits"]``.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

from common import held_out

import atomhub

BASE = {"width": 32, "iterations": 300, "real_batch": 64, "power": 4.0, "norm": "instance"}
VARIANTS = {
    "base": {},
    "power 2": {"power": 2.0},
    "power 1": {"power": 1.0},
    "power 1, feature 0.1": {"power": 1.0, "feature": 0.1},
    "power 1, feature 1": {"power": 1.0, "feature": 1.0},
    "power 1, lr 0.3": {"power": 1.0, "image_lr": 0.3},
    "power 1, lr 3": {"power": 1.0, "image_lr": 3.0},
    "power 1, batch 128": {"power": 1.0, "real_batch": 128},
    "power 1, no augmentation": {"power": 1.0, "augmentation": ()},
    "power 1, 600 iterations": {"power": 1.0, "iterations": 600},
    "power 1, width 64": {"power": 1.0, "width": 64},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "digits.json")
    arguments = parser.parse_args()
    rows = []
    real = held_out(atomhub.open_source("digits"))
    for ipc in (1, 10):
        for name, fields in VARIANTS.items():
            start, means, random = time.perf_counter(), [], []
            for seed in range(arguments.seeds):
                distilled = atomhub.distill(real, ipc, "atom", {**BASE, **fields}, seed=seed)
                result = atomhub.evaluate(distilled, protocol="quick", runs=5, seed=100 * seed, source=real)
                means.append(result.score.mean)
                random.append(result.baseline["random"].mean)
            spread = statistics.stdev(means) if len(means) > 1 else 0.0
            seconds = (time.perf_counter() - start) / arguments.seeds
            rows.append({"ipc": ipc, "variant": name, "mean": statistics.fmean(means), "std": spread,
                         "random": statistics.fmean(random), "seconds": round(seconds, 1)})  # fmt: skip
            print(f"ipc {ipc:2}  {name:26} {rows[-1]['mean']:6.2f} ± {spread:4.2f}  "
                  f"random {rows[-1]['random']:6.2f}  {seconds:6.1f} s", flush=True)  # fmt: skip
    arguments.output.parent.mkdir(exist_ok=True)
    arguments.output.write_text(json.dumps({"base": BASE, "seeds": arguments.seeds, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
