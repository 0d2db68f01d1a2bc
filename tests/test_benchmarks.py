"""The scripts that make the project's tables, on something small: they keep what they measured, and say how."""

import importlib
import json
import os
import subprocess
import sys
import tomllib
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import ROOT, image_folder
from datasets import load_dataset
from datasets.table import embed_table_storage

import atomhub
from atomhub.presets import PRESETS
from atomhub.training.protocols import PROTOCOLS, Protocol

CONFIG = """
source = "cifar10"
ipcs = [1]
order = ["random", "herding", "dm"]
protocols = ["dm"]
networks = 2
seed = 0

[quick]
protocols = ["quick"]
overrides = { width = 4, depth = 2, iterations = 2, real_batch = 4, precision = "float32" }

[published]
dm = { 1 = 26.0 }
"""


@pytest.fixture
def script(monkeypatch):
    """Return a script of ``benchmarks/`` as a module, and how to run it."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")

    def load(name):
        module = importlib.import_module(name)

        def run(*arguments):
            monkeypatch.setattr(sys, "argv", [f"benchmarks/{name}.py", *map(str, arguments)])
            module.main()

        return module, run

    return load


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A config beside data of its own: twelve images of two classes to train on, six to test."""
    folder = tmp_path / "data" / "cifar10"
    folder.mkdir(parents=True)
    images = image_folder(tmp_path / "images", {"train": 6, "test": 3}, size=(16, 16))
    for split, rows in load_dataset("imagefolder", data_dir=str(images)).items():
        rows = rows.with_format("arrow").map(embed_table_storage, batched=True).with_format(None)  # not their places
        rows.to_parquet(folder / f"{split}.parquet")
    monkeypatch.setenv("ATOMHUB_DATA", str(tmp_path / "data"))
    path = tmp_path / "small.toml"
    path.write_text(CONFIG)
    return path


def rows(folder):
    """Return what a table holds: its rows by recipe, and the Markdown."""
    kept = json.loads((folder / "reproduce-small-quick.json").read_text())
    return {row["recipe"]: row for row in kept["rows"]}, (folder / "reproduce-small-quick.md").read_text()


def test_a_staged_table_is_made_elsewhere_and_gone_on_with(script, config, home, tmp_path, capsys, monkeypatch):
    module, run = script("reproduce")
    # what is installed here stands in for the wheels, which need the package index
    monkeypatch.setattr(module, "wheels", lambda root, folder: folder.mkdir())
    run(config, "--quick", "--stage", tmp_path / "staged")
    install, command = capsys.readouterr().out.splitlines()[-1].split(" && ")
    assert install.endswith("pip install --no-index --find-links wheels atomhub")
    out = tmp_path / "out"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    there = {k: v for k, v in os.environ.items() if k not in ("ATOMHUB_DATA", "ATOMHUB_HOME")}
    subprocess.run(
        command, shell=True, check=True, cwd=tmp_path / "staged", env=there | {"PATH": path, "OUT": str(out)}
    )
    assert (out / "sets.tgz").exists()
    first, text = rows(out)
    assert set(first) == {"random", "herding", "dm"}
    assert all(row["networks"] == 2 and row["protocol"] == "quick" for row in first.values())
    assert f"| dm | {first['dm']['mean']:.1f} ± {first['dm']['std']:.1f} | 26.0 |" in text
    assert "| recipe | quick, convnet:width=4,depth=2,norm=batch | published (own protocol, norm) |" in text
    assert text.startswith("Reduced settings (--quick), not comparable with the published figures.")

    # here, with one recipe more: what was measured there is kept, and random images are not measured again
    monkeypatch.setenv("ATOMHUB_HOME", str(tmp_path / "staged" / "home"))
    config.write_text(CONFIG.replace('"dm"]', '"dm", "atom"]'))
    overrides = tomllib.loads(CONFIG)["quick"]["overrides"]
    atomhub.distill("cifar10", 1, "atom", overrides, name="cifar10-ipc1-atom-quick").save()
    run(config, "--quick", "--results", out)
    second, text = rows(out)
    assert {recipe: second[recipe] for recipe in first} == first
    assert f"| atom | {second['atom']['mean']:.1f}" in text
    claim = atomhub.load("cifar10-ipc1-atom-quick").manifest.results.measured[0]
    assert (claim.score.mean, claim.baseline) == (second["atom"]["mean"], {})


def test_a_set_of_other_settings_is_not_taken_for_a_cell(script, config, home):
    _, run = script("reproduce")
    others = tomllib.loads(CONFIG)["quick"]["overrides"] | {"real_batch": 3}
    atomhub.distill("cifar10", 1, "dm", others, name="cifar10-ipc1-dm-quick").save()
    with pytest.raises(SystemExit, match=r"cifar10-ipc1-dm-quick in the store has another real_batch: delete it first"):
        run(config, "--quick", "--results", config.parent)


ABLATION = """
question = "Does batch norm pay?"
source = "digits"
held_out = 50
ipcs = [1]
seeds = 2
networks = 2
protocols = ["quick"]
recipe = "atom"
overrides = { width = 4, iterations = 1, real_batch = 4, precision = "float32" }

[lines]
"instance norm" = { norm = "instance" }
"dance" = { recipe = "dance", bank = 0, calibration = 0, norm = "batch" }
"""


def test_recipes_are_compared_line_by_line_and_what_is_there_is_kept(script, home, tmp_path, monkeypatch, capsys):
    _, run = script("ablation")
    monkeypatch.setitem(PROTOCOLS, "quick", Protocol(2, 64, "test"))
    config, results = tmp_path / "norms.toml", tmp_path / "ablation-norms-cpu.json"
    config.write_text(ABLATION)
    run(config, "--results", tmp_path)
    first = json.loads(results.read_text())["rows"]
    assert [(r["line"], r["seed"], len(r["accuracies"])) for r in first] == [
        ("instance norm", 0, 2), ("instance norm", 1, 2), ("dance", 0, 2), ("dance", 1, 2),
    ]  # fmt: skip
    table = (tmp_path / "ablation-norms-cpu.md").read_text()
    assert all(f"convnet:width=4,depth=2,norm={norm}" in table for norm in ("instance", "batch"))
    assert "| – |" in table  # no column has two norms

    config.write_text(ABLATION.replace('norm = "batch"', 'norm = "batch", iterations = 2'))
    run(config, "--results", tmp_path)
    second = json.loads(results.read_text())["rows"]
    assert [r for r in second if r["line"] == "instance norm"] == first[:2]
    assert not any(r in first for r in second if r["line"] == "dance")

    atomhub.load("digits-ipc1").save(tmp_path / "home" / "sets" / "begin-ipc1")
    config.write_text(ABLATION + '"begun" = { start = "begin", iterations = 0 }\n')
    run(config, "--results", tmp_path, "--only", "begun")
    mark = json.loads(results.read_text())["rows"][-1]["mark"]
    assert (atomhub.load(f"ablation-{mark}").images == atomhub.load("digits-ipc1").images).all()

    with pytest.raises(SystemExit):
        run(config, "--only", "instance")
    assert "There is no line 'instance'" in capsys.readouterr().err

    monkeypatch.setitem(PROTOCOLS, "quick of 1/2 the epochs", Protocol(1, 64, "to be made, and taken away in the end"))
    config.write_text('shorten = 2\nnetwork = ["convnet:width=2", "mlp"]\n' + ABLATION)
    run(config, "--results", tmp_path)
    table = (tmp_path / "ablation-norms-cpu.md").read_text()
    assert all(f"quick of 1/2 the epochs, {network}" in table for network in ("convnet:width=2", "mlp"))


def test_sets_are_laid_beside_each_other_under_many_networks(script, home, tmp_path, monkeypatch):
    _, run = script("transfer")
    monkeypatch.setitem(PROTOCOLS, "brief", Protocol(2, 64, "test"))
    monkeypatch.setitem(sys.modules["transfer"].PUBLISHED, "mlp", 12.3)
    names = ["digits-ipc1", "mine"]
    atomhub.distill("digits", 1, "atom", {"width": 4, "iterations": 1}, name="mine").save()

    def table(*sets):
        run(*sets, "--network", "mlp", "--network", "convnet:width=4", "--protocol", "brief", "--networks", 2,
            "--results", tmp_path)  # fmt: skip
        return json.loads((tmp_path / "transfer.json").read_text())["rows"], (tmp_path / "transfer.md").read_text()

    first, text = table(*names)
    assert [(r["set"], r["network"], r["networks"]) for r in first] == [
        (name, network, 2) for name in names for network in ("mlp", "convnet:width=4")
    ]
    assert f"| mine | 256 | {first[2]['mean']:.1f} ± {first[2]['std']:.1f} | {first[3]['mean']:.1f}" in text
    assert "| 12.3 | – |" in text
    lost = 100 * (1 - min(r["mean"] for r in first[2:]) / max(r["mean"] for r in first[2:]))
    assert f"| -{lost:.0f} % |" in text

    atomhub.distill("digits", 1, "atom", {"width": 4, "iterations": 2}, name="mine").save(overwrite=True)
    second, _ = table(*names)
    assert second[:2] == first[:2]  # the other set is another one now
    assert {r["tensors"] for r in second[2:]} != {r["tensors"] for r in first[2:]}


def test_proxies_choose_networks_beside_each_other_and_none_is_trained_twice(
    script, home, tmp_path, monkeypatch, capsys
):
    _, run = script("proxies")
    monkeypatch.setitem(PROTOCOLS, "brief", Protocol(2, 64, "test"))
    space = tmp_path / "small.toml"
    space.write_text('network = "convnet"\n[options]\nwidth = [2, 4]\ndepth = [1, 2]\n')
    often = ("digits-ipc1", "--space", space, "--protocol", "brief", "--epochs", 1, "--results", tmp_path)
    run(*often, "--budget", 3)
    first = json.loads((tmp_path / "proxies.json").read_text())["rows"]
    names = ["digits-ipc1", "random real images", "real images, stopped early", "whole training set"]
    assert sorted(r["proxy"] for r in first) == sorted(names * 3)
    text = (tmp_path / "proxies.md").read_text()
    truth = {r["network"]: r["accuracy"] for r in first if r["proxy"] == names[3]}
    for name in names[:3]:
        chosen = max((r for r in first if r["proxy"] == name), key=lambda r: r["accuracy"])["network"]
        line = next(line for line in text.splitlines() if line.startswith(f"| {name} | 3 |"))
        assert f"| {max(truth.values()) - truth[chosen]:.1f} |" in line
    assert "| whole training set | 3 | 1.0 | 0.0 |" in text

    run(*often, "--budget", 4)
    second = json.loads((tmp_path / "proxies.json").read_text())["rows"]
    assert second[:12] == first
    assert len(second) == 16

    with pytest.raises(SystemExit):
        run(*often, "--seed", 1)
    assert "has other settings" in capsys.readouterr().err


def test_images_are_held_out_of_the_training_split(script, home):
    common, _ = script("common")
    real = atomhub.open_source("digits")
    tried = common.held_out(real, test=50)
    images = {image.tobytes() for image in real.train.images}
    assert len(tried.test.images) == 50
    assert all(image.tobytes() in images for image in tried.test.images)
    assert not {image.tobytes() for image in tried.test.images} & {image.tobytes() for image in tried.train.images}


@pytest.mark.parametrize("name", sorted(p.name for p in (ROOT / "benchmarks" / "ablation").glob("*.toml")))
def test_every_line_of_the_tables_is_a_recipe(name):
    config = tomllib.loads((ROOT / "benchmarks" / "ablation" / name).read_text())
    for line in config["lines"].values():
        fields = config["overrides"] | {name: value for name, value in line.items() if name != "start"}
        atomhub.Recipe.named(fields.pop("recipe", config["recipe"]), fields)
    assert set(config["protocols"]) <= set(PROTOCOLS)


def test_ways_to_run_a_matcher_are_timed_beside_each_other(script, monkeypatch, tmp_path, capsys):
    _, run = script("anynet")
    monkeypatch.setattr(importlib.import_module("common"), "RESULTS", tmp_path)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    run("--device", "cpu", "--matcher", "lenet", "--size", 16, "--repeat", 1)
    rows = json.loads(next(tmp_path.glob("anynet-*.json")).read_text())["rows"]
    assert [(r["precision"], r["compiled"]) for r in rows][:2] == [("float32", False), ("float32", True)]
    assert all(r["faster"] == pytest.approx(rows[0]["seconds"] / r["seconds"]) for r in rows)
    assert f"{rows[1]['faster']:.2f}" in capsys.readouterr().out


def test_what_a_gpu_has_to_prove_holds_on_a_cpu(script, monkeypatch, tmp_path, capsys):
    """The script of ten minutes on small shapes: the same draws and gradients, resumes, and lines that say so."""
    module, run = script("gpu")
    monkeypatch.setattr(importlib.import_module("common"), "RESULTS", tmp_path)
    run("--device", "cpu", "--quick")
    out = capsys.readouterr().out
    assert "FAIL" not in out
    lines = json.loads(next(tmp_path.glob("gpu-cpu*.json")).read_text())["lines"]
    assert {line["section"] for line in lines} == {
        "environment", "equality", "recorded", "resume", "synchronisation", "speed", "memory", "scaling", "evaluation",
    }  # fmt: skip
    assert sum(line["what"].startswith("gradient") for line in lines) == 4
    assert f"{len(lines)} of {len(lines)} lines hold" in out


def test_photos_are_laid_beside_random_and_herded_ones_under_the_same_labels(
    script, photos, home, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(PROTOCOLS, "brief", Protocol(2, 64, "test"))
    monkeypatch.setitem(PRESETS, "rded", PRESETS["rded"] | {"matcher": "lenet", "bank_epochs": 1})
    monkeypatch.setitem(PROTOCOLS, "rded", replace(PROTOCOLS["rded"], epochs=2))
    _, run = script("photos")
    arguments = [photos, "--network", "lenet", "--networks", 2, "--results", tmp_path / "out", "--recipe", "rded"]
    arguments += ["--teacher", "lenet"]
    run(*arguments, "--protocol", "brief")
    first = json.loads((tmp_path / "out" / "photos.json").read_text())["rows"]
    run(*arguments, "--protocol", "brief", "--protocol", "rded")
    rows = json.loads((tmp_path / "out" / "photos.json").read_text())["rows"]
    assert rows[:3] == first  # what was measured is not measured again
    assert [(r["images"], r["protocol"]) for r in rows] == [
        (images, protocol) for protocol in ("brief", "rded") for images in ("rded", "random", "herding")
    ]
    table = (tmp_path / "out" / "photos.md").read_text()
    assert table in capsys.readouterr().out
    assert f"| 1 | random | – | – | {rows[1]['mean']:.1f} ± {rows[1]['std']:.1f} |" in table
    assert f"| 1 | rded | 1200 | {rows[0]['made_in']:.0f} |" in table


def test_a_backbone_is_trained_for_probes_and_other_settings_are_another_set(
    script, photos, home, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(PROTOCOLS, "brief", Protocol(2, 64, "test"))
    weights = tmp_path / "lenet.safetensors"
    _, run = script("backbone")
    run("digits", weights, "--network", "lenet", "--classes", 7, "--each", 10, "--epochs", 1)
    assert "lenet on digits, 7 classes: " in capsys.readouterr().out
    probe = f"probe/lenet:weights={weights}"
    _, run = script("photos")
    digits = atomhub.open_source("digits")
    monkeypatch.setattr(atomhub, "open_source", lambda *_, **__: digits)
    given = ["digits", "--network", probe, "--networks", 1, "--results", tmp_path / "out", "--recipe", "probe"]
    fields = ["--set", "matcher=lenet", "--set", f"weights={weights}", "--protocol", "brief", "--set"]
    for iterations in (0, 2):
        run(*given, *fields, f"iterations={iterations}")
        found = json.loads((tmp_path / "out" / "digits.json").read_text())
        assert found["asked"]["set"]["iterations"] == str(iterations)
        assert f"iterations={iterations}" in found["rows"][0]["command"]


def test_matchers_are_laid_beside_each_other_under_many_networks(script, home, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(PROTOCOLS, "brief", Protocol(2, 64, "test"))
    _, run = script("matchers")
    arguments = ["--source", "digits", "--network", "mlp", "--network", "lenet", "--iterations", 2, "--real-batch", 4]
    arguments += ["--networks", 2, "--protocol", "brief", "--results", tmp_path]
    run(*arguments, "--matcher", "lenet")
    first = json.loads((tmp_path / "matchers.json").read_text())["rows"]
    run(*arguments, "--matcher", "lenet", "--matcher", "convnet")
    rows = json.loads((tmp_path / "matchers.json").read_text())["rows"]
    assert rows[: len(first)] == first  # what was measured is not measured again
    assert [(r["matcher"], r["network"]) for r in rows] == [
        ("lenet", "mlp"), ("random real images", "mlp"), ("lenet", "lenet"), ("random real images", "lenet"),
        ("convnet", "mlp"), ("convnet", "lenet"),
    ]  # fmt: skip
    table = (tmp_path / "matchers.md").read_text()
    assert table in capsys.readouterr().out
    assert f"| convnet | {rows[-1]['made_in']:.0f} | {rows[-2]['mean']:.1f} ± {rows[-2]['std']:.1f} |" in table
    assert "recipe atom, 2 iterations, real batch 4; protocol brief, 2 networks" in table

    run(*arguments, "--matcher", "lenet", "--set", "image_lr=0.02")
    assert "real batch 4, image_lr=0.02;" in (tmp_path / "matchers.md").read_text()
    with pytest.raises(SystemExit):
        run(*arguments, "--set", "image_lr")
    assert "'image_lr' is not KEY=VALUE" in capsys.readouterr().err
