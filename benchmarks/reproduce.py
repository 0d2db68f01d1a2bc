"""Distil and measure one source with several recipes, beside the published figures: the project's results table.

    python benchmarks/reproduce.py benchmarks/reproduce/cifar10.toml [--quick] [--results DIR] [--stage DIR]

Every cell (recipe, ipc) is distilled, measured (last epoch, several networks, each of the config's protocols) and
written as it ends; run again, what is there is kept, and an interrupted distillation continues. Random real images and
herding are measured with the same networks and seeds. ``--quick`` takes the config's smaller settings, for a CPU, and
is labelled.
``--stage DIR`` makes a folder that has all a machine without network needs, and prints the command to run there, which
leaves tables and sets in ``$OUT``.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tomllib
from itertools import product
from pathlib import Path

from common import RESULTS, environment

import atomhub
from atomhub.devices import find_device
from atomhub.recipe import choose_recipe
from atomhub.storage import store

PLAIN = ("random", "herding")
MISSING = ("datasets>=4.0", "lazy-loader>=0.4", "pydantic>=2.12", "platformdirs>=4")
"""What a staged machine may not have, beside atomhub itself."""


OLD_RANDOM = (
    "The published figures of random images (and of herding) come from an older evaluation without DSA: they are no "
    "anchor for these."
)


def read(path, quick):
    """Return the config: the file's, with its table ``quick`` on top where that is asked for."""
    config = tomllib.loads(Path(path).read_text())
    smaller = config.pop("quick", {})
    if quick:
        config |= {**smaller, "overrides": config.get("overrides", {}) | smaller.get("overrides", {})}
    return config


def distilled(config, ipc, recipe, device):
    """Return the set of a cell, distilled by the command a user would type, unless the store has it."""
    name = f"{config['source']}-ipc{ipc}-{recipe}" + "-quick" * config["is_quick"]
    overrides = config.get("overrides", {}) | config.get("recipes", {}).get(recipe, {})
    words = ["distill", config["source"], "--ipc", str(ipc), "--recipe", recipe, "--seed", str(config["seed"])]
    for key, value in overrides.items():
        words += ["--set", f"{key}={json.dumps(value)}"]
    if not store.place(name).exists():
        # a process of its own: the peak of memory is that of this run alone
        command = [sys.executable, "-P", "-m", "atomhub", *words, "--name", name, "--device", device, "--resume"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    found = atomhub.load(name)
    wanted = choose_recipe(recipe, config["source"], overrides)
    info = found.manifest.provenance.source
    wanted, seed = wanted.resolved(ipc, info.size, info.flip), found.manifest.provenance.seed
    differs = {key for key, value in found.manifest.provenance.recipe if value != getattr(wanted, key)} - {"precision"}
    if differs or seed != config["seed"]:
        what = min(differs, default="seed")
        raise SystemExit(f"{name} in the store has another {what}: delete it first (atomhub remove {name}).")
    return found


def cells(config, ipc, recipe, protocol, plain, device):
    """Distil and measure a recipe, and plain selections of real images beside it; return their rows."""
    one, runs = distilled(config, ipc, recipe, device), config["networks"]
    result = atomhub.evaluate(one, None, protocol, runs, baseline=plain, device=device, seed=config["seed"])
    m = one.manifest.provenance
    rows = [{"recipe": recipe, **row(result.score), "set": one.name, "command": m.command, "seconds": m.seconds,
             "memory": m.peak_memory, "device": m.device, "settings": m.recipe.model_dump(mode="json"),
             "bytes_per_class": one.manifest.format.bytes_per_class}]  # fmt: skip
    rows += [{"recipe": kind, **row(result.baseline[kind])} for kind in plain]
    return [r | {"ipc": ipc, "protocol": result.protocol, "network": result.network} for r in rows]


def row(score):
    """Return what a table says of a score."""
    return {"mean": score.mean, "std": score.std, "networks": score.runs, "evaluate_seconds": score.seconds}


def markdown(config, rows):
    """Return a table for every ipc: a line per recipe, a column per protocol and network, and what was published."""
    published, parts = config.get("published", {}), []
    for ipc in config["ipcs"]:
        mine = {(r["recipe"], f"{r['protocol']}, {r['network']}"): r for r in rows if r["ipc"] == ipc}
        columns = list(dict.fromkeys(column for _, column in mine))
        head = ["recipe", *columns, "published (own protocol, norm)", "bytes per class", "seconds", "peak memory"]
        lines = [
            f"{config['source']}, ipc {ipc}: test accuracy in %, mean ± std of {config['networks']} networks, "
            "last epoch",
            "",
            f"| {' | '.join(head)} |",
            "|---" * len(head) + "|",
        ]
        for recipe in config["order"]:
            own = [mine.get((recipe, column)) for column in columns]
            if not any(own):
                continue
            r = next(filter(None, own))
            cells = [f"{r['mean']:.1f} ± {r['std']:.1f}" if r else "–" for r in own]
            cells += [str(published.get(recipe, {}).get(str(ipc), "")), str(r.get("bytes_per_class", ""))]
            cells += [f"{r['seconds']:.0f}" if "seconds" in r else ""]
            cells += [f"{r['memory'] / 1e9:.1f} GB" if r.get("memory") else ""]
            lines.append(f"| {recipe} | {' | '.join(cells)} |")
        if "random" in published:
            lines += ["", OLD_RANDOM]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def keep(path, about, config, rows):
    """Write what is measured so far as JSON and Markdown; return the Markdown."""
    path.write_text(json.dumps(about | {"config": config, "rows": rows}, indent=1) + "\n")
    reduced = "Reduced settings (--quick), not comparable with the published figures.\n\n" * config["is_quick"]
    text = f"{reduced}{markdown(config, rows)}\n\nCommand: `{about['command']}`, on {about['device']}.\n"
    path.with_suffix(".md").write_text(text)
    return text


def stage(config, path, folder, quick):
    """Copy what a machine without network needs to a folder; print the command to run there."""
    root = Path(__file__).resolve().parents[1]
    files = subprocess.run(["git", "ls-files"], cwd=root, capture_output=True, text=True, check=True).stdout.split("\n")
    for name in filter(None, files):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / name, folder / name)
    config_there = Path("benchmarks/reproduce") / Path(path).name
    shutil.copy(path, folder / config_there)
    data = Path(os.environ["ATOMHUB_DATA"]) / config["source"]
    shutil.copytree(data, folder / "data" / config["source"], dirs_exist_ok=True, copy_function=shutil.copyfile)
    wheels(root, folder / "wheels")
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    print(f"{folder}: {size / 1e6:.0f} MB. There, run:")
    script = f"python benchmarks/reproduce.py {config_there} --results $OUT" + " --quick" * quick
    print(
        "OUT=${OUT:-out}; pip install --no-index --find-links wheels atomhub && "
        f"ATOMHUB_HOME=home ATOMHUB_DATA=data {script}; "
        "code=$?; tar -czf $OUT/sets.tgz -C home sets; (exit $code)"
    )


def wheels(root, folder):
    """Put atomhub and what the machine may lack into a folder, for Linux and Python 3.12."""
    pip = [sys.executable, "-m", "pip", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", folder, root], check=True)
    target = ["--only-binary", ":all:", "--python-version", "3.12"]
    for platform in ("manylinux_2_28", "manylinux_2_17", "manylinux2014"):
        target += ["--platform", f"{platform}_x86_64"]
    subprocess.run([*pip, "download", *target, "--dest", folder, *MISSING], check=True)
    for heavy in ("numpy", "pyarrow"):  # torch and a parquet reader are there
        for wheel in folder.glob(f"{heavy}-*"):
            wheel.unlink()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--stage", type=Path, metavar="DIR")
    parser.add_argument("--results", type=Path, metavar="DIR", default=RESULTS, help="where the tables go")
    options = parser.parse_args()
    config = read(options.config, options.quick) | {"is_quick": options.quick}
    if options.stage:
        stage(config, options.config, options.stage, options.quick)
        return
    name = Path(options.config).stem + "-quick" * options.quick
    options.results.mkdir(parents=True, exist_ok=True)
    kept = options.results / f"reproduce-{name}.json"
    about = environment(find_device(options.device))
    earlier = kept if kept.exists() else RESULTS / kept.name
    rows = json.loads(earlier.read_text())["rows"] if earlier.exists() else []
    rows = [r for r in rows if r["protocol"] in config["protocols"]]
    done = {(r["recipe"], r["ipc"], r["protocol"]) for r in rows}
    recipes = [r for r in config["order"] if r not in PLAIN]
    for ipc, recipe, protocol in product(config["ipcs"], recipes, config["protocols"]):
        if (recipe, ipc, protocol) in done:
            continue
        plain = tuple(kind for kind in config["order"] if kind in PLAIN and (kind, ipc, protocol) not in done)
        for found in cells(config, ipc, recipe, protocol, plain, options.device):
            rows.append(found)
            done.add((found["recipe"], ipc, protocol))
            print(f"{found['recipe']}, ipc {ipc}, {protocol}: {found['mean']:.1f} ± {found['std']:.1f}", flush=True)
        keep(kept, about, config, rows)
    print(f"\n{keep(kept, about, config, rows)}")


if __name__ == "__main__":
    main()
