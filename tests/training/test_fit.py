"""Many networks at once and steps that are recorded give what one network gives that is trained as it is."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from pretended import GPU, Copies
from torch.nn import functional as F

from atomhub.errors import AtomhubWarning, UsageError
from atomhub.training import fit as fitting, together
from atomhub.training.nets import InputSpec
from atomhub.training.networks import find_network
from atomhub.training.protocols import Protocol

OPERATIONS = ("color", "crop", "cutout", "flip", "scale", "rotate")
RULES = Protocol(6, 16, "test", cutmix=0.5)
"""With 20 images two batches an epoch, the second smaller."""


def prepared(spec="convnet:width=8,norm=batch", number=3, device="cpu"):
    network = find_network(spec, InputSpec(1, 10, 16))
    images = torch.randn(20, 1, 16, 16, generator=torch.Generator().manual_seed(0)).to(device)
    models = []
    for seed in range(number):
        with fitting.seeded(seed, torch.device("cpu")), torch.device(device):
            models.append(network.build())
    labels = (torch.arange(20) % 10).to(device)
    return models, [images] * number, labels, RULES, [OPERATIONS], 10, list(range(number))


def trained(record=False, rules=RULES, halfway=None, **options):
    arguments = list(prepared(**options))
    arguments[3] = rules
    fitting.fit(*arguments, record=record, halfway=halfway)
    models = arguments[0]
    return torch.cat([x.flatten().float() for model in models for x in model.state_dict().values()])


class Stops(fitting.Halfway):
    """Stops after so many epochs, and then has what there was."""

    def __init__(self, after):
        self.left, self.state = after, {}

    def found(self):
        return self.state

    def after(self, state):
        self.left -= 1
        self.state = {name: tensor.clone() for name, tensor in state().items()} if self.left == 0 else self.state
        return self.left == 0


PAUSES = {
    "momentum": RULES,
    "a new optimiser at each drop": replace(RULES, drops=(3,), restart=True),
    "rates along a cosine": replace(RULES, optimizer="adamw", lr=0.001, cosine=9, decays_all=False),
}


@pytest.mark.parametrize(
    ("kind", "spec", "number"),
    [
        ("momentum", "convnet:width=8,norm=batch", 1),  # whose statistics are a part of the state
        ("a new optimiser at each drop", "lenet", 1),
        ("rates along a cosine", "lenet", 3),  # in one pass
        ("rates along a cosine", "vit:depth=1", 1),  # which has dropout
    ],
)
def test_a_training_that_was_stopped_goes_on_to_the_same_bits(kind, spec, number):
    rules = PAUSES[kind]
    expected = trained(spec=spec, number=number, rules=rules)
    for epochs in (1, 3):
        halfway = Stops(epochs)
        with pytest.raises(fitting.Paused):
            trained(spec=spec, number=number, rules=rules, halfway=halfway)
        assert torch.equal(trained(spec=spec, number=number, rules=rules, halfway=halfway), expected)
        assert halfway.left == epochs - 5  # those that were left, but for the last


def test_a_training_of_other_networks_does_not_go_on():
    halfway = Stops(3)
    with pytest.raises(fitting.Paused):
        trained(number=1, halfway=halfway)
    other = {"number": 1, "spec": "convnet:width=9,norm=batch"}
    assert torch.equal(trained(halfway=halfway, **other), trained(**other))


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("spec", ["convnet:width=8", "convnet:width=8,norm=batch", "lenet"])
def test_recorded_steps_train_the_same_networks(spec, number, monkeypatch):
    """Without a GPU a recording is called instead of played, for each of the two sizes of a batch."""
    expected = trained(spec=spec, number=number)
    monkeypatch.setattr(fitting, "_on_gpu", lambda images: True)
    assert torch.equal(trained(spec=spec, record=True, number=number), expected)


def test_where_nothing_can_be_recorded_training_goes_on(monkeypatch):
    def fails(*arguments):
        raise RuntimeError("capturing failed")

    expected = trained()
    monkeypatch.setattr(fitting, "_on_gpu", lambda images: True)
    monkeypatch.setattr("atomhub.core.graphs.Recording", fails)
    with pytest.warns(AtomhubWarning, match="could not be recorded") as said:
        assert torch.equal(trained(record=True), expected)
    assert len(said) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": (3, 2), "stride": 2, "bias": False},
        {"kernel_size": 3, "padding": 2, "dilation": (2, 1), "stride": (1, 2)},
        {"kernel_size": 3, "padding": "same"},
        {"kernel_size": 3, "groups": 2},
    ],
    ids=str,
)
def test_convolutions_as_products_are_the_convolutions(options):
    layer, x = torch.nn.Conv2d(4, 6, dtype=torch.float64, **options), torch.randn(3, 4, 9, 8, dtype=torch.float64)
    weights = [p.detach() for p in layer.parameters()]

    def found():
        leaf = x.clone().requires_grad_()
        out = layer(leaf)
        return out, *torch.autograd.grad(out.square().sum(), [leaf, *layer.parameters()])

    def of_many(*weights):
        names = [name for name, _ in layer.named_parameters()]
        return torch.func.functional_call(layer, dict(zip(names, weights, strict=True)), (x,))

    expected = found()
    with together._AsProducts():
        for a, b in zip(found(), expected, strict=True):
            assert a.shape == b.shape
            assert torch.allclose(a, b, atol=1e-12)
        several = torch.vmap(of_many)(*(torch.stack([w, 2 * w]) for w in weights))
    assert torch.allclose(several[0], expected[0], atol=1e-12)
    assert not torch.allclose(several[1], expected[0])
    assert layer(x).equal(F.conv2d(x, layer.weight, layer.bias, *(getattr(layer, n) for n in (
        "stride", "padding", "dilation", "groups"))))  # fmt: skip


@pytest.mark.parametrize("products", [False, True])
def test_training_together_as_products_is_the_same_training(products, monkeypatch):
    expected, init = trained(), together.Together.__init__

    def chosen(self, models):
        init(self, models)
        self.products = products

    monkeypatch.setattr(together.Together, "__init__", chosen)
    assert torch.allclose(trained(), expected, atol=2e-5)


def test_a_network_without_a_gradient_is_refused():
    class Detached(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x.flatten(1)).detach()

    for number in (1, 2):
        models = [Detached(256, 10) for _ in range(number)]
        images = [torch.randn(20, 1, 16, 16)] * number
        with pytest.raises(UsageError, match="Detached gives outputs without a gradient"):
            fitting.fit(models, images, torch.arange(20) % 10, RULES, [], 10, list(range(number)))


@pytest.mark.parametrize("number", [1, 3])
def test_training_stays_on_the_gpu_and_never_asks_it_for_a_value(number, pretended_gpu, monkeypatch):
    """But for the draws, which go there some epochs at once, and a look at the loss now and then."""
    looks = []
    monkeypatch.setattr(fitting, "_check", lambda losses, *rest: looks.append(losses))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(fitting, "seeded", lambda *arguments: nullcontext())  # it has no generator
    arguments = prepared(number=number, device=GPU)
    with Copies() as copies:
        fitting.fit(*arguments)
    assert all(loss.device == GPU for loss in looks)
    assert len(looks) == 1
    assert len(copies.found) == 3  # orders, augmentation and CutMix of all epochs


def test_where_products_do_not_fit_convolutions_stay_what_they_are(monkeypatch):
    def too_much(*arguments):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(together, "_convolve", too_much)
    several = together.Together(prepared()[0])
    before = {name: b.clone() for name, b in several.buffers.items()}
    assert not several._faster_as_products(torch.randn(3, 4, 1, 16, 16))
    assert all(torch.equal(b, before[name]) for name, b in several.buffers.items())
