"""Distilled photographs beside random and herded ones, under the same labels: a line for each recipe.

    python benchmarks/photos.py SOURCE [--size 128] [--classes K] [--ipc 1 ...] [--recipe rded ...]
        [--set KEY=VALUE ...] [--protocol quick --protocol rded] [--network resnet18:norm=batch] [--teacher resnet18]
        [--networks 2] [--whole] [--results DIR]

Protocols with a teacher give its labels to random images as well. Sets and accuracies are kept as they come, so that
the command goes on where it was. Accuracies are those of the last epoch, on the test images.
"""

import argparse
import hashlib
import json
from pathlib import Path

from common import RESULTS, environment, setting

import atomhub
from atomhub.devices import find_device
from atomhub.training.protocols import PROTOCOLS


def first_classes(real, k):
    """Return the training and test images of the first k classes, as a source of their own."""

    def split(images):
        rows = images.labels < k
        return images.images[rows], [real.class_names[label] for label in images.labels[rows]]

    return atomhub.open_source({"train": split(real.train), "test": split(real.test)})


def markdown(rows, o):
    """Return the table: a line for each ipc and recipe or baseline, a column for each protocol."""
    protocols = list(dict.fromkeys(r["protocol"] for r in rows))
    found = {(r["ipc"], r["images"], r["protocol"]): r for r in rows}
    lines = [["ipc", "images", "bytes per class", "seconds", *protocols], ["---"] * (len(protocols) + 4)]
    for ipc, images in dict.fromkeys((r["ipc"], r["images"]) for r in rows):
        own = [found.get((ipc, images, p)) for p in protocols]
        cells = [f"{r['mean']:.1f} ± {r['std']:.1f}" if r else "–" for r in own]
        made, size = (next((r[key] for r in own if r), None) for key in ("made_in", "bytes_per_class"))
        lines.append([str(ipc), images, str(size or "–"), "–" if made is None else f"{made:.0f}", *cells])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{o.source.name}, {o.network}, {o.networks} networks, mean ± std in %, last epoch\n\n{table}\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--size", type=int)
    parser.add_argument("--classes", type=int, help="the first K alone")
    parser.add_argument("--ipc", type=int, action="append")
    parser.add_argument("--recipe", action="append", metavar="NAME|FILE.toml")
    parser.add_argument("--set", action="append", default=[], type=setting, metavar="KEY=VALUE", help="recipe fields")
    parser.add_argument("--protocol", action="append")
    parser.add_argument("--network", default="resnet18:norm=batch")
    parser.add_argument("--teacher", help="network that labels batches, under a protocol that has one")
    parser.add_argument("--networks", type=int, default=2)
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--results", type=Path, metavar="DIR", default=RESULTS / "photos")
    o = parser.parse_args()
    fields = dict(o.set)
    real = atomhub.open_source(o.source, size=o.size)
    real = first_classes(real, o.classes) if o.classes else real
    o.results.mkdir(parents=True, exist_ok=True)
    kept = o.results / f"{o.source.name}.json"
    asked = {
        "source": real.info.fingerprint,
        "network": o.network,
        "networks": o.networks,
        "set": fields,
        "teacher": o.teacher,
    }
    before = json.loads(kept.read_text()) if kept.exists() else {}
    rows = before["rows"] if before.get("asked") == asked else []
    for ipc in o.ipc or [1]:
        for recipe in o.recipe or ["rded"]:
            name = Path(recipe).stem
            mark = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:8] if fields else ""
            folder = o.results / f"{o.source.name}-{name}{mark}-ipc{ipc}"
            kept_run = folder.with_name(f"{folder.name}-run")
            for protocol in o.protocol or ["quick", "rded"]:
                there = {r["images"] for r in rows if (r["ipc"], r["protocol"]) == (ipc, protocol)}
                if name in there:
                    continue
                one = (
                    atomhub.load(folder) if folder.exists()
                    else atomhub.distill(real, ipc, recipe, fields, save=folder, checkpoints=kept_run, resume=True)
                )  # fmt: skip
                wanted = [kind for kind in ("random", "herding", *["whole"] * o.whole) if kind not in there]
                teacher = o.teacher if PROTOCOLS[protocol].temperature else None
                result = atomhub.evaluate(
                    one, o.network, protocol, o.networks, baseline=wanted, source=real, teacher=teacher
                )
                p, f = one.manifest.provenance, one.manifest.format
                for images, score in {name: result.score, **result.baseline}.items():
                    rows.append({
                        "ipc": ipc, "images": images, "protocol": protocol, "mean": score.mean, "std": score.std,
                        "seconds": score.seconds, "made_in": p.seconds if images == name else None,
                        "command": p.command if images == name else None,
                        "bytes_per_class": f.bytes_per_class if images == name else None,
                    })  # fmt: skip
                    print(f"ipc {ipc}, {images}, {protocol}: {score.mean:.1f} ± {score.std:.1f}", flush=True)
                about = environment(find_device("auto")) | {"asked": asked, "rows": rows}
                kept.write_text(json.dumps(about, indent=1) + "\n")
                kept.with_suffix(".md").write_text(markdown(rows, o))
    print(markdown(rows, o))


if __name__ == "__main__":
    main()
