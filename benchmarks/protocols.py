"""Do our protocols measure what the papers' code measures: the same images through both, CIFAR-10, last epoch.

    git clone https://github.com/VICO-UoE/DatasetCondensation DC     # and DataDistillation/DataDAM, Hansong-Zhang/DANCE
    python benchmarks/protocols.py --code dm=DC --code datadam=DataDAM --code dance=DANCE [--ipc 1] [--networks 5]
        [--atom NAME] [--side field|ours]

Sets: random real images; ``--atom``: a set of the local store; DataDAM's initial images, from its repository. A cell is
a set under a protocol, by one side, and is kept in ``benchmarks/results/protocols-cpu.json`` as soon as it is done, so
the script continues where it was. Both sides may run at the same time, each in a process (``--side``) on one core.
The papers' code is imported as it lies in its folder, and none of it is here; where it asks for a GPU it gets the CPU.
"""

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy
import torch
from common import RESULTS, environment

import atomhub
from atomhub.files import locked
from atomhub.interop.importing import import_set
from atomhub.training.baselines import random_real

KEPT = RESULTS / "protocols-cpu.json"
UNUSED = {
    "scipy.ndimage.interpolation": ["rotate"], "efficientnet_pytorch": ["EfficientNet"], "kornia": [],
    "tqdm": ["tqdm"], "einops": ["rearrange", "repeat"], "einops.layers": [], "einops.layers.torch": ["Rearrange"],
}  # fmt: skip
"""Packages that the papers' code imports and the evaluation of a ConvNet does not use, or only to show progress."""


def tensors(ipc, atom, code):
    """Return what is measured: name to (images (N, 3, 32, 32) uint8 or float in 0..1, labels)."""
    model = atomhub.load(f"cifar10-ipc{ipc}")  # for the normalisation
    real = atomhub.open_source("cifar10")
    one = model.subset(ipc=ipc)
    sets = {"random": random_real(one, real, 0)}
    if atom:
        sets["atom"] = atomhub.load(atom).as_tensors()
    if "datadam" in code:
        place = code["datadam"] / f"Initial_Synthetic_Dataset/CIFAR10_IPC{ipc}_images.pt"
        sets["DataDAM's initial images"] = import_set(place, real).as_tensors()
    return sets


class OnCpu:
    """Let code that asks for a GPU work on the CPU."""

    def __enter__(self):
        self.before = torch.Tensor.cuda, torch.nn.Module.cuda, torch.tensor
        torch.Tensor.cuda = lambda tensor, *_, **__: tensor
        torch.nn.Module.cuda = lambda module, *_, **__: module
        torch.tensor = lambda *a, **k: self.before[2](*a, **{key: v for key, v in k.items() if key != "device"})
        numpy.__dict__["int"] = int  # removed from NumPy since

    def __exit__(self, *_):
        torch.Tensor.cuda, torch.nn.Module.cuda, torch.tensor = self.before
        del numpy.__dict__["int"]


def imported(folder, *names):
    """Import modules of a folder of the papers' code, with stand-ins for packages that they name and do not need."""
    for clash in ("networks", "utils", "train", "common", "data", "misc", "models"):
        sys.modules.pop(clash, None)
    for name, attributes in UNUSED.items():
        try:
            __import__(name)
        except ImportError:
            stand_in = types.ModuleType(name)
            stand_in.__dict__.update(dict.fromkeys(attributes, lambda iterable=None, *_, **__: iterable))
            sys.modules[name] = stand_in
    sys.path.insert(0, str(folder))
    ours, sys.argv = sys.argv, sys.argv[:1]  # which the papers' code reads
    try:
        return [__import__(name) for name in names]
    finally:
        sys.path.remove(str(folder))
        sys.argv = ours


def dc(folder, protocol):
    """Return DC's or DataDAM's ``evaluate_synset`` as a function of images, labels and the test images."""
    networks, utils = imported(folder, "networks", "utils")
    norm, epochs, batch = ("batchnorm", 1800, 64) if protocol == "datadam" else ("instancenorm", 1000, 256)

    def accuracy(images, labels, test):
        network = networks.ConvNet(3, 10, 128, 3, "relu", norm, "avgpooling", (32, 32))
        options = types.SimpleNamespace(
            device="cpu", lr_net=0.01, epoch_eval_train=epochs, batch_train=batch, dsa=True,
            dsa_strategy="color_crop_cutout_flip_scale_rotate", dsa_param=utils.ParamDiffAug(), dc_aug_param=None,
        )  # fmt: skip
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*test), batch_size=256)
        return 100 * utils.evaluate_synset(0, network, images.clone(), labels.clone(), loader, options)[2]

    return accuracy


def dance(folder):
    """Return DANCE's ``test_data`` in the same way."""
    with OnCpu():
        train, common, data = imported(folder, "train", "common", "data")
        mixed = train.random_indices
        train.random_indices = lambda labels, **options: mixed(labels, **options, device="cpu")
        options = types.SimpleNamespace(
            dataset="cifar10", net_type="convnet", depth=3, width=1.0, norm_type="instance", nch=3, size=32, nclass=10,
            epochs=1500, batch_size=64, lr=0.01, momentum=0.9, weight_decay=5e-4, mixup="cut", beta=1.0, mix_p=0.5,
            dsa=True, dsa_strategy="color_crop_flip_scale_rotate", epoch_print_freq=1500, epoch_eval_interval=1500,
        )  # fmt: skip

    def accuracy(images, labels, test):
        with OnCpu():
            network = common.define_model(options, 10)
            kinds = {"batch_size": 64, "shuffle": True, "num_workers": 0}
            loader = data.MultiEpochsDataLoader(data.TensorDataset(images, labels), **kinds)
            tests = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*test), batch_size=256)
            return float(train.train(options, network, loader, tests, logger=lambda _: None)[1])

    return accuracy


def ours(protocol, images, labels, test, networks):
    """Return our accuracies of the same."""
    from atomhub.core.draws import seeded
    from atomhub.core.whitening import Normalization
    from atomhub.training.accuracy import accuracy
    from atomhub.training.fit import fit
    from atomhub.training.nets import InputSpec
    from atomhub.training.networks import find_network
    from atomhub.training.protocols import PROTOCOLS

    rules, models = PROTOCOLS[protocol], []
    network = find_network(f"convnet:norm={rules.norm}", InputSpec(3, 10, 32))
    for seed in range(networks):
        with seeded(seed, torch.device("cpu")):
            models.append(network.build())
    fit(models, [images] * networks, labels, rules, rules.augmentation, 10, list(range(networks)))
    plain = Normalization((0.0,) * 3, (1.0,) * 3)  # the test images are normalised
    return [accuracy(model, *test, plain, torch.device("cpu"), 10) for model in models]


def digest(images):
    """Return a digest of what is measured."""
    return hashlib.sha256(images.contiguous().numpy().tobytes()).hexdigest()[:16]


def cell(rows, wanted, work):
    """Measure a cell unless it is there; return the rows with it."""
    if any(all(row[key] == value for key, value in wanted.items()) for row in rows):
        return
    start = time.perf_counter()
    found = [round(a, 2) for a in work()]
    row = {**wanted, "accuracies": found, "mean": round(statistics.fmean(found), 2),
           "std": round(statistics.stdev(found), 2), "seconds": round(time.perf_counter() - start)}  # fmt: skip
    with locked(KEPT):
        kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
        kept = environment(torch.device("cpu")) | {"rows": [*kept.get("rows", []), row]}
        KEPT.write_text(json.dumps(kept, indent=1) + "\n")
        KEPT.with_suffix(".md").write_text(markdown(kept["rows"]))
    print(json.dumps(row), flush=True)


def markdown(rows):
    """Return the table: a line for each set and ipc, for each protocol the papers' code, ours, and the difference."""
    from atomhub.training.protocols import PROTOCOLS

    protocols = [p for p in PROTOCOLS if any(r["protocol"] == p for r in rows)]
    code = {p: next((r["side"] for r in rows if r["protocol"] == p and r["side"] != "atomhub"), "") for p in protocols}
    head, lines = ["set", "ipc"], []
    for p in protocols:
        name = f"{p}, ConvNet, {PROTOCOLS[p].norm} norm"
        head += [f"{name}: its code ({code[p][:7]})", f"{name}: atomhub", "difference"]
    for ipc, name in dict.fromkeys((r["ipc"], r["set"]) for r in sorted(rows, key=lambda r: r["ipc"])):
        cells = [name, str(ipc)]
        for p in protocols:
            own = {
                r["side"] == "atomhub": r for r in rows if (r["ipc"], r["set"], r["protocol"]) == (ipc, name, p)
            }  # fmt: skip
            for side in (False, True):
                cells.append(f"{own[side]['mean']:.1f} ± {own[side]['std']:.1f}" if side in own else "–")
            cells.append(f"{own[True]['mean'] - own[False]['mean']:+.1f}" if len(own) == 2 else "–")
        lines.append(cells)
    table = "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *lines))
    title = (
        "CIFAR-10, the same images through the papers' code and through ours: test accuracy in % after the last epoch, "
        "mean ± std of the networks"
    )
    return f"{title}\n\n{table}\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--code", action="append", required=True, metavar="PROTOCOL=DIR")
    parser.add_argument("--commit", action="append", default=[], metavar="PROTOCOL=SHA", help="where DIR is no clone")
    parser.add_argument("--ipc", type=int, default=1)
    parser.add_argument("--networks", type=int, default=5)
    parser.add_argument("--atom", metavar="NAME")
    parser.add_argument("--side", choices=["field", "ours"])
    o = parser.parse_args()
    code = {name: Path(place) for name, place in (c.split("=", 1) for c in o.code)}
    commits = dict(c.split("=", 1) for c in o.commit)
    sets = tensors(o.ipc, o.atom, code)
    distilled = atomhub.load("cifar10-ipc1")
    images, labels = atomhub.open_source("cifar10").test_tensors()
    test = distilled.normalize(images), labels
    for protocol, folder in code.items():
        commit = commits.get(protocol) or subprocess.check_output(
            ["git", "-C", folder, "rev-parse", "HEAD"], text=True
        ).strip()  # fmt: skip
        for name, (x, y) in sets.items():
            rows = json.loads(KEPT.read_text())["rows"] if KEPT.exists() else []
            where = {"set": name, "ipc": o.ipc, "protocol": protocol, "images": digest(x), "networks": o.networks}
            if o.side != "ours":
                theirs = {**where, "side": commit}
                field = dance(folder) if protocol == "dance" else dc(folder, protocol)
                cell(rows, theirs, lambda field=field, x=x, y=y: [field(x, y, test) for _ in range(o.networks)])
            if o.side != "field":
                mine = {**where, "side": "atomhub"}
                cell(rows, mine, lambda p=protocol, x=x, y=y: ours(p, x, y, test, o.networks))


if __name__ == "__main__":
    main()
