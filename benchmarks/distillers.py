"""Does our engine make what DataDAM's code makes: CIFAR-10, the same settings through both, measured by our protocol.

    git clone https://github.com/DataDistillation/DataDAM
    python benchmarks/distillers.py --code DataDAM [--side field|ours] [--ipc 10] [--iterations 600] [--networks 3]

Both start at random real images, with 64 real images of a class at an iteration; theirs is its ``main``, as it lies in
its folder, and none of it is here. Theirs may leave pixels outside 0..1, which are clipped; the share is printed.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from common import RESULTS, environment
from protocols import OnCpu, imported

import atomhub
from atomhub.core.whitening import Normalization
from atomhub.devices import find_device
from atomhub.interop.importing import import_set

NETWORKS = ("convnet:norm=batch", "convnet:norm=instance")


def theirs(o, real):
    """Return the set that DataDAM's ``main`` makes."""
    distiller, _ = imported(o.code, "main_DataDAM", "utils")
    images = Normalization(real.mean, real.std).apply(torch.from_numpy(real.train.images))
    train = torch.utils.data.TensorDataset(images, torch.from_numpy(real.train.labels))
    given = (3, (32, 32), 10, list(real.class_names), real.mean, real.std, train, None, None, None)
    distiller.get_dataset = lambda *_: given
    distiller.evaluate_synset = lambda it, network, *_: (network, 1.0, 1.0)  # it keeps images if above 0
    with tempfile.TemporaryDirectory() as folder:
        options = {"ipc": o.ipc, "Iteration": o.iterations, "batch_real": 64, "num_eval": 1, "eval_mode": "last"}
        sys.argv = ["main", *(f"--{key}={value}" for key, value in options.items())]
        sys.argv += [f"--data_path={folder}", f"--save_path={folder}"]
        with OnCpu():
            distiller.main()
        return import_set(next(Path(folder).glob("res_*.pt")), real, name="datadam-code")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--code", type=Path, required=True, metavar="DIR")
    parser.add_argument("--commit", metavar="SHA", help="where DIR is no clone")
    parser.add_argument("--side", action="append", choices=["field", "ours"])
    parser.add_argument("--ipc", type=int, default=10)
    parser.add_argument("--iterations", type=int, default=600)
    parser.add_argument("--networks", type=int, default=3)
    parser.add_argument("--results", type=Path, metavar="DIR", default=RESULTS)
    o = parser.parse_args()
    about = environment(find_device("auto"))  # now: their code has options of its own
    git = ["git", "-C", o.code, "rev-parse", "HEAD"]
    commit = o.commit or subprocess.check_output(git, text=True).strip()
    real = atomhub.open_source("cifar10")
    kept = o.results / "distillers-cpu.json"
    rows = json.loads(kept.read_text())["rows"] if kept.exists() else []
    for side in o.side or ["field", "ours"]:
        start = time.perf_counter()
        if side == "field":
            one = theirs(o, real)
        else:
            fields = {"iterations": o.iterations, "real_batch": 64}
            one = atomhub.distill(real, o.ipc, "datadam", fields)
        spent = time.perf_counter() - start
        for network in NETWORKS:
            found = atomhub.evaluate(one, network, "quick", o.networks, baseline=(), source=real)
            row = {
                "by": f"DataDAM's code ({commit[:7]})" if side == "field" else "atomhub, recipe datadam", "ipc": o.ipc,
                "iterations": o.iterations, "network": found.network, "accuracies": list(found.score.accuracies),
                "seconds": round(spent),
            }  # fmt: skip
            rows = [r for r in rows if any(r[key] != row[key] for key in ("by", "ipc", "iterations", "network"))]
            rows.append(row)
            kept.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")
            print(json.dumps(row), flush=True)
    lines = ["| made by | ipc | iterations | network | accuracy (`quick`) |", "|---|---|---|---|---|"]
    for r in rows:
        spread = f" ± {statistics.stdev(r['accuracies']):.1f}" if len(r["accuracies"]) > 1 else ""
        shown = f"{statistics.fmean(r['accuracies']):.1f}{spread}"
        lines.append(f"| {r['by']} | {r['ipc']} | {r['iterations']} | {r['network']} | {shown} |")
    kept.with_suffix(".md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
