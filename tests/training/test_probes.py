"""Linear probes, measured as they usually are: on features that are found once."""

import pytest
import torch
from models import tiny
from safetensors.torch import save_file

import atomhub
from atomhub.errors import UsageError
from atomhub.training.nets import InputSpec
from atomhub.training.networks import find_network

NAME = "probe/lenet:weights=lenet.safetensors"


@pytest.fixture(autouse=True)
def weights(home, tmp_path, monkeypatch):
    """Of a LeNet as it was drawn, whose features of digits are not bad."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(1)
    save_file(find_network("lenet", InputSpec(1, 10, 16)).build().state_dict(), "lenet.safetensors")


@pytest.fixture
def seen(monkeypatch):
    """Images that networks were given, a number for every time."""
    counts, forward = [], torch.nn.Sequential.forward

    def counted(self, x):
        counts.append(len(x) * (x.shape[-1] == 16))
        return forward(self, x)

    monkeypatch.setattr(torch.nn.Sequential, "forward", counted)
    return counts


def test_networks_learn_from_features_that_are_found_once(digits1, seen):
    result = atomhub.evaluate(digits1, NAME, "probe", runs=3, baseline=["random", "whole"])
    assert result.baseline["whole"].mean > 80
    assert result.baseline["whole"].mean > result.baseline["random"].mean > 20
    assert result.network == find_network(NAME, InputSpec(1, 10, 16)).spec
    tried, tested = 10, 9 * 360
    assert sum(seen) - tested <= tried + 10 + 3 * 10 + 1437  # the set and all real images once for three networks


def test_they_are_the_same_alone_and_together(digits1):
    one, all_of_them = (
        atomhub.evaluate(digits1, NAME, "probe", runs=2, baseline=None, together=together) for together in (1, 2)
    )
    assert one.score.accuracies == all_of_them.score.accuracies


def test_a_probe_gives_soft_labels(digits1):
    soft = atomhub.soften(digits1, NAME)
    assert soft.manifest.provenance.teacher.epochs == 300
    assert soft.manifest.provenance.teacher.accuracy > 80
    assert (soft.soft_labels.argmax(1) == digits1.as_tensors()[1]).sum() >= 8
    result = atomhub.evaluate(soft, NAME, "probe", runs=2, baseline=None, labels="soft")
    assert result.labels == "soft"


def test_other_networks_are_refused_before_the_work(digits1):
    for ask in (
        lambda: atomhub.evaluate(digits1, "lenet", "probe"),
        lambda: atomhub.evaluate(digits1, None, "probe"),
        lambda: atomhub.train("lenet", digits1, "probe"),
        lambda: atomhub.search(digits1, protocol="probe"),
    ):
        with pytest.raises(UsageError, match="(?s)is for linear probes, not for '(lenet|convnet:.*)'.*weights=FILE"):
            ask()
    with pytest.raises(UsageError, match="is for linear probes, not for a Sequential"):
        atomhub.evaluate(digits1, tiny, "probe", runs=1)
