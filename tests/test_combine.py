"""Subsets of a set, and several sets as one: right images, right labels, right test images, honest manifests."""

import json

import pytest
import torch

import atomhub
from atomhub.errors import IntegrityError, UsageError
from atomhub.training.protocols import PROTOCOLS, Protocol


@pytest.fixture(scope="module")
def digits3():
    """Digits at ipc 3, as they were drawn."""
    return atomhub.distill("digits", 3, "atom", {"iterations": 1}, name="digits3")


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """Two sets of 16x16 grey images whose classes overlap: cat and dog, dog and emu."""
    from conftest import image_folder

    made = []
    for classes in (("cat", "dog"), ("dog", "emu")):
        root = image_folder(tmp_path_factory.mktemp("pets") / classes[0], {"train": 6, "test": 2}, classes, mode="L")
        made.append(atomhub.distill(root, 2, "atom", {"iterations": 1, "width": 4}, name=f"pets-{classes[0]}", size=16))
    return made


def test_a_subset_holds_the_named_classes_in_order_and_the_first_images_of_each(digits3):
    part = digits3.subset(["7", 2], ipc=2, name="part")
    assert part.class_names == ("7", "2")
    assert part.labels.tolist() == [0, 0, 1, 1]
    assert torch.equal(part.images, torch.cat([digits3.images[21:23], digits3.images[6:8]]))
    assert (part.name, part.ipc, part.manifest.results.measured, part.path) == ("part", 2, (), None)
    assert part.manifest.provenance.recipe is None  # it was not distilled itself


def test_a_subset_is_measured_on_the_test_images_of_its_classes(home, digits3):
    part = digits3.subset([4, 1])
    images, labels = part.test_split()
    whole, numbers = digits3.test_split()
    assert torch.equal(images[labels == 0], whole[numbers == 4])
    assert torch.equal(images[labels == 1], whole[numbers == 1])
    result = atomhub.evaluate(part, protocol="quick", runs=1)
    assert result.test_images == len(labels)
    assert result.score.mean > 80


def test_a_subset_of_a_subset_keeps_track(home, digits3):
    part = digits3.subset([9, 5, 3]).subset([2, 0], ipc=1)
    assert part.class_names == ("3", "9")
    images, labels = part.test_split()
    whole, numbers = digits3.test_split()
    assert torch.equal(images[labels == 1], whole[numbers == 9])


def test_what_was_put_together_is_saved_loaded_and_says_where_it_is_from(home, digits3):
    both = atomhub.concat([digits3.subset([0, 1], ipc=2, name="a"), digits3.subset([7, 8], ipc=2, name="b")])
    saved = both.save()
    again = atomhub.load("a-and-b")
    assert torch.equal(again.images, both.images)
    assert again.class_names == ("0", "1", "7", "8")
    assert [o.name for o in again.manifest.provenance.parts] == ["digits3", "digits3"]
    assert torch.equal(again.test_split()[1].bincount(), digits3.test_split()[1].bincount()[[0, 1, 7, 8]])
    card = (saved.path / "README.md").read_text()
    assert "put together with atomhub from digits3" in card
    assert "2 of its source's 10 classes" in card


def test_all_classes_put_together_again_are_the_set(home, digits3):
    parts = [digits3.subset(range(0, 4)), digits3.subset(range(4, 10))]
    whole = atomhub.concat(parts)
    assert torch.equal(whole.images, digits3.images)
    assert torch.equal(whole.labels, digits3.labels)
    assert all(torch.equal(a, b) for a, b in zip(whole.test_split(), digits3.test_split(), strict=True))


def test_two_sets_of_one_source_add_up_to_more_images_per_class_and_test_images_count_once(home, digits3):
    more = atomhub.concat([digits3, digits3.subset(ipc=1)])
    assert more.manifest.format.ipc == 4
    assert torch.equal(more.images[:4], torch.cat([digits3.images[:3], digits3.images[:1]]))
    assert len(more.test_split()[0]) == 360


def test_classes_are_one_by_name_or_stay_apart_by_offset(pets):
    with pytest.raises(UsageError, match=r"(?s)'cat' would have 2 images, and 'dog' 4.*subset"):
        atomhub.concat(pets)
    apart = atomhub.concat(pets, by="offset", name="four")
    assert apart.class_names == ("cat", "dog", "dog (pets-dog)", "emu")
    assert torch.equal(apart.images, torch.cat([s.images for s in pets]))
    images, labels = apart.test_split()
    assert labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert torch.equal(images[4:], pets[1].test_split()[0])
    assert apart.manifest.provenance.source.id == "folder:cat+folder:dog"
    assert apart.manifest.format.mean == pytest.approx(
        [(a + b) / 2 for a, b in zip(*(s.manifest.format.mean for s in pets), strict=True)]
    )


def test_what_was_put_together_trains_any_model(pets, monkeypatch):
    monkeypatch.setitem(PROTOCOLS, "brief", Protocol(3, 256, "test"))
    apart = atomhub.concat(pets, by="offset", name="four").save()
    result = atomhub.evaluate(apart, "mlp:width=8", "brief", runs=2)
    assert atomhub.load("four").manifest.results.measured == (result,)
    with pytest.raises(UsageError, match="'four' has several sources"):
        apart.test_split("digits")


@pytest.mark.parametrize(
    ("classes", "ipc", "message"),
    [
        (["sevn", "1"], None, "(?s)no class 'sevn'.*Known"),
        ([1, 1], None, "name two or more, each once"),
        ([1], None, "name two or more, each once"),
        ([0, 10], None, "A class number cannot be 10: use a whole number, 0 to 9"),
        ([0, 1], 4, "ipc cannot be 4: use a whole number, 1 to 3"),
    ],
)
def test_impossible_subsets(digits3, classes, ipc, message):
    with pytest.raises(UsageError, match=message):
        digits3.subset(classes, ipc)


def test_sets_that_do_not_fit_are_not_put_together(home, digits3, pets):
    with pytest.raises(UsageError, match="needs two sets or more"):
        atomhub.concat([digits3])
    with pytest.raises(UsageError, match="(?s)by 'label'.*name or offset"):
        atomhub.concat([digits3, digits3], by="label")
    other = atomhub.distill("digits", 1, "atom", {"iterations": 1, "pixels": "float32"})
    with pytest.raises(UsageError, match="does not fit 'digits3': its pixels is float32, not uint8"):
        atomhub.concat([digits3, other])
    large = atomhub.distill("digits", 1, "atom", {"iterations": 1}, size=24)
    with pytest.raises(UsageError, match=r"its image shape is \(1, 24, 24\), not \(1, 16, 16\)"):
        atomhub.concat([digits3, large])


def test_a_class_of_one_source_cannot_be_two(digits3):
    with pytest.raises(UsageError, match="(?s)The class '0' of digits would be two classes.*by name"):
        atomhub.concat([digits3, digits3.subset(name="again")], by="offset")


def test_parts_must_give_every_class(home, digits3, tmp_path):
    saved = digits3.subset([1, 2]).save(tmp_path / "set")
    for classes in ([0, None], [None, 0, 99] + [None] * 7, [0] * 10, [None] * 10):
        data = json.loads((saved.path / "manifest.json").read_text())
        data["provenance"]["parts"][0]["classes"] = classes
        (saved.path / "manifest.json").write_text(json.dumps(data))
        with pytest.raises(IntegrityError, match="parts must give each class"):
            atomhub.load(saved.path)


def test_the_recorded_command_puts_the_same_set_together_again(home, tmp_path, shell):
    whole = atomhub.distill("digits", 2, "atom", {"iterations": 1}, name="whole")
    other = atomhub.distill("digits", 1, "atom", {"iterations": 1}, seed=1, name="other").save()
    both = atomhub.concat([whole.subset(["7", 2], ipc=1, name="part"), other.subset([3, 4])], name="both")
    shell(both.manifest.provenance.command)
    assert torch.equal(atomhub.load("both").images, both.images)
    assert atomhub.load("both").class_names == ("7", "2", "3", "4")


def test_parts_of_one_name_and_of_one_set_are_put_together_again(home, shell):
    kept = atomhub.distill("digits", 1, "atom", {"iterations": 1}, name="kept").save()
    apart = atomhub.concat([kept.subset([0, 1]), kept.subset([2, 3])], name="apart")
    shell(apart.manifest.provenance.command)
    assert torch.equal(atomhub.load("apart").images, apart.images)
    new = atomhub.distill("digits", 2, "atom", {"iterations": 1}, name="new")
    both = atomhub.concat([new.subset([0, 1], name="a"), new.subset([2, 3], name="b").subset([1, 0])], name="both")
    shell(both.manifest.provenance.command)
    assert torch.equal(atomhub.load("both").images, both.images)
    assert both.manifest.provenance.command.count("atomhub distill") == 1


def test_sets_of_different_networks_are_measured_with_that_of_the_first(home):
    sets = [
        atomhub.distill("digits", 1, "atom", {"iterations": 1, "norm": "batch", "width": width}).subset(classes)
        for width, classes in ((4, [0, 1]), (8, [2, 3]))
    ]
    assert atomhub.concat(sets).manifest.results.network == "convnet:width=4,depth=2,norm=batch"


def test_two_sets_of_one_name_that_nobody_saved_have_no_command(home):
    sets = [atomhub.distill("digits", 1, "atom", {"iterations": 1}, seed=seed) for seed in (0, 1)]
    assert atomhub.concat(sets).manifest.provenance.command is None
    assert atomhub.concat([sets[0].subset([0, 1]), sets[0].subset([2, 3])]).manifest.provenance.command


def test_a_subset_of_a_set_of_soft_labels_is_saved(home, digits3):
    part = atomhub.soften(digits3, "mlp:width=4", epochs=1).subset(ipc=1).save()
    assert torch.equal(atomhub.load(part.path).soft_labels, part.soft_labels)
