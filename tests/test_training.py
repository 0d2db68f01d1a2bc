"""Training and measuring: protocols as data, honest numbers, baselines under the same rules."""

import json
import shutil

import pytest
import torch

import atomhub
from atomhub.errors import AtomhubError, AtomhubWarning, UsageError
from atomhub.training import trainer
from atomhub.training.evaluation import random_real, summary
from atomhub.training.protocols import PROTOCOLS, Protocol


def tiny():
    """A user's own model."""
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 10))


def test_protocols_are_those_of_the_literature():
    table = {name: (p.epochs, p.batch, p.lr, p.momentum, p.decay, p.factor) for name, p in PROTOCOLS.items()}
    assert table == {
        "dm": (1000, 256, 0.01, 0.9, 5e-4, 0.1),
        "datadam": (1800, 64, 0.01, 0.9, 5e-4, 0.1),
        "mix": (1500, 64, 0.01, 0.9, 5e-4, 0.2),
        "quick": (200, 256, 0.01, 0.9, 5e-4, 0.1),
    }
    assert PROTOCOLS["mix"].cutmix == 0.5
    assert "cutout" not in PROTOCOLS["mix"].augmentation


def test_distilled_digits_beat_as_many_random_real_ones(home):
    distilled = atomhub.distill("digits", 1, overrides={"iterations": 60})
    result = atomhub.evaluate(distilled, protocol="quick", runs=3)
    assert result.score.mean > result.baseline["random"].mean + 5
    assert result.test_images == 360
    assert result.score.runs == len(result.score.accuracies) == 3


def test_the_same_seed_gives_the_same_accuracies_whatever_ran_before(home, digits1):
    first = atomhub.evaluate(digits1, protocol="quick", runs=2)
    torch.rand(7)
    state = torch.get_rng_state()
    second = atomhub.evaluate(digits1, protocol="quick", runs=2, baseline=())
    assert second.score.accuracies == first.score.accuracies
    assert torch.equal(torch.get_rng_state(), state)
    later = atomhub.evaluate(digits1, protocol="quick", runs=1, seed=1, baseline=())
    assert later.score.accuracies[0] == first.score.accuracies[1]


def test_results_are_stored_in_manifest_and_card_and_replaced_when_measured_again(home, digits1):
    saved = digits1.save()
    for runs in (1, 2):
        result = atomhub.evaluate(saved, tiny, "quick", runs=runs)
    again = atomhub.load(saved.name)
    assert again.manifest.results == (result,)
    atomhub.evaluate(again, tiny, "mix", runs=1, baseline=())
    assert [r.protocol for r in atomhub.load(saved.name).manifest.results] == ["quick", "mix"]
    card = (saved.path / "README.md").read_text()
    assert f"**{result.score.mean:.1f} ± {result.score.std:.1f}** | {result.baseline['random'].mean:.1f}" in card
    assert "| tiny | quick |" in card
    assert json.loads((saved.path / "manifest.json").read_text())["results"][0]["score"]["runs"] == 2


def test_fewer_runs_never_take_the_place_of_more(home, digits1):
    saved = digits1.save()
    for runs in (2, 1):
        atomhub.evaluate(saved, tiny, "quick", runs=runs, baseline=None)
    assert [r.score.runs for r in atomhub.load(saved.name).manifest.results] == [2, 1]


def test_a_set_measured_in_memory_keeps_its_results_when_saved(home, digits1):
    result = atomhub.evaluate(digits1, tiny, "quick", runs=1, baseline=None)
    assert atomhub.load(digits1.save().path).manifest.results == (result,)


def test_a_result_is_returned_even_if_it_cannot_be_stored(home, digits1):
    saved = digits1.save()
    shutil.rmtree(saved.path)
    with pytest.warns(AtomhubWarning, match="not stored with the set"):
        assert atomhub.evaluate(saved, tiny, "quick", runs=1, baseline=None).score.runs == 1


def test_a_result_is_never_stored_with_another_set(home, digits1):
    saved = digits1.save()
    atomhub.distill("digits", 1, overrides={"iterations": 1}).save(overwrite=True)
    with pytest.warns(AtomhubWarning, match="Another set lies in"):
        atomhub.evaluate(saved, tiny, "quick", runs=1, baseline=None)
    assert atomhub.load(saved.name).manifest.results == ()


def test_a_float_set_is_measured_rounded_to_8_bits_as_well(home):
    overrides = {"iterations": 3, "pixels": "float32"}
    saved = atomhub.distill("digits", 1, overrides=overrides).save()
    assert "not measured yet" in (saved.path / "README.md").read_text()
    result = atomhub.evaluate(saved, tiny, "quick", runs=1, baseline=None)
    change = f"{result.baseline['rounded'].mean - result.score.mean:+.1f} points."
    assert change in (saved.path / "README.md").read_text()
    assert abs(result.baseline["rounded"].mean - result.score.mean) < 10


def test_a_nameless_network_is_called_by_its_class(home, digits1):
    assert atomhub.evaluate(digits1, lambda: tiny(), "quick", runs=1, baseline=None).network == "Sequential"


def test_the_whole_training_set_is_a_baseline_too(home, digits1, monkeypatch):
    monkeypatch.setitem(PROTOCOLS, "brief", Protocol(3, 256, "test"))
    result = atomhub.evaluate(digits1, tiny, "brief", runs=1, baseline=("random", "whole"))
    assert result.baseline["whole"].mean > result.baseline["random"].mean


def test_random_real_images_differ_by_seed_and_keep_their_class(home, digits1):
    real = atomhub.open_source("digits")
    images, labels = random_real(digits1, real, 0)
    assert labels.tolist() == list(range(10))
    assert not torch.equal(images, random_real(digits1, real, 1)[0])
    training = {tuple(i.flatten().tolist()) for i in digits1.normalize(torch.tensor(real.train.images[:]))}
    assert {tuple(i.flatten().tolist()) for i in images} <= training


def test_accuracy_is_a_percentage_of_right_answers(digits1):
    images = torch.zeros(8, 1, 16, 16, dtype=torch.uint8)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 10))
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].bias.copy_(torch.eye(10)[3])  # always answers 3
    labels = torch.tensor([3, 3, 3, 3, 3, 3, 1, 2])
    assert trainer.accuracy(model, images, labels, digits1.normalization, torch.device("cpu")) == 75


def test_spread_is_the_sample_standard_deviation():
    assert summary([90.0, 94.0], 1.0).std == pytest.approx(2.8284, abs=1e-4)
    assert summary([90.0], 1.0).std == 0


class Recorder(torch.nn.Module):
    """Keeps the batches it was given, and answers with its bias."""

    def __init__(self):
        super().__init__()
        self.bias = torch.nn.Parameter(torch.zeros(10))
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.batches = []

    def forward(self, images):
        self.batches.append(images.detach().clone())
        return self.bias.expand(len(images), 10) * self.weight


def test_each_network_differs_and_baselines_are_paired_with_the_set(home, digits1):
    made = []

    def network():
        made.append(tiny())
        return made[-1]

    weights = []
    plain = trainer.fit

    def fit(model, *arguments):
        weights.append(model[1].weight.detach().clone())
        plain(model, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("atomhub.training.evaluation.fit", fit)
        atomhub.evaluate(digits1, network, "quick", runs=2)
    assert torch.equal(weights[0], weights[2])
    assert torch.equal(weights[1], weights[3])
    assert not torch.equal(weights[0], weights[1])


def test_training_batches_are_augmented_and_mixed_as_the_protocol_says():
    images, labels = torch.rand(8, 1, 16, 16) + 1, torch.arange(8)
    for operations, cutmix, changed in (((), 0.0, False), (("cutout",), 0.0, True), ((), 1.0, True)):
        model = Recorder()
        torch.manual_seed(0)
        trainer.fit(model, images, labels, Protocol(1, 8, "test", cutmix=cutmix), operations, 10)
        (batch,) = model.batches
        same = {tuple(i.flatten().tolist()) for i in batch} == {tuple(i.flatten().tolist()) for i in images}
        assert same != changed


def test_momentum_and_weight_decay_are_those_of_the_protocol():
    def trained(**rules):
        model = Recorder()
        with torch.no_grad():
            model.bias.copy_(torch.arange(10.0))
        trainer.fit(model, torch.zeros(8, 1, 4, 4), torch.arange(8), Protocol(3, 8, "test", lr=0.1, **rules), (), 10)
        return model.bias.detach()

    bias = torch.arange(10.0).requires_grad_()
    weight = torch.ones((), requires_grad=True)
    velocity = [torch.zeros(10), torch.zeros(())]
    for epoch in range(3):  # written out: SGD with momentum 0.9, decay 5e-4, the rate dropped after half the epochs
        loss = torch.nn.functional.cross_entropy((bias * weight).expand(8, 10), torch.arange(8))
        gradients = torch.autograd.grad(loss, (bias, weight))
        with torch.no_grad():
            for i, (p, g) in enumerate(zip((bias, weight), gradients, strict=True)):
                velocity[i] = 0.9 * velocity[i] + g + 5e-4 * p
                p -= (0.1 if epoch < 2 else 0.01) * velocity[i]
    assert torch.allclose(trained(), bias, atol=1e-6)
    assert not torch.allclose(trained(momentum=0.0), bias, atol=1e-6)
    assert not torch.allclose(trained(decay=0.1), bias, atol=1e-6)


def test_digits_are_not_mirrored_while_measuring(home, digits1, monkeypatch):
    monkeypatch.setitem(PROTOCOLS, "mirror", Protocol(2, 256, "test", augmentation=("flip",)))
    models = []

    def network():
        models.append(Recorder())
        return models[-1]

    atomhub.evaluate(digits1, network, "mirror", runs=1, baseline=None)
    plain = {tuple(i.flatten().tolist()) for i in digits1.as_tensors()[0]}
    assert {tuple(i.flatten().tolist()) for i in models[0].batches[0]} == plain


def test_the_learning_rate_drops_where_the_protocol_says(monkeypatch):
    rates = []
    step = torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: (rates.append(self.param_groups[0]["lr"]), step(self)))
    rules = Protocol(6, 8, "test", lr=1.0, drops=(1 / 2, 5 / 6), factor=0.1)
    trainer.fit(tiny(), torch.randn(8, 1, 16, 16), torch.arange(8), rules, (), 10)
    assert rates == pytest.approx([1, 1, 1, 0.1, 0.1, 0.01])


def test_a_training_loss_that_is_not_finite_names_the_epoch():
    with pytest.raises(AtomhubError, match="training loss is nan in epoch 1 of 2"):
        trainer.fit(tiny(), torch.full((4, 1, 16, 16), float("nan")), torch.arange(4), Protocol(2, 4, "test"), (), 10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"network": "covnet"}, "(?s)no network 'covnet'.*'convnet'"),
        ({"protocol": "dn"}, "(?s)no protocol 'dn'.*dm"),
        ({"runs": 0}, "runs cannot be 0"),
        ({"baseline": ("herd",)}, "no baseline 'herd'"),
        ({"network": torch.nn.Linear(1, 1)}, "(?s)network cannot be Linear.*returns a new model"),
    ],
)
def test_impossible_arguments(digits1, arguments, message):
    with pytest.raises(UsageError, match=message):
        atomhub.evaluate(digits1, **arguments)


def test_a_source_without_a_test_split_cannot_be_measured_on(home, photos):
    (photos / "test").rename(photos.parent / "other")
    distilled = atomhub.distill(
        photos, 1, overrides={"iterations": 1, "width": 4}, train_split="train", test_fraction=0
    )
    with pytest.raises(AtomhubError, match="(?s)has no test split.*--test-fraction"):
        atomhub.evaluate(distilled, protocol="quick", runs=1)
