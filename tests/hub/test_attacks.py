"""What a Hub or a repository of ill will may send: refused, and nothing is left."""

import hashlib
import json
import shutil

import pytest
import torch
import yaml
from published import FILES, content
from safetensors.torch import load_file, save_file

import atomhub
from atomhub import text
from atomhub.errors import AtomhubError, IntegrityError
from atomhub.manifest import digest
from atomhub.storage import cards, formats

pytestmark = pytest.mark.usefixtures("writer")
ONE = {"sha256": "0" * 64, "size": 1}
EVIL = {name: ONE for name in FILES - {"README.md", "manifest.json"}}


class TestAttacks:
    """A stranger's repository can be refused, but never do harm."""

    @pytest.fixture
    def attack(self, hub, saved, tmp_path):
        """Return a function that publishes altered files as somebody who knows the format would, and loads them."""
        folder = tmp_path / "evil"
        shutil.copytree(saved.path, folder)
        count = iter(range(99))

        def publish(files=None, manifest=None, tensors=None, digests=True):
            for path, data in (files or {}).items():
                (folder / path).write_bytes(data)
            data = json.loads((folder / "manifest.json").read_text())
            for key, value in (manifest or {}).items():
                data[key] = data[key] | value if key == "format" else value
            if tensors is not None:
                header = {"atomhub": json.dumps({"manifest": digest(data)})}
                save_file(
                    {**load_file(saved.path / "distilled.safetensors"), **tensors},
                    folder / "distilled.safetensors",
                    header,
                )
            if digests:
                there = {n: folder / n for n in data["files"] if (folder / n).exists()}
                data["files"] |= {
                    n: {"sha256": hashlib.sha256(p.read_bytes()).hexdigest(), "size": p.stat().st_size}
                    for n, p in there.items()
                }
            (folder / "manifest.json").write_text(json.dumps(data))
            repo = f"alice/evil-{next(count)}-{saved.name}"
            hub.add(repo, content(folder))
            return atomhub.load(repo)

        return publish

    def test_the_way_attacks_are_made_is_sound(self, attack, saved):
        assert torch.equal(attack(tensors={}).images, saved.images)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"files": {"preview.png": b"x"}, "digests": False}, "preview.png has 1 bytes, and may have"),
            ({"tensors": {"images": torch.zeros(10, 1, 16, 16, dtype=torch.uint8)}}, "does not hold the images"),
            ({"tensors": {"images": torch.zeros(10, 1, 16, 16)}}, "'images' should be"),
            ({"tensors": {"images": torch.full((10, 1, 16, 16), float("nan"))}}, "'images' should be"),
            ({"tensors": {"labels": torch.full((10,), 77)}}, "the labels are not 1 of each class"),
            ({"manifest": {"format": {"ipc": 10**12}}, "tensors": {}}, "should be"),
            ({"manifest": {"files": EVIL | {"../../../etc/passwd": ONE}}}, r"names the file '\.\./"),
            ({"manifest": {"files": EVIL | {"/etc/passwd": ONE}}}, "names the file '/etc/passwd'"),
            ({"manifest": {"format": {"version": 99}}}, "Upgrade atomhub"),
            ({"files": {"distilled.safetensors": (2**40).to_bytes(8, "little") + b"{}"}}, "not a readable safetensors"),
            (
                {"files": {"distilled.safetensors": b"\x80\x04cos\nsystem\n(S'touch /tmp/pwned'\ntR."}},
                "not a readable safetensors",
            ),
            ({"files": {"distilled.safetensors": b"x" * 2**21}}, "more than such a set can have"),
            ({"files": {formats.PARQUET: b"PAR1"}}, "cannot be read"),
        ],
        ids=lambda value: None if isinstance(value, dict) else value,
    )
    def test_refused(self, attack, change, message):
        with pytest.raises(IntegrityError, match=message):
            attack(**change)

    def test_a_parquet_of_other_images(self, attack, saved, tmp_path):
        other = atomhub.distill("digits", 1, "atom", {"iterations": 1}, seed=9)
        other.as_hf_dataset().to_parquet(str(tmp_path / "other.parquet"))
        with pytest.raises(IntegrityError, match="does not hold the images and classes"):
            attack(files={formats.PARQUET: (tmp_path / "other.parquet").read_bytes()})

    def test_a_token_is_never_told(self, hub, saved, capfd, caplog, monkeypatch):
        token = "hf_" + "S3cret" * 5
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(AtomhubError) as caught:
            saved.push_to_hub()
        monkeypatch.setenv("HF_TOKEN", "hf_writer")
        saved.push_to_hub()
        told = str(caught.value) + str(capfd.readouterr()) + caplog.text
        told += "".join(str(data) for data in hub.files(f"alice/{saved.name}").values())
        assert token not in told
        assert "hf_writer" not in told

    @pytest.mark.parametrize(
        "name",
        ["<script>alert(1)</script>", "](http://evil)", "![x](http://evil/x.png)", "a\n---\nlicense: mit\n---", "`rm`",
         "| a | b |", "{{ m }}", "{% raw %}", "<!-- /atomhub: results -->", "# title", "\u202etxt", "&lt;b&gt;",
         "--- !!python/object"],
    )  # fmt: skip
    def test_hostile_class_names_mean_themselves(self, digits1, name):
        pytest.importorskip("markdown_it")
        from markdown_it import MarkdownIt

        def card_with(text):
            p = digits1.manifest.provenance
            source = p.source.model_copy(update={"id": text, "license": text, "notes": (text,), "revision": text})
            provenance = {
                "source": source, "recipe": p.recipe.model_copy(update={"name": text}), "device": text,
                "command": text, "versions": {"atomhub": text, text: text}, "created": text,
            }  # fmt: skip
            changed = digits1.manifest.replace(
                format={"class_names": (text, *"123456789")}, provenance=provenance, results={"network": text}
            )
            return cards.dataset_card(changed)

        card, plain = card_with(name), card_with("plain")
        fronts, bodies = zip(*[whole.removeprefix("---\n").split("\n---\n", 1) for whole in (card, plain)], strict=True)
        tokens, usual = (MarkdownIt("commonmark").enable("table").parse(body) for body in bodies)
        assert [t.type for t in tokens] == [t.type for t in usual]
        kinds = [[c.type for t in found for c in (t.children or []) if c.type != "text"] for found in (tokens, usual)]
        assert kinds[0] == kinds[1]
        hostile, usual = (yaml.safe_load(front) for front in fronts)
        assert list(hostile) == list(usual)
        assert hostile["license"] == text.plain(name)
        assert hostile["configs"] == usual["configs"]
