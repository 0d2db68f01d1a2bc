"""A distilled set: exact on disk, refused when it is not itself, and ready to train any model."""

import dataclasses
import hashlib
import json
import re
import shutil

import numpy as np
import pytest
import torch
from conftest import image_folder
from datasets import load_dataset
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

import atomhub
from atomhub.errors import AtomhubError, IntegrityError, NotFoundError, UsageError
from atomhub.manifest import Manifest
from atomhub.storage import format_v1
from atomhub.training.protocols import PROTOCOLS, Protocol

PARQUET = "data/train-00000-of-00001.parquet"


@pytest.fixture
def saved(digits1, tmp_path):
    """Digits at ipc 1 in a folder."""
    return digits1.save(tmp_path / "set")


@pytest.fixture(params=["uint8", "float32"])
def colour(request, home, photos):
    """A small colour set in the store, of either kind of pixels."""
    overrides = {"iterations": 3, "width": 4, "real_batch": 4, "pixels": request.param}
    return atomhub.distill(photos, 2, overrides=overrides).save()


def test_a_set_comes_back_as_it_was(colour):
    again = atomhub.load("photos-ipc2")
    assert torch.equal(again.images, colour.images)
    assert torch.equal(again.labels, torch.tensor([0, 0, 1, 1]))
    assert again.manifest == colour.manifest
    assert again.images.dtype == getattr(torch, colour.manifest.provenance.recipe.pixels)
    assert {p.relative_to(again.path).as_posix() for p in again.path.rglob("*") if p.is_file()} == {
        "README.md", "manifest.json", "distilled.safetensors", PARQUET, "preview.png", "curve.png",
    }  # fmt: skip


def test_files_are_readable_by_others(saved):
    assert {oct(p.stat().st_mode & 0o444) for p in saved.path.rglob("*") if p.is_file()} == {"0o444"}


def test_the_png_images_of_a_uint8_set_are_its_tensors(home, photos):
    distilled = atomhub.distill(photos, 3, overrides={"iterations": 3, "width": 4, "real_batch": 4}).save()
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
    first = atomhub.distill(photos, 1, overrides={"iterations": 3, "width": 4}, seed=5)
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
    manifest = digits1.manifest.model_copy(update={"class_names": names})
    card = (digits1.with_manifest(manifest).save(tmp_path / "set").path / "README.md").read_text()
    assert "<script>" not in card
    assert "license: mit" not in card.split("---")[1]
    row = next(line for line in card.splitlines() if line.startswith("| classes"))
    assert r"\](http\://x)" in row
    assert r"\|" in row
    assert r"\`x\`" in row


class TestViews:
    def test_tensors_are_normalised_pixels(self, digits1):
        images, labels = digits1.as_tensors()
        expected = (digits1.images.double() / 255 - digits1.manifest.format.mean[0]) / digits1.manifest.format.std[0]
        assert images.dtype == torch.float32
        assert torch.allclose(images.double(), expected, atol=1e-6)
        assert labels.tolist() == list(range(10))

    def test_uint8_and_float_pixels_are_normalised_alike(self, digits1):
        pixels = digits1.images
        assert torch.equal(digits1.normalize(pixels), digits1.normalize(pixels.float() / 255))

    def test_a_real_test_image_goes_through_the_same_normalisation(self, home, digits1):
        test_images, _ = digits1.test_split()
        transform = digits1.test_transform()
        picture = Image.fromarray(test_images[0, 0].numpy())
        assert torch.allclose(transform(picture), digits1.normalize(test_images[0]), atol=1e-6)
        assert transform(Image.new("RGBA", (50, 40))).shape == (1, 16, 16)

    def test_any_test_image_is_converted_as_training_images_are(self, home, photos):
        picture = Image.effect_noise((37, 50), 80).convert("RGBA")
        picture.putalpha(Image.linear_gradient("L").resize(picture.size))
        picture.getexif()[0x0112] = 6  # turned
        for split in ("train", "test"):
            picture.save(photos / split / "cat" / "a.png", exif=picture.getexif())
        distilled = atomhub.distill(photos, 1, overrides={"iterations": 1, "width": 4})
        images, _ = distilled.test_split()
        seen = distilled.test_transform()(Image.open(photos / "test" / "cat" / "a.png"))
        assert min((seen - distilled.normalize(image)).abs().max() for image in images) < 1e-6

    def test_a_torch_dataset_with_and_without_a_transform(self, digits1):
        image, label = digits1.as_torch_dataset()[3]
        assert image.shape == (1, 16, 16)
        assert label == 3
        picture, _ = digits1.as_torch_dataset(transform=lambda picture: picture)[3]
        assert picture.size == (16, 16)
        via_test_transform, _ = digits1.as_torch_dataset(digits1.test_transform())[3]
        assert torch.allclose(via_test_transform, image, atol=1e-6)

    def test_a_loader_trains_any_model(self, digits1):
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 10))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(60):
            for images, labels in digits1.loader(batch_size=4, augment=None):
                optimizer.zero_grad()
                F.cross_entropy(model(images), labels).backward()
                optimizer.step()
        images, labels = digits1.as_tensors()
        assert (model(images).argmax(1) == labels).all()

    def test_a_loader_augments_as_told(self, digits1):
        def batch(**options):
            torch.manual_seed(0)
            return next(iter(digits1.loader(batch_size=10, shuffle=False, **options)))[0]

        plain, _ = digits1.as_tensors()
        assert torch.equal(batch(augment=None), plain)
        assert not torch.equal(batch(), plain)
        assert torch.equal(batch(augment=lambda images: images + 1), plain + 1)
        cut = batch(augment=["cutout"])
        assert ((cut == 0) | (cut == plain)).all()
        for wrong in ("crop", ["mirror"]):
            with pytest.raises(UsageError, match="no augmentation '(crop|mirror)'"):
                batch(augment=wrong)

    def test_pixels_of_another_dtype_are_refused(self, digits1):
        with pytest.raises(UsageError, match=r"Pixels cannot be torch\.int64"):
            digits1.normalize(digits1.labels)

    def test_a_loader_works_with_worker_processes(self, digits1):
        batches = list(digits1.loader(batch_size=4, num_workers=1))
        assert sorted(torch.cat([labels for _, labels in batches]).tolist()) == list(range(10))

    def test_digits_are_never_mirrored(self, digits1):
        assert "flip" not in digits1.operations(["flip", "crop"])
        assert "flip" not in digits1.manifest.provenance.recipe.augmentation

    def test_a_datasets_view(self, digits1):
        rows = digits1.as_hf_dataset()
        assert rows.features["label"].names == list("0123456789")
        assert np.array_equal(np.asarray(rows[7]["image"]), digits1.images[7, 0].numpy())


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
    def edit(saved, **changes):
        path = saved.path / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    def rewrite(self, saved, **changes):
        """Replace tensors and adjust the digest, as someone who knows the format would."""
        path = saved.path / "distilled.safetensors"
        with format_v1.safe_open(path, "pt") as file:
            header = file.metadata()
        save_file({**load_file(path), **changes}, path, header)
        files = saved.manifest.files | {path.name: hashlib.sha256(path.read_bytes()).hexdigest()}
        self.edit(saved, files=files)

    def test_a_changed_manifest(self, saved):
        self.edit(saved, class_names=list("9876543210"))
        with pytest.raises(IntegrityError, match=r"manifest\.json was changed"):
            atomhub.load(saved.path)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"ipc": 0}, "not a valid manifest: ipc"),
            ({"name": "../up"}, "not a valid manifest: name"),
            ({"surprise": 1}, "not a valid manifest: surprise"),
            ({"std": [0.0]}, "std must be above 0"),
            ({"files": {}}, "no digest of distilled.safetensors"),
            ({"mean": [float("nan")]}, "not a valid manifest: mean"),
            ({"class_names": list("0123456788")}, "class names must differ"),
            ({"format_version": True}, "names no format_version"),
            ({"format_version": 2}, "(?s)format version 2; this atomhub reads 1.*Upgrade"),
        ],
    )
    def test_a_manifest_that_cannot_be(self, saved, changes, message):
        self.edit(saved, **changes)
        with pytest.raises(IntegrityError, match=message):
            atomhub.load(saved.path)

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
        saved = atomhub.distill(photos, 1, overrides=overrides).save()
        self.rewrite(saved, images=torch.full_like(saved.images, float("nan")))
        with pytest.raises(IntegrityError, match="pixels are not all within 0 and 1"):
            atomhub.load(saved.path)

    def test_a_pickle_in_place_of_safetensors_is_never_opened(self, saved):
        path = saved.path / "distilled.safetensors"
        torch.save({"images": saved.images}, path)
        self.edit(saved, files=saved.manifest.files | {path.name: hashlib.sha256(path.read_bytes()).hexdigest()})
        with pytest.raises(IntegrityError, match="not a readable safetensors file"):
            atomhub.load(saved.path)

    def test_a_header_that_is_no_header(self, saved):
        path = saved.path / "distilled.safetensors"
        for header in ({"atomhub": "[]"}, {"atomhub": "[" * 100_000}, {}):
            save_file(load_file(path), path, header)
            self.edit(saved, files=saved.manifest.files | {path.name: hashlib.sha256(path.read_bytes()).hexdigest()})
            with pytest.raises(IntegrityError, match="another manifest|not a readable"):
                atomhub.load(saved.path)

    def test_a_set_of_an_atomhub_that_did_not_know_a_field_yet(self, saved):
        data = json.loads((saved.path / "manifest.json").read_text())
        del data["formation"]  # has a default
        path = saved.path / "distilled.safetensors"
        save_file(load_file(path), path, {"atomhub": json.dumps({"provenance": provenance(data)})})
        data["files"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        (saved.path / "manifest.json").write_text(json.dumps(data))
        atomhub.evaluate(atomhub.load(saved.path), protocol="quick", runs=1, baseline=None)
        assert len(atomhub.load(saved.path).manifest.results.measured) == 1

    def test_the_card_may_be_edited_and_keeps_its_edits(self, saved):
        card = saved.path / "README.md"
        card.write_text(card.read_text().replace("## Citation", "## My own words\n\n## Citation"))
        atomhub.evaluate(atomhub.load(saved.path), protocol="quick", runs=1, baseline=None)
        text = card.read_text()
        assert "## My own words" in text
        assert "| quick |" in text
        assert "Not measured yet" not in text
        card.write_text("all mine")
        atomhub.evaluate(atomhub.load(saved.path), protocol="quick", runs=1, baseline=None)
        assert card.read_text() == "all mine"


class TestWhitening:
    """A set distilled under ZCA carries its whitening, so that nobody can get it wrong."""

    @pytest.fixture
    def whitened(self, home):
        return atomhub.distill("digits", 1, overrides={"iterations": 3, "zca": True}).save()

    def test_all_views_are_whitened_as_the_training_images_were(self, whitened):
        again = atomhub.load(whitened.path)
        train = torch.tensor(atomhub.open_source("digits").train.images)
        covariance = torch.cov(again.normalize(train).flatten(1).T)
        assert torch.linalg.matrix_norm(covariance, 2) < 1.05  # every direction has a variance of 1 or less
        assert torch.allclose(again.as_tensors()[0], whitened.normalize(whitened.images), atol=1e-5)
        picture = Image.fromarray(train[0, 0].numpy())
        assert torch.allclose(again.test_transform()(picture), again.normalize(train[0]), atol=1e-4)

    def test_pictures_are_pixels_not_whitened_ones(self, whitened):
        rows = load_dataset("parquet", data_files=str(whitened.path / PARQUET), split="train")
        assert np.array_equal(np.asarray(rows[3]["image"]), whitened.images[3, 0].numpy())
        assert whitened.images.dtype == torch.uint8

    def test_it_is_measured_on_test_images_whitened_alike(self, whitened):
        assert atomhub.evaluate(whitened, protocol="quick", runs=1, baseline=None).score.mean > 50

    def test_a_changed_or_missing_whitening_is_refused(self, whitened):
        path = whitened.path / "whitening.safetensors"
        path.write_bytes(path.read_bytes()[:-4] + b"0000")
        with pytest.raises(IntegrityError, match="whitening.safetensors is not the file"):
            atomhub.load(whitened.path)
        path.unlink()
        with pytest.raises(IntegrityError, match="whitening.safetensors cannot be read"):
            atomhub.load(whitened.path)


class TestStore:
    def test_an_existing_set_is_kept_unless_told_otherwise(self, home, digits1):
        digits1.save()
        with pytest.raises(AtomhubError, match="(?s)'digits-ipc1' already exists.*--overwrite"):
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
        from atomhub.storage import store

        with pytest.raises(UsageError, match="cannot be named"):
            store.place(name)
        with pytest.raises(UsageError, match="cannot be named"):
            atomhub.distill("digits", 1, name=name or " ")


class TestDistil:
    def test_more_images_than_a_class_has(self, home, photos):
        with pytest.raises(AtomhubError, match="'cat' has 8 real training images, fewer than ipc 9"):
            atomhub.distill(photos, 9)

    def test_impossible_arguments(self):
        with pytest.raises(UsageError, match="ipc cannot be 0"):
            atomhub.distill("digits", 0)
        with pytest.raises(UsageError, match="no device 'tpu9'"):
            atomhub.distill("digits", 1, device="tpu9")
        for arguments, message in (
            ({"ipc": "1"}, "ipc cannot be '1'"),
            ({"ipc": 1.5}, "ipc cannot be 1.5"),
            ({"ipc": True}, "ipc cannot be True"),
            ({"ipc": 1, "seed": -1}, "seed cannot be -1"),
            ({"ipc": 1, "device": "mps"}, "no device 'mps'"),
            ({"ipc": 1, "sise": 16}, "no source option 'sise'"),
            ({"ipc": 1, "revision": "v1"}, "digits has no use for the option revision"),
        ):
            with pytest.raises(UsageError, match=message):
                atomhub.distill("digits", **arguments)

    def test_options_for_a_source_that_is_open_already(self, home):
        with pytest.raises(UsageError, match="'size' comes too late"):
            atomhub.distill(atomhub.open_source("digits"), 1, size=32)

    def test_accuracy_on_the_way_needs_test_images(self, home):
        real = atomhub.open_source("digits", test_fraction=0)
        with pytest.raises(UsageError, match="measure_every needs test images"):
            atomhub.distill(real, 1, measure_every=10)

    def test_the_recorded_call_makes_the_same_images(self, home):
        first = atomhub.distill("digits", 2, "datadam", {"iterations": 2}, seed=4, size=20)
        again = eval(first.manifest.provenance.command, {"atomhub": atomhub, "Recipe": atomhub.Recipe})
        assert torch.equal(first.images, again.images)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
    def test_cuda_without_cuda(self):
        with pytest.raises(UsageError, match="(?s)'cuda' was asked for.*--device cpu"):
            atomhub.distill("digits", 1, device="cuda")

    def test_a_tuned_source_keeps_what_the_user_sets(self):
        from atomhub.recipe import choose_recipe

        assert choose_recipe("atom", "digits").width == 32
        assert choose_recipe("atom", "digits", {"width": 16}).width == 16
        assert choose_recipe("atom", "cifar10").width == 128

    def test_accuracy_on_the_way_is_recorded_and_changes_nothing(self, home):
        plain = atomhub.distill("digits", 1, overrides={"iterations": 4})
        measured = atomhub.distill("digits", 1, overrides={"iterations": 4}, measure_every=2)
        assert [iteration for iteration, _ in measured.manifest.provenance.accuracy_history] == [2, 4]
        assert torch.equal(plain.images, measured.images)

    def test_large_and_padded_sizes(self, home, tmp_path):
        root = image_folder(tmp_path / "odd", {"train": 3, "test": 1}, size=(28, 28))
        distilled = atomhub.distill(root, 1, overrides={"iterations": 2, "width": 4})
        assert distilled.images.shape == (2, 3, 28, 28)
        assert distilled.manifest.provenance.recipe.depth == 3


def test_the_manifest_schema_round_trips(digits1):
    assert Manifest.model_validate_json(digits1.manifest.model_dump_json()) == digits1.manifest


class TestFormation:
    @pytest.fixture(scope="class")
    def views2(self):
        """Digits, one image of 2x2 views a class."""
        return atomhub.distill("digits", 1, overrides={"iterations": 3, "formation": 2}, name="views2")

    def test_networks_are_trained_on_the_views_enlarged(self, views2):
        assert views2.images.shape == (10, 1, 16, 16)
        images, labels = views2.as_tensors()
        assert images.shape == (40, 1, 16, 16)
        assert labels.tolist() == [k for k in range(10) for _ in range(4)]
        corner = views2.images[3:4, :, :8, 8:].float() / 255  # top right view of class 3
        large = F.interpolate(corner, size=(16, 16), mode="bilinear")
        assert torch.allclose(images[13], views2.normalize(large)[0], atol=1e-5)
        batch, _ = next(iter(views2.loader(batch_size=64, augment=None, shuffle=False)))
        assert torch.equal(batch, images)
        pictures = [picture for picture, _ in views2.as_torch_dataset(transform=np.asarray)]
        assert len(pictures) == 40
        assert np.abs(pictures[13] / 255 - large[0, 0].numpy()).max() < 0.003

    def test_kept_and_loaded_it_is_the_same(self, home, views2):
        saved = views2.save()
        again = atomhub.load("views2")
        assert torch.equal(again.images, views2.images)
        assert (again.manifest.format.formation, again.manifest.format.ipc) == (2, 1)
        format_v1.check_parquet(again, saved.path)
        card = (saved.path / "README.md").read_text()
        assert "Each image holds 2x2 views" in card
        rows = load_dataset(str(saved.path))
        assert {split: len(table) for split, table in rows.items()} == {"train": 10, "views": 40}
        assert np.array_equal(np.asarray(rows["train"][3]["image"]), views2.images[3, 0])
        assert np.array_equal(np.asarray(rows["views"][13]["image"]), np.asarray(views2.pictures()[13]))

    def test_its_card_shows_plain_pytorch_the_same_views(self, home, views2, monkeypatch):
        saved = views2.save(overwrite=True)
        monkeypatch.chdir(saved.path.parent)
        blocks = re.findall(r"```python\n(.*?)```", (saved.path / "README.md").read_text(), re.DOTALL)
        names = {}
        exec(blocks[-1], names)
        images, labels = views2.as_tensors()
        order = names["labels"].argsort(stable=True)
        assert torch.equal(names["labels"][order], labels)
        assert torch.allclose(names["images"][order], images, atol=1e-5)

    def test_it_is_measured_softened_and_divided_like_any_other(self, home, views2, monkeypatch):
        monkeypatch.setitem(PROTOCOLS, "brief", Protocol(3, 256, "test"))
        result = atomhub.evaluate(views2, "mlp:width=8", "brief", runs=1)
        assert result.baseline["random"].runs == 1
        soft = atomhub.soften(views2, "mlp:width=8", epochs=1).save()
        assert soft.soft_labels.shape == (40, 10)
        assert torch.equal(atomhub.load(soft.path).soft_labels, soft.soft_labels)
        atomhub.evaluate(soft, "mlp:width=8", "brief", runs=1, labels="soft", baseline=None)
        part = views2.subset([2, 7])
        assert torch.equal(part.as_tensors()[0], views2.as_tensors()[0][[8, 9, 10, 11, 28, 29, 30, 31]])

    def test_views_that_were_changed_are_refused(self, home, views2, tmp_path):
        saved = views2.save(tmp_path / "set")
        atomhub.distill("digits", 1, overrides={"iterations": 1, "formation": 2}, seed=1).save(tmp_path / "other")
        shutil.copy(tmp_path / "other" / format_v1.VIEWS, saved.path / format_v1.VIEWS)
        with pytest.raises(IntegrityError, match="views-00000.* is not the file its manifest describes"):
            atomhub.load(saved.path)
        with pytest.raises(IntegrityError, match="does not hold the images and classes"):
            format_v1.check_parquet(views2, saved.path)

    @pytest.mark.parametrize(
        ("overrides", "message"),
        [
            ({"formation": 3}, "(?s)'formation' cannot be 3 at 16x16.*divisor"),
            ({"formation": 8}, "'formation' cannot be 8 at 16x16"),
            ({"formation": 2, "zca": True}, "zca mixes all pixels"),
        ],
    )
    def test_impossible_formations(self, overrides, message):
        with pytest.raises(AtomhubError, match=message):
            atomhub.distill("digits", 1, overrides={"iterations": 1, **overrides})

    def test_every_view_needs_a_real_image(self):
        with pytest.raises(AtomhubError, match=r"(?s)fewer than ipc 40 of 4 views.*--ipc 34"):
            atomhub.distill("digits", 40, overrides={"iterations": 1, "formation": 2})
