"""Linear probes, measured as they usually are: on features that are found once."""

import itertools

import pytest
import torch
from click.testing import CliRunner
from models import tiny
from safetensors.torch import save_file

import atomhub
from atomhub.cli.main import cli
from atomhub.errors import UsageError
from atomhub.training.fit import fastest_group
from atomhub.training.nets import InputSpec
from atomhub.training.networks import find_network
from atomhub.training.probes import Probe
from atomhub.training.protocols import columns

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
    result = atomhub.evaluate(digits1, NAME, "probe", runs=2, baseline=["random", "whole"])
    assert result.baseline["whole"].mean > 80
    assert result.baseline["whole"].mean > result.baseline["random"].mean > 20
    assert result.network == find_network(NAME, InputSpec(1, 10, 16)).spec
    assert sum(seen) <= 20 + 10 + 3 * 10 + 1437 + 360  # to try it, then every image once for all networks


def test_they_are_the_same_alone_and_together(digits1):
    one, all_of_them = (
        atomhub.evaluate(digits1, NAME, "probe", runs=3, together=together).baseline["random"] for together in (1, 3)
    )
    assert one.accuracies == all_of_them.accuracies
    assert len(set(one.accuracies)) > 1


def test_those_of_a_function_may_have_networks_of_their_own(digits1):
    """A function gives other networks every time, so nothing of one is taken for the next."""
    made = itertools.count()

    def other():
        torch.manual_seed(next(made) % 3)
        return Probe(find_network("lenet", InputSpec(1, 10, 16)).build())

    one, all_of_them = (
        atomhub.evaluate(digits1, other, "probe", runs=3, baseline=None, together=together).score for together in (1, 3)
    )
    assert one.accuracies == all_of_them.accuracies
    assert len(set(one.accuracies)) > 1


def test_a_trained_probe_is_ready_for_use(digits1):
    model = atomhub.train(NAME, digits1, "probe")
    assert not any(module.training for module in model.modules())
    images, labels = digits1.as_tensors()
    assert torch.equal(model(images).argmax(1), labels)


def test_probes_of_a_space_are_checked_as_they_are_ranked(digits1, tmp_path):
    space = tmp_path / "space.toml"
    space.write_text('network = "probe/lenet"\n[options]\nweights = ["lenet.safetensors"]\n')
    found = atomhub.search(digits1, space, protocol="probe", check=2, check_epochs=5)
    assert found.checks[0].accuracy > 50


def test_layers_of_many_weights_are_trained_one_by_one():
    """So that a training that is stopped is kept."""
    assert fastest_group(torch.device("cpu"), 256, 10_000) > 1
    assert fastest_group(torch.device("cpu"), 256, 1_000_000) == 1


def test_a_probe_gives_soft_labels(digits1):
    soft = atomhub.soften(digits1, NAME)
    assert soft.manifest.provenance.teacher.epochs == 300
    assert soft.manifest.provenance.teacher.accuracy > 80
    assert (soft.soft_labels.argmax(1) == digits1.as_tensors()[1]).sum() >= 8
    result = atomhub.evaluate(soft, NAME, "probe", runs=2, baseline=None, labels="soft")
    assert result.labels == "soft"


def test_a_set_made_for_probes_says_how_it_is_used():
    given = ["--set", "matcher=lenet", "--set", "weights=lenet.safetensors", "--iterations", "1", "--name", "mine"]
    done = CliRunner().invoke(cli, ["distill", "digits", "--ipc", "1", "--recipe", "probe", *given])
    hint = f"atomhub evaluate mine --protocol probe --network {NAME}"
    assert done.stderr.endswith(f"Measure it with: {hint}\n")
    assert CliRunner().invoke(cli, [*hint.split()[1:], "--runs", "1"]).exit_code == 0
    mine = atomhub.load("mine")
    assert list(columns(mine.manifest.results.measured)) == [f"probe, {mine.manifest.results.measured[0].network}"]
    assert "distilled.loader(batch_size=256, augment=None)" in (mine.path / "README.md").read_text()


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
