"""Networks trained on a set: kept, published, and given back ready for pictures."""

import json
import shutil

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file

import atomhub
from atomhub.errors import AtomhubError, AtomhubWarning, IntegrityError, NotFoundError, UsageError
from atomhub.hub import models
from atomhub.training.protocols import PROTOCOLS, Protocol


@pytest.fixture(autouse=True)
def brief(monkeypatch):
    """A protocol of few epochs."""
    monkeypatch.setitem(PROTOCOLS, "brief", Protocol(30, 256, "test", lr=0.05))


@pytest.fixture(scope="module")
def _saved(_digits1, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PROTOCOLS, "brief", Protocol(30, 256, "test", lr=0.05))
        made = atomhub.train_classifier(_digits1, "mlp:width=32", "brief")
    return made, atomhub.save_model(made, tmp_path_factory.mktemp("model") / "net")


@pytest.fixture
def classifier(_saved):
    """A small network trained on digits."""
    return _saved[0]


def test_train_takes_a_module_a_function_or_a_name(home, digits1):
    def own():
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 10))

    module = own()
    assert atomhub.train(module, digits1, "brief") is module
    assert not module.training
    for model in (own, "mlp:width=16", "convnet:width=8"):
        trained = atomhub.train(model, digits1, "brief")
        assert atomhub.accuracy(trained, digits1) > 20


def test_training_again_gives_the_same_network(home, digits1):
    first, second, other = (atomhub.train("mlp:width=8", digits1, "brief", seed=s) for s in (1, 1, 2))
    assert torch.equal(first[1].weight, second[1].weight)
    assert not torch.equal(first[1].weight, other[1].weight)


def test_a_classifier_answers_for_pictures(classifier, digits1):
    found = classifier.predict(digits1.pictures()[3].convert("RGBA").resize((40, 30)))
    assert set(found) == set(digits1.class_names)
    assert sum(found.values()) == pytest.approx(1, abs=1e-5)
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert next(iter(classifier.predict(digits1.pictures()[3]))) == "3"
    assert classifier.config.result.score.mean == pytest.approx(atomhub.accuracy(classifier.model, digits1), abs=1e-3)


def test_saved_and_loaded_it_is_the_same(classifier, tmp_path, digits1):
    folder = atomhub.save_model(classifier, tmp_path / "net")
    again = atomhub.load_model(folder)
    x = digits1.as_tensors()[0]
    assert torch.equal(again.model(x), classifier.model(x))
    assert again.config == classifier.config
    assert again.predict(digits1.pictures()[0]) == classifier.predict(digits1.pictures()[0])
    with pytest.raises(AtomhubError, match="already exists"):
        atomhub.save_model(classifier, folder)
    atomhub.save_model(classifier, folder, overwrite=True)


@pytest.mark.parametrize("network", ["convnet:width=8,norm=batch", "vit:width=32,depth=1,heads=2,hidden=32"])
def test_every_kind_of_network_comes_back(home, tmp_path, digits1, network):
    made = atomhub.train_classifier(digits1, network, "brief")
    again = atomhub.load_model(atomhub.save_model(made, tmp_path / "net"))
    x = digits1.as_tensors()[0]
    assert torch.allclose(again.model(x), made.model(x))


def test_whitening_comes_along(home, tmp_path):
    distilled = atomhub.distill("digits", 1, "atom", {"iterations": 2, "zca": True})
    made = atomhub.train_classifier(distilled, "mlp:width=16", "brief")
    again = atomhub.load_model(atomhub.save_model(made, tmp_path / "net"))
    picture = distilled.pictures()[7]
    assert torch.equal(again.transform(picture), distilled.test_transform()(picture))
    assert again.predict(picture) == made.predict(picture)


def test_the_model_card_says_what_was_measured(classifier, tmp_path):
    card = ModelCard.load(atomhub.save_model(classifier, tmp_path / "net") / "README.md")
    (result,) = card.data.eval_results
    measured = classifier.config.result.score.mean
    assert result.metric_value == measured
    assert f"{measured:.1f} % of the 360 real test images" in card.text
    assert "lenet" not in card.text
    assert card.data.pipeline_tag == "image-classification"


def test_published_in_one_commit_and_loaded_from_the_hub(hub, classifier, digits1, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    assert atomhub.push_model(classifier, "alice/net") == f"{hub.url}/alice/net"
    repo = hub.repos["models:alice/net"]
    assert len(repo.commits) == 2  # the empty repository, and all files
    assert {"model.safetensors", "atomhub.json", "README.md"} <= set(hub.files("models:alice/net"))
    assert b'load_model("alice/net")' in hub.files("models:alice/net")["README.md"]
    again = atomhub.load_model("alice/net")
    assert again.predict(digits1.pictures()[1]) == classifier.predict(digits1.pictures()[1])
    edited = hub.files("models:alice/net")["README.md"] + b"\n## Thanks\n\nTo my cat.\n"
    repo.commit("words", hub.files("models:alice/net") | {"README.md": edited})
    atomhub.push_model(classifier, "alice/net")  # publishing again keeps what its owner wrote
    assert b"To my cat." in hub.files("models:alice/net")["README.md"]
    hub.down = True
    with pytest.warns(AtomhubWarning, match="Using what was downloaded before"):
        assert atomhub.load_model("alice/net").config == classifier.config


def test_a_set_from_the_hub_is_linked_from_the_card(hub, home, digits1, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    digits1.push_to_hub("alice/digits1")
    made = atomhub.train_classifier(atomhub.load("alice/digits1"), "mlp:width=8", "brief")
    assert "datasets:\n- alice/digits1" in made.card
    assert made.config.trained_on == "alice/digits1"


def test_a_repository_of_something_else_is_left_alone(hub, classifier, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    hub.add("models:alice/other", {"weights.bin": b"x"})
    with pytest.raises(AtomhubError, match="alice/other was not published by atomhub: it holds weights.bin"):
        atomhub.push_model(classifier, "alice/other")
    assert list(hub.files("models:alice/other")) == ["weights.bin"]
    with pytest.raises(NotFoundError, match="alice/other is not a network trained by atomhub"):
        atomhub.load_model("alice/other")
    with pytest.raises(AtomhubError, match="belongs to another account"):
        atomhub.push_model(classifier, "bob/net")
    with pytest.raises(NotFoundError, match="no repository 'alice/none'"):
        atomhub.load_model("alice/none")


def test_a_file_that_is_too_large_is_not_fetched(hub, classifier, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    atomhub.push_model(classifier, "alice/net")
    monkeypatch.setitem(models._SIZES, "model.safetensors", range(101))
    with pytest.raises(IntegrityError, match="model.safetensors has .* bytes, and may have 100"):
        atomhub.load_model("alice/net")
    assert "alice/net/model.safetensors" not in "".join(hub.downloads)


def change(folder, **fields):
    config = json.loads((folder / "atomhub.json").read_text())
    (folder / "atomhub.json").write_text(json.dumps(config | fields))


@pytest.mark.parametrize(
    ("harm", "error", "message"),
    [
        (lambda f: (f / "atomhub.json").unlink(), NotFoundError, "it has no atomhub.json"),
        (lambda f: (f / "model.safetensors").unlink(), NotFoundError, "it has no model.safetensors"),
        (lambda f: (f / "atomhub.json").write_text("{"), IntegrityError, "not a valid config"),
        (lambda f: change(f, network="convnet"), IntegrityError, "weights of convnet.*parameters, not"),
        (lambda f: change(f, std=[0.0]), IntegrityError, "not a valid config: Input should be greater"),
        (lambda f: change(f, mean=[0.1, 0.2, 0.3]), IntegrityError, "not a valid config"),
        (lambda f: change(f, class_names=["a"] * 10), IntegrityError, "class names must differ"),
        (
            lambda f: change(f, network="convnet:width=2048,depth=4,pooling=none", size=512),
            IntegrityError,
            "parameters, not",
        ),
        (lambda f: change(f, network="my-own"), UsageError, "no network 'my-own'"),
        (lambda f: change(f, whitening="zca"), IntegrityError, "does not hold the weights"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\x80\x04}"), IntegrityError, "does not hold the weights"),
        (lambda f: poison(f / "model.safetensors"), IntegrityError, "some weights are not finite"),
    ],
)
def test_damaged_networks_are_refused(_saved, tmp_path, harm, error, message):
    folder = shutil.copytree(_saved[1], tmp_path / "net")
    harm(folder)
    with pytest.raises(error, match=message):
        atomhub.load_model(folder)


def poison(path):
    tensors = load_file(path)
    next(iter(tensors.values())).flatten()[0] = float("nan")
    save_file(tensors, path)


def test_a_folder_of_another_model_is_never_replaced(classifier, tmp_path):
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text("{}")
    with pytest.raises(AtomhubError, match="was not written by this command, so it is not replaced"):
        atomhub.save_model(classifier, tmp_path / "bert", overwrite=True)
    assert (tmp_path / "bert" / "config.json").exists()


def test_a_picture_may_be_a_file(classifier, tmp_path, digits1):
    digits1.pictures()[4].save(tmp_path / "four.png")
    assert classifier.predict(tmp_path / "four.png") == classifier.predict(digits1.pictures()[4])


def test_a_large_photo_is_seen_as_training_images_are(classifier, tmp_path):
    """Which decode a JPEG near their size: from a file, or a picture that is not decoded yet."""
    noise = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((600, 600)).save(tmp_path / "large.jpg")
    file, picture = tmp_path / "large.jpg", Image.open(tmp_path / "large.jpg")
    seen = classifier.transform(Image.open(file))
    assert classifier.predict(file) == classifier.predict(picture)
    decoded = Image.open(file)
    decoded.load()
    assert not torch.equal(seen, classifier.transform(decoded))  # so that this tests something


@pytest.mark.parametrize("mode", ["F", "I"])
def test_a_picture_without_a_known_range_is_refused(classifier, digits1, mode):
    picture = digits1.pictures()[3].convert(mode)
    for refused in (classifier.predict, digits1.test_transform()):
        with pytest.raises(UsageError, match=f"Cannot use the picture: pixels of mode {mode} .* have no known range"):
            refused(picture)
    with pytest.raises(UsageError, match="A picture cannot be of type ndarray here"):
        digits1.test_transform()(np.zeros((8, 8), dtype=np.uint8))


def test_a_name_is_no_model_to_measure(digits1):
    with pytest.raises(UsageError, match="The model cannot be of type str"):
        atomhub.accuracy("lenet", digits1)


class Flat(torch.nn.Module):
    """Gives outputs of a shape that a test chooses."""

    def __init__(self, *shape):
        super().__init__()
        self.shape = shape
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, images):
        return torch.zeros(len(images), *self.shape) * self.weight


@pytest.mark.parametrize("shape", [(), (10, 1, 1), (1000,)])
def test_accuracy_needs_a_logit_for_every_class(home, digits1, shape):
    with pytest.raises(UsageError, match="images of 10 classes, not"):
        atomhub.accuracy(Flat(*shape), digits1)


def test_accuracy_leaves_the_model_in_its_mode_and_refuses_nan(home, digits1):
    model = Flat(10)
    assert model.training
    atomhub.accuracy(model, digits1)
    assert model.training
    with torch.no_grad():
        model.weight.fill_(float("nan"))
    with pytest.raises(AtomhubError, match="gives values that are not finite"):
        atomhub.accuracy(model, digits1)


def test_what_cannot_be_kept_or_trained_is_refused(home, digits1):
    with pytest.raises(UsageError, match="(?s)built again by its name.*atomhub.train"):
        atomhub.train_classifier(digits1, Flat)
    frozen = Flat(10).requires_grad_(False)
    for model in (frozen, torch.nn.Flatten()):
        with pytest.raises(UsageError, match="has nothing to train"):
            atomhub.train(model, digits1, "brief")


def test_lazy_layers_are_made_on_the_way(home, digits1):
    model = torch.nn.Sequential(torch.nn.LazyConv2d(4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(),
                                torch.nn.LazyLinear(10))  # fmt: skip
    assert atomhub.accuracy(atomhub.train(model, digits1, "brief"), digits1) > 20


def test_there_is_no_such_network(home):
    with pytest.raises(NotFoundError, match="(?s)no network 'nothing' on this machine.*user/name"):
        atomhub.load_model("nothing")
