"""Which small training set finds the best architecture: proxies side by side, at equal training time.

    python benchmarks/proxies.py SET [SET ...] [--budget 36] [--protocol quick] [--epochs 20] [--results DIR]

Networks drawn from the 720 ConvNets (or ``--space``) are trained on every set, on as many random real images, and,
stopped early, in one pass over as many real images as the training on the first set takes in all; other real training
images rank them. The whole training set says how good they are: ``--epochs`` passes, test accuracy of the last, the
most expensive part by far. The table has Spearman's rank correlation, the regret (the best network's accuracy less that
of the one that a proxy chose), and the mean seconds for a network. Every network is kept as it ends. Source: DC (ICLR
2021, section 4.3).
"""

import argparse
import dataclasses
import json
from pathlib import Path

import torch
from common import RESULTS, environment

import atomhub
from atomhub.core import draws
from atomhub.devices import find_device, keep_large_buffers
from atomhub.training.architectures import Candidate, Check, Trials, conclude, find_space, judges
from atomhub.training.baselines import random_real, whole_real
from atomhub.training.protocols import find_protocol, of_whole_set

TRUTH, RANDOM, EARLY = "whole training set", "random real images", "real images, stopped early"


def work(sets, real, protocol, epochs, seed):
    """Return what networks are trained on, by name: images (N, C, H, W), labels (N,), protocol, and what tests them."""
    first, rules = sets[0], find_protocol(protocol, taught=False)
    images, labels = whole_real(first, real)
    rows = torch.from_numpy(judges(real, seed))
    # in random order: classes come one after the other
    others = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    some = others[~torch.isin(others, rows)][: rules.epochs * len(first.training_labels())]
    early = dataclasses.replace(of_whole_set(1), drops=())
    small = {one.name: (*one.as_tensors(), rules) for one in sets}
    small |= {RANDOM: (*random_real(first, real, seed), rules), EARLY: (images[some], labels[some], early)}
    test = torch.from_numpy(real.train.images[rows]), labels[rows]
    found = {name: (*given, test) for name, given in small.items()}
    return found | {TRUTH: (images, labels, of_whole_set(epochs), real.test_tensors())}


def markdown(rows, names):
    """Return the table: a line for each proxy, of the networks that the whole training set has trained as well."""
    whole = [r for r in rows if r["proxy"] == TRUTH]
    truth = {r["network"]: Check(r["network"], r["accuracy"], r["seconds"], r["failed"]) for r in whole}
    lines = ["| proxy | networks | rank correlation | regret | seconds a network |", "|---|---|---|---|---|"]
    for name in names:
        own = [Candidate(r["network"], r["accuracy"], 0, r["seconds"]) for r in rows if r["proxy"] == name]
        own = sorted((c for c in own if c.network in truth), key=lambda c: -c.accuracy)
        if own:
            found = conclude(name, tuple(own), tuple(truth[c.network] for c in own), (0, 0))
            mean = sum(c.seconds for c in own) / len(own)
            lines.append(f"| {name} | {len(own)} | {found.correlation} | {found.regret:.1f} | {mean:.1f} |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", metavar="SET", help="of one source and ipc")
    parser.add_argument("--space", default="convnet-720")
    parser.add_argument("--budget", type=int, default=36)
    parser.add_argument("--protocol", default="quick")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, metavar="DIR", default=RESULTS)
    o = parser.parse_args()
    device, sets = find_device("auto"), [atomhub.load(name) for name in o.sets]
    real, specs = sets[0].real(), find_space(o.space).specs()
    # the first networks of a larger budget are those of a smaller one
    specs = [specs[i] for i in draws.sample(o.seed, draws.SEARCH, 0, [0], [len(specs)], len(specs))[0][: o.budget]]
    settings = {"source": real.info.fingerprint, "protocol": o.protocol, "epochs": o.epochs, "seed": o.seed}
    about, kept = environment(device), o.results / "proxies.json"
    earlier = json.loads(kept.read_text()) if kept.exists() else {"settings": settings, "rows": []}
    if earlier["settings"] != settings:
        parser.error(f"{kept} has other settings: {earlier['settings']}. Name another --results.")
    rows = earlier["rows"]
    keep_large_buffers()
    todo = work(sets, real, o.protocol, o.epochs, o.seed)
    digests = {one.name: one.manifest.tensors for one in sets}
    trials = Trials(sets[0], real, device, o.seed, None, None)
    for spec in specs:
        for name, (images, labels, rules, test) in todo.items():
            mark = {"proxy": name, "network": spec, "tensors": digests.get(name)}
            if any(mark.items() <= r.items() for r in rows):
                continue
            one = trials.run(spec, images, labels, rules, test)
            rows = [r for r in rows if (r["proxy"], r["network"]) != (name, spec)]
            rows.append(mark | {"accuracy": one.accuracy, "seconds": one.seconds, "failed": one.failed})
            kept.write_text(json.dumps(about | {"settings": settings, "rows": rows}, indent=1) + "\n")
            print(f"{name}, {spec}: {one.accuracy:.1f}", flush=True)
    text = f"{real.info.id}, protocol {o.protocol}, truth after {o.epochs} epochs\n\n{markdown(rows, todo)}"
    kept.with_suffix(".md").write_text(text)
    print(f"\n{text}")


if __name__ == "__main__":
    main()
