"""Real data that cannot be used: a sentence names what is wrong, and where."""

import pytest
from rows import table

import atomhub
from atomhub.errors import NotFoundError, SourceError, UsageError


def damage(photos):
    path = photos / "train" / "dog" / "3.png"
    path.write_bytes(path.read_bytes()[:200])
    return path


def test_an_unreadable_image_is_named_and_can_be_left_out(home, photos):
    path = damage(photos)
    (photos / "train" / "cat" / "note.png").write_text("not an image")
    with pytest.raises(SourceError, match=r"(?s)note\.png: not an image.*skip_unreadable=True"):
        atomhub.open_source(photos)
    (photos / "train" / "cat" / "note.png").unlink()
    with pytest.raises(SourceError, match=r"dog/3\.png: "):
        atomhub.open_source(photos)
    assert not [p for p in (home / "real").iterdir() if p.name.startswith(".")]
    real = atomhub.open_source(photos, skip_unreadable=True)
    assert len(real.train.images) == 15
    assert real.info.notes == (f"1 unreadable images left out: {path.relative_to(photos.parent)}.",)


def empty_class(photos):
    (photos / "train" / "owl").mkdir()


def one_class(photos):
    for split in ("train", "test"):
        (photos / split / "dog").rename(photos.parent / f"{split}-dog")


def strange_test_class(photos):
    (photos / "test" / "dog").rename(photos / "test" / "wolf")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (empty_class, r"class folder .*owl has no images"),
        (one_class, r"one class only \(cat\)"),
        (strange_test_class, "the class 'wolf', which the training images do not have"),
    ],
)
def test_image_folders_that_cannot_be_used(home, photos, change, message):
    change(photos)
    with pytest.raises(SourceError, match=message):
        atomhub.open_source(photos)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_column": "score"}, "'score' holds float64, not classes"),
        ({"label_column": "id"}, r"(?s)'id' has 12 values in 12 rows: that is not a class.*two images or more"),
        ({"label_column": "gaps"}, "Row 2 of the column 'gaps' has no label"),
        ({"label_column": "lable"}, "no label column 'lable': the columns are"),
        ({"image_column": "score"}, "'score' holds .*, not images"),
        ({"test_split": "dev"}, "no test split 'dev': found"),
        ({"test_fraction": 0.2}, "has the test split 'test' already"),
        ({"size": 8}, "size cannot be 8: use a whole number, 16 to 512"),
        ({"revision": "v1"}, "no use for the option revision"),
        ({"test_fraction": 1.5}, "test fraction cannot be 1.5"),
        ({"test_fraction": "0.2"}, "test fraction cannot be '0.2': use a number"),
        ({"colour": 1}, "no source option 'colour'"),
    ],
)
def test_impossible_options(home, tmp_path, options, message):
    data = table(12).add_column("score", [0.5] * 12).add_column("id", list(range(12)))
    data = data.add_column("gaps", [1.0, 0.0, None] * 4)
    data.to_parquet(tmp_path / "train.parquet")
    data.to_parquet(tmp_path / "test.parquet")
    with pytest.raises((SourceError, UsageError), match=message):
        atomhub.open_source(tmp_path, **options)


def test_a_class_without_training_images_is_named(home, tmp_path):
    table(8, names=("cat", "dog", "owl")).to_parquet(tmp_path / "train.parquet")
    table(4, [0, 1, 2, 2], names=("cat", "dog", "owl")).to_parquet(tmp_path / "test.parquet")
    with pytest.raises(SourceError, match="class 'owl' has no training images"):
        atomhub.open_source(tmp_path)


def test_a_test_split_without_labels_is_refused(home, tmp_path):
    table(8).to_parquet(tmp_path / "train.parquet")
    table(4, [-1] * 4).to_parquet(tmp_path / "test.parquet")
    with pytest.raises(SourceError, match="(?s)Row 0 of the split 'test' has no label.*test_split"):
        atomhub.open_source(tmp_path)


def test_a_file_that_is_not_parquet_is_named(home, tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(SourceError, match=r"Cannot read the parquet files train\.parquet"):
        atomhub.open_source(tmp_path)


def test_a_source_that_does_not_exist_names_the_closest(home):
    with pytest.raises(NotFoundError, match="(?s)no source 'cifar01'.*'cifar10'"):
        atomhub.open_source("cifar01")
