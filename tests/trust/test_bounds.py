"""Files of strangers and answers of a hub: nothing grows without bound, nothing hangs."""

import gzip
import json
import threading
import time
import warnings
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from click.testing import CliRunner
from hostile import PARQUET, described
from hub_server import Fault
from huggingface_hub import constants
from huggingface_hub.utils import get_session
from pyarrow import parquet
from safetensors.torch import load_file, save_file

import atomhub
from atomhub import requests
from atomhub.cli.main import cli
from atomhub.errors import AtomhubError, AtomhubWarning, IntegrityError
from atomhub.hub.find import search
from atomhub.hub.push import push
from atomhub.interop.importing import import_set
from atomhub.storage import cards, formats
from atomhub.storage.parquet import check_parquet


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
        there = Path(constants.HF_HUB_CACHE) / "datasets--alice--long"
        left = [p.stat().st_size for p in there.rglob("*") if p.is_file()]
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
