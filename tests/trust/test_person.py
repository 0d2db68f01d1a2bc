"""A person at the keyboard: Ctrl-C, options of a push, what is left and how to be rid of it."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings

import pytest
import torch

import atomhub
from atomhub.cli.main import main
from atomhub.errors import AtomhubWarning, SourceError, UsageError
from atomhub.job import cleaning
from atomhub.training.measure import measure

BRIEF = ("--recipe", "atom", "--set", "width=8", "--set", "real_batch=8")


def run(capsys, *words):
    """Run a command; return exit code, stdout and stderr."""
    capsys.readouterr()
    try:
        main([str(word) for word in words])
        code = 0
    except SystemExit as ended:
        code = ended.code or 0
    return code, *capsys.readouterr()


class TestCtrlC:
    def started(self, code):
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.3)
        return process

    def test_it_is_answered_at_once_and_a_second_one_stops_an_operation_that_python_cannot(self):
        process = self.started(
            "import hashlib\nfrom atomhub.interrupts import heeded\n"
            "with heeded('this iteration') as stop:\n"
            "    print('ready', flush=True)\n"
            "    hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)\n"
        )
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline() == "Stopping after this iteration; press Ctrl-C again to stop now.\n"
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130  # minutes before the operation ends

    def test_a_second_one_unwinds_where_python_can(self):
        process = self.started(
            "import time\nfrom atomhub.interrupts import heeded\n"
            "try:\n    with heeded('this'):\n        print('ready', flush=True)\n        time.sleep(60)\n"
            "except KeyboardInterrupt:\n    print('unwound')\n"
        )
        process.send_signal(signal.SIGINT)
        process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
        assert process.stdout.read() == "unwound\n"

    def test_so_does_one_that_comes_before_python_heeds_the_first(self):
        process = self.started(
            "import hashlib, time\nfrom atomhub.interrupts import heeded\n"
            "def long(rounds):\n    hashlib.pbkdf2_hmac('sha256', b'', b'', rounds)\n"
            "start = time.perf_counter()\nlong(10**5)\nrounds = int(10**5 / (time.perf_counter() - start))\n"
            "try:\n    with heeded('this'):\n        print('ready', flush=True)\n        long(rounds)\n        time.sleep(60)\n"
            "except KeyboardInterrupt:\n    print('unwound')\n"
        )
        process.send_signal(signal.SIGINT)
        process.stderr.readline()
        process.send_signal(
            signal.SIGINT
        )  # both in an operation of a second, after which Python's handler is called once
        assert process.wait(10) == 0
        assert process.stdout.read() == "unwound\n"

    @staticmethod
    def press(_, done=0, *__):
        if done == int(done):  # after a whole network
            os.kill(os.getpid(), signal.SIGINT)

    def test_a_measurement_keeps_the_networks_it_has(self, home, digits1):
        digits1.save()
        said = pytest.warns(AtomhubWarning, match="result of the 1 networks trained so far is kept")
        with said, pytest.raises(KeyboardInterrupt):
            atomhub.evaluate(atomhub.load("digits-ipc1"), "lenet", "quick", runs=4, together=1, progress=self.press)
        (found,) = atomhub.load("digits-ipc1").manifest.results.measured
        assert (found.score.runs, found.baseline) == (1, {})

    def test_a_stopped_measurement_goes_on_after_the_networks_it_has(self, home, digits1, short):
        how = {"protocol": "quick", "runs": 3, "together": 1}
        begun = home / "evaluations"

        def after(kind, done, total):
            if done == 4:  # three of the set, one of the baseline
                self.press(kind)

        with pytest.warns(AtomhubWarning, match="the same again goes on"), pytest.raises(KeyboardInterrupt):
            atomhub.evaluate(digits1, "lenet", progress=after, **how)
        assert [t.path for t in cleaning.removable() if t.kind == "evaluations"] == list(begun.iterdir())
        others = []
        atomhub.evaluate(digits1, "lenet", seed=7, progress=lambda *a: others.append(a[1]), **how)
        assert [done for done in others if done == int(done)] == [1, 2, 3, 4, 5, 6]
        trained = []
        result = atomhub.evaluate(digits1, "lenet", progress=lambda *a: trained.append(a[1]), **how)
        assert [done for done in trained if done == int(done)] == [5, 6]
        assert not list(begun.iterdir())
        anew = measure(digits1, "lenet", **how)
        assert result.score.accuracies == anew.score.accuracies
        assert result.baseline["random"].accuracies == anew.baseline["random"].accuracies

    @pytest.fixture
    def every_batch_tells(self, monkeypatch):
        """Progress of every batch, in place of every second."""
        monkeypatch.setattr("atomhub.training.progress.Told.__call__", lambda told, epoch, *_: told.report(epoch / 201))

    @staticmethod
    def at(share, what):
        """Progress that does something once a measurement is there; and the shares it was told."""
        told = []

        def progress(kind, done, total):
            told.append(done)
            if done >= share > told[0]:
                what()

        return progress, told

    def test_so_does_one_in_the_middle_of_a_network(self, home, digits1, every_batch_tells, monkeypatch):
        def kill():
            raise SystemError

        how = {"network": "lenet", "protocol": "quick", "runs": 1}
        progress, _ = self.at(0.3, lambda: self.press(None))
        with pytest.warns(AtomhubWarning, match="all is kept; the same again"), pytest.raises(KeyboardInterrupt):
            atomhub.evaluate(digits1, progress=progress, **how)
        (path,) = (home / "evaluations").iterdir()
        assert path.suffix == ".safetensors"
        assert [t.path for t in cleaning.removable() if t.kind == "evaluations"] == [path]
        monkeypatch.setattr("atomhub.job.kept._EVERY", 0)
        for share, least in ((0.6, 0.29), (1.5, 0.31)):  # of the set, and of its baseline
            progress, told = self.at(share, kill)
            with pytest.raises(SystemError):
                atomhub.evaluate(digits1, progress=progress, **how)
            assert least < told[0] < share
        progress, told = self.at(9, None)
        result = atomhub.evaluate(digits1, progress=progress, **how)
        assert 1 < told[0] < 1.51  # at most the epoch in which it was killed
        assert not list((home / "evaluations").iterdir())
        anew = measure(digits1, **how)
        assert result.score.accuracies == anew.score.accuracies
        assert result.baseline["random"].accuracies == anew.baseline["random"].accuracies

    def test_networks_that_cannot_be_read_are_trained_anew(self, home, digits1, every_batch_tells, short):
        progress, _ = self.at(0.01, lambda: self.press(None))
        with pytest.warns(AtomhubWarning, match="all is kept"), pytest.raises(KeyboardInterrupt):
            atomhub.evaluate(digits1, "lenet", "quick", 1, progress=progress)
        (path,) = (home / "evaluations").iterdir()
        path.write_bytes(path.read_bytes()[:100])
        progress, told = self.at(9, None)
        found = atomhub.evaluate(digits1, "lenet", "quick", 1, progress=progress)
        assert told[0] == 0
        assert found.score.accuracies == measure(digits1, "lenet", "quick", 1).score.accuracies

    def test_what_was_kept_of_a_measurement_may_be_broken(self, home, digits1, short):
        with pytest.warns(AtomhubWarning, match="is kept"), pytest.raises(KeyboardInterrupt):
            atomhub.evaluate(digits1, "lenet", "quick", 2, together=1, progress=self.press)
        (path,) = (home / "evaluations").iterdir()
        path.write_text('{"distilled": {"mean": 99.0, "std"')
        trained = []
        atomhub.evaluate(digits1, "lenet", "quick", 2, together=1, progress=lambda *a: trained.append(a[1]))
        assert [done for done in trained if done == int(done)] == [1, 2, 3, 4]

    def test_so_do_a_search_and_a_bank(self, home, digits1, tmp_path):
        (tmp_path / "space.toml").write_text('network = "mlp"\n[options]\nwidth = [8, 9, 10]\n')
        with pytest.raises(KeyboardInterrupt):
            atomhub.search(digits1, tmp_path / "space.toml", log=tmp_path / "log", progress=self.press)
        assert len((tmp_path / "log").read_text().splitlines()) == 2
        fields = {"iterations": 1, "bank": 2, "bank_epochs": 1, "width": 4}
        with (
            pytest.warns(AtomhubWarning, match="1 of 2 networks are trained and kept"),
            pytest.raises(KeyboardInterrupt),
        ):
            atomhub.distill(atomhub.open_source("digits"), 1, "atom", fields, progress=self.press)
        assert len(list((home / "banks").iterdir())) == 1

    def test_a_stopped_run_says_one_thing(self, home, capsys):
        process = subprocess.Popen(
            [sys.executable, "-m", "atomhub", "distill", "digits", "--ipc", "1", "--iterations", "100000", *BRIEF],
            stderr=subprocess.PIPE, text=True, env=os.environ | {"ATOMHUB_HOME": str(home), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        while "1/100000" not in process.stderr.readline():  # it has begun
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        err = process.communicate(timeout=60)[1]
        assert process.returncode == 130
        assert "Stopping after this iteration" in err
        assert "--resume continues from there" in err
        assert "not kept" not in err
        out = json.loads(run(capsys, "list", "--json")[1])
        assert [(r["name"], r["iterations"]) for r in out["unfinished"]] == [("digits-ipc1", 100000)]
        assert "Unfinished: digits-ipc1" in run(capsys, "list")[2]


class TestResume:
    def distil(self, iterations, **options):
        fields = {"iterations": iterations, "width": 8, "real_batch": 8} | options.pop("fields", {})
        return atomhub.distill("digits", 1, "atom", fields, save=True, overwrite=True, checkpoints=True, **options)

    def test_a_finished_run_can_become_longer(self, home):
        self.distil(5)
        longer = self.distil(8, resume=True)
        assert torch.equal(
            longer.images, atomhub.distill("digits", 1, "atom", {"iterations": 8, "width": 8, "real_batch": 8}).images
        )
        assert longer.manifest.provenance.history[-1][0] == 8

    def test_its_own_checkpoints_alone_are_cleared(self, home, tmp_path):
        (tmp_path / "runs").mkdir()
        (tmp_path / "runs" / "thesis.tex").write_text("mine")
        fields = {"iterations": 4, "width": 8, "real_batch": 8}
        for resume in (None, False):
            atomhub.distill("digits", 1, "atom", fields, checkpoints=tmp_path / "runs", resume=resume)
        assert (tmp_path / "runs" / "thesis.tex").read_text() == "mine"

    def test_or_it_is_said_why_not(self, home):
        cosine = {"image_schedule": "cosine"}
        self.distil(5, fields=cosine)
        with pytest.raises(UsageError, match="cannot become one of 8: with image_schedule cosine"):
            self.distil(8, resume=True, fields=cosine)
        with pytest.raises(UsageError, match="has another recipe field"):
            self.distil(8, resume=True)
        self.distil(8, fields=cosine)  # another run, unasked to go on
        with pytest.raises(UsageError, match="another recipe field 'iterations'|already"):
            self.distil(3, resume=True, fields=cosine)


class TestPush:
    def test_distil_and_push_with_options_gives_one_json(self, home, hub, capsys, monkeypatch):
        monkeypatch.setenv("HF_TOKEN", "hf_writer")
        words = ["distill", "digits", "--ipc", 1, "--iterations", 2, *BRIEF, "--push", "alice/opts", "--private", "--tag", "v1",
                 "--message", "hello", "--branch", "main", "--json"]  # fmt: skip
        code, out, _ = run(capsys, *words)
        assert code == 0
        assert json.loads(out)["url"].endswith("alice/opts")
        repo = hub.repos["alice/opts"]
        assert (repo.private, repo.tags["v1"], repo.commits[-1].title) == (True, repo.commits[-1].oid, "hello")
        code, _, err = run(capsys, "push", "digits-ipc1", "alice/opts", "--tag", "v2", "--tag", "v2")
        assert "holds exactly this already: no new commit. Tagged v2." in err
        assert "Tagged" not in run(capsys, "push", "digits-ipc1", "alice/opts", "--tag", "v2")[2]
        code, _, err = run(capsys, "distill", "digits", "--ipc", 1, "--private")
        assert (code, "--private is about the Hub: add --push." in err) == (2, True)


class TestClean:
    def test_it_lists_and_deletes_what_can_be_made_again(self, home, digits1, capsys):
        digits1.save()
        fields = {"iterations": 1, "bank": 1, "bank_epochs": 1, "width": 4}
        atomhub.distill("digits", 1, "atom", fields, name="other", save=True, checkpoints=True)
        found = json.loads(run(capsys, "clean", "--dry-run", "--json")[1])
        assert sorted({thing["kind"] for thing in found["things"]}) == ["decoded", "networks", "runs"]
        assert not found["deleted"]
        assert found["size"] == sum(thing["size"] for thing in found["things"]) > 10_000
        assert run(capsys, "clean", "--only", "decoded", "--yes")[0] == 0
        assert not list((home / "real").glob("[!.]*"))
        assert run(capsys, "clean", "--yes")[0] == 0
        assert json.loads(run(capsys, "clean", "--dry-run", "--json")[1])["things"] == []
        assert {"digits-ipc1", "other"} <= {p.name for p in (home / "sets").iterdir()}
        assert atomhub.load("other").test_split()[1].shape == (360,)

    def test_a_run_that_goes_on_stays(self, home, capsys):
        from atomhub.files import locked

        atomhub.distill("digits", 1, "atom", {"iterations": 2}, save=True, checkpoints=True)
        with locked(home / "runs" / "digits-ipc1", doing="distilling in"):
            assert "Kept: Another process is distilling" in run(capsys, "clean", "--yes")[2]
        assert (home / "runs" / "digits-ipc1").is_dir()


def test_hints_name_arguments_in_python_and_flags_on_the_command_line(home, photos, capsys):
    for path in (photos / "test").rglob("*.png"):
        path.unlink()
    import shutil

    shutil.rmtree(photos / "test")
    with pytest.raises(SourceError, match=r"Set some aside with test_fraction=0.2"):
        atomhub.open_source(photos)
    err = run(capsys, "distill", photos, "--ipc", 1)[2]
    assert "Hint: Set some aside with --test-fraction 0.2, name a split with --test-split, or" in err


def test_what_is_converted_is_a_warning_and_no_file_stays_open(home, photos):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        atomhub.open_source(photos, size=16)
    assert [str(w.message) for w in said if w.category is AtomhubWarning] == ["Images 20x20 were resized to 16x16."]
    assert [w for w in said if w.category is ResourceWarning] == []


def test_a_row_without_a_label_says_so(home, photos, tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    content = (photos / "train" / "cat" / "0.png").read_bytes()
    rows = pa.table({"image": [{"bytes": content, "path": None}] * 6, "label": [0, 1, 0, 1, None, 0]})
    (tmp_path / "t").mkdir()
    parquet.write_table(rows, tmp_path / "t" / "train.parquet")
    with pytest.raises(SourceError, match="Row 4 of the split 'train' has no label"):
        atomhub.open_source(tmp_path / "t", test_fraction=0)
