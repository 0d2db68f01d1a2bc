"""Sets that are distilled under other networks than ConvNets: by name, from a function, from given weights."""

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import nn

import atomhub
from atomhub import Recipe
from atomhub.cli.main import cli
from atomhub.errors import UsageError
from atomhub.training.nets import InputSpec, lenet
from atomhub.training.networks import find_network
from atomhub.training.protocols import PROTOCOLS, Protocol

FIELDS = {"iterations": 3, "real_batch": 8, "norm": "batch"}


def distil(matcher="lenet", recipe="atom", **options):
    given = {key: options.pop(key) for key in ("bank", "bank_epochs", "weights", "spatial") if key in options}
    named = {"matcher": matcher} if isinstance(matcher, str) else {}
    function = {} if named else {"matcher": matcher}
    return atomhub.distill("digits", 1, recipe, FIELDS | named | given, **function, **options)


def small_net():
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(inplace=True)),
        *(nn.Flatten(), nn.Linear(8 * 16, 10)),
    )


def test_a_set_says_what_it_was_matched_under_and_is_measured_under_it(home, caplog):
    caplog.set_level("INFO", "atomhub")
    arguments = ["distill", "digits", "--ipc", "1", "--recipe", "atom", "--set", "matcher=vgg11", "--iterations", "2"]
    CliRunner().invoke(cli, [*arguments, "--set", "real_batch=2"], catch_exceptions=False)
    assert "in 10 classes become 1 for each class under vgg11:norm=instance." in caplog.text
    one = atomhub.load("digits-ipc1")
    assert one.manifest.provenance.recipe.matcher == "vgg11:norm=instance"
    assert one.manifest.results.network == "vgg11:norm=instance"
    assert "--set matcher=vgg11" in one.manifest.provenance.command
    assert "vgg11" in (one.path / "README.md").read_text(encoding="utf-8")


def test_a_run_is_repeated_and_continued_to_the_bit(home, tmp_path, stop_at):
    whole = distil()
    with pytest.raises(KeyboardInterrupt):
        distil(progress=stop_at(2), checkpoints=tmp_path / "runs", checkpoint_every=1)
    assert torch.equal(distil(checkpoints=tmp_path / "runs", resume=True).images, whole.images)
    assert not torch.equal(distil(seed=1).images, whole.images)


def test_a_function_makes_the_networks(home):
    one = distil(small_net)
    assert one.manifest.provenance.recipe.matcher == "small_net()"
    assert one.manifest.results.network == "convnet:norm=batch"  # a network that everybody has
    assert not torch.equal(one.images, distil().images)


def test_a_bank_of_them_is_trained_once_and_calibrates(home, caplog):
    caplog.set_level("INFO", "atomhub")
    one = distil(recipe="dance", bank=1, bank_epochs=1)
    kept = sorted((home / "banks").iterdir())
    assert len(kept) == 1
    assert torch.equal(distil(recipe="dance", bank=1, bank_epochs=1).images, one.images)
    assert sorted((home / "banks").iterdir()) == kept
    distil(small_net, recipe="dance", bank=1, bank_epochs=1)
    assert len(list((home / "banks").iterdir())) == 2
    assert ["1 of 1 networks to train first" in line for line in caplog.messages] == [True, False, True]


def test_gradients_are_matched_under_the_networks_of_other_recipes(home, tmp_path, stop_at):
    fields = {"bank": 1, "bank_epochs": 1, "iterations": 3, "real_batch": 8, "width": 8}
    atomhub.distill("digits", 1, "dance", fields)
    whole = atomhub.distill("digits", 1, "idc", fields)
    assert len(list((home / "banks").iterdir())) == 1
    assert whole.manifest.provenance.recipe.gradient == 1
    assert whole.manifest.results.network == "convnet:width=8,depth=2,norm=instance"
    with pytest.raises(KeyboardInterrupt):
        atomhub.distill(
            "digits", 1, "idc", fields, progress=stop_at(2), checkpoints=tmp_path / "runs", checkpoint_every=1
        )  # fmt: skip
    again = atomhub.distill("digits", 1, "idc", fields, checkpoints=tmp_path / "runs", resume=True)
    assert torch.equal(again.images, whole.images)


ONE = small_net()


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda: 3, "gives int"),
        (ONE, "The matcher cannot be of type Sequential"),
        (lambda: ONE, "gives the same network every time"),
        (lambda: nn.Linear(3, 3), "cannot take images of 1x16x16"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(256, 7)), r"gives \(1, 7\)"),
    ],
)
def test_a_function_is_asked_for_a_new_network_that_fits(home, function, message):
    with pytest.raises(UsageError, match=message):
        distil(function, spatial=0)
    with pytest.raises(UsageError, match=r"(?s)The matcher cannot be of type str.*overrides=\{'matcher'"):
        atomhub.distill("digits", 1, "atom", matcher="resnet18")


class TestWeights:
    @pytest.fixture
    def weights(self, tmp_path):
        """Of a LeNet that knows seven classes of something else."""
        torch.manual_seed(0)
        path = tmp_path / "lenet.safetensors"
        save_file(lenet(InputSpec(1, 7, 16)).state_dict(), path)
        return path

    def test_every_network_has_them(self, home, weights):
        one = distil(weights=str(weights))
        assert not torch.equal(one.images, distil().images)
        assert one.manifest.provenance.recipe.weights.startswith("lenet.safetensors sha256:")
        state = lenet(InputSpec(1, 10, 16)).state_dict()
        save_file(state, weights)
        assert not torch.equal(distil(weights=str(weights)).images, one.images)

    def test_they_may_be_those_of_a_network_that_calls_itself_model(self, home, tmp_path, recwarn):
        class Wrapped(nn.Module):
            def __init__(self):
                super().__init__()
                self.model = small_net()

            def forward(self, images):
                return self.model(images)

        torch.manual_seed(1)
        save_file(Wrapped().state_dict(), tmp_path / "mine.safetensors")
        fields = {"weights": str(tmp_path / "mine.safetensors"), "iterations": 1, "real_batch": 8, "spatial": 0}
        one = atomhub.distill("digits", 1, "atom", fields, matcher=Wrapped)
        assert one.manifest.provenance.recipe.matcher == "Wrapped()"

    def test_those_of_another_network_are_refused(self, home, weights):
        with pytest.raises(UsageError, match=r"are not those of this network: 0.weight has the shape \(6, 1, 5, 5\)"):
            distil(weights=str(weights), matcher="resnet18")
        save_file({"0.weight": torch.zeros(6, 1, 5, 5, dtype=torch.bfloat16)}, weights)
        with pytest.raises(UsageError, match=r"are not those of this network: 0.bias is missing"):
            distil(weights=str(weights))

    def test_a_probe_learns_from_a_set_made_for_it(self, home, tmp_path, monkeypatch, run):
        """Digits by the features of a LeNet that knows something else of digits."""
        monkeypatch.chdir(tmp_path)
        monkeypatch.setitem(PROTOCOLS, "quick", Protocol(120, 256, "test"))
        known = atomhub.train_classifier(atomhub.load("digits-ipc10"), "lenet", "quick").model
        save_file(known.state_dict(), "lenet.safetensors")
        fields = {"matcher": "lenet", "weights": "lenet.safetensors", "iterations": 40, "real_batch": 16}
        one = atomhub.distill("digits", 1, "probe", fields)
        assert one.manifest.provenance.recipe.weights.startswith("lenet.safetensors sha256:")
        start = atomhub.distill("digits", 1, "probe", fields | {"iterations": 0})
        probe = "probe/lenet:weights=lenet.safetensors"
        scores = [atomhub.evaluate(s, probe, "quick", 2, baseline=None).score.mean for s in (start, one)]
        assert scores[1] > scores[0] + 3
        assert one.manifest.results.measured[0].network.startswith(f"{probe}@")
        assert "--set weights=lenet.safetensors" in one.manifest.provenance.command
        again = Recipe.named(one.manifest.provenance.recipe.name, {**one.manifest.provenance.recipe.model_dump()})
        assert torch.equal(atomhub.distill("digits", 1, again).images, one.images)
        (tmp_path / "sub").mkdir()
        (tmp_path / "lenet.safetensors").rename(tmp_path / "sub" / "lenet.safetensors")
        one.save(tmp_path / "one")
        there = ["--network", "probe/lenet:weights=sub/lenet.safetensors", "--protocol", "quick", "--output", "kept"]
        assert run("train", str(tmp_path / "one"), *there)[0] == 0
        (tmp_path / "sub" / "lenet.safetensors").unlink()
        assert atomhub.accuracy(atomhub.load_model(tmp_path / "kept").model, one) > 30  # it has all of them itself

    def test_running_statistics_come_with_weights(self, home, tmp_path):
        with pytest.raises(UsageError, match=r"The recipe 'probe' has running statistics.*\nSet weights to a"):
            atomhub.distill("digits", 1, "probe", {"matcher": "lenet"})
        state = find_network("resnet18:norm=batch", InputSpec(1, 10, 16)).build().state_dict()
        path = tmp_path / "bare.safetensors"
        save_file({key: value for key, value in state.items() if "running" not in key}, path)
        with pytest.raises(UsageError, match="have no statistics of batch norm: .*running_mean is missing"):
            atomhub.distill("digits", 1, "probe", {"matcher": "resnet18:norm=batch", "weights": str(path)})

    def test_linear_layers_need_another_matcher_than_the_convnet(self, home):
        given = {"matcher": "lenet", "weights": "a.safetensors", "bank": 1}
        with pytest.raises(UsageError, match="running statistics are those of given weights, which a bank trains on"):
            atomhub.distill("digits", 1, "probe", given)
        with pytest.raises(UsageError, match="The matcher cannot be 'probe/lenet:weights=a.safetensors': no gradient"):
            atomhub.distill("digits", 1, "atom", {"matcher": "probe/lenet:weights=a.safetensors"})
        for field, said in (("linear", "linear gradients need"), ("layer", "layer needs")):
            with pytest.raises(UsageError, match=f"{said} another matcher than convnet"):
                atomhub.distill("digits", 1, "atom", {field: 1.0})
        with pytest.raises(UsageError, match="layer tells the classes of an iteration apart"):
            atomhub.distill("digits", 1, "probe", {"weights": "a.safetensors", "classes_per_iteration": 1})

    @pytest.mark.parametrize(
        ("weights", "message"),
        [
            ("nowhere.safetensors", "Cannot read the weights 'nowhere.safetensors'"),
            ("IMAGENET1K_V1", "There are no weights 'IMAGENET1K_V1' of the network 'lenet'"),
        ],
    )
    def test_what_is_not_there_is_said(self, home, weights, message):
        with pytest.raises(UsageError, match=message):
            distil(weights=weights)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["matcher=resnet"], "There is no network 'resnet'"),
        (["matcher=densenet121"], "The network 'densenet121' cannot take images of 16x16"),
        (["matcher=vit"], "has no activations of two resolutions"),
        (["matcher=lenet", "widths=[3,4]"], "lenet has a width and depth of its own"),
        (["weights=a.safetensors"], "weights are those of another matcher"),
    ],
)
def test_what_cannot_be_is_one_sentence(home, settings, message):
    given = [word for setting in settings for word in ("--set", setting)]
    done = CliRunner().invoke(cli, ["distill", "digits", "--ipc", "1", "--recipe", "atom", *given])
    assert done.exit_code
    assert message in " ".join((done.stderr + str(done.exception or "")).split())


def test_rules_of_convnets_are_not_those_of_a_function(home):
    fields = FIELDS | {"gradient": 1.0, "spatial": 0, "channel": 0}
    with pytest.raises(UsageError, match="set statistics=real, or norm=instance"):
        atomhub.distill("digits", 1, "atom", fields)
    one = atomhub.distill("digits", 1, "atom", fields, matcher=small_net)
    assert "--set 'matcher=small_net()'" in one.manifest.provenance.command
