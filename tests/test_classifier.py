"""Networks trained on a set: kept, published, and given back ready for pictures."""

import json
import shutil

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

import atomhub
from atomhub.errors import AtomhubError, IntegrityError, NotFoundError, UsageError
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
    return made, made.save(tmp_path_factory.mktemp("model") / "net")


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
    found = classifier.predict(digits1.pil(3).convert("RGBA").resize((40, 30)))
    assert set(found) == set(digits1.class_names)
    assert sum(found.values()) == pytest.approx(1, abs=1e-5)
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert next(iter(classifier.predict(digits1.pil(3)))) == "3"
    assert classifier.config.result.score.mean == pytest.approx(atomhub.accuracy(classifier.model, digits1), abs=1e-3)


def test_saved_and_loaded_it_is_the_same(classifier, tmp_path, digits1):
    folder = classifier.save(tmp_path / "net")
    again = atomhub.load_model(folder)
    x = digits1.as_tensors()[0]
    assert torch.equal(again.model(x), classifier.model(x))
    assert again.config == classifier.config
    assert again.predict(digits1.pil(0)) == classifier.predict(digits1.pil(0))
    with pytest.raises(AtomhubError, match="already exists"):
        classifier.save(folder)
    classifier.save(folder, overwrite=True)


@pytest.mark.parametrize("network", ["convnet:width=8,norm=batch", "vit:width=32,depth=1,heads=2,hidden=32"])
def test_every_kind_of_network_comes_back(home, tmp_path, digits1, network):
    made = atomhub.train_classifier(digits1, network, "brief")
    again = atomhub.load_model(made.save(tmp_path / "net"))
    x = digits1.as_tensors()[0]
    assert torch.allclose(again.model(x), made.model(x))


def test_whitening_comes_along(home, tmp_path):
    distilled = atomhub.distill("digits", 1, overrides={"iterations": 2, "zca": True})
    made = atomhub.train_classifier(distilled, "mlp:width=16", "brief")
    again = atomhub.load_model(made.save(tmp_path / "net"))
    picture = distilled.pil(7)
    assert torch.equal(again.transform(picture), distilled.test_transform()(picture))
    assert again.predict(picture) == made.predict(picture)


def test_the_model_card_says_what_was_measured(classifier, tmp_path):
    card = ModelCard.load(classifier.save(tmp_path / "net") / "README.md")
    (result,) = card.data.eval_results
    measured = classifier.config.result.score.mean
    assert result.metric_value == measured
    assert f"{measured:.1f} % of the 360 real test images" in card.text
    assert "lenet" not in card.text
    assert card.data.pipeline_tag == "image-classification"


def test_published_in_one_commit_and_loaded_from_the_hub(hub, classifier, digits1, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    assert classifier.push_to_hub("alice/net") == f"{hub.url}/alice/net"
    repo = hub.repos["models:alice/net"]
    assert len(repo.commits) == 2  # the empty repository, and all files
    assert {"model.safetensors", "config.json", "README.md"} <= set(hub.files("models:alice/net"))
    assert b'load_model("alice/net")' in hub.files("models:alice/net")["README.md"]
    again = atomhub.load_model("alice/net")
    assert again.predict(digits1.pil(1)) == classifier.predict(digits1.pil(1))
    classifier.push_to_hub("alice/net")  # publishing again is fine


def test_a_set_from_the_hub_is_linked_from_the_card(hub, home, digits1, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    digits1.push_to_hub("alice/digits1")
    made = atomhub.train_classifier(atomhub.load("alice/digits1"), "mlp:width=8", "brief")
    assert "datasets:\n- alice/digits1" in made.card
    assert made.config.trained_on == "alice/digits1"


def test_a_repository_of_something_else_is_left_alone(hub, classifier, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    hub.add("models:alice/other", {"weights.bin": b"x"})
    with pytest.raises(AtomhubError, match="alice/other is not a network trained by atomhub: it holds weights.bin"):
        classifier.push_to_hub("alice/other")
    assert list(hub.files("models:alice/other")) == ["weights.bin"]
    with pytest.raises(NotFoundError, match="alice/other is not a network trained by atomhub"):
        atomhub.load_model("alice/other")
    with pytest.raises(AtomhubError, match="belongs to another account"):
        classifier.push_to_hub("bob/net")
    with pytest.raises(NotFoundError, match="no repository 'alice/none'"):
        atomhub.load_model("alice/none")


def test_a_file_that_is_too_large_is_not_fetched(hub, classifier, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    classifier.push_to_hub("alice/net")
    monkeypatch.setitem(models._LARGEST, "model.safetensors", 100)
    with pytest.raises(IntegrityError, match="model.safetensors has .* more than it may"):
        atomhub.load_model("alice/net")
    assert "alice/net/model.safetensors" not in "".join(hub.downloads)


def change(folder, **fields):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


@pytest.mark.parametrize(
    ("harm", "error", "message"),
    [
        (lambda f: (f / "config.json").unlink(), NotFoundError, "it has no config.json"),
        (lambda f: (f / "model.safetensors").unlink(), NotFoundError, "it has no model.safetensors"),
        (lambda f: (f / "config.json").write_text("{"), IntegrityError, "not a valid config"),
        (lambda f: change(f, network="convnet"), IntegrityError, "does not hold the weights of convnet"),
        (lambda f: change(f, network="my-own"), UsageError, "no network 'my-own'"),
        (lambda f: change(f, zca=True), IntegrityError, "does not hold the weights"),
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


def test_there_is_no_such_network(home):
    with pytest.raises(NotFoundError, match="(?s)no network 'nothing' on this machine.*user/name"):
        atomhub.load_model("nothing")
