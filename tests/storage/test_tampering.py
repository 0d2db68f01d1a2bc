"""What is not itself is refused, by the name of the file."""

import hashlib
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import atomhub
from atomhub.errors import IntegrityError, NotFoundError, SourceError
from atomhub.manifest import digest


@pytest.fixture
def saved(digits1, tmp_path):
    """Digits at ipc 1 in a folder."""
    return digits1.save(tmp_path / "set")


PARQUET = "data/train-00000-of-00001.parquet"


class TestTampering:
    """Every change to a set on disk is refused with the name of the file."""

    @pytest.mark.parametrize("name", ["distilled.safetensors", PARQUET, "preview.png", "curve.png"])
    def test_a_changed_truncated_or_missing_file(self, saved, name):
        path = saved.path / name
        good = path.read_bytes()
        for bad in (good[:-20], good[:-1] + bytes([good[-1] ^ 1]), b""):
            path.write_bytes(bad)
            with pytest.raises(IntegrityError, match=f"{path.name} is not the file"):
                atomhub.load(saved.path)
        path.unlink()
        with pytest.raises(IntegrityError, match=f"{path.name} cannot be read: No such file"):
            atomhub.load(saved.path)

    @staticmethod
    def edit(saved, part=None, **changes):
        """Change fields of the manifest's JSON, or of a part of it."""
        path = saved.path / "manifest.json"
        data = json.loads(path.read_text())
        (data[part] if part else data).update(changes)
        path.write_text(json.dumps(data))

    def described(self, saved, *names):
        """Give the manifest the digests of changed files, as someone who knows the format would."""
        files = json.loads((saved.path / "manifest.json").read_text())["files"]
        for name in names:
            content = (saved.path / name).read_bytes()
            files[name] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
        self.edit(saved, files=files)

    def rewrite(self, saved, header=None, **tensors):
        """Replace tensors, or their header, and adjust the digests."""
        path = saved.path / "distilled.safetensors"
        with safe_open(path, "pt") as file:
            header = file.metadata() if header is None else header
        save_file({**load_file(path), **tensors}, path, header)
        self.described(saved, path.name)

    def sign(self, saved):
        """Make the tensors belong to the manifest as it is now."""
        about = digest(json.loads((saved.path / "manifest.json").read_text()))
        self.rewrite(saved, {"atomhub": json.dumps({"manifest": about})})

    def test_a_changed_manifest(self, saved):
        self.edit(saved, "format", class_names=list("9876543210"))
        with pytest.raises(IntegrityError, match=r"manifest\.json was changed"):
            atomhub.load(saved.path)

    @pytest.mark.parametrize(
        ("part", "changes", "message"),
        [
            ("format", {"ipc": 0}, "not a valid manifest: format.ipc"),
            (None, {"name": "../up"}, "not a valid manifest: name"),
            (None, {"format": []}, "names no version of its format"),
            ("format", {"surprise": 1}, "not a valid manifest: format.surprise"),
            ("format", {"std": [0.0]}, "format.std.0: Input should be greater"),
            ("format", {"channels": 3}, "one number for each channel"),
            ("format", {"formation": 3}, "formation must divide size"),
            ("format", {"formation": 16}, "not a valid manifest: format.formation"),
            (None, {"files": {}}, "no digest of data/train"),
            ("format", {"mean": [float("nan")]}, "NaN is not JSON"),
            ("format", {"class_names": list("0123456788")}, "class names must differ"),
            ("format", {"version": True}, "names no version of its format"),
            (
                "format",
                {"version": 3},
                "(?s)format version 3; this atomhub reads 1 to 2.*Upgrade.*@format-v2 or @format-v1",
            ),
            ("format", {"version": 3, "layout": "new"}, "format version 3; this atomhub reads 1 to 2"),
            ("format", {"version": 2}, "pixels of uint8 are not in version 2"),
            ("format", {"pixels": "uint4"}, "pixels of uint4 are not in version 1"),
            ("files", {"../../up.png": {"sha256": "0" * 64, "size": 1}}, r"names the file '\.\./\.\./up\.png'"),
            ("files", {"preview.png": {"sha256": "0" * 64, "size": 10**12}}, "more than such a set can have"),
            ("files", {"preview.png": {"sha256": "0" * 64}}, "not a valid manifest: files.preview.png.size"),
        ],
    )
    def test_a_manifest_that_cannot_be(self, saved, part, changes, message):
        self.edit(saved, part, **changes)
        with pytest.raises(IntegrityError, match=message):
            atomhub.load(saved.path)

    def test_what_a_later_atomhub_says_of_provenance_and_results_is_kept_and_decides_nothing(self, saved):
        atomhub.evaluate(saved, protocol="quick", runs=1, baseline=None)
        data = json.loads((saved.path / "manifest.json").read_text())
        data["provenance"] |= {"weather": "rain", "recipe": data["provenance"]["recipe"] | {"norm": "new", "knob": 1}}
        data["provenance"]["source"] |= {"kind": "webdataset", "shards": 3}
        data["results"] |= {"judged": ["by ear"]}
        data["results"]["measured"][0]["energy"] = 5
        data["more"] = {"of": "it"}
        (saved.path / "manifest.json").write_text(json.dumps(data))
        self.sign(saved)
        again = atomhub.load(saved.path)
        assert torch.equal(again.images, saved.images)
        assert again.manifest.provenance.method == "atom"
        atomhub.evaluate(again, "mlp", "quick", runs=1, baseline=None)
        copy = atomhub.load(again.save(saved.path.parent / "copy").path)
        for found in (json.loads((p / "manifest.json").read_text()) for p in (saved.path, copy.path)):
            assert found["provenance"] | {"recipe": 0} == data["provenance"] | {"recipe": 0}
            assert found["provenance"]["recipe"] == data["provenance"]["recipe"]
            assert found["results"]["judged"] == ["by ear"]
            assert [r.get("energy") for r in found["results"]["measured"]] == [5, None]
            assert found["more"] == {"of": "it"}

    def test_a_set_of_which_only_the_format_is_known(self, saved):
        self.edit(saved, provenance={}, results={})
        self.sign(saved)
        again = atomhub.load(saved.path)
        assert torch.equal(again.as_tensors()[0], saved.as_tensors()[0])
        card = again.save(saved.path.parent / "bare").path / "README.md"
        assert "stand in for real images of 10 classes. [How much" in card.read_text()
        with pytest.raises(NotFoundError, match="does not say which real images"):
            atomhub.evaluate(again, protocol="quick", runs=1)
        for source in ("digits", atomhub.open_source("digits")):
            assert atomhub.evaluate(again, "mlp", "quick", runs=1, source=source).test_images == 360
        part = again.subset(["7", "2"])
        images, labels = part.test_split("digits")
        whole, numbers = atomhub.load("digits-ipc1").test_split()
        assert torch.equal(images[labels == 0], whole[numbers == 7])
        with pytest.raises(SourceError, match=r"digits has 1 channels of 20x20, not 1 channels of 16x16"):
            atomhub.evaluate(again, "mlp", "quick", runs=1, source=atomhub.open_source("digits", size=20))

    def test_a_manifest_that_is_not_json(self, saved):
        (saved.path / "manifest.json").write_text("{")
        with pytest.raises(IntegrityError, match=r"manifest\.json cannot be read"):
            atomhub.load(saved.path)

    @pytest.mark.parametrize(
        ("tensors", "message"),
        [
            ({"images": torch.zeros(10, 1, 8, 8, dtype=torch.uint8)}, "'images' should be"),
            ({"images": torch.zeros(10, 1, 16, 16)}, "'images' should be"),
            ({"labels": torch.zeros(10, dtype=torch.int64)}, "the labels are not 1 of each class in order"),
            ({"labels": torch.arange(9)}, "'labels' should be"),
        ],
    )
    def test_tensors_that_do_not_fit_the_manifest(self, saved, tensors, message):
        self.rewrite(saved, **tensors)
        with pytest.raises(IntegrityError, match=message):
            atomhub.load(saved.path)

    def test_float_pixels_that_are_no_pixels(self, home, photos):
        overrides = {"iterations": 1, "width": 4, "pixels": "float32"}
        saved = atomhub.distill(photos, 1, "atom", overrides).save()
        self.rewrite(saved, images=torch.full_like(saved.images, float("nan")))
        with pytest.raises(IntegrityError, match="pixels are not all within 0 and 1"):
            atomhub.load(saved.path)

    def test_a_pickle_in_place_of_safetensors_is_never_opened(self, saved):
        path = saved.path / "distilled.safetensors"
        torch.save({"images": saved.images}, path)
        self.described(saved, path.name)
        with pytest.raises(IntegrityError, match="not a readable safetensors file"):
            atomhub.load(saved.path)

    def test_a_header_that_is_no_header(self, saved):
        for header in ({"atomhub": "[]"}, {"atomhub": "[" * 100_000}, {}):
            self.rewrite(saved, header)
            with pytest.raises(IntegrityError, match="another manifest|not a readable"):
                atomhub.load(saved.path)

    def test_the_card_may_be_edited_and_keeps_its_edits(self, saved):
        card = saved.path / "README.md"
        card.write_text(card.read_text().replace("## Citation", "## My own words\n\n## Citation"))
        atomhub.evaluate(atomhub.load(saved.path), protocol="quick", runs=1, baseline=None)
        text = card.read_text()
        assert "## My own words" in text
        assert "Protocol quick" in text
        assert "Not measured yet" not in text
        card.write_text("all mine")
        atomhub.evaluate(atomhub.load(saved.path), protocol="quick", runs=1, baseline=None)
        assert card.read_text() == "all mine"
