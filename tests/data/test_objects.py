"""Sources that are Python objects: what people have in a notebook is distilled as it is."""

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from PIL import Image as Pillow

import atomhub
from atomhub.errors import AtomhubError, AtomhubWarning, NotFoundError, SourceError, UsageError
from atomhub.training.protocols import PROTOCOLS, Protocol

NAMES = ("cat", "dog")
LABELS = np.array([1, 0, 1, 0, 1, 0, 0, 1])
PIXELS = np.random.default_rng(0).integers(0, 256, (8, 20, 20, 3), dtype=np.uint8)
PICTURES = [Pillow.fromarray(image) for image in PIXELS]
BRIEF = {"width": 4, "real_batch": 2, "iterations": 2}


class Photos(torch.utils.data.Dataset):
    """As torchvision's: it names its classes."""

    classes = NAMES

    def __len__(self):
        return len(LABELS)

    def __getitem__(self, i):
        return PICTURES[i], int(LABELS[i])


class Listed(Photos):
    """As torchvision's: labels are listed as well, and the class of an image can be known without it."""

    targets = LABELS.tolist()


def table(rows=slice(None)):
    features = Features({"image": Image(), "label": ClassLabel(names=NAMES)})
    return Dataset.from_dict({"image": PICTURES[rows], "label": LABELS[rows].tolist()}, features=features)


OBJECTS = {
    "a table of datasets": table,
    "a torch dataset": Photos,
    "a torch dataset that lists its labels": Listed,
    "a part of a torch dataset": lambda: torch.utils.data.Subset(Photos(), range(len(LABELS))),
    "arrays, (H, W, C)": lambda: (PIXELS, LABELS),
    "tensors, (C, H, W)": lambda: (torch.tensor(PIXELS).permute(0, 3, 1, 2), torch.tensor(LABELS)),
    "tensors with gradients": lambda: (torch.tensor(PIXELS / 255).permute(0, 3, 1, 2).requires_grad_(), LABELS),
    "floats in 0..1": lambda: (PIXELS.astype(np.float32) / 255, LABELS),
    "pictures and names": lambda: (PICTURES, [NAMES[label] for label in LABELS]),
}


@pytest.mark.filterwarnings("ignore::atomhub.errors.AtomhubWarning")
@pytest.mark.parametrize("kind", OBJECTS)
def test_an_object_is_read_like_any_source(home, kind):
    real = atomhub.open_source(OBJECTS[kind](), test_fraction=0)
    assert np.array_equal(real.train.images, PIXELS[np.argsort(LABELS, kind="stable")].transpose(0, 3, 1, 2))
    assert real.train.labels.tolist() == sorted(LABELS)
    assert real.class_names == (("0", "1") if "arrays" in kind or "tensors" in kind or "floats" in kind else NAMES)


@pytest.mark.filterwarnings("ignore::atomhub.errors.AtomhubWarning")
@pytest.mark.parametrize(
    "source",
    [DatasetDict(train=table(), test=table(slice(4))), {"train": (PIXELS, LABELS), "val": (PIXELS[:4], LABELS[:4])}],
)
def test_splits_come_as_a_dict(home, source):
    real = atomhub.open_source(source)
    assert (len(real.train.images), len(real.test.images)) == (8, 4)


def test_a_set_is_distilled_from_an_object_and_measured(home, monkeypatch):
    monkeypatch.setitem(PROTOCOLS, "quick", Protocol(2, 64, "test"))
    with pytest.warns(AtomhubWarning, match="The images were given as arrays"):
        distilled = atomhub.distill((PIXELS, LABELS), 1, "atom", BRIEF, test_fraction=0.5, save=True)
    assert distilled.name == "images-ipc1"
    assert distilled.manifest.provenance.source.id == "memory:images"
    # the decoded copy is found by its content, and without it the object is asked for again
    assert atomhub.evaluate(atomhub.load("images-ipc1"), protocol="quick", runs=1).test_images == 4
    for folder in (home / "real").iterdir():
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    with pytest.raises(NotFoundError, match="The real images of 'images' are not on this machine"):
        atomhub.evaluate(atomhub.load("images-ipc1"), protocol="quick", runs=1)
    found = atomhub.evaluate(atomhub.load("images-ipc1"), protocol="quick", runs=1, source=(PIXELS, LABELS))
    assert found.test_images == 4


def test_classes_that_a_filtered_table_has_left_are_enough(home):
    names = ("ant", "cat", "bee", "dog", "eel")
    rows = Dataset.from_dict(
        {"image": PICTURES, "label": [2 * label + 1 for label in LABELS.tolist()]},
        features=Features({"image": Image(), "label": ClassLabel(names=list(names))}),
    )
    with pytest.warns(AtomhubWarning, match="Classes without images were left out: ant, bee, eel"):
        real = atomhub.open_source(rows, test_fraction=0)
    assert real.class_names == NAMES
    assert real.train.labels.tolist() == sorted(LABELS)


class Halves(Listed):
    """Its items have other labels than it lists, as a class that maps them anew has."""

    classes = None

    def __getitem__(self, i):
        return PICTURES[i], i // 4


class Wrapped(torch.utils.data.Dataset):
    """A wrapper that gives other labels than what it wraps, whose classes are not its own."""

    dataset = Photos()

    def __len__(self):
        return len(LABELS)

    def __getitem__(self, i):
        return PICTURES[i], i // 4


class Numbered(Photos):
    """Its classes are numbers, and begin with 1; its labels begin with 0."""

    classes = (1, 2, 3)

    def __getitem__(self, i):
        return PICTURES[i], i % 3


@pytest.mark.filterwarnings("ignore::atomhub.errors.AtomhubWarning")
@pytest.mark.parametrize(
    ("kind", "names", "labels"),
    [
        (Halves, ("0", "1"), [0] * 4 + [1] * 4),
        (Wrapped, ("0", "1"), [0] * 4 + [1] * 4),
        (Numbered, ("0", "1", "2"), [i % 3 for i in range(8)]),
    ],
)
def test_the_labels_of_items_are_those_that_count(home, kind, names, labels):
    real = atomhub.open_source(kind(), test_fraction=0)
    assert real.class_names == names
    assert real.train.labels.tolist() == sorted(labels)
    assert np.array_equal(real.train.images, PIXELS[np.argsort(labels, kind="stable")].transpose(0, 3, 1, 2))


@pytest.mark.filterwarnings("ignore::atomhub.errors.AtomhubWarning")
def test_labels_of_pandas_go_by_their_place(home):
    """As train_test_split leaves them: in another order than their index, and with gaps in it."""
    order = [6, 0, 3, 1, 7]
    labels = pd.Series(LABELS)[order]
    real = atomhub.open_source((PIXELS[order], labels), test_fraction=0)
    assert np.array_equal(
        real.train.images, PIXELS[order][np.argsort(LABELS[order], kind="stable")].transpose(0, 3, 1, 2)
    )


@pytest.mark.filterwarnings("ignore::atomhub.errors.AtomhubWarning")
def test_files_that_a_table_names_are_read_anew_when_they_change(home, tmp_path):
    names = [str(tmp_path / f"{i}.png") for i in range(4)]
    means = []
    for level in (10, 200):
        for name in names:
            Pillow.new("L", (20, 20), level).save(name)
        rows = Dataset.from_dict({"image": names, "label": [0, 1, 0, 1]}).cast_column("image", Image())
        means.append(atomhub.open_source(rows, test_fraction=0).train.images.mean())
    assert means == [10, 200]


def test_the_same_object_is_decoded_once(home, recwarn):
    for _ in range(2):
        atomhub.open_source(Photos(), test_fraction=0)
    assert len(list((home / "real").iterdir())) == 1
    atomhub.open_source((255 - PIXELS, LABELS), test_fraction=0)
    assert len(list((home / "real").iterdir())) == 2


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (7, "A source cannot be of type int"),
        ({}, "The splits of a source cannot be none"),
        ((PIXELS, LABELS[:3]), "There are 8 images and 3 labels"),
        ((PIXELS * 2.0 - 1, LABELS), r"Image 0 has pixels of float64 that are not in 0 to 1"),
        ((PIXELS[..., :2], LABELS), r"Image 0 has the shape \(20, 20, 2\)"),
        ((PIXELS, LABELS + 0.5), "The label of item 0 is '1.5', not a class number or name"),
        ((PIXELS, np.eye(2)[LABELS]), "The label of item 0 is '\\[0. 1.\\]', not a class number or name"),
        ((PIXELS, torch.eye(2)[torch.tensor(LABELS)]), "The label of item 0 is 'tensor"),
        ((PIXELS, [1, "1"] * 4), "several classes called '1'"),
        ([PIXELS, PIXELS, PIXELS], r"Item 0 is of type ndarray, not \(image, label\)"),
        ({"train": (PIXELS, LABELS), "test": (PIXELS, LABELS + 5)}, "has the label 6, which is no class"),
        ({"a": (PIXELS, LABELS), "b": (PIXELS, LABELS)}, "No train split among a, b"),
        ({"train": table(), "test": (PIXELS, LABELS)}, "of different kinds"),
    ],
)
def test_what_is_no_source_is_named(home, source, words):
    with pytest.raises((UsageError, SourceError), match=words) as error:
        atomhub.open_source(source, test_fraction=None if isinstance(source, dict) else 0)
    assert isinstance(error.value, AtomhubError)
