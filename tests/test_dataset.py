"""A distilled set in memory, ready to train any model: its views, whitened or with many views per image."""

import re
import shutil

import numpy as np
import pytest
import torch
from datasets import load_dataset
from PIL import Image
from torch.nn import functional as F

import atomhub
from atomhub.errors import AtomhubError, IntegrityError, UsageError
from atomhub.storage import formats
from atomhub.storage.parquet import check_parquet
from atomhub.training.protocols import PROTOCOLS, Protocol

PARQUET = "data/train-00000-of-00001.parquet"


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
        distilled = atomhub.distill(photos, 1, "atom", {"iterations": 1, "width": 4})
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

    def test_a_loader_and_its_test_images_come_at_the_size_that_a_network_wants(self, digits1):
        ((images, _),) = digits1.loader(batch_size=10, augment=None, shuffle=False, size=224)
        assert images.shape == (10, 1, 224, 224)
        plain = digits1.as_tensors()[0]
        assert (F.avg_pool2d(images, 14) - plain).abs().mean() < 0.2 * plain.std()
        assert images.mean().item() == pytest.approx(plain.mean().item(), abs=0.02)
        tests = [digits1.test_transform(224)(picture) for picture in digits1.pictures()]
        assert torch.equal(torch.stack(tests), images)
        with pytest.raises(UsageError, match="size cannot be 0"):
            digits1.loader(size=0)

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
        assert digits1.safe([["flip", "crop"], ["flip"]]) == [("crop",), ()]
        assert "flip" not in digits1.manifest.provenance.recipe.augmentation

    def test_a_datasets_view(self, digits1):
        rows = digits1.as_hf_dataset()
        assert rows.features["label"].names == list("0123456789")
        assert np.array_equal(np.asarray(rows[7]["image"]), digits1.images[7, 0].numpy())


class TestWhitening:
    """A set distilled under ZCA carries its whitening, so that nobody can get it wrong."""

    @pytest.fixture
    def whitened(self, home):
        return atomhub.distill("digits", 1, "atom", {"iterations": 3, "zca": True}).save()

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


class TestFormation:
    @pytest.fixture(scope="class")
    def views2(self):
        """Digits, one image of 2x2 views a class."""
        return atomhub.distill("digits", 1, "atom", {"iterations": 3, "formation": 2}, name="views2")

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
        check_parquet(again, saved.path)
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
        atomhub.distill("digits", 1, "atom", {"iterations": 1, "formation": 2}, seed=1).save(tmp_path / "other")
        shutil.copy(tmp_path / "other" / formats.VIEWS, saved.path / formats.VIEWS)
        with pytest.raises(IntegrityError, match="views-00000.* is not the file its manifest describes"):
            atomhub.load(saved.path)
        with pytest.raises(IntegrityError, match="does not hold the images and classes"):
            check_parquet(views2, saved.path)

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
            atomhub.distill("digits", 1, "atom", {"iterations": 1, **overrides})

    def test_every_view_needs_a_real_image(self):
        with pytest.raises(AtomhubError, match=r"(?s)fewer than ipc 40 of 4 views.*ipc=34"):
            atomhub.distill("digits", 40, "atom", {"iterations": 1, "formation": 2})
