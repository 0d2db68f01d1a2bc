"""The pool: networks trained on real images once per source, kept, and counted in the time of every set."""

import pytest
import torch

import atomhub
from atomhub import Recipe
from atomhub.core.whitening import Normalization

FIELDS = {"width": 8, "norm": "batch", "pool": 2, "pool_epochs": 4, "iterations": 3, "real_batch": 8}


@pytest.fixture
def real(home):
    return atomhub.open_source("digits")


def find(real, **fields):
    recipe = Recipe.named("atom", FIELDS | fields).resolved(1, 16, flip=False).replace(precision="float32")
    return find_pool(real, recipe, Normalization(real.mean, real.std), torch.device("cpu"))


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
    pool = find(real)
    assert len(pool) == 2
    starts = pool.initial["convolutions.0.weight"]
    assert not torch.equal(starts[0], starts[1])
    for member in range(2):
        assert loss(real, pool.trained, member) < 0.7 * loss(real, pool.initial, member)


@pytest.fixture
def trained(monkeypatch):
    """How many networks every training took, in order; the test may stop one."""
    counts, fit = [], training_pool.fit

    def counted(networks, *arguments):
        counts.append(len(networks))
        return fit(networks, *arguments)

    monkeypatch.setattr(training_pool, "fit", counted)
    return counts


def same(pool, other):
    """Whether networks are bit for bit the first ones of another pool."""
    return all(torch.equal(pool.trained[n], other.trained[n][: len(pool)]) for n in pool.trained)


def test_a_network_is_trained_once_per_source_and_kind(real, home, trained):
    first = find(real)
    again = find(real, iterations=7, calibration=0.5, formation=2, spatial=0.0)
    assert sum(trained) == 2
    assert first.seconds == again.seconds > 0
    assert same(first, again)
    more = find(real, pool=3)
    assert sum(trained) == 3
    assert same(first, more)
    find(real, width=4)
    assert sum(trained) == 5
    oldest = min((home / "pools").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    oldest.write_bytes(oldest.read_bytes()[:1000])  # damaged: trained anew, to the same weights
    assert same(first, find(real))
    assert sum(trained) == 6


def test_an_interrupted_pool_goes_on_with_the_next_network(real, trained, monkeypatch):
    whole = find(real, pool_epochs=1)
    with monkeypatch.context() as patch:
        fit, calls = training_pool.fit, []

        def stopped(*arguments):
            calls.append(arguments)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return fit(*arguments)

        patch.setattr(training_pool, "fit", stopped)
        with pytest.raises(KeyboardInterrupt):
            find(real, pool_epochs=2)
    before = sum(trained)
    pool = find(real, pool_epochs=2)
    assert sum(trained) == before + 1
    assert len(pool) == 2
    assert not same(pool, whole)


def test_the_time_of_the_pool_counts_also_when_it_is_there_already(real, monkeypatch):
    pool = find(real, pool=1)
    monkeypatch.setattr(
        training_pool, "_read", lambda key: type(pool)(pool.initial, pool.trained, 1000.0)
    )  # as if its training had taken long
    assert atomhub.distill(real, 1, "atom", FIELDS).manifest.provenance.seconds >= 2000


def test_a_set_of_atom_plus_trains_like_any_other(home):
    plus = atomhub.distill("digits", 1, "atom-plus", {"iterations": 3, "pool": 2, "pool_epochs": 1, "width": 8})
    assert plus.images.shape == (10, 1, 16, 16)
    images, labels = plus.save().as_tensors()
    assert images.shape == (40, 1, 16, 16)
    assert labels.tolist() == [k for k in range(10) for _ in range(4)]
    assert torch.equal(atomhub.load("digits-ipc1").as_tensors()[0], images)


def test_one_network_in_half_precision_learns_as_well(real):
    recipe = Recipe.named("atom", FIELDS | {"pool": 1}).resolved(1, 16, flip=False).replace(precision="bfloat16")
    pool = find_pool(real, recipe, Normalization(real.mean, real.std), torch.device("cpu"))
    assert loss(real, pool.trained, 0) < 0.7 * loss(real, pool.initial, 0)
