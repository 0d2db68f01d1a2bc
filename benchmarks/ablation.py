"""Change one thing at a time in a recipe: a table of ``benchmarks/ablation/``, one distillation and measurement a cell.

    python benchmarks/ablation.py benchmarks/ablation/terms.toml [--only LINE ...] [--ipc N ...] [--results DIR]

A config names a source, a recipe with its overrides, images per class, seeds, protocols, and lines: what each changes.
Where it says ``held_out``, test images are as many of the TRAINING split, held out of it, so that recipes may follow
what the table says; the test split is never looked at. Seeds are paired: a line's run of a seed has the draws of all
others'. Every cell is kept as it ends, and an interrupted distillation continues; a cell whose settings changed is made
again. Accuracies are those of the last epoch; no column has two protocols, networks or norms. ``shorten = 5`` measures
with a fifth of every protocol's epochs, and the columns say so; ``network`` with another network, or with several, than
the protocol's. ``start = "NAME"`` in a line begins at the images of the set NAME-ipcN of the local store.
"""

import argparse
import dataclasses
import hashlib
import itertools
import json
import statistics
import tomllib
from contextlib import contextmanager
from pathlib import Path

import torch
from common import RESULTS, environment, held_out

import atomhub
from atomhub.core import initial
from atomhub.devices import find_device
from atomhub.errors import NotFoundError
from atomhub.training.protocols import PROTOCOLS, find_protocol


def planned(real, config, line, ipc, seed):
    """Return the recipe of a cell, the set it starts at or None, and a digest of all that decides its images."""
    fields = config.get("overrides", {}) | config["lines"][line]
    start = fields.pop("start", None)
    at = atomhub.load(f"{start}-ipc{ipc}") if start else None
    recipe = atomhub.Recipe.named(fields.pop("recipe", config["recipe"]), fields)
    text = f"{real.info.fingerprint} {ipc} {seed} {recipe.to_toml()}{at.manifest.tensors if at else ''}"
    return recipe, at, hashlib.sha256(text.encode()).hexdigest()[:16]


def shortened(name, times):
    """Add a protocol of fewer epochs, its drops moved with them, and return its name."""
    own = find_protocol(name)
    short = f"{name} of 1/{times} the epochs"
    drops = tuple(-(-drop // times) for drop in own.drops)
    PROTOCOLS[short] = dataclasses.replace(own, epochs=-(-own.epochs // times), drops=drops)
    return short


@contextmanager
def started(at):
    """Let distillations begin at the images of a set, in place of those that their recipe chooses."""
    chosen = initial.images
    if at is not None:
        pixels = at.images.float() / (1 if at.images.is_floating_point() else 255)
        initial.images = lambda recipe, real, classes, *_: torch.stack([pixels[at.labels == int(k)] for k in classes])
    try:
        yield
    finally:
        initial.images = chosen


def cell(real, config, line, ipc, seed):
    """Distil what a line says, measure it under every protocol, and return the rows."""
    recipe, at, mark = planned(real, config, line, ipc, seed)
    name = f"ablation-{mark}"
    try:
        one = atomhub.load(name)
    except NotFoundError:
        how = {"save": True, "checkpoints": True, "resume": True, "checkpoint_every": 200}
        with started(at):
            one = atomhub.distill(real, ipc, recipe, seed=seed, name=name, **how)
    rows = []
    for protocol, network in itertools.product(config["protocols"], config["network"]):
        found = atomhub.evaluate(one, network, protocol, config["networks"], baseline=(), seed=100 * seed, source=real)
        rows.append({
            "line": line, "ipc": ipc, "seed": seed, "protocol": protocol, "asked": network, "network": found.network,
            "accuracies": list(found.score.accuracies), "evaluate_seconds": found.score.seconds,
            "distil_seconds": one.manifest.provenance.seconds, "recipe": recipe.describe(), "mark": mark,
        })  # fmt: skip
    return rows


def markdown(config, rows):
    """Return the table: a line each, a column for every ipc, protocol and network."""
    columns = sorted({(r["ipc"], r["protocol"], r["network"]) for r in rows})
    head = [f"ipc {ipc}, {protocol}, {network}" for ipc, protocol, network in columns]
    text = [f"| | {' | '.join(head)} |", "|---|" + "---|" * len(columns)]
    for line in config["lines"]:
        own = [[r for r in rows if (r["line"], r["ipc"], r["protocol"], r["network"]) == (line, *c)] for c in columns]
        if any(own):
            text.append(f"| {line} | {' | '.join(shown(cells) for cells in own)} |")
    return "\n".join(text)


def shown(rows):
    """Return mean and spread: over seeds if there are several, else over the networks of the one."""
    if not rows:
        return "–"
    means = [statistics.fmean(r["accuracies"]) for r in rows]
    spread = means if len(means) > 1 else rows[0]["accuracies"]
    return f"{statistics.fmean(means):.1f}" + (f" ± {statistics.stdev(spread):.1f}" if len(spread) > 1 else "")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--only", action="append", metavar="LINE")
    parser.add_argument("--ipc", action="append", type=int)
    parser.add_argument("--results", type=Path, metavar="DIR", default=RESULTS, help="where the table goes")
    o = parser.parse_args()
    config = tomllib.loads(o.config.read_text())
    if unknown := set(o.only or ()) - set(config["lines"]):
        parser.error(f"There is no line {min(unknown)!r} in {o.config}.")
    real = atomhub.open_source(config["source"])
    if times := config.get("shorten"):
        config["protocols"] = [shortened(name, times) for name in config["protocols"]]
    if config.get("held_out"):
        real = held_out(real, test=config["held_out"])
    network = config.get("network")
    config["network"] = network if isinstance(network, list) else [network]
    kept = o.results / f"ablation-{o.config.stem}-cpu.json"
    rows = json.loads(kept.read_text())["rows"] if kept.exists() else []
    for ipc, line in itertools.product(o.ipc or config["ipcs"], o.only or config["lines"]):
        planned(real, config, line, ipc, 0)  # what is missing is said before the work
    for ipc in o.ipc or config["ipcs"]:
        for line in o.only or config["lines"]:
            for seed in range(config["seeds"]):
                own = [r for r in rows if (r["line"], r["ipc"], r["seed"]) == (line, ipc, seed)]
                mark = planned(real, config, line, ipc, seed)[2]
                enough = [r for r in own if r["mark"] == mark and len(r["accuracies"]) >= config["networks"]]
                wanted = set(itertools.product(config["protocols"], config["network"]))
                if {(r["protocol"], r.get("asked")) for r in enough} >= wanted:
                    continue
                found = cell(real, config, line, ipc, seed)
                rows = [*(r for r in rows if r not in own), *found]
                for r in found:
                    print(f"{line}, ipc {ipc}, seed {seed}, {r['protocol']}, {r['network']}: {shown([r])}", flush=True)
                about = environment(find_device("auto")) | {"question": config["question"]}
                kept.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")
    table = f"{config['question']}\n\n{markdown(config, rows)}\n"
    kept.with_suffix(".md").write_text(table)
    print(f"\n{table}")


if __name__ == "__main__":
    main()
