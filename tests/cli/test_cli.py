"""The command line: data on standard output, talk on standard error, sentences and exit codes for errors."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import time

import click
import pytest
from conftest import ROOT, spawn
from PIL import Image

import atomhub
from atomhub.cli.main import cli
from atomhub.cli.output import Steps
from atomhub.presets import PRESETS, PURPOSES, TUNED
from atomhub.training.protocols import PROTOCOLS, Protocol

BRIEF = ("--recipe", "atom", "--iterations", "3", "--set", "width=4", "--set", "real_batch=4")


def test_every_network_of_a_bank_is_said_once(run):
    code, _, err = run("distill", "digits", "--ipc", 1, *BRIEF, "--set", "bank=2", "--set", "bank_epochs=2")
    assert code == 0
    said = [line.split(" on ")[0] for line in err.splitlines() if line.startswith("Training network")]
    assert said == ["Training network 1 of 2", "Training network 2 of 2"]


def test_distil_list_info_preview_evaluate_remove(run, home, tmp_path):
    code, out, err = run("distill", "digits", "--ipc", 1, *BRIEF)
    assert code == 0
    assert out.strip() == str(home / "sets" / "digits-ipc1")
    assert "Note: Images 8x8 were resized to 16x16" in err
    assert "Distilling digits, ipc 1: 3/3  loss" in err
    assert "atomhub evaluate digits-ipc1" in err

    code, out, err = run("evaluate", "digits-ipc1", "--protocol", "quick", "--runs", 2)
    assert code == 0
    assert "random real images" in out
    assert "convnet:width=4,depth=2,norm=instance" in out
    code, out, err = run("evaluate", "digits-ipc1", "--network", "mlp", "--network", "convnt")
    assert (code, out) == (2, "")  # before any of them is trained
    assert "Did you mean 'convnet'?" in err

    code, out, _ = run("list")
    assert code == 0
    assert "digits-ipc1" in out
    assert "(quick," in out

    code, out, _ = run("info", "digits-ipc1")
    assert code == 0
    assert "10 of 1x16x16 uint8: 10 classes x ipc 1" in out
    assert "2560 bytes, 256 per class" in out
    assert "all digests verified" in out
    assert "atomhub distill digits --ipc 1 --recipe atom --seed 0 --set width=4" in out

    code, out, _ = run("preview", "digits-ipc1", "--output", tmp_path / "digits.png", "--json")
    assert json.loads(out)["width"] > 300
    code, out, _ = run("preview", "digits-ipc1", "--output", tmp_path / "digits.png")
    assert code == 0
    assert Image.open(tmp_path / "digits.png").width > 100

    assert run("remove", "digits-ipc1", "--yes")[0] == 0
    assert not (home / "sets" / "digits-ipc1").exists()


def test_json_is_one_object_and_nothing_else(run):
    code, out, err = run("distill", "digits", "--ipc", 1, *BRIEF, "--name", "mine", "--json")
    assert code == 0
    assert json.loads(out)["name"] == "mine"

    code, out, err = run("evaluate", "mine", "--protocol", "quick", "--runs", 2, "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert set(report) == {"name", "bytes_per_class", "protocol", "results"}
    assert (report["name"], report["protocol"]) == ("mine", "quick")
    keys = {
        "network",
        "labels",
        "mean",
        "std",
        "runs",
        "seconds",
        "interval95",
        "ior",
        "hlr",
        "test_images",
        "baseline",
    }
    assert set(report["results"][0]) == keys
    assert set(report["results"][0]["baseline"]["random"]) == {"mean", "std", "runs"}
    assert 0 <= report["results"][0]["mean"] <= 100

    code, out, _ = run("evaluate", "mine", "--protocol", "quick", "--runs", 1, "--no-baseline", "--json")
    assert json.loads(out)["results"][0]["baseline"] == {}
    assert json.loads(run("list", "--json")[1])["sets"][0]["name"] == "mine"
    assert json.loads(run("info", "mine", "--json")[1])["format"]["ipc"] == 1
    assert json.loads(run("recipes", "atom", "--json")[1])["power"] == atomhub.Recipe.named("atom").power
    assert "atom" in json.loads(run("recipes", "--json")[1])["recipes"]


def test_recipes_show_every_field_with_unit_value_and_source(run):
    code, out, _ = run("recipes", "datadam")
    assert code == 0
    for field in atomhub.Recipe.model_fields:
        assert field in out
    assert "DataDAM" in out
    assert "channels" in out
    assert all(name in run("recipes")[1] for name in ("dm", "datadam", "channel", "atom"))


def test_recipes_say_what_they_are_for(run):
    assert set(PURPOSES) == set(PRESETS)
    table = run("recipes")[1]
    assert all(re.search(rf"^ *{name} +{re.escape(PURPOSES[name])}", table, re.MULTILINE) for name in PRESETS)


def test_a_recipe_of_ones_own(run, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(run("recipes", "channel", "--toml")[1].replace('"channel"', '"mine"'))
    code, out, _ = run("distill", "digits", "--ipc", 1, *BRIEF, "--recipe", path, "--json")
    assert code == 0
    assert json.loads(out)["recipe"] == "mine"


def test_a_set_written_to_a_folder(run, tmp_path, home):
    folder = tmp_path / "out"
    assert run("distill", "digits", "--ipc", 1, *BRIEF, "--output", folder)[0] == 0
    assert len(atomhub.load(folder)) == 10
    assert not (home / "sets").exists()
    assert run("evaluate", folder, "--protocol", "quick", "--runs", 1, "--no-baseline")[0] == 0


def test_the_recorded_command_makes_the_same_images(run, photos):
    options = ("--test-fraction", "0", "--no-flip", "--size", "16", "--train-split", "train")
    (photos / "test").rename(photos.parent / "other")
    assert run("distill", photos, "--ipc", 1, *BRIEF, *options, "--seed", 3)[0] == 0
    first = atomhub.load("photos-ipc1")
    words = first.manifest.provenance.command.split()[1:]
    words[1] = str(photos)  # a folder's place is not recorded
    assert run(*words, "--overwrite")[0] == 0
    assert (atomhub.load("photos-ipc1").images == first.images).all()


def test_distil_push_list_pull_verify(run, hub, home, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    monkeypatch.setitem(PROTOCOLS, "quick", dataclasses.replace(PROTOCOLS["quick"], epochs=30))
    name = "cli-digits-ipc1"
    code, out, err = run("distill", "digits", "--ipc", 1, *BRIEF, "--name", name, "--push")
    assert code == 0
    assert f"{hub.url}/datasets/alice/{name}" in out
    assert f"Published alice/{name}" in err
    assert run("evaluate", name, "--protocol", "quick", "--runs", 2, "--no-baseline")[0] == 0

    code, out, err = run("push", name, "--dry-run")
    assert code == 0
    assert "distilled.safetensors" in out
    assert "tags:" in out  # the card
    assert "Nothing was changed." in err
    assert run("push", name, "--tag", "v1")[0] == 0
    code, out, err = run("push", name, "--json")
    assert json.loads(out)["changed"] is False
    assert "no new commit" in run("push", name)[2]

    code, out, _ = run("list", "--remote", "--source", "digits", "--sort", "accuracy")
    assert code == 0
    assert f"alice/{name}" in out
    claimed = run("list", "--remote", "--protocol", "quick")[1]
    assert "claimed % (quick, convnet:width=4,depth=2,norm=instance)" in " ".join(claimed.split())
    assert json.loads(run("list", "--remote", "--ipc", 7, "--json")[1])["sets"] == []
    assert "add --remote" in run("list", "--ipc", 1)[2]

    code, _, err = run("pull", f"alice/{name}@v1")
    assert code == 0
    assert "Pulled and verified" in err
    assert f"alice/{name}@" in run("list")[1]

    code, out, err = run("verify", f"alice/{name}", "--runs", 2)
    assert "the files are intact" in err
    assert ("does NOT hold" in out, "holds" in out) == (bool(code), True)
    manifest = json.loads((home / "sets" / name / "manifest.json").read_text())
    manifest["results"]["measured"][0]["score"]["mean"] = 1.5
    (home / "sets" / name / "manifest.json").write_text(json.dumps(manifest))
    code, out, _ = run("verify", name, "--runs", 2)
    assert code == 1
    assert "does NOT hold" in out


def test_names_from_strangers_cannot_steer_the_terminal(run, photos):
    for split in ("train", "test"):
        (photos / split / "cat").rename(photos / split / "\x1b[2J\x1b]0;cat")
    assert run("distill", photos, "--ipc", 1, *BRIEF)[0] == 0
    assert "\x1b" not in run("info", "photos-ipc1")[1]


def test_a_set_is_listed_under_the_name_that_loads_it(run, home):
    assert run("distill", "digits", "--ipc", 1, *BRIEF)[0] == 0
    (home / "sets" / "digits-ipc1").rename(home / "sets" / "renamed")
    (entry,) = json.loads(run("list", "--json")[1])["sets"]
    assert (entry["name"], entry["path"]) == ("renamed", str(home / "sets" / "renamed"))
    assert run("info", entry["name"])[0] == 0


def test_a_rank_alone_does_not_make_a_second_process(home):
    process = spawn("recipes", env=os.environ | {"RANK": "1"})
    assert "atom" in process.communicate(timeout=60)[0]


def test_removing_asks_first(run, home, monkeypatch):
    assert run("distill", "digits", "--ipc", 1, *BRIEF)[0] == 0
    monkeypatch.setattr(click.termui, "visible_prompt_func", lambda _: "n")
    assert "Kept." in run("remove", "digits-ipc1")[2]
    process = spawn("remove", "digits-ipc1", stdin=subprocess.DEVNULL)
    assert "say --yes" in process.communicate(timeout=60)[1]
    assert process.returncode == 2
    assert (home / "sets" / "digits-ipc1").exists()
    assert (home / "sets" / "digits-ipc1").exists()


def test_the_rate_counts_steps_alone(capsys, monkeypatch):
    """What came before the first of 20 steps has no rate; the others take 2 seconds each."""
    clock = iter(range(3600, 3700, 2))
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    with Steps("Distilling") as steps:
        for done in range(1, 21):
            steps(done, 20, "loss 1")
    assert "Distilling: 10/20  loss 1  0.5 it/s  20 s left" in capsys.readouterr().err
    with Steps("Distilling") as steps:
        steps(1, 3, "networks")  # there already
        steps(2, 3, "networks")
    kept, trained = capsys.readouterr().err.splitlines()
    assert kept == "Distilling: 1/3  networks"
    assert trained == "Distilling: 2/3  networks  0.5 it/s  2 s left"


def test_a_long_run_writes_a_line_every_minute(capsys, monkeypatch):
    clock = iter(range(1000, 3000, 20))
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    with Steps("Distilling") as steps:
        for done in range(10, 100, 10):
            steps(done, 10000, "loss 1")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[1].split("/")[0] for line in lines] == [" 10", " 40", " 70"]
    clock = iter([0, 70, 140])
    with Steps("Evaluating", unit="networks") as steps:
        for done in (1, 2, 2.97):
            steps(done, 3, "distilled")
    said = capsys.readouterr().err
    assert "2/3  distilled  70 s/network  70 s left" in said
    assert "2.9/3" in said


def test_a_list_shows_convnets_in_a_column_for_each_protocol_and_norm_and_ones_own_sets_first(run):
    assert run("distill", "digits", "--ipc", 1, *BRIEF, "--name", "zebra")[0] == 0
    brief = ("--protocol", "quick", "--runs", 1, "--no-baseline")
    both = ("--network", "convnet", "--network", "mlp:width=2", "--network", "convnet:norm=batch")
    assert run("evaluate", "zebra", *both, *brief)[0] == 0
    own, other, batch = (f"{r.score.mean:.1f}" for r in atomhub.load("zebra").manifest.results.measured)
    rows = [line.split() for line in run("list")[1].splitlines() if "digits" in line or "zebra" in line]
    assert rows[0][:5] == ["zebra", "digits", "1", "256", "atom"]
    shown = [cell for cell in rows[0][5:-1] if cell not in ("-", "(1", "network)")]
    assert shown == [batch, own]
    assert other not in shown
    narrow = run("list", "--protocol", "quick")[1]
    assert "(quick," in narrow and "(dance," not in narrow and "zebra" in narrow
    assert "no protocol 'quik'" in run("list", "--protocol", "quik")[2]


def test_help_comes_without_heavy_imports():
    code = (
        f"import sys, atomhub; atomhub.__path__.append({str(ROOT)!r})\n"
        "from atomhub.cli.main import main\n"
        "main(['--help'])\n"
        "heavy = {'torch', 'datasets', 'pydantic', 'sklearn', 'matplotlib', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Usage: atomhub" in done.stdout


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_command_has_help_with_an_example(run, name):
    code, out, _ = run(name, "--help")
    assert code == 0
    assert "Example" in out
    assert f"atomhub {name}" in out


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_help_text_stands_alone_and_every_summary_fits_its_line(name):
    command = cli.commands[name]
    assert "..." not in command.get_short_help_str(66)
    for option in command.params:
        if isinstance(option, click.Option):
            text = (option.help or "").split("  [default")[0]
            assert text[:1].isupper(), option.name
            assert text.endswith("."), option.name
            assert not text.startswith(("Of ", "Where to", "What its")), option.name


def test_the_demo_prints_its_table(run, home, monkeypatch):
    monkeypatch.setitem(TUNED, "digits", TUNED["digits"] | {"iterations": 5, "bank_epochs": 1})
    monkeypatch.setitem(PROTOCOLS, "quick", dataclasses.replace(PROTOCOLS["quick"], epochs=5))
    code, out, err = run("demo", "--runs", 2)
    assert code == 0
    for word in ("ipc", "random real images", "distilled", "whole training set", "protocol quick"):
        assert word in out
    assert out.count("±") == 6 + 1  # three figures for each ipc, and the title
    assert err.count("Note: Images 8x8 were resized") == 1  # though two sets are made of them
    assert sorted(p.name for p in (home / "sets").iterdir()) == ["demo-digits-ipc1", "demo-digits-ipc10"]


def test_train_soften_search_export_import(run, home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(PROTOCOLS, "quick", Protocol(3, 256, "test"))
    assert run("distill", "digits", "--ipc", 1, *BRIEF)[0] == 0
    brief = ("--protocol", "quick")

    code, out, err = run("train", "digits-ipc1", "--network", "mlp:width=8", *brief)
    assert (code, out.strip()) == (0, str(tmp_path / "digits-ipc1-mlp"))
    assert "% right on the real test images" in err
    assert set(atomhub.load_model("digits-ipc1-mlp").class_names) == {str(k) for k in range(10)}
    code, _, err = run("train", "digits-ipc1", "--network", "mlp:width=8", *brief)
    assert code == 1
    assert "already exists" in err
    code, out, _ = run("train", "digits-ipc1", "--network", "mlp:width=8", *brief, "--overwrite", "--json")
    assert (code, json.loads(out)["network"]) == (0, "mlp:width=8")

    code, out, err = run("soften", "digits-ipc1", "--teacher", "mlp:width=8", "--epochs", 1)
    assert (code, out.strip()) == (0, str(home / "sets" / "digits-ipc1-soft"))
    code, out, _ = run("evaluate", "digits-ipc1-soft", "--labels", "soft", "--network", "mlp", *brief, "--json")
    assert (code, json.loads(out)["results"][0]["labels"]) == (0, "soft")

    (tmp_path / "mine.toml").write_text('network = "mlp"\n[options]\nwidth = [2, 4, 8]\n')
    search = ("search", "digits-ipc1", "--space", "mine.toml", "--check", 3, "--check-epochs", 1)
    code, out, err = run(*search)
    assert code == 0
    assert "the best of 3 networks" in out
    assert "too few for a rank correlation" in err
    assert re.search(r"On the 10 distilled images these networks took \d+ s in place of \d+ s", err)
    assert (tmp_path / "digits-ipc1-search" / "check.png").exists()
    code, out, _ = run(*search, "--json")
    assert (code, json.loads(out)["tried"]) == (0, 3)
    code, _, err = run(*search, "--seed", 1)
    assert code == 2
    assert "is the log of another search" in err

    code, out, _ = run("export", "digits-ipc1", "--format", "dc")
    assert (code, out.strip()) == (0, str(tmp_path / "digits-ipc1-dc"))
    code, out, err = run("import", "digits-ipc1-dc/digits-ipc1.pt", "--like", "digits", "--name", "back")
    assert (code, out.strip()) == (0, str(home / "sets" / "back"))
    assert "0.00% of the pixel values were clipped" in err
