"""How well sets train networks they were not distilled with: every set of a list under every network of a list.

    python benchmarks/transfer.py SET [SET ...] [--network NAME ...] [--protocol dm] [--networks 5] [--results DIR]

Every cell is kept as it ends, and made again only if the set is another one. Accuracies are those of the last epoch;
the last column is the share of its accuracy that the best network loses with the worst one. Below stands what DataDAM's
paper says of CIFAR-10 at ipc 50, for its own protocol, norm and epoch.
"""

import argparse
import json
from pathlib import Path

from common import RESULTS, environment

import atomhub
from atomhub.devices import find_device

NETWORKS = ("convnet:norm=instance", "convnet:norm=batch", "alexnet", "vgg11", "resnet18", "vit")
PUBLISHED = {"convnet:norm=batch": 67.0, "alexnet": 63.9, "vgg11": 64.8, "resnet18": 60.2}


def markdown(rows, sets, networks, protocol):
    """Return the table: a line for each set, a column for each network."""
    lines = [["set", "bytes per class", *networks, "best to worst"], ["---"] * (len(networks) + 3)]
    for name in sets:
        own = {r["network"]: r for r in rows if (r["set"], r["protocol"]) == (name, protocol)}
        means = [own[n]["mean"] for n in networks if n in own]
        if means:
            cells = [f"{own[n]['mean']:.1f} ± {own[n]['std']:.1f}" if n in own else "–" for n in networks]
            size = str(next(iter(own.values()))["bytes_per_class"])
            lines.append([name, size, *cells, f"-{100 * (1 - min(means) / max(means)):.0f} %"])
    published = [f"{PUBLISHED[n]:.1f}" if n in PUBLISHED else "–" for n in networks]
    lines.append(["DataDAM's paper, CIFAR-10 ipc 50, best epoch", "614400", *published, "-10 %"])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"Test accuracy in %, mean ± std of networks, protocol {protocol}, last epoch\n\n{table}\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", metavar="SET")
    parser.add_argument("--network", action="append", metavar="NAME")
    parser.add_argument("--protocol", default="dm")
    parser.add_argument("--networks", type=int, default=5)
    parser.add_argument("--results", type=Path, metavar="DIR", default=RESULTS)
    o = parser.parse_args()
    kept, networks = o.results / "transfer.json", o.network or NETWORKS
    rows = json.loads(kept.read_text())["rows"] if kept.exists() else []
    about = environment(find_device("auto"))
    for name in o.sets:
        one = atomhub.load(name)
        for network in networks:
            mark = {"set": name, "network": network, "protocol": o.protocol, "tensors": one.manifest.tensors}
            if any(mark.items() <= r.items() and r["networks"] >= o.networks for r in rows):
                continue
            found = atomhub.evaluate(one, network, o.protocol, o.networks, baseline=())
            score = found.score
            rows = [r for r in rows if not {k: mark[k] for k in ("set", "network", "protocol")}.items() <= r.items()]
            rows.append({
                **mark, "name": found.network, "mean": score.mean, "std": score.std, "networks": score.runs,
                "seconds": score.seconds, "bytes_per_class": one.manifest.format.bytes_per_class,
            })  # fmt: skip
            print(f"{name}, {network}: {score.mean:.1f} ± {score.std:.1f}", flush=True)
            kept.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")
            kept.with_suffix(".md").write_text(markdown(rows, o.sets, networks, o.protocol))
    print(markdown(rows, o.sets, networks, o.protocol))


if __name__ == "__main__":
    main()
