"""A bank: networks trained on real images once per source, kept, and counted in the time of every set."""

import pytest
import torch

import atomhub
from atomhub import Recipe
from atomhub.core.whitening import Normalization
from atomhub.job import banks
from atomhub.job.banks import find_bank
from atomhub.training import bank as training_bank

FIELDS = {"width": 8, "norm": "batch", "bank": 2, "bank_epochs": 4, "iterations": 3, "real_batch": 8}


@pytest.fixture
def real(home):
    return atomhub.open_source("digits")


def find(real, **fields):
    recipe = Recipe.named("atom", FIELDS | fields).resolved(1, 16, flip=False).replace(precision="float32")
    return find_bank(real, recipe, Normalization(real.mean, real.std), torch.device("cpu"))


def loss(real, weights, member):
    """Cross-entropy on real test images of a network with these weights, by plain modules."""
    network = torch.nn.Sequential()
    for layer in range(2):
        convolution = torch.nn.Conv2d(1 if layer == 0 else 8, 8, 3, padding=1)
        convolution.load_state_dict(
            {part: weights[f"convolutions.{layer}.{part}"][member] for part in ("weight", "bias")}
        )
        network += torch.nn.Sequential(convolution, torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.AvgPool2d(2))
    head = torch.nn.Linear(8 * 4 * 4, 10)
    head.load_state_dict({part: weights[f"head.{part}"][member] for part in ("weight", "bias")})
    x = (torch.tensor(real.test.images) / 255 - real.mean[0]) / real.std[0]
    return torch.nn.functional.cross_entropy(head(network(x).flatten(1)), torch.tensor(real.test.labels)).item()


def test_every_network_starts_elsewhere_and_learns(real):
    bank = find(real)
    assert len(bank) == 2
    starts = bank.initial["convolutions.0.weight"]
    assert not torch.equal(starts[0], starts[1])
    for member in range(2):
        assert loss(real, bank.trained, member) < 0.7 * loss(real, bank.initial, member)


@pytest.fixture
def trained(monkeypatch):
    """How many networks every training took, in order; the test may stop one."""
    counts, fit = [], training_bank.fit

    def counted(networks, *arguments, **options):
        counts.append(len(networks))
        return fit(networks, *arguments, **options)

    monkeypatch.setattr(training_bank, "fit", counted)
    return counts


@pytest.mark.parametrize(("epochs", "drops"), [(60, (40, 50)), (12, (8, 10)), (3, (2, 3))])
def test_networks_are_trained_by_the_rules_of_dance(real, monkeypatch, epochs, drops):
    """DANCE's code: SGD, a fifth of the rate at 2/3 and 5/6, colour and crop of every image, CutMix."""
    found = {}

    def noted(networks, images, labels, protocol, stages, *_, **__):
        found.update(protocol=protocol, stages=stages)

    monkeypatch.setattr(training_bank, "fit", noted)
    find(real, bank=1, bank_epochs=epochs)
    p = found["protocol"]
    assert (p.epochs, p.batch, p.optimizer, p.lr, p.momentum, p.decay) == (epochs, 64, "sgd", 0.01, 0.9, 5e-4)
    assert (p.drops, p.factor, p.cutmix, p.restart) == (drops, 0.2, 0.5, False)
    assert found["stages"] == (("color",), ("crop",))


def same(bank, other):
    """Whether networks are bit for bit the first ones of another bank."""
    return all(torch.equal(bank.trained[n], other.trained[n][: len(bank)]) for n in bank.trained)


def test_a_network_is_trained_once_per_source_and_kind(real, home, trained):
    first = find(real)
    again = find(real, iterations=7, calibration=0.5, formation=2, spatial=0.0, augmentation=("color", "cutout"))
    assert sum(trained) == 2
    assert first.seconds == again.seconds > 0
    assert same(first, again)
    more = find(real, bank=3)
    assert sum(trained) == 3
    assert same(first, more)
    find(real, width=4)
    assert sum(trained) == 5
    oldest = min((home / "banks").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    oldest.write_bytes(oldest.read_bytes()[:1000])  # damaged: trained anew, to the same weights
    assert same(first, find(real))
    assert sum(trained) == 6


def test_an_interrupted_bank_continues_with_the_next_network(real, trained, monkeypatch):
    whole = find(real, bank_epochs=1)
    with monkeypatch.context() as patch:
        fit, calls = training_bank.fit, []

        def stopped(*arguments, **options):
            calls.append(arguments)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return fit(*arguments, **options)

        patch.setattr(training_bank, "fit", stopped)
        with pytest.raises(KeyboardInterrupt):
            find(real, bank_epochs=2)
    before = sum(trained)
    bank = find(real, bank_epochs=2)
    assert sum(trained) == before + 1
    assert len(bank) == 2
    assert not same(bank, whole)


def test_the_time_of_the_bank_counts_also_when_it_is_there_already(real, monkeypatch):
    bank = find(real, bank=1)
    monkeypatch.setattr(
        banks, "_read", lambda key: type(bank)(bank.initial, bank.trained, 1000.0)
    )  # as if its training had taken long
    assert atomhub.distill(real, 1, "atom", FIELDS).manifest.provenance.seconds >= 2000


@pytest.mark.parametrize("recipe", ["atom", "dance"])
def test_a_set_of_views_from_a_bank_trains_like_any_other(recipe, home):
    plus = atomhub.distill(
        "digits", 1, recipe, {"formation": 2, "iterations": 3, "bank": 2, "bank_epochs": 1, "width": 8}
    )
    assert plus.images.shape == (10, 1, 16, 16)
    images, labels = plus.save().as_tensors()
    assert images.shape == (40, 1, 16, 16)
    assert labels.tolist() == [k for k in range(10) for _ in range(4)]
    assert torch.equal(atomhub.load("digits-ipc1").as_tensors()[0], images)


def test_one_network_in_half_precision_learns_as_well(real):
    recipe = Recipe.named("atom", FIELDS | {"bank": 1}).resolved(1, 16, flip=False).replace(precision="bfloat16")
    bank = find_bank(real, recipe, Normalization(real.mean, real.std), torch.device("cpu"))
    assert loss(real, bank.trained, 0) < 0.7 * loss(real, bank.initial, 0)
