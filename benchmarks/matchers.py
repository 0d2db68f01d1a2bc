"""What images learn from the network that they are matched under: every matcher under every network.

    python benchmarks/matchers.py [--source cifar10] [--ipc 1] [--matcher NAME ...] [--network NAME ...]
        [--iterations 300] [--real-batch 64] [--networks 2] [--protocol quick] [--recipe atom]
        [--set KEY=VALUE ...] [--results DIR]

Gradients under different networks differ in length by orders of magnitude, so images take steps of one length
(``image_step=normalized``), along a cosine. Sets and accuracies are kept as they come, so that the command goes on
where it was. Accuracies are those of the last epoch, on the test images; as many random real images stand in the last
line.
"""

import argparse
import hashlib
import json
from pathlib import Path

from common import RESULTS, environment, setting

import atomhub
from atomhub.devices import find_device

NETWORKS = ("convnet:norm=instance", "resnet18:norm=instance", "vgg11:norm=instance")


def markdown(rows, matchers, networks, o):
    """Return the table: a line for each matcher, a column for each network."""
    found = {(r["matcher"], r["network"]): r for r in rows}
    lines = [["matched under", "seconds", *networks], ["---"] * (len(networks) + 2)]
    for matcher in (*matchers, "random real images"):
        own = [found.get((matcher, network)) for network in networks]
        cells = [f"{r['mean']:.1f} ± {r['std']:.1f}" if r else "–" for r in own]
        seconds = next((f"{r['made_in']:.0f}" for r in own if r and r["made_in"] is not None), "–")
        lines.append([matcher, seconds, *cells])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    what = f"{o.source}, ipc {o.ipc}, recipe {o.recipe}, {o.iterations} iterations, real batch {o.real_batch}"
    what = ", ".join([what, *map("=".join, o.set)])
    return f"{what}; protocol {o.protocol}, {o.networks} networks, mean ± std, last epoch\n\n{table}\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="cifar10")
    parser.add_argument("--ipc", type=int, default=1)
    parser.add_argument("--matcher", action="append", metavar="NAME")
    parser.add_argument("--network", action="append", metavar="NAME")
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--real-batch", type=int, default=64)
    parser.add_argument("--networks", type=int, default=2)
    parser.add_argument("--protocol", default="quick")
    parser.add_argument("--recipe", default="atom")
    parser.add_argument(
        "--set", action="append", default=[], type=setting, metavar="KEY=VALUE", help="further recipe fields"
    )
    parser.add_argument("--results", type=Path, metavar="DIR", default=RESULTS)
    o = parser.parse_args()
    matchers, networks = o.matcher or ("convnet", "resnet18", "vgg11"), o.network or NETWORKS
    kept = o.results / "matchers.json"
    kinds = ("source", "ipc", "recipe", "iterations", "real_batch", "protocol", "networks")
    asked = {k: getattr(o, k) for k in kinds} | {"set": dict(o.set)}
    mark = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:8]
    before = json.loads(kept.read_text()) if kept.exists() else {}
    rows = before["rows"] if before.get("asked") == asked else []
    fields = {"iterations": o.iterations, "real_batch": o.real_batch, "norm": "instance", "image_step": "normalized"}
    fields |= {"image_schedule": "cosine"} | dict(o.set)
    for matcher in matchers:
        if {(matcher, n) for n in networks} <= {(r["matcher"], r["network"]) for r in rows}:
            continue
        one = atomhub.distill(
            o.source, o.ipc, o.recipe, fields | {"matcher": matcher},
            checkpoints=o.results / f"run-{matcher.replace('/', '-')}-{mark}", checkpoint_every=20, resume=True,
        )  # fmt: skip
        for network in networks:
            random = ("random",) * (("random real images", network) not in {(r["matcher"], r["network"]) for r in rows})
            result = atomhub.evaluate(one, network, o.protocol, o.networks, baseline=random)
            scores = [(matcher, one.manifest.provenance.seconds, result.score)]
            scores += [("random real images", None, score) for score in result.baseline.values()]
            for name, seconds, score in scores:
                rows.append({
                    "matcher": name, "network": network, "mean": score.mean, "std": score.std, "made_in": seconds,
                    "seconds": score.seconds,
                })  # fmt: skip
                print(f"{name} under {network}: {score.mean:.1f} ± {score.std:.1f}", flush=True)
            about = environment(find_device("auto")) | {"asked": asked, "rows": rows}
            kept.write_text(json.dumps(about, indent=1) + "\n")
            kept.with_suffix(".md").write_text(markdown(rows, matchers, networks, o))
    print(markdown(rows, matchers, networks, o))


if __name__ == "__main__":
    main()
