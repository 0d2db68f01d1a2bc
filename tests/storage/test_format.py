"""A set on disk: exact, complete, refused when it is not itself, and read for ever."""

import dataclasses
import hashlib
import json
import re

import numpy as np
import pytest
import torch
from conftest import ROOT
from datasets import load_dataset
from PIL import Image
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file

import atomhub
from atomhub.errors import AtomhubError, NotFoundError, UsageError
from atomhub.manifest import Format, Manifest
from atomhub.provenance import Provenance
from atomhub.storage import formats, store
from atomhub.storage.parquet import check_parquet

GOLDEN = ROOT / "tests" / "golden"
PARQUET = "data/train-00000-of-00001.parquet"


@pytest.fixture
def saved(digits1, tmp_path):
    """Digits at ipc 1 in a folder."""
    return digits1.save(tmp_path / "set")


@pytest.fixture(params=["uint8", "float32"])
def colour(request, home, photos):
    """A small colour set in the store, of either kind of pixels."""
    overrides = {"iterations": 3, "width": 4, "real_batch": 4, "pixels": request.param}
    return atomhub.distill(photos, 2, "atom", overrides).save()


def test_a_set_comes_back_as_it_was(colour):
    again = atomhub.load("photos-ipc2")
    assert torch.equal(again.images, colour.images)
    assert torch.equal(again.labels, torch.tensor([0, 0, 1, 1]))
    assert again.manifest == colour.manifest
    assert again.images.dtype == getattr(torch, colour.manifest.format.pixels)
    assert {p.relative_to(again.path).as_posix() for p in again.path.rglob("*") if p.is_file()} == {
        "README.md", "manifest.json", "distilled.safetensors", PARQUET, "preview.png", "curve.png",
    }  # fmt: skip


def test_files_are_readable_by_others(saved):
    assert {oct(p.stat().st_mode & 0o444) for p in saved.path.rglob("*") if p.is_file()} == {"0o444"}


def test_the_png_images_of_a_uint8_set_are_its_tensors(home, photos):
    distilled = atomhub.distill(photos, 3, "atom", {"iterations": 3, "width": 4, "real_batch": 4}).save()
    rows = load_dataset("parquet", data_files=str(distilled.path / PARQUET), split="train")
    for row, image, label in zip(rows, distilled.images, distilled.labels, strict=True):
        assert row["image"].format == "PNG"
        assert np.array_equal(np.asarray(row["image"]).transpose(2, 0, 1), image.numpy())
        assert row["label"] == label


def test_plain_datasets_loads_the_folder_with_images_and_class_names(colour):
    rows = load_dataset(str(colour.path), split="train")
    assert rows.features["label"].names == ["cat", "dog"]
    assert rows[0]["image"].size == (20, 20)
    assert rows["label"] == [0, 0, 1, 1]


def test_pictures_show_every_class(saved):
    preview = Image.open(saved.path / "preview.png")
    assert preview.width > 10 * 16
    assert Image.open(saved.path / "curve.png").width > 300


def test_the_manifest_tells_how_to_make_the_set_again(home, photos):
    first = atomhub.distill(photos, 1, "atom", {"iterations": 3, "width": 4}, seed=5)
    manifest = first.manifest
    again = atomhub.distill(photos, manifest.format.ipc, manifest.provenance.recipe, seed=manifest.provenance.seed)
    assert torch.equal(first.images, again.images)
    assert str(photos.parent) not in manifest.model_dump_json()


def test_the_card_shows_what_is_known(saved):
    card = (saved.path / "README.md").read_text()
    for text in ("license: cc-by-4.0", "- atomhub", "- dataset-distillation", "- source:digits", "path: data/train-*",
                 "![The images, class by class](preview.png)", 'atomhub.load("digits-ipc1")', "iterations = 3",
                 "Not measured yet"):  # fmt: skip
        assert text in card


def test_text_from_a_manifest_cannot_alter_the_card(digits1, tmp_path):
    names = ("<script>alert(1)</script>", "](http://x)", "a\n---\nlicense: mit", "|", "`x`", *"56789")
    manifest = digits1.manifest.replace(format={"class_names": names})
    card = (dataclasses.replace(digits1, manifest=manifest).save(tmp_path / "set").path / "README.md").read_text()
    assert "<script>" not in card
    assert "license: mit" not in card.split("---")[1]
    row = next(line for line in card.splitlines() if line.startswith("| classes"))
    assert r"\](http\://x)" in row
    assert r"\|" in row
    assert r"\`x\`" in row


def test_the_manifest_schema_round_trips(digits1):
    assert Manifest.model_validate_json(digits1.manifest.model_dump_json()) == digits1.manifest


def read_by_the_page(folder):
    """A reader written from docs/format.md alone, with JSON, NumPy and safetensors: training images and labels."""
    form = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["format"]
    bits = {"uint4": 4, "uint2": 2}.get(form["pixels"])
    known = {"version", "class_names", "ipc", "channels", "size", "pixels", "formation", "mean", "std", "whitening",
             "labels", "flip"}  # fmt: skip
    assert form["version"] == (2 if bits else 1)
    assert set(form) <= known
    tensors = load_arrays(folder / "distilled.safetensors")
    stored, ipc, classes = tensors["images"], form["ipc"], len(form["class_names"])
    if bits:
        places = [stored >> shift & 2**bits - 1 for shift in range(8 - bits, -1, -bits)]
        stored = np.stack(places, -1).reshape(*stored.shape[:-1], -1)[..., : form["size"]]
    images = stored / {"uint8": 255, "uint4": 15, "uint2": 3, "float32": 1}[form["pixels"]]
    views = form["formation"]
    if views > 1:
        small = form["size"] // views
        x = np.clip((np.arange(form["size"]) + 0.5) / views - 0.5, 0, small - 1)
        low = np.floor(x).astype(int)
        high, part = np.minimum(low + 1, small - 1), x - low
        enlarge = np.zeros((form["size"], small))
        enlarge[np.arange(form["size"]), low] += 1 - part
        enlarge[np.arange(form["size"]), high] += part
        parts = []
        for k in range(classes):
            own = images[k * ipc : (k + 1) * ipc]
            for top in range(0, form["size"], small):
                for left in range(0, form["size"], small):
                    view = own[:, :, top : top + small, left : left + small]
                    parts.append(np.einsum("ir,ncrs,js->ncij", enlarge, view, enlarge))
        images = np.concatenate(parts)
    mean, std = (np.array(form[key]).reshape(-1, 1, 1) for key in ("mean", "std"))
    images = (images - mean) / std
    if form["whitening"] == "zca":
        zca = load_arrays(folder / "whitening.safetensors")
        images = ((images.reshape(len(images), -1) - zca["center"]) @ zca["matrix"]).reshape(images.shape)
    return images, np.repeat(tensors["labels"], views**2), tensors.get("soft_labels")


class TestFewBits:
    """Version 2: pixels of 4 and 2 bits, several to a byte."""

    @pytest.fixture(params=["uint4", "uint2"])
    def few(self, request, home, photos):
        """A set of views with few bits, of an odd width, in the store."""
        overrides = {"iterations": 3, "width": 4, "real_batch": 4, "pixels": request.param, "formation": 2}
        return atomhub.distill(photos, 2, "atom", overrides, size=26).save()

    def test_it_comes_back_as_it_was_and_as_the_page_says(self, few):
        again = atomhub.load(few.name)
        assert again.manifest.format.version == 2
        assert torch.equal(again.images, few.images)
        images, labels, _ = read_by_the_page(few.path)
        assert np.allclose(images, again.as_tensors()[0].numpy(), atol=1e-5)
        assert np.array_equal(labels, again.as_tensors()[1].numpy())
        check_parquet(again, few.path)

    def test_its_file_is_as_small_as_it_says(self, few):
        form = few.manifest.format
        bits = {"uint4": 4, "uint2": 2}[form.pixels]
        assert form.bytes == 4 * 3 * 26 * -(-26 * bits // 8)
        assert load_file(few.path / "distilled.safetensors")["images"].nbytes == form.bytes
        assert form.bytes_per_class == form.bytes / 2

    def test_plain_datasets_shows_exactly_its_levels(self, few):
        step = {"uint4": 17, "uint2": 85}[few.manifest.format.pixels]
        rows = load_dataset("parquet", data_files=str(few.path / PARQUET), split="train")
        pixels = np.stack([np.asarray(row["image"]) for row in rows])
        assert np.array_equal(pixels.transpose(0, 3, 1, 2), few.images.numpy())
        assert not (pixels % step).any()
        assert len(np.unique(pixels)) > 2

    def test_its_card_shows_plain_pytorch_the_same_images(self, few, monkeypatch):
        monkeypatch.chdir(few.path.parent)
        names = {}
        exec(re.findall(r"```python\n(.*?)```", (few.path / "README.md").read_text(), re.DOTALL)[-1], names)
        images, labels = few.as_tensors()
        order = names["labels"].argsort(stable=True)
        assert torch.equal(names["labels"][order], labels)
        assert torch.allclose(names["images"][order], images, atol=1e-5)

    def test_a_part_of_it_is_of_few_bits_as_well(self, few):
        part = few.subset(ipc=1)
        assert torch.equal(atomhub.load(part.save(few.path.parent / "part").path).images, part.images)

    def test_pixels_that_are_no_levels_are_refused(self, few, tmp_path):
        bad = dataclasses.replace(few, images=few.images + 1)
        with pytest.raises(AtomhubError, match=r"(?s)A pixel of \d+ cannot be stored in \d bits.*multiples of"):
            bad.save(tmp_path / "bad")
        assert not (tmp_path / "bad").exists()


class TestGolden:
    """Sets of every version of the format as they were when it was frozen: committed bytes, never made anew."""

    @pytest.mark.parametrize(
        ("name", "files"),
        [
            ("v1-views", "3d8ee8b69310d261cd40a170db944b90"),
            ("v1-whitened", "9d69a698ad7c5f7f5e0ada44fda60e61"),
            ("v2-bits", "479f423bcb97822c1eab27c782afa6de"),
        ],
    )
    def test_their_bytes_are_those_of_then(self, name, files):
        paths = sorted(p for p in (GOLDEN / name).rglob("*") if p.is_file())
        assert hashlib.sha256(b"".join(p.read_bytes() for p in paths)).hexdigest()[:32] == files

    def test_one_of_views_and_soft_labels_loads_for_ever(self):
        one = atomhub.load(GOLDEN / "v1-views")
        assert one.class_names == ("ape", "bee", "cow \u2013 Kuh")
        assert one.images.shape == (6, 3, 8, 8)
        images, labels = one.as_tensors()
        assert images.shape == (24, 3, 8, 8)
        assert labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8
        assert images.double().sum().item() == pytest.approx(1604.815738515812)
        assert images.double().square().sum().item() == pytest.approx(4029.541627616243)
        assert one.soft_labels.shape == (24, 3)
        p = one.manifest.provenance
        assert (p.source.id, p.recipe.name, p.seed, p.teacher.epochs) == ("someone/animals", "views", 7, 3)
        assert one.manifest.results.measured[0].score.mean == 61.0
        check_parquet(one, GOLDEN / "v1-views")

    def test_one_that_is_whitened_and_of_which_only_the_format_is_known(self):
        one = atomhub.load(GOLDEN / "v1-whitened")
        images, labels = one.as_tensors()
        assert labels.tolist() == [0, 1]
        assert images.double().sum().item() == pytest.approx(24.915483474731445)
        assert images.double().square().sum().item() == pytest.approx(998.8437034581098)
        assert one.manifest.provenance == Provenance()
        check_parquet(one, GOLDEN / "v1-whitened")

    def test_one_of_two_bits(self):
        one = atomhub.load(GOLDEN / "v2-bits")
        assert one.images.unique().tolist() == [0, 85, 170, 255]
        assert one.manifest.format.bytes_per_class == 2 * 3 * 10 * 3  # ten pixels of a row in three bytes
        images, labels = one.as_tensors()
        assert labels.tolist() == [0] * 8 + [1] * 8
        assert images.double().sum().item() == pytest.approx(-186.22228575125337)
        assert images.double().square().sum().item() == pytest.approx(6239.280621493188)
        check_parquet(one, GOLDEN / "v2-bits")

    @pytest.mark.parametrize("name", ["v1-views", "v1-whitened", "v2-bits"])
    def test_a_reader_written_from_the_page_gets_the_same_training_images(self, name):
        images, labels, soft = read_by_the_page(GOLDEN / name)
        one = atomhub.load(GOLDEN / name)
        assert np.allclose(images, one.as_tensors()[0].numpy(), atol=1e-5)
        assert np.array_equal(labels, one.as_tensors()[1].numpy())
        assert soft is None or np.array_equal(soft, one.soft_labels.numpy())

    def test_the_page_names_every_field_and_file(self):
        page = (ROOT / "docs" / "format.md").read_text()
        for name in Format.model_fields:
            assert f"`{name}`" in page
        names = (formats.TENSORS, formats.PARQUET, formats.VIEWS, formats.WHITENING, *map(formats.tag, (1, 2)))
        assert all(f"`{name}`" in page for name in names)

    def test_a_new_set_is_written_alike(self, tmp_path):
        """But for versions of the libraries that write parquet and PNG, nothing a reader meets has changed."""
        old = atomhub.load(GOLDEN / "v1-views")
        new = old.save(tmp_path / "set")
        for name in ("distilled.safetensors", "manifest.json"):
            before, after = ((p / name).read_bytes() for p in (old.path, new.path))
            if name == "manifest.json":
                before, after = ({k: v for k, v in json.loads(b).items() if k != "files"} for b in (before, after))
            assert before == after


class TestStore:
    def test_an_existing_set_is_kept_unless_told_otherwise(self, home, digits1):
        digits1.save()
        with pytest.raises(AtomhubError, match="(?s)'digits-ipc1' already exists.*overwrite=True"):
            digits1.save()
        digits1.save(overwrite=True)
        assert [p.name for p in (home / "sets").iterdir()] == ["digits-ipc1"]

    def test_a_folder_of_something_else_is_never_replaced(self, tmp_path, digits1):
        (tmp_path / "thesis.tex").write_text("years of work")
        with pytest.raises(AtomhubError, match="was not written by this command, so it is not replaced"):
            digits1.save(tmp_path, overwrite=True)
        assert (tmp_path / "thesis.tex").read_text() == "years of work"
        (tmp_path / "empty").mkdir()
        digits1.save(tmp_path / "empty")

    def test_a_clone_with_a_set_in_it_is_not_replaced(self, tmp_path, digits1):
        saved = digits1.save(tmp_path / "clone")
        (saved.path / ".DS_Store").touch()
        digits1.save(tmp_path / "clone", overwrite=True)
        (saved.path / ".git").mkdir()
        with pytest.raises(AtomhubError, match=r"has \.git, which would be lost"):
            digits1.save(tmp_path / "clone", overwrite=True)

    def test_what_others_have_put_beside_a_set_outlives_it(self, tmp_path, digits1):
        saved = digits1.save(tmp_path / "mine")
        theirs = ("notes.txt", "data/notes.txt", "drafts/old/1.txt", ".env")
        for name in theirs:
            (saved.path / name).parent.mkdir(parents=True, exist_ok=True)
            (saved.path / name).write_text("lr 0.1 was better")
        ours = saved.path / "curve.png"
        ours.touch()  # of a set that had a history
        again = digits1.save(tmp_path / "mine", overwrite=True)
        assert all((again.path / name).read_text() == "lr 0.1 was better" for name in theirs)
        assert not ours.exists() or ours.stat().st_size
        assert torch.equal(atomhub.load(again.path).images, digits1.images)

    def test_a_failed_write_leaves_nothing_and_keeps_the_old_set(self, home, digits1):
        old = digits1.save()
        broken = dataclasses.replace(digits1, images=digits1.images[:7])
        with pytest.raises(ValueError, match="length"):
            broken.save(overwrite=True)
        assert [p.name for p in (home / "sets").iterdir()] == ["digits-ipc1"]
        assert torch.equal(atomhub.load("digits-ipc1").images, old.images)

    def test_an_unwritable_folder_is_named(self, digits1):
        with pytest.raises(
            AtomhubError, match="(?s)Cannot write /dev/null/set: part of the path is a file.*another folder"
        ):
            digits1.save("/dev/null/set")

    def test_unknown_names(self, home, digits1):
        with pytest.raises(NotFoundError, match="(?s)no distilled set 'digit-ipc1'.*'digits-ipc1'"):
            atomhub.load("digit-ipc1")  # there is one that comes with atomhub
        digits1.save(home / "sets" / "mine")
        with pytest.raises(NotFoundError, match="(?s)no distilled set 'min'.*'mine'"):
            atomhub.load("min")
        with pytest.raises(NotFoundError, match="no manifest.json"):
            atomhub.load(home)

    @pytest.mark.parametrize("name", ["../escape", "", "a/b", ".hidden", "x" * 97])
    def test_names_that_would_leave_the_store(self, name):
        with pytest.raises(UsageError, match="cannot be named"):
            store.place(name)
        with pytest.raises(UsageError, match="cannot be named"):
            atomhub.distill("digits", 1, name=name or " ")
