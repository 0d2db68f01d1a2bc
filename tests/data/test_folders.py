"""Folders of pictures, as people have them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import image_folder
from PIL import Image as Pil, features
from rows import table

import atomhub
from atomhub.data.pictures import to_pixels
from atomhub.errors import AtomhubWarning, SourceError, UsageError


def test_an_image_folder_with_train_and_test(home, photos):
    real = atomhub.open_source(photos)
    assert real.class_names == ("cat", "dog")
    assert real.train.images.shape == (16, 3, 20, 20)
    assert real.train.labels.tolist() == [0] * 8 + [1] * 8
    assert len(real.test.images) == 6
    expected = np.asarray(Pil.open(photos / "train" / "cat" / "0.png")).transpose(2, 0, 1)
    assert np.array_equal(real.train.images[0], expected)
    assert real.info.id == "folder:photos"
    assert str(photos.parent) not in real.info.model_dump_json()
    assert real.info.notes == ()


def test_one_image_folder_and_a_test_fraction(home, tmp_path):
    root = image_folder(tmp_path / "photos", {None: 10})
    real = atomhub.open_source(root, test_fraction=0.3)
    assert (len(real.train.images), len(real.test.images)) == (14, 6)
    assert np.bincount(real.test.labels).tolist() == [3, 3]
    assert "set aside" in real.info.notes[0]
    with pytest.raises(SourceError, match="(?s)no test split.*test_fraction=0.2"):
        atomhub.open_source(root)
    assert atomhub.open_source(root, test_fraction=0).test is None


def test_large_photos_are_decoded_near_their_final_size(home, tmp_path):
    root = image_folder(tmp_path / "photos", {"train": 1, "test": 1})
    y, x = np.mgrid[:1200, :1600] / 1600
    photo = Pil.fromarray((255 * np.stack([x, y, (x + y) / 2], -1)).astype(np.uint8))
    for file in root.rglob("*.png"):
        photo.save(file.with_suffix(".jpg"), quality=95)
        file.unlink()
    real = atomhub.open_source(root, size=64)
    whole = to_pixels(photo, 64, 3)
    assert np.abs(real.train.images.astype(int) - whole).max() <= 4


@pytest.mark.parametrize("suffix", ["avif", "bmp", "gif", "jpeg", "pgm", "png", "ppm", "tiff", "webp"])
def test_a_folder_may_have_pictures_of_many_kinds(home, tmp_path, suffix):
    if suffix == "avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    root = image_folder(tmp_path / "photos", {"train": 2, "test": 1}, mode="L" if suffix == "pgm" else "RGB")
    for file in root.rglob("*.png"):
        Pil.open(file).save(file.with_suffix(f".{suffix}"))
        if suffix != "png":
            file.unlink()
    assert len(atomhub.open_source(root).train.images) == 4


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_a_damaged_avif_is_named_like_any_other(home, tmp_path):
    root = image_folder(tmp_path / "photos", {None: 3})
    damaged = root / "cat" / "0.avif"
    Pil.new("RGB", (20, 20)).save(damaged)
    damaged.write_bytes(damaged.read_bytes().replace(b"pitm", b"xxxx"))
    with pytest.raises(SourceError, match=r"Cannot read photos/cat/0\.avif"):
        atomhub.open_source(root, test_fraction=0)
    assert len(atomhub.open_source(root, test_fraction=0, skip_unreadable=True).train.images) == 6


def test_suffixes_that_are_no_images_are_named(home, tmp_path):
    root = image_folder(tmp_path / "photos", {None: 3})
    (root / "cat" / "0.png").rename(root / "cat" / "0.jfif")  # plain JPEGs, to Windows; the content decides
    assert len(atomhub.open_source(root, test_fraction=0).train.images) == 6
    for file in list((root / "cat").iterdir()):
        file.rename(file.with_suffix(".heic"))
    with pytest.raises(SourceError, match=r"class folder .*cat has no images: its files end in \.heic"):
        atomhub.open_source(root, test_fraction=0)


def test_transparent_grey_of_16_bits_is_white(tmp_path):
    deep = np.full((20, 20), 40 * 256, dtype=np.uint16)
    deep[:10] = 7
    Pil.fromarray(deep).save(tmp_path / "deep.png", transparency=7)
    pixels = to_pixels(Pil.open(tmp_path / "deep.png"), 20, 1)
    assert (pixels[0, :10] == 255).all()
    assert (pixels[0, 10:] == 40).all()


def test_folders_inside_of_classes_are_said_to_be_one_class(home, tmp_path):
    root = image_folder(tmp_path / "pets", {None: 3}, classes=("cat/tabby", "cat/siamese", "dog"))
    with pytest.warns(AtomhubWarning) as said:
        real = atomhub.open_source(root, test_fraction=0)
    assert real.class_names == ("cat", "dog")
    note = "Classes are the outer folders: the 2 folders inside them, such as cat/siamese, are not told apart."
    assert note in [str(warning.message) for warning in said]


def test_pictures_that_are_not_used_are_counted(home, tmp_path):
    """Beside the splits, and in no folder of a class; what is hidden, wherever it lies, is nobody's picture."""
    root = image_folder(tmp_path / "photos", {"train": 2, "test": 2, "val": 2})
    picture = (root / "train" / "cat" / "0.png").read_bytes()
    (root / "train" / "cat" / ".thumbs").mkdir()
    for place in ("train/cat/.thumbs/0.png", "train/loose.png", "cover.png"):
        (root / place).write_bytes(picture)
    real = atomhub.open_source(root)
    assert real.info.notes == (
        "Images of the folder val beside the splits were left out.",
        "Left out, as no class folder has them: 2 images, such as photos/train/loose.png.",
    )
    assert len(real.train.images) == 4


def test_a_folder_that_is_a_link_is_not_left_out_in_silence(home, tmp_path):
    root = image_folder(tmp_path / "photos", {None: 2})
    assert len(atomhub.open_source(root, test_fraction=0).train.images) == 4
    (root / "cat" / "more").symlink_to(tmp_path)
    with pytest.raises(SourceError, match="photos/cat/more is a link to a folder, and is not read"):
        atomhub.open_source(root, test_fraction=0)


def test_a_set_that_was_saved_among_the_photos_is_none_of_them(home, tmp_path):
    root = image_folder(tmp_path / "photos", {None: 4})
    before = atomhub.open_source(root, test_fraction=0)
    fields = {"width": 4, "real_batch": 2, "iterations": 1}
    atomhub.distill(before, 1, "dm", fields, save=root / "out")
    after = atomhub.open_source(root, test_fraction=0)
    assert after.info.fingerprint == before.info.fingerprint
    assert after.class_names == ("cat", "dog")


def test_tables_beside_folders_of_classes(home, tmp_path):
    """One that lists no files is nobody's list; of a table with images of its own it is not clear what is meant."""
    root = image_folder(tmp_path / "photos", {None: 4})
    (root / "metadata.csv").write_text("camera,year\nx,2020\n")
    assert atomhub.open_source(root, test_fraction=0).class_names == ("cat", "dog")
    (root / "metadata.csv").write_text("file_name;label\n0.png;cat\n")
    with pytest.raises(SourceError, match="metadata.csv is not separated by commas: it begins with 'file_name;label'"):
        atomhub.open_source(root, test_fraction=0)
    (root / "metadata.csv").unlink()
    table(4).to_parquet(root / "embeddings.parquet")
    with pytest.raises(SourceError, match="has the table embeddings.parquet, and images in 2 folders"):
        atomhub.open_source(root, test_fraction=0)


def test_a_path_is_a_path_whatever_its_name(home, tmp_path, monkeypatch):
    monkeypatch.chdir(image_folder(tmp_path / "here" / "digits", {None: 2}).parent)
    assert len(atomhub.open_source(Path("digits"), test_fraction=0).train.images) == 4
    assert len(atomhub.open_source("digits").train.images) > 1000


def test_a_test_split_is_part_of_a_folder_with_splits(home, tmp_path):
    root = image_folder(tmp_path / "photos", {None: 4})
    with pytest.raises(UsageError, match="no train folder beside which 'holdout' could be the test split"):
        atomhub.open_source(root, test_split="holdout", test_fraction=0.5)


def test_classes_without_test_images_are_named(home, tmp_path):
    root = image_folder(tmp_path / "photos", {"train": 2, "test": 2})
    shutil.rmtree(root / "test" / "dog")
    assert atomhub.open_source(root).info.notes[-1] == "No test image is of the classes dog."


def test_tests_of_copies_alone_are_no_tests(home, tmp_path):
    root = image_folder(tmp_path / "photos", {None: 4})
    for file in root.rglob("*.png"):
        file.write_bytes((root / file.parent.name / "0.png").read_bytes())
    with pytest.raises(SourceError, match="All images that were set aside for tests are exact copies"):
        atomhub.open_source(root, test_fraction=0.5)


def test_no_image_is_for_training_and_for_tests(home, tmp_path):
    """Half of a class are copies of one picture. Those set aside are left out; a given split stays as it is."""
    root = image_folder(tmp_path / "photos", {None: 20})
    copies = sorted((root / "cat").iterdir())[:10]
    for copy in copies[1:]:
        copy.write_bytes(copies[0].read_bytes())
    with pytest.warns(AtomhubWarning, match=r"\d+ test images are training images as well, and were left out"):
        real = atomhub.open_source(root, test_fraction=0.5)
    train = {image.tobytes() for image in real.train.images}
    assert not any(image.tobytes() in train for image in real.test.images)
    assert len(real.train.images) == 20
    assert 10 <= len(real.test.images) < 20
    assert real.info.test_images == len(real.test.images) == len(real.test.labels)

    both = image_folder(tmp_path / "split", {"train": 8, "test": 3})
    next((both / "test" / "cat").iterdir()).write_bytes(next((both / "train" / "cat").iterdir()).read_bytes())
    with pytest.warns(AtomhubWarning, match=r"1 test images are training images as well\."):
        assert len(atomhub.open_source(both).test.images) == 6


def test_split_folders_in_capitals_and_classes_called_like_splits(home, tmp_path):
    real = atomhub.open_source(image_folder(tmp_path / "capitals", {"Train": 4, "Test": 2}))
    assert (len(real.train.images), real.info.test_split) == (8, "Test")
    root = image_folder(tmp_path / "vehicles", {None: 5}, classes=("car", "train"))
    assert atomhub.open_source(root, test_fraction=0.2).class_names == ("car", "train")


def test_the_same_images_are_never_trained_and_tested_on(home, photos):
    with pytest.raises(UsageError, match="no test folder 'train': found test"):
        atomhub.open_source(photos, test_split="train")


def test_files_that_are_not_images_are_counted(home, photos):
    (photos / "train" / "cat" / "phone.HEIC").write_bytes(b"")
    (photos / "train" / "cat" / ".DS_Store").write_bytes(b"")
    assert atomhub.open_source(photos).info.notes == ("Files that are not images were left out: 1 .heic.",)


def test_images_of_great_size_are_made_smaller(home, tmp_path):
    root = image_folder(tmp_path / "posters", {"train": 1, "test": 1}, size=(600, 600))
    real = atomhub.open_source(root)
    assert real.info.size == 224
    assert "600x600 were resized to 224x224. `size` takes another side: half of it is four times" in real.info.notes[0]
    assert atomhub.open_source(root, size=224).train.images.filename == real.train.images.filename  # kept once
    smaller = image_folder(tmp_path / "thumbs", {"train": 1, "test": 1}, size=(200, 150))
    assert atomhub.open_source(smaller).info.size == 128


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize("splits", [("",), ("train", "test")])
def test_classes_may_be_listed_beside_the_images(home, tmp_path, kind, splits):
    """As datasets' imagefolder has it: a file names the images, and says what they show."""
    rows = [{"file_name": f"p{i}.png", "breed": ("siamese", "persian")[i % 2], "cattery": f"c{i}"} for i in range(6)]
    for split in splits:
        folder = tmp_path / "cats" / split
        folder.mkdir(parents=True, exist_ok=True)
        for i, row in enumerate(rows):
            Pil.new("RGB", (20, 20), (10 * i, 0, 0)).save(folder / row["file_name"])
        text = (
            "\n".join(map(json.dumps, rows))
            if kind == "jsonl"
            else "file_name,breed,cattery\n" + "\n".join(",".join(row.values()) for row in rows)
        )
        (folder / f"metadata.{kind}").write_text(text + "\n")
    alone = {"test_fraction": 0} if len(splits) == 1 else {}
    real = atomhub.open_source(tmp_path / "cats", label_column="breed", **alone)
    assert real.class_names == ("persian", "siamese")
    assert real.train.images[:, 0, 0, 0].tolist() == [10, 30, 50, 0, 20, 40]
    assert (real.test is None) == (len(splits) == 1)
    Pil.new("RGB", (20, 20)).save(folder / "another.png")
    again = atomhub.open_source(tmp_path / "cats", label_column="breed", **alone)
    assert again.info.notes[0] == "Images that no metadata lists were left out: 1."

    (folder / f"metadata.{kind}").write_text("nonsense")
    with pytest.raises(SourceError, match="Cannot read the images that metadata lists in"):
        atomhub.open_source(tmp_path / "cats", label_column="breed", **alone)


def test_listed_images_lie_inside_of_the_folder(home, tmp_path):
    root = image_folder(tmp_path / "photos", {None: 4})
    Pil.new("RGB", (20, 20)).save(tmp_path / "outside.png")
    rows = [f"{file.relative_to(root)},{file.parent.name}" for file in root.rglob("*.png")]
    (root / "metadata.csv").write_text("\n".join(["file_name,label", "../outside.png,cat", *rows]) + "\n")
    with pytest.raises(SourceError, match="outside.png"):
        atomhub.open_source(root, test_fraction=0)
