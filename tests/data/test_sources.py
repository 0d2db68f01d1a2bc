"""Real data: what is found, how it is converted, that it is decoded once, and what is refused."""

import io
import os

import numpy as np
import pytest
from conftest import image_folder
from datasets import DatasetDict
from PIL import Image as Pil
from rows import table

import atomhub
from atomhub.data import readers
from atomhub.data.pictures import to_pixels
from atomhub.data.places import ALIASES
from atomhub.data.reopen import reopen
from atomhub.errors import NotFoundError, SourceError, UsageError
from atomhub.files import replace_file


def test_digits_are_real_and_their_split_is_fixed(home):
    real = atomhub.open_source("digits")
    assert (len(real.train.images), len(real.test.images)) == (1437, 360)
    assert real.train.images.shape[1:] == (1, 16, 16)
    assert np.bincount(real.test.labels).min() >= 35
    assert not real.info.flip
    assert real.info.test_fraction == 0.2
    # recorded: the split and the decoding never change unnoticed
    again = atomhub.open_source("digits", test_fraction=0.2)
    assert again.info.fingerprint == real.info.fingerprint


def test_normalisation_is_measured_on_the_training_split(home, photos):
    real = atomhub.open_source(photos)
    pixels = real.train.images / 255
    assert np.allclose(real.mean, pixels.mean((0, 2, 3)), atol=1e-6)
    assert np.allclose(real.std, pixels.std((0, 2, 3)), atol=1e-6)


def test_parquet_files_in_the_data_folder_take_the_place_of_the_hub(home, tmp_path, monkeypatch):
    folder = tmp_path / "data" / "cifar10"
    folder.mkdir(parents=True)
    table(12, size=(32, 32)).to_parquet(folder / "train-00000-of-00001.parquet")
    table(4, size=(32, 32)).to_parquet(folder / "validation.parquet")
    monkeypatch.setenv("ATOMHUB_DATA", str(tmp_path / "data"))
    real = atomhub.open_source("cifar10")
    assert (len(real.train.images), len(real.test.images)) == (12, 4)
    assert real.train.images[:, 0, 0, 0].tolist() == [*range(0, 120, 20), *range(10, 120, 20)]
    assert real.info.id == "cifar10"
    assert real.info.test_split == "validation"
    assert real.mean == (0.4914, 0.4822, 0.4465)


def test_arrow_saved_by_datasets_with_columns_of_other_names(home, tmp_path):
    splits = DatasetDict({"train": table(8, image="img", label="class"), "test": table(4, image="img", label="class")})
    splits.save_to_disk(tmp_path / "saved")
    real = atomhub.open_source(tmp_path / "saved")
    assert (real.info.kind, real.info.image_column, real.info.label_column) == ("arrow", "img", "class")
    assert len(real.train.images) == 8


def test_labels_that_are_plain_numbers_or_words(home, tmp_path):
    table(8, [5, 3] * 4, names=None).to_parquet(tmp_path / "train.parquet")
    table(4, [3, 5] * 2, names=None).to_parquet(tmp_path / "test.parquet")
    real = atomhub.open_source(tmp_path)
    assert real.class_names == ("3", "5")
    assert real.train.labels.tolist() == [0] * 4 + [1] * 4


def test_columns_can_be_named(home, tmp_path):
    data = table(8).add_column("other", [Pil.new("RGB", (16, 16)).tobytes()] * 8)
    data.to_parquet(tmp_path / "train.parquet")
    data.to_parquet(tmp_path / "test.parquet")
    real = atomhub.open_source(tmp_path, image_column="image", label_column="label", train_split="train")
    assert real.train.images.shape[1:] == (3, 20, 20)


def test_a_second_start_decodes_nothing(home, photos):
    first = atomhub.open_source(photos)
    for path in photos.rglob("*.png"):
        stamp = path.stat()
        path.write_bytes(b"x" * stamp.st_size)  # unreadable now, but of the same size and time
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    second = atomhub.open_source(photos)
    assert isinstance(second.train.images, np.memmap)
    assert np.array_equal(first.train.images, second.train.images)


def test_changed_files_are_decoded_again(home, photos):
    before = atomhub.open_source(photos)
    Pil.new("RGB", (20, 20), "white").save(photos / "train" / "cat" / "0.png")
    after = atomhub.open_source(photos)
    assert after.train.images[0].min() == 255
    assert after.info.fingerprint != before.info.fingerprint


def test_modes_are_converted_and_sizes_made_equal_with_a_note(home, photos):
    Pil.new("L", (20, 20), 7).save(photos / "train" / "cat" / "grey.png")
    Pil.new("RGBA", (20, 20), (255, 0, 0, 0)).save(photos / "train" / "cat" / "clear.png")
    Pil.new("P", (40, 30), 3).save(photos / "train" / "cat" / "palette.png")
    real = atomhub.open_source(photos)
    assert real.train.images.shape[1:] == (3, 16, 16)
    size_note, mode_note = real.info.notes
    assert size_note == ("Images of mixed sizes (20 to 40 pixels) were resized to 16x16.")
    assert mode_note == "1 greyscale, 1 palette, 1 transparent images were converted to RGB."
    clear, grey = real.train.images[8:10]  # after 0.png .. 7.png
    assert clear.min() == 255  # transparent is white
    assert (grey == 7).all()
    assert atomhub.open_source(photos, size=48).train.images.shape[1:] == (3, 48, 48)


@pytest.mark.parametrize("odd", ["none", "grey", "large", "broken", "size"])
def test_images_are_read_once_and_become_what_pillow_makes_of_them(home, tmp_path, odd, monkeypatch):
    """All are decoded as the first one asks for; where a later one is of another kind, all are decoded once more."""
    root = image_folder(tmp_path / "photos", {"train": 70, "test": 3})
    files = {split: sorted((root / split).rglob("*.png")) for split in ("train", "test")}
    strange = files["train"][-1]
    if odd in ("grey", "large"):
        image = Pil.open(strange)
        (image.convert("L") if odd == "grey" else image.resize((40, 30))).save(strange)
    if odd == "broken":
        strange = files["train"].pop(5)
        strange.write_bytes(strange.read_bytes()[:60])
    opened, plain, seen = [], readers.read_regular, []
    monkeypatch.setattr(readers, "read_regular", lambda path, *rest: opened.append(path) or plain(path, *rest))
    options = {"broken": {"skip_unreadable": True}, "size": {"size": 24}}.get(odd, {})
    real = atomhub.open_source(root, progress=lambda *counts: seen.append(counts), **options)
    total = sum(map(len, files.values())) + (odd == "broken")
    assert seen[-1] == (total, total)
    assert sorted(a for a, _ in seen) == [a for a, _ in seen]
    assert len(opened) - 1 == total * (2 if odd == "large" else 1)  # the first one is asked what it is
    for split in ("train", "test"):
        found = getattr(real, split)
        expected = [to_pixels(Pil.open(path), real.info.size, real.info.channels) for path in files[split]]
        assert np.array_equal(found.images, np.stack(expected))
        assert found.labels.tolist() == [path.parent.name == "dog" for path in files[split]]


def test_images_that_are_all_grey_keep_one_channel(home, tmp_path):
    root = image_folder(tmp_path / "grey", {"train": 4, "test": 2}, mode="L")
    real = atomhub.open_source(root)
    assert (real.info.channels, real.train.images.shape[1]) == (1, 1)


def test_sixteen_bit_images_keep_their_high_byte(home, tmp_path):
    root = image_folder(tmp_path / "deep", {"train": 2, "test": 2}, mode="L")
    for path in root.rglob("*.png"):
        Pil.fromarray(np.full((20, 20), 0x4321, dtype=np.uint16)).save(path)
    Pil.fromarray(np.full((20, 20), 0x4321, dtype=">u2")).save(root / "train" / "cat" / "big-endian.tif")
    (root / "train" / "cat" / "deep.pgm").write_bytes(b"P5 20 20 65535\n" + b"\x43\x21" * 400)
    real = atomhub.open_source(root)
    assert len(real.train.images) == 6
    assert (real.train.images == 0x43).all()
    assert "16-bit" in real.info.notes[0]


@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_pixels_without_a_known_range_are_refused(home, photos, dtype):
    Pil.fromarray(np.full((20, 20), 1000, dtype=dtype)).save(photos / "train" / "cat" / "raw.tif")
    with pytest.raises(SourceError, match=r"raw\.tif: pixels of mode . \(32 bits\) have no known range"):
        atomhub.open_source(photos)


def test_a_source_is_found_again_from_its_manifest(home, photos):
    info = atomhub.open_source(photos).info
    moved = photos.rename(photos.with_name("elsewhere"))
    assert len(reopen(info, ("cat", "dog")).test.images) == 6  # from the cache
    (home / "real").rename(home / "gone")
    with pytest.raises(NotFoundError, match="(?s)'photos' are not on this machine.*source="):
        reopen(info, ("cat", "dog"))
    assert reopen(info, ("cat", "dog"), str(moved)).info.fingerprint == info.fingerprint


def test_a_source_of_other_classes_is_never_taken_for_the_right_one(home, photos, tmp_path):
    info = atomhub.open_source(photos).info
    other = image_folder(tmp_path / "farm", {"train": 8, "test": 3}, classes=("cat", "hen"))
    with pytest.raises(SourceError, match="class 'hen' where the set has 'dog'"):
        reopen(info, ("cat", "dog"), other)


def test_a_manifest_cannot_name_a_path_of_this_machine(home, photos):
    info = atomhub.open_source(photos).info.model_copy(update={"id": str(photos), "fingerprint": "0" * 64})
    with pytest.raises(NotFoundError, match="not on this machine"):
        reopen(info, ("cat", "dog"))


def test_damaged_decoded_images_are_decoded_again(home, photos):
    first = atomhub.open_source(photos)
    folder = next((home / "real").glob("*/meta.json")).parent
    (home / "real" / "broken").mkdir()
    (home / "real" / "broken" / "meta.json").write_text("{")
    for name, content in (("train.npy", b""), ("train_labels.npy", b"no"), ("meta.json", b"")):
        replace_file(folder / name, content)
        assert np.array_equal(atomhub.open_source(photos).train.images, first.train.images)
        replace_file(folder / name, content)
        assert len(reopen(first.info, first.class_names, photos).test.images) == 6


def test_test_labels_are_matched_by_name(home, tmp_path):
    table(8).to_parquet(tmp_path / "train.parquet")
    table(4, [0, 0, 0, 1], names=("dog", "cat")).to_parquet(tmp_path / "test.parquet")
    real = atomhub.open_source(tmp_path)
    assert real.class_names == ("cat", "dog")
    assert real.test.labels.tolist() == [0, 1, 1, 1]
    assert real.test.images[0, 0, 0, 0] == 30  # the only cat is row 3


@pytest.mark.parametrize(
    "names", [("mnist_train.parquet", "mnist_test.parquet"), ("Train/0.parquet", "Test/0.parquet"),
              ("train[1].parquet", "test[1].parquet")],
)  # fmt: skip
def test_splits_are_read_off_the_names_of_parquet_files(home, tmp_path, names):
    root = tmp_path / "tables"
    for name, count in zip((*names, ".cache/train.parquet"), (8, 4, 12), strict=True):
        (root / name).parent.mkdir(exist_ok=True, parents=True)
        table(count).to_parquet(root / name)
    real = atomhub.open_source(root)
    assert (len(real.train.images), len(real.test.images)) == (8, 4)


@pytest.mark.parametrize("name", sorted(ALIASES))
def test_a_mirrored_image_keeps_its_class_unless_it_is_a_digit(name):
    assert ALIASES[name].flip == (name not in ("mnist", "svhn"))
    assert len(ALIASES[name].mean) == len(ALIASES[name].std) == (1 if "mnist" in name else 3)


class TestHub:
    """Sources on the Hub, read by the real clients over HTTP."""

    @pytest.fixture
    def repo(self, hub, tmp_path):
        """A public dataset repository with parquet files and columns img and label."""
        name = f"someone/{tmp_path.name.replace('_', '-')}"  # clients remember names: a new one for every test
        buffers = {}
        for split, count in (("train", 12), ("test", 4)):
            buffer = io.BytesIO()
            table(count, image="img").to_parquet(buffer)
            buffers[f"data/{split}-00000-of-00001.parquet"] = buffer.getvalue()
        hub.add(name, {"README.md": b"# pictures\n", **buffers})
        return name

    def test_a_hub_id_is_read_and_its_commit_recorded(self, home, hub, repo):
        real = atomhub.open_source(repo)
        assert (len(real.train.images), len(real.test.images)) == (12, 4)
        assert real.class_names == ("cat", "dog")
        assert (real.info.id, real.info.kind) == (repo, "hub")
        assert real.info.revision == hub.sha(repo)
        assert real.info.image_column == "img"

    def test_a_second_start_downloads_nothing_even_without_the_hub(self, home, hub, repo):
        first = atomhub.open_source(repo)
        hub.downloads.clear()
        assert np.array_equal(atomhub.open_source(repo).train.images, first.train.images)
        hub.down = True
        try:
            with pytest.warns(UserWarning, match="cannot be reached: using"):
                assert atomhub.open_source(repo).info == first.info
            with pytest.raises(SourceError, match="(?s)The Hub answers 503.*Check the network"):
                atomhub.open_source("someone/never-seen")
            with pytest.raises(SourceError, match="(?s)The Hub answers 503.*ATOMHUB_DATA/cifar100/"):
                atomhub.open_source("cifar100")
        finally:
            hub.down = False
        assert hub.downloads == []

    def test_a_new_commit_is_decoded_anew(self, home, hub, repo):
        before = atomhub.open_source(repo)
        buffer = io.BytesIO()
        table(6, image="img").to_parquet(buffer)
        files = hub.files(repo) | {"data/train-00000-of-00001.parquet": buffer.getvalue()}
        hub.repos[repo].commit("fewer", files)
        after = atomhub.open_source(repo)
        assert len(after.train.images) == 6
        assert after.info.revision != before.info.revision

    def test_names_and_revisions_that_do_not_exist(self, home, hub, repo):
        with pytest.raises(NotFoundError, match="(?s)no dataset 'someone/nothing'.*hf auth login"):
            atomhub.open_source("someone/nothing")
        with pytest.raises(NotFoundError, match="no revision 'v9'"):
            atomhub.open_source(repo, revision="v9")
        with pytest.raises(UsageError, match=r"(?s)'user/name.git' is not the id.*user/name"):
            atomhub.open_source("user/name.git")
