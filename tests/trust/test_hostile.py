"""Files of strangers: nothing leaks, nothing grows without bound, nothing hangs, nothing steers."""

import dataclasses
import io
import json
import os
import shutil
import socket
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import ROOT, image_folder
from hostile import PARQUET, run, signed
from hub_server import Fault
from PIL import Image
from pyarrow import parquet

import atomhub
from atomhub import limits, text
from atomhub.errors import AtomhubError, AtomhubWarning, IntegrityError, NotFoundError, SourceError, UsageError
from atomhub.hub.find import search
from atomhub.hub.push import push
from atomhub.interop.importing import import_set
from atomhub.storage import cards, formats

SECRET = "-----BEGIN PRIVATE KEY-----"


class TestLeaks:
    @pytest.mark.parametrize("name", ["README.md", "extra.png", "preview.png"])
    def test_a_link_in_the_folder_of_a_set_is_not_published(self, saved, hub, writer, tmp_path, name):
        secret = tmp_path / "id_rsa"
        secret.write_text(SECRET)
        (saved.path / name).unlink(missing_ok=True)
        (saved.path / name).symlink_to(secret)
        if name != "extra.png":
            with pytest.raises(IntegrityError, match="it is a link"):
                push(saved, f"alice/leak-{name.split('.')[0]}")
        else:
            push(saved, "alice/leak-extra")
        assert not any(SECRET.encode() in c for r in hub.repos.values() for m in r.commits for c in m.files.values())

    def test_nor_from_a_folder_that_is_called_like_the_cache_s(self, digits1, tmp_path):
        (tmp_path / "id").write_text(SECRET)
        one = digits1.save(tmp_path / "x" / "snapshots" / "evil")
        (one.path / "README.md").unlink()
        (one.path / "README.md").symlink_to(tmp_path / "id")
        with pytest.raises(IntegrityError, match="it is a link"):
            formats.read_card(one.path)

    def test_nor_is_a_folder_that_is_a_link(self, saved, tmp_path):
        (saved.path / "data").rename(tmp_path / "elsewhere")
        (saved.path / "data").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(IntegrityError, match="it is a link"):
            atomhub.load(saved.path)

    def test_a_row_that_names_a_file_of_this_machine_is_not_read(self, home, tmp_path):
        folder = image_folder(tmp_path / "own", {"train": 4})
        rows = [{"bytes": p.read_bytes(), "path": None} for p in sorted(folder.rglob("*.png"))]
        rows[1] = {"bytes": None, "path": str(next(folder.rglob("*.png")))}
        (tmp_path / "rows").mkdir()
        table = pa.table({"image": rows, "label": [0] * 4 + [1] * 4})
        parquet.write_table(table, tmp_path / "rows" / "train.parquet")
        with pytest.raises(SourceError, match=r"row 1 of the split 'train': it names the file .*, which is not read"):
            atomhub.open_source(tmp_path / "rows", test_fraction=0)

    def test_a_link_out_of_a_folder_of_pictures_is_not_read(self, home, photos, tmp_path):
        shutil.copy(photos / "train" / "cat" / "0.png", tmp_path / "secret.png")
        (photos / "train" / "cat" / "1.png").unlink()
        (photos / "train" / "cat" / "1.png").symlink_to(tmp_path / "secret.png")
        with pytest.raises(SourceError, match="cat/1.png: it is a link that leads out of its folder"):
            atomhub.open_source(photos)
        with pytest.warns(AtomhubWarning, match="1 unreadable images left out"):
            atomhub.open_source(photos, skip_unreadable=True)

    def test_a_picture_starts_no_program(self, home, photos, tmp_path, monkeypatch):
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
        (tmp_path / "bin" / "gs").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
        eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n%%EOF\n"
        (photos / "train" / "cat" / "1.png").write_bytes(eps)
        with pytest.raises(SourceError, match="1.png: not an image"):
            atomhub.open_source(photos)
        classifier = atomhub.train_classifier(atomhub.distill("digits", 1, "atom", {"iterations": 1}), "lenet", "quick")
        with pytest.raises(UsageError, match="not a picture"):
            classifier.predict(photos / "train" / "cat" / "1.png")
        assert not (tmp_path / "started").exists()

    def test_the_dataset_that_a_set_names_is_fetched_only_on_demand_and_without_a_token(
        self, home, hub, digits1, tmp_path, writer, capsys, monkeypatch
    ):
        name = "mallory/tracker"
        info = digits1.manifest.provenance.source.model_copy(update={"id": name, "kind": "hub", "revision": "a" * 40})
        one = dataclasses.replace(digits1, manifest=digits1.manifest.replace(provenance={"source": info}))
        made = one.save(tmp_path / "named")
        hub.requests.clear()
        with pytest.raises(NotFoundError, match='(?s)the dataset mallory/tracker on the Hub.*source="mallory/tracker"'):
            atomhub.evaluate(made, protocol="quick", runs=1)
        assert hub.requests == []
        monkeypatch.setattr(sys, "stdin", io.StringIO(""))
        for command in ("evaluate", "train", "soften", "search", "verify"):
            assert run(command, made.path) == 2
        err = capsys.readouterr().err
        assert "The real images are the dataset mallory/tracker on the Hub" in err
        assert "Nobody can be asked here whether to fetch mallory/tracker: say --yes." in err
        rows = [
            {"bytes": p.read_bytes(), "path": None}
            for p in sorted(image_folder(tmp_path / "p", {"t": 4}).rglob("*.png"))
        ]
        for split in ("train", "test"):
            parquet.write_table(pa.table({"image": rows, "label": [0] * 4 + [1] * 4}), tmp_path / f"{split}.parquet")
        hub.add(name, {f"data/{s}.parquet": (tmp_path / f"{s}.parquet").read_bytes() for s in ("train", "test")})
        hub.requests.clear()
        atomhub.open_source(name)
        assert {token for _, path, token in hub.requests if "mallory" in path} == {None}

    def test_with_yes_it_is_fetched_once_at_its_revision(self, home, hub, writer, tmp_path, capsys):
        rows = [
            {"bytes": p.read_bytes(), "path": None}
            for p in sorted(image_folder(tmp_path / "p", {"t": 4}).rglob("*.png"))
        ]
        parquet.write_table(pa.table({"image": rows, "label": [0] * 4 + [1] * 4}), tmp_path / "x.parquet")
        hub.add("carol/pets", {f"data/{s}.parquet": (tmp_path / "x.parquet").read_bytes() for s in ("train", "test")})
        fields = {"iterations": 1, "width": 4, "real_batch": 4}
        atomhub.distill("carol/pets", 1, "atom", fields, size=16).save(tmp_path / "pets")
        shutil.rmtree(home / "real")
        how = ("--network", "mlp:width=8", "--protocol", "quick", "--runs", 1)
        assert run("evaluate", tmp_path / "pets", *how, "--yes") == 0
        err = capsys.readouterr().err
        assert "The real images are the dataset carol/pets on the Hub (" in err
        assert "of unknown size" not in err
        assert run("evaluate", tmp_path / "pets", *how) == 0
        assert "carol/pets on the Hub" not in capsys.readouterr().err
        atomhub.evaluate(atomhub.load(tmp_path / "pets"), "mlp:width=8", "quick", runs=1)


class TestKept:
    def test_a_result_that_could_not_be_read_again_is_not_written(self, saved):
        data = json.loads((saved.path / "manifest.json").read_text())
        (saved.path / "manifest.json").write_text(json.dumps(data)[:-1] + ', "x": 1e999}')
        with pytest.raises(IntegrityError, match="1e999 is too large a number"):
            atomhub.load(saved.path)
        one = {"protocol": "dm", "score": {"mean": 1, "std": 1, "runs": 9, "accuracies": [], "seconds": 1}, "seed": 0,
               "test_images": 1, "device": "x"}  # fmt: skip
        data["results"]["measured"] = [one | {"network": f"n{i}"} for i in range(limits.RESULTS)]
        (saved.path / "manifest.json").write_text(json.dumps(data))
        full = atomhub.load(saved.path)
        with pytest.warns(AtomhubWarning, match="has no room for another result"):
            atomhub.evaluate(full, "mlp", "quick", runs=1, baseline=None)
        assert len(atomhub.load(saved.path).manifest.results.measured) == limits.RESULTS

    def test_ctrl_c_while_a_set_is_replaced_keeps_the_old_one(self, home, digits1, monkeypatch):
        digits1.save()
        rename = Path.rename

        def interrupted(self, target):
            if self.name.startswith(".digits-ipc1.") and Path(target).name == "digits-ipc1":
                raise KeyboardInterrupt
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", interrupted)
        with pytest.raises(KeyboardInterrupt):
            digits1.save(overwrite=True)
        monkeypatch.undo()
        assert [p.name for p in (home / "sets").glob("digits*")] == ["digits-ipc1"]

    def test_clean_puts_back_what_was_being_replaced_wherever_the_process_was(self, home, digits1):
        from atomhub import files
        from atomhub.job import cleaning

        digits1.save()
        for host, pid in (("0" * 8, 1), (files._HOST, 2**22 + 1)):
            one = home / "sets" / f".digits-ipc1.{host}-{pid}.abc"
            one.mkdir()
            (home / "sets" / "digits-ipc1").rename(one / "old")
            cleaning.clean(cleaning.removable())
            assert torch.equal(atomhub.load("digits-ipc1").images, digits1.images)

    @pytest.mark.parametrize(
        "name", ["~nosuchuser/x", "x" * 300, "a/b" + "\0", "-a/b", "a--b/c", "a/" + "b" * 200, "a/b@../../x"]
    )
    def test_names_that_cannot_be(self, home, hub, name):
        for work in (atomhub.load, atomhub.load_model, atomhub.open_source, lambda n: import_set(n, "digits")):
            with pytest.raises(AtomhubError):
                work(name)

    def test_an_answer_of_somebody_else_than_the_hub_is_a_sentence(self, hub, writer, saved):
        push(saved, "alice/portal")
        for status, path in ((200, "/api/"), (200, "/api/datasets")):
            hub.faults.append(Fault("GET", path, times=20, status=status))
            for work in (lambda: atomhub.load("alice/portal"), search, lambda: push(saved, "alice/x")):
                with pytest.raises(AtomhubError, match="cannot be understood|is not|reached|gated|may not|You are"):
                    work()
            hub.faults.clear()


class TestText:
    STEER = "\x1b[31m\x9b2J\u202etxt\u2066\r\n\x00"

    def test_what_steers_a_terminal_is_not_printed(self):
        assert text.plain(self.STEER).isprintable()
        assert text.plain("é \u4e2d") == "é \u4e2d"
        assert len(text.plain("x" * 10**6)) < 5000
        assert json.loads(text.as_json({"a": self.STEER + "é"})) == {"a": self.STEER + "é"}
        assert text.as_json({"a": self.STEER}).replace("\n", "").isascii()

    def test_neither_by_cards_nor_by_commands(self, home, digits1, capsys):
        names = (self.STEER, *"123456789")
        manifest = digits1.manifest.replace(
            format={"class_names": names}, provenance={"command": self.STEER, "device": self.STEER, "seconds": 1.0}
        )
        dataclasses.replace(digits1, manifest=manifest).save()
        capsys.readouterr()
        for words in (["info", "digits-ipc1"], ["info", "digits-ipc1", "--json"], ["list"], ["list", "--json"]):
            run(*words)
            out, err = capsys.readouterr()
            assert all(line.isprintable() for line in (out + err).splitlines())
        card = cards.dataset_card(manifest)
        assert all(line.isprintable() for line in card.split("\n"))

    def test_nor_by_the_card_that_a_dry_run_shows(self, saved, hub, writer, capsys):
        push(saved, "alice/steered")
        files = hub.repos["alice/steered"].commits[-1].files
        files["README.md"] += f"\nmine {self.STEER}\n".encode()
        assert run("push", saved.path, "alice/steered", "--dry-run") == 0
        out, err = capsys.readouterr()
        assert "mine" in out
        assert all(line.isprintable() for line in (out + err).splitlines())

    def test_a_key_of_a_manifest_cannot_forge_a_hint(self, saved, capsys):
        signed(saved.path, format={"x\nHint: rm -rf ~" + "y" * 10**6: 1})
        assert run("info", saved.path) == 1
        err = capsys.readouterr().err
        assert [line for line in err.splitlines() if line.startswith("Hint:")] == [
            "Hint: Distil the set again, or get a fresh copy."
        ]
        assert len(err) < 10_000


class TestFilesThatAreNone:
    """FIFOs, devices and sockets: refused at once."""

    @pytest.mark.parametrize("name", ["manifest.json", "README.md", "distilled.safetensors", PARQUET])
    def test_in_a_set(self, saved, name, hub, writer):
        (saved.path / name).unlink()
        os.mkfifo(saved.path / name)
        with pytest.raises(IntegrityError, match="not a regular file"):
            push(saved, "alice/fifo")

    def test_in_a_folder_of_pictures(self, home, photos):
        os.mkfifo(photos / "train" / "cat" / "9.png")
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(photos / "train" / "dog" / "s.png"))
            with pytest.raises(SourceError, match="9.png: it is not a regular file"):
                atomhub.open_source(photos)

    def test_elsewhere(self, home, tmp_path):
        os.mkfifo(tmp_path / "x.pt")
        for path in (tmp_path / "x.pt", "/dev/zero"):
            with pytest.raises(NotFoundError, match="not a regular file"):
                import_set(path, "digits")


def test_the_promises_are_written_down():
    page = (ROOT / "SECURITY.md").read_text()
    assert str(limits.MANIFEST // 2**20) + " MiB" in page


def test_import_reads_class_numbers_in_floating_point(home, tmp_path):
    torch.save([torch.rand(10, 1, 16, 16), torch.arange(10).float()], tmp_path / "a.pt")
    assert import_set(tmp_path / "a.pt", "digits").ipc == 1


def test_a_set_is_iterable_and_a_classifier_takes_arrays_and_lists(home, digits1, photos):
    assert len(list(digits1)) == 10
    image, label = digits1[-1]
    assert (image.shape, label) == ((1, 16, 16), 9)
    classifier = atomhub.train_classifier(digits1, "lenet", "quick")
    grey = Image.open(photos / "train" / "cat" / "0.png").convert("L")
    array = np.asarray(grey)
    expected = classifier.predict(grey)
    assert classifier.predict([grey, array, torch.from_numpy(array.copy())[None]]) == [expected] * 3
    with pytest.raises(UsageError, match="cannot be ndarray of float64"):
        classifier.predict(np.zeros((4, 4)))


def test_faults_of_a_source_are_told_together(home, tmp_path):
    root = image_folder(tmp_path / "one", {None: 3}, classes=("cat",))
    (root / "cat" / "0.png").write_bytes(b"no")
    with pytest.raises(
        SourceError,
        match=r"(?s)3 things are wrong with folder:one: .*one class only.*\(2\).*not an image.*\(3\).*no test split",
    ):
        atomhub.open_source(root)
    root = image_folder(tmp_path / "two", {None: 1})
    with pytest.raises(
        SourceError, match="The class 'cat' .* has one image, which cannot be for training and for tests"
    ):
        atomhub.open_source(root, test_fraction=0.5)
