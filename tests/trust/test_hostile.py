"""Files of strangers: nothing leaks, nothing grows without bound, nothing hangs, nothing steers."""

import dataclasses
import gzip
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import warnings
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from click.testing import CliRunner
from conftest import ROOT, image_folder
from hostile import described, signed
from hub_server import Fault
from huggingface_hub import constants
from huggingface_hub.utils import get_session
from PIL import Image
from pyarrow import parquet
from safetensors.torch import load_file, save_file

import atomhub
from atomhub import limits, requests, text
from atomhub.cli.main import cli, main
from atomhub.errors import AtomhubError, AtomhubWarning, IntegrityError, NotFoundError, SourceError, UsageError
from atomhub.hub.find import search
from atomhub.hub.push import push
from atomhub.interop.importing import import_set
from atomhub.storage import cards, formats
from atomhub.storage.parquet import check_parquet

PARQUET = "data/train-00000-of-00001.parquet"
SECRET = "-----BEGIN PRIVATE KEY-----"


@pytest.fixture
def saved(digits1, tmp_path):
    return digits1.save(tmp_path / "set")


@pytest.fixture
def writer(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    monkeypatch.setattr(requests, "_PATIENCE", 0.01)


def run(*words):
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
        raise SystemExit(0)
    return ended.value.code or 0


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


class TestSize:
    def parquet_of(self, saved, table, **options):
        parquet.write_table(table.replace_schema_metadata(parquet.read_schema(saved.path / PARQUET).metadata),
                            saved.path / PARQUET, **options)  # fmt: skip
        described(saved.path, PARQUET)
        return atomhub.load(saved.path)

    def test_a_column_too_many(self, saved):
        table = parquet.read_table(saved.path / PARQUET)
        bomb = table.append_column("x", pa.array([b"\0" * 10_000_000] * 10))
        one = self.parquet_of(saved, bomb, compression="zstd")
        with pytest.raises(IntegrityError, match="columns differ"):
            check_parquet(one, saved.path)

    def test_rows_without_end(self, saved):
        table = pa.table({"image": pa.nulls(10**6, parquet.read_schema(saved.path / PARQUET).field("image").type),
                          "label": pa.nulls(10**6, pa.int64())})  # fmt: skip
        one = self.parquet_of(saved, table)
        with pytest.raises(IntegrityError, match="1000000 rows, and the number must not differ from 10"):
            check_parquet(one, saved.path)

    @pytest.mark.parametrize(("codec", "message"), [("zstd", "compressed by ZSTD"), ("snappy", "bytes in memory")])
    def test_images_that_hide_their_size(self, saved, codec, message):
        table = parquet.read_table(saved.path / PARQUET)
        image = [{"bytes": b"\0" * 1_000_000, "path": None}] * 10
        bomb = pa.table({"image": pa.array(image, table["image"].type), "label": table["label"]})
        one = self.parquet_of(saved, bomb, compression=codec, use_dictionary=False)
        with pytest.raises(IntegrityError, match=message):
            check_parquet(one, saved.path)

    def test_a_picture_that_would_be_enormous(self, saved):
        table = parquet.read_table(saved.path / PARQUET)
        png = bytearray(table["image"][0]["bytes"].as_py())
        png[16:24] = (60_000).to_bytes(4, "big") * 2
        image = [{"bytes": bytes(png), "path": None}] * 10
        one = self.parquet_of(saved, pa.table({"image": pa.array(image, table["image"].type), "label": table["label"]}))
        with pytest.raises(IntegrityError, match="cannot be read"):
            check_parquet(one, saved.path)

    def test_metadata_nested_without_end(self, saved):
        table = parquet.read_table(saved.path / PARQUET)
        parquet.write_table(table.replace_schema_metadata({"huggingface": "[" * 100_000}), saved.path / PARQUET)
        described(saved.path, PARQUET)
        with pytest.raises(IntegrityError, match="cannot be read"):
            check_parquet(atomhub.load(saved.path), saved.path)

    @pytest.mark.parametrize(
        ("part", "fields", "message"),
        [
            ("format", {"std": [1e-320]}, "format.std"),
            ("format", {"mean": [1e308]}, "format.mean"),
            ("format", {"ipc": 10**400}, "format.ipc"),
            ("format", {"size": 8192, "ipc": 100_000}, "more than a set may have"),
            ("format", {"class_names": [str(i) for i in range(60_000)]}, "format.class_names"),
            ("format", {"class_names": ["x" * 501, *"123456789"]}, "format.class_names"),
            ("results", {"measured": [{}] * 100_000}, "results.measured"),
            ("provenance", {"history": [[1, 1.0]] * 100_000}, "provenance.history"),
            ("provenance", {"recipe": json.loads('{"a":' * 50 + "1" + "}" * 50)}, "nested too deeply"),
            ("provenance", {"note": "\ud800"}, "surrogates"),
            ("format", {"class_names": ["\udc80", *"123456789"]}, "surrogates"),
            ("provenance", {"blob": "x" * 2**22}, "more than 4194304 bytes"),
        ],
    )  # fmt: skip
    def test_a_manifest_that_says_too_much(self, saved, part, fields, message):
        data = json.loads((saved.path / "manifest.json").read_text())
        data[part] |= fields
        (saved.path / "manifest.json").write_text(json.dumps(data))
        with pytest.raises(IntegrityError, match=message):
            atomhub.load(saved.path)

    def test_a_config_that_claims_a_large_network_is_refused_without_building_it(self, home, digits1, tmp_path):
        folder = tmp_path / "net"
        atomhub.save_model(atomhub.train_classifier(digits1, "lenet", "quick"), folder)
        config = json.loads((folder / "atomhub.json").read_text())
        before = torch.nn.Conv2d.__init__
        for claim in ({"network": "convnet:width=2048,depth=8", "size": 4096}, {"network": "regnet_y_128gf"}):
            (folder / "atomhub.json").write_text(json.dumps(config | claim))
            with pytest.raises(IntegrityError, match="parameters, not"):
                atomhub.load_model(folder)
        save_file(
            load_file(folder / "model.safetensors") | {"0.weight": torch.zeros(6, 1, 5, 7)},
            folder / "model.safetensors",
        )
        (folder / "atomhub.json").write_text(json.dumps(config))
        with pytest.raises(IntegrityError, match=r"0.weight is \(6, 1, 5, 7\), and should be \(6, 1, 5, 5\)"):
            atomhub.load_model(folder)
        assert torch.nn.Conv2d.__init__ is before

    def test_a_deflated_file_of_tensors_is_not_inflated(self, home, tmp_path):
        torch.save([torch.zeros(10, 1, 16, 16), torch.arange(10)], tmp_path / "good.pt")
        with (
            zipfile.ZipFile(tmp_path / "good.pt") as good,
            zipfile.ZipFile(tmp_path / "bad.pt", "w", zipfile.ZIP_DEFLATED) as bad,
        ):
            for name in good.namelist():
                bad.writestr(name, good.read(name))
            bad.writestr("archive/data/9", b"\0" * 20_000_000)
        with pytest.raises(IntegrityError, match="bytes unpacked"):
            import_set(tmp_path / "bad.pt", "digits")

    def test_a_card_of_a_million_marks_takes_no_time(self):
        start = time.perf_counter()
        cards.renewed("<!-- atomhub: a -->" * 50_000, "x")
        cards.renewed("---\n" * 250_000, "---\na: 1\n---\n")
        assert time.perf_counter() - start < 2


class TestHub:
    def test_one_that_never_answers_is_given_up_and_each_try_is_said(self, hub, saved, writer, monkeypatch):
        monkeypatch.setattr(requests, "TIMEOUT", 0.2)
        hub.faults.append(Fault("GET", "/whoami", times=9, before=lambda: time.sleep(0.6)))
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            with pytest.raises(AtomhubError, match="cannot be reached"):
                push(saved, "alice/never")
        assert [str(w.message)[-6:-1] for w in said if "Trying again" in str(w.message)] == ["of 4)"] * 3

    def test_a_download_is_cut_off_at_its_size(self, hub, saved, writer):
        push(saved, "alice/long")
        files = hub.repos["alice/long"].commits[-1].files
        hub.faults.append(
            Fault("GET", "resolve/.*manifest.json", before=lambda: files.update({"manifest.json": b" " * 10**7}))
        )
        with pytest.raises(AtomhubError, match="more than its [0-9]+ bytes are sent|bytes, and may have"):
            atomhub.load("alice/long")
        left = [p.stat().st_size for p in Path(constants.HF_HUB_CACHE).rglob("*") if p.is_file()]
        assert max(left, default=0) < 10**6

    def test_neither_does_it_grow_by_decompression(self):
        class Bomb(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.send_header("Content-Encoding", self.path[1:])
                self.end_headers()
                self.wfile.write(gzip.compress(b"\0" * 10**7))

            def log_message(self, *_):
                pass

        with HTTPServer(("127.0.0.1", 0), Bomb) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            address = f"http://127.0.0.1:{server.server_port}"
            with requests.at_most(10**7):
                assert len(get_session().get(f"{address}/gzip").content) == 10**7
            for coding, message in (
                ("gzip", "more than its 1000 bytes"),
                ("br", "sent as br, which was not asked for"),
            ):
                with requests.at_most(1000), pytest.raises(requests.TooLong, match=message):
                    get_session().get(f"{address}/{coding}")
            server.shutdown()

    def test_a_damaged_file_of_the_cache_is_fetched_again_once(self, hub, saved, writer, tmp_path, monkeypatch):
        push(saved, "alice/damaged")
        atomhub.load("alice/damaged")
        (path,) = (
            __import__("pathlib")
            .Path(constants.HF_HUB_CACHE)
            .glob("datasets--alice--damaged/snapshots/*/distilled.safetensors")
        )
        content = path.read_bytes()
        path.resolve().write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        monkeypatch.setenv("ATOMHUB_HOME", "/proc/nowhere")  # where nothing can be written
        with pytest.warns(AtomhubWarning, match="is damaged, and is downloaded again"):
            again = atomhub.load("alice/damaged")
        assert torch.equal(again.images, saved.images)

    @pytest.mark.parametrize(
        "front",
        [b"tags: 5", b"tags: [atomhub, dataset-distillation, 'ipc:999999999999999999999']", b"date: 2020-13-45",
         b"a: " + b"[" * 3000,
         b"a: &a [x]\nb: &b [*a, *a]\nc: [*b, *b]\ntags: [*b]", b"a: \xff\xfe", b"- 1", b"a: !!python/object:os.x {}",
         b"license: 5\ntags: {a: b}"],
    )  # fmt: skip
    def test_no_card_stops_a_push_a_pull_or_a_result(self, hub, saved, writer, front, recwarn):
        (saved.path / "README.md").write_bytes(b"---\n" + front + b"\n---\nmine\n")
        result = atomhub.evaluate(saved, "mlp", "quick", runs=1, baseline=None)
        assert atomhub.load(saved.path).manifest.results.measured[0].score == result.score
        if b"\xff" in front:
            with pytest.raises(IntegrityError, match="README.md cannot be read"):
                push(saved, "alice/carded", dry_run=True)
        else:
            push(saved, "alice/carded", dry_run=True)

    def test_one_stranger_does_not_stop_the_search(self, hub, saved, writer):
        push(saved, "alice/found")
        base = "---\natomhub: {size: %s, results: %s}\ntags: [atomhub, dataset-distillation, 'ipc:%s', %s]\n---\n"
        for n, (size, result, ipc, tag) in enumerate([
            ("1" + "0" * 400, "[{mean: 1, std: .inf, protocol: dm, network: a, runs: 2}, 7]", "9" * 30, "5"),
            ("-1", "5", "\u0663", "[]"), ("yes", "[{mean: 1e400, std: 0, protocol: {}, network: a, runs: 1}]", "1", '"source:\\e[31m\\u202e"'),
        ]):  # fmt: skip
            hub.add(f"bob/odd-{n}", {"README.md": (base % (size, result, ipc, tag)).encode()})
        found = {item.name: item for item in search()}
        assert {"alice/found", "bob/odd-0", "bob/odd-1", "bob/odd-2"} <= set(found)
        assert (found["bob/odd-0"].ipc, found["bob/odd-0"].size, found["bob/odd-0"].claims) == (0, None, ())
        assert found["bob/odd-2"].source.isprintable()

    def test_words_of_a_claim_are_no_markup_in_a_table(self, home, digits1):
        """Tables of results have them in their heads."""
        saved = digits1.save()
        odd = atomhub.evaluate(saved, lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 10)),
                               "quick", runs=2, baseline=None)  # fmt: skip
        odd = odd.model_copy(update={"protocol": "dm[/b]", "network": "[link=https://example.org]convnet:norm=batch"})
        formats.add_result(saved.path, saved.manifest, odd)
        for command in (["list"], ["verify", saved.name], ["info", saved.name]):
            done = CliRunner().invoke(cli, command)
            assert done.exception is None or isinstance(done.exception, SystemExit)
            assert "Traceback" not in done.output
        assert "dm[/b], [link=https://example.org]convnet:norm=batch" in " ".join(
            CliRunner().invoke(cli, ["verify", saved.name]).output.split()
        )


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


class TestCache:
    def test_decoded_images_that_changed_are_decoded_again(self, home, photos):
        good = np.array(atomhub.open_source(photos).test.images)
        (path,) = (home / "real").glob("*/test.npy")
        with path.open("r+b") as file:
            file.seek(-500, os.SEEK_END)
            file.write(b"\0" * 500)
        with pytest.warns(AtomhubWarning, match="are damaged: they are decoded again"):
            again = atomhub.open_source(photos)
        assert np.array_equal(again.test.images, good)

    def test_so_are_constants_that_changed_and_other_sources_are_left_in_peace(self, home, photos):
        atomhub.open_source(photos)
        (path,) = (home / "real").glob("*/meta.json")
        path.write_text(path.read_text().replace('"std"', '"STD"'))
        (home / "real" / "odd").mkdir()
        for content in ("[]", '{"info": 5}', "{", '{"info": {"fingerprint": []}}'):
            (home / "real" / "odd" / "meta.json").write_text(content)
            assert atomhub.load("digits-ipc1").test_split()[1].shape == (360,)
        with pytest.warns(AtomhubWarning, match="decoded again"):
            atomhub.open_source(photos)

    def test_verify_looks_at_the_content_of_what_was_checked_before(self, home, photos):
        fields = {"iterations": 1, "width": 4, "real_batch": 4}
        one = atomhub.distill(photos, 1, "atom", fields)
        atomhub.evaluate(one, "mlp:width=8", "quick", runs=1, baseline=None)
        (path,) = (home / "real").glob("*/test.npy")
        stat, content = path.stat(), path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert len(one.test_split()[1]) == 6  # size and time are those of what was checked
        with pytest.raises(NotFoundError, match="real images of 'photos' are not on this machine"):
            atomhub.verify(one)
        with pytest.warns(AtomhubWarning, match="are damaged: they are decoded again"):
            atomhub.open_source(photos)
        assert path.read_bytes() == content

    def test_a_trained_network_that_changed_is_trained_again(self, home):
        fields = {"iterations": 1, "bank": 1, "bank_epochs": 1, "width": 4}
        first = atomhub.distill("digits", 1, "atom", fields)
        (path,) = (home / "banks").glob("*.safetensors")
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        with pytest.warns(AtomhubWarning, match="is damaged, and is trained again"):
            assert torch.equal(atomhub.distill("digits", 1, "atom", fields).images, first.images)

    def test_leftovers_of_the_dead_go_and_a_set_that_was_being_replaced_comes_back(self, home, digits1):
        digits1.save()
        dead = subprocess.Popen([sys.executable, "-c", "pass"])
        dead.wait()
        from atomhub import files

        one = home / "sets" / f".digits-ipc1.{files._HOST}-{dead.pid}.abc"
        one.mkdir()
        (home / "sets" / "digits-ipc1").rename(one / "old")
        other = home / "sets" / f".other.{files._HOST}-{dead.pid}.abc"
        other.mkdir()
        mine = home / "sets" / f".mine.{files._HOST}-{os.getpid()}.abc"
        mine.mkdir()
        assert torch.equal(atomhub.load("digits-ipc1").images, digits1.images)
        digits1.save(overwrite=True)
        assert sorted(p.name for p in (home / "sets").iterdir()) == [mine.name, "digits-ipc1"]


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
