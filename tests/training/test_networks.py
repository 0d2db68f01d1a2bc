"""Networks by name: the sizes of the literature, options, torchvision's, and what does not fit."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file

import atomhub
from atomhub.errors import AtomhubError, UsageError
from atomhub.training.nets import NETWORKS, InputSpec
from atomhub.training.networks import find_network, torchvision_names

CIFAR = InputSpec(3, 10, 32)


@pytest.mark.parametrize(
    ("spec", "size", "parameters"),
    [
        ("convnet", 32, 320_010),
        ("convnet", 64, 128 * 27 + 128 + 3 * (128 * 128 * 9 + 128) + 4 * 256 + 128 * 16 * 10 + 10),
        ("mlp", 32, 411_146),
        ("lenet", 32, 62_006),
        ("alexnet", 32, 1_872_202),
        ("vgg11", 32, 9_231_114),
        ("resnet18:norm=batch", 32, 11_173_962),
        ("resnet18:norm=batch", 64, 11_173_962),
        (
            "vit",
            32,
            6 * (4 * 512**2 + 2 * 512**2 + 4 * 512 + 512 + 512 + 4 * 512) + 48 * 512 + 67 * 512 + 2 * 512 + 5130,
        ),
        ("torchvision/resnet18", 32, 11_181_642),
    ],
)
def test_sizes_are_those_of_the_literature(spec, size, parameters):
    assert find_network(spec, InputSpec(3, 10, size)).parameters() == parameters


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    "images", [InputSpec(1, 10, 16), InputSpec(1, 10, 28), InputSpec(3, 7, 32), InputSpec(3, 200, 64)]
)
def test_every_network_takes_every_usual_size(name, images):
    network = find_network(name, images)
    with torch.no_grad():
        found = network.build().eval()(torch.randn(2, images.channels, images.size, images.size))
    assert found.shape == (2, images.classes)


def test_what_a_set_says_never_stands_in_the_way_of_another_network():
    assert find_network("resnet18", CIFAR, "convnet:norm=group").spec == "resnet18:norm=instance"
    assert find_network("mlp", CIFAR, "mynet:a").spec == "mlp:width=128"
    with pytest.raises(UsageError, match="cannot be read at 'a'"):
        find_network(None, CIFAR, "mynet:a")


def test_the_network_of_a_set_says_what_the_spec_does_not():
    usual = "convnet:width=32,depth=2,norm=batch"
    assert find_network(None, CIFAR, usual).spec == usual
    assert find_network("convnet", CIFAR, usual).spec == "convnet:width=32,depth=2,norm=batch"
    assert find_network("convnet:width=64", CIFAR, usual).spec == "convnet:width=64,depth=2,norm=batch"
    assert find_network("resnet18", CIFAR, usual).spec == "resnet18:norm=batch"


@pytest.mark.parametrize(
    "spec",
    [
        "convnet:width=8,depth=2,norm=layer,activation=leakyrelu,pooling=max",
        "vit:width=64,depth=2,heads=4,dropout=0.0",
        "mlp:width=16",
        "alexnet",
        "torchvision/squeezenet1_1",
    ],
)
def test_a_spec_is_read_back_as_it_was(spec):
    first = find_network(spec, CIFAR)
    again = find_network(first.spec, CIFAR, "convnet:width=3,norm=none")
    assert (again.spec, again.parameters()) == (first.spec, first.parameters())


def test_torchvision_classifiers_go_by_their_names_and_take_grey_images():
    assert {"resnet50", "mobilenet_v3_small", "vit_b_16", "regnet_x_400mf"} <= set(torchvision_names())
    for name in ("squeezenet1_1", "regnet_x_400mf", "googlenet"):
        model = find_network(name, InputSpec(1, 7, 32)).build().train()
        output = model(torch.randn(2, 1, 32, 32))
        assert output.shape == (2, 7)


def test_models_of_timm_have_a_prefix_and_take_grey_images_of_any_size():
    pytest.importorskip("timm")
    for name in ("timm/resnet18", "timm/vit_tiny_patch16_224"):
        network = find_network(name, InputSpec(1, 7, 32))
        assert network.spec == name
        assert network.build().eval()(torch.randn(2, 1, 32, 32)).shape == (2, 7)
    with pytest.raises(UsageError, match=r"(?s)timm has no model 'resnt18'.*'resnet18'"):
        find_network("timm/resnt18", CIFAR)
    with pytest.raises(UsageError, match="has no option 'norm'"):
        find_network("timm/resnet18:norm=batch", CIFAR)


class TestProbe:
    @pytest.fixture
    def weights(self, tmp_path, monkeypatch):
        """Of a ResNet-18 that knows seven classes of something else."""
        monkeypatch.chdir(tmp_path)
        torch.manual_seed(1)
        model = find_network("torchvision/resnet18", InputSpec(3, 7, 32)).build()
        model.bn1.running_mean += 0.5
        save_file(model.state_dict(), "mine.safetensors")
        return model.eval()

    def test_it_is_a_fresh_linear_layer_on_features_that_stay(self, weights):
        found = find_network("probe/torchvision/resnet18:weights=mine.safetensors", CIFAR)
        assert re.fullmatch(r"probe/torchvision/resnet18:weights=mine.safetensors@[0-9a-f]{12}", found.spec)
        model, images = found.build().train(), torch.rand(4, 3, 32, 32)
        assert {name for name, p in model.named_parameters() if p.requires_grad} == {"head.weight", "head.bias"}
        weights.fc = torch.nn.Identity()
        with torch.no_grad():
            assert torch.equal(model(images), model.head(weights(images)))  # in training as in use
        assert find_network(found.spec, CIFAR).spec == found.spec
        assert found.parameters() == 11_181_642
        Path("mine.safetensors").rename("mine, too.safetensors")
        other = find_network(found.spec.replace("mine", "mine, too"), CIFAR)
        assert other.spec == found.spec.replace("mine", "mine, too")

    def test_other_weights_are_not_taken_for_them(self, weights):
        spec = find_network("probe/torchvision/resnet18:weights=mine.safetensors", CIFAR).spec
        save_file({**weights.state_dict(), "bn1.bias": torch.ones(64)}, "mine.safetensors")
        with pytest.raises(UsageError, match=r"'mine.safetensors' have the digest [0-9a-f]{12}, not [0-9a-f]{12}"):
            find_network(spec, CIFAR)

    def test_those_of_timm_are_fetched_from_the_hub(self, hub):
        timm = pytest.importorskip("timm")
        if not timm.is_model("test_vit"):
            pytest.skip("this timm has no small models")
        torch.manual_seed(2)
        model = timm.create_model("test_vit", pretrained=False)
        hub.add("models:timm/test_vit.r160_in1k", {"model.safetensors": save(model.state_dict())})
        found = find_network("probe/timm/test_vit:weights=pretrained", InputSpec(3, 5, 160))
        assert found.spec == find_network(found.spec, InputSpec(3, 5, 160)).spec  # the digest is the same again
        probe = found.build()
        assert torch.equal(probe.body.blocks[0].mlp.fc1.weight, model.blocks[0].mlp.fc1.weight)
        assert probe.eval()(torch.rand(2, 3, 160, 160)).shape == (2, 5)
        small = find_network("probe/timm/test_vit:weights=pretrained", InputSpec(1, 5, 64)).build()
        assert small(torch.rand(2, 1, 64, 64)).shape == (2, 5)  # grey and small images as well
        with pytest.raises(AtomhubError, match="Cannot fetch the weights of 'timm/test_resnet'"):
            find_network("probe/timm/test_resnet:weights=pretrained", CIFAR)

    def test_it_needs_weights(self, weights):
        with pytest.raises(UsageError, match="(?s)'probe/resnet18' needs weights.*probe/resnet18:weights=FILE"):
            find_network("probe/resnet18", CIFAR)
        with pytest.raises(UsageError, match="Cannot read the weights 'none.safetensors'"):
            find_network("probe/resnet18:weights=none.safetensors", CIFAR)
        with pytest.raises(UsageError, match="are not those of this network"):
            find_network("probe/resnet18:norm=batch,weights=mine.safetensors", CIFAR)

    def test_those_of_a_like_network_are_not_taken_for_its_own(self, weights):
        """GroupNorm has weights of the same names and shapes, and half a ResNet-34 is a ResNet-18."""
        save_file(find_network("resnet18:norm=batch", CIFAR).build().state_dict(), "bn.safetensors")
        with pytest.raises(UsageError, match="(?s)it has no .*running_mean.*norm and all"):
            find_network("probe/resnet18:weights=bn.safetensors", CIFAR)
        usual = find_network("probe/resnet18:weights=bn.safetensors", CIFAR, "resnet18:norm=batch")
        assert usual.spec.startswith("probe/resnet18:norm=batch,weights=bn.safetensors@")
        save_file(find_network("resnet34", CIFAR).build().state_dict(), "34.safetensors")
        with pytest.raises(UsageError, match=r"it has no layer1.2"):
            find_network("probe/torchvision/resnet18:weights=34.safetensors", CIFAR)
        state = {k: v for k, v in weights.state_dict().items() if "running_var" not in k}
        save_file(state, "half.safetensors")
        with pytest.raises(UsageError, match="have no statistics of batch norm: bn1.running_var is missing"):
            find_network("probe/torchvision/resnet18:weights=half.safetensors", CIFAR)

    def test_paths_and_grey_images(self, weights, tmp_path):
        (tmp_path / "a@b").mkdir()
        (tmp_path / "mine.safetensors").rename(tmp_path / "a@b" / "mine@2.safetensors")
        spec = "probe/torchvision/resnet18:weights=a@b/mine@2.safetensors"
        assert find_network(spec, CIFAR).spec.startswith("probe/torchvision/resnet18:weights=mine@2.safetensors@")
        grey = find_network(spec, InputSpec(1, 10, 32)).build()
        assert torch.equal(grey.body.model.conv1.weight, weights.conv1.weight)
        assert grey(torch.rand(2, 1, 32, 32)).shape == (2, 10)

    def test_a_strangers_set_chooses_no_file(self, weights, tmp_path, home):
        path = f"probe/torchvision/resnet18:weights={tmp_path}/mine.safetensors"
        distilled = atomhub.load("digits-ipc1")
        claim = distilled.manifest.results.measured[0].model_copy(update={"network": path})
        distilled.manifest = distilled.manifest.replace(results={"network": path, "measured": (claim,)})
        with pytest.raises(UsageError, match="The set names a network whose weights are a path"):
            atomhub.evaluate(distilled, protocol="quick")
        (verdict,) = atomhub.verify(distilled)
        assert "whose weights are a path" in verdict.why

    def test_nobodys_draws_are_used_up(self, weights):
        torch.manual_seed(3)
        before = torch.rand(1)
        torch.manual_seed(3)
        find_network("probe/torchvision/resnet18:weights=mine.safetensors", CIFAR)
        assert torch.equal(torch.rand(1), before)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("convent", "(?s)no network 'convent'.*'convnet'"),
        ("resnet9", "(?s)no network 'resnet9'.*'resnet"),
        ("convnet:wdth=3", "(?s)no option 'wdth'.*'width'"),
        ("lenet:width=3", "(?s)no option 'width'.*lenet has no options"),
        ("resnet50:norm=batch", "no option 'norm'"),
        ("convnet:norm=bath", "(?s)norm of the network 'convnet' cannot be 'bath'.*'instance', 'batch'"),
        ("convnet:width=0", "width of the network 'convnet' cannot be '0'"),
        ("convnet:width", "(?s)cannot be read at 'width'.*convnet:width=64"),
        ("convnet:width=1,width=2", "cannot be read at 'width=2'"),
        ("convnet:depth=6", "cannot take images of 32x32: nothing is left of them after 6 poolings"),
        ("inception_v3", "(?s)'inception_v3' cannot take images of 32x32.*larger images"),
        ("vit:patch=5", "cannot take images of 32x32: Input shape indivisible"),
    ],
)
def test_what_is_not_possible_is_said(spec, message):
    with pytest.raises(UsageError, match=message):
        find_network(spec, CIFAR)
