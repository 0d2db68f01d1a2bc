"""Gradient matching: images are moved by the gradient of a gradient, which agrees with a slow one in float64."""

import pytest
import torch
from engines import Residual, engine_of, make_bank, whole_batches
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from atomhub.core.augment import augment
from atomhub.core.convnet import ConvNet
from atomhub.core.synthetic import to_views
from atomhub.errors import AtomhubError, UsageError
from atomhub.training.nets import InputSpec
from atomhub.training.networks import find_network

ALONE = {"gradient": 2.0, "spatial": 0, "channel": 0, "feature": 0}


def convnet(norm="instance"):
    return ConvNet(3, 3, 16, 6, 2, norm)


def layered():
    return convnet("layer")  # whose norms have weights as large as their maps


def attentive():
    network = find_network("vit:depth=1,width=16,heads=2,hidden=16", InputSpec(3, 3, 16)).build()
    nn.init.normal_(network.heads.head.weight)  # 0 at first
    return network


class ZeroHead(nn.Module):
    """A network whose last layer begins at 0, as torchvision's transformers do, and is called by keywords."""

    def __init__(self):
        super().__init__()
        self.convolution, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)
        nn.init.zeros_(self.head.weight)

    def forward(self, x):
        return F.linear(self.convolution(x).relu().mean((2, 3)), bias=self.head.bias, weight=self.head.weight)


class Fused(ZeroHead):
    """A network with an operation that PyTorch has no gradient of a gradient of."""

    def __init__(self):
        super().__init__()
        nn.init.normal_(self.head.weight)

    def forward(self, x):
        x = x * self.convolution.weight.sum()
        return super().forward(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(x, x, x)[0])


def distance(network, sides, labels, weights):
    """The squared distance between two sides' gradients, summed over classes, by autograd through whole classes."""
    total = 0.0
    for i, label in enumerate(labels):
        slopes = []
        for side in sides:
            loss = F.cross_entropy(network(side[i]), torch.full((len(side[i]),), int(label)))
            slopes.append(torch.autograd.grad(loss, weights, create_graph=True))
        total += sum((a.detach() - b).square().sum() for a, b in zip(*slopes, strict=True))
    return total


def weights_of(network):
    """The weights of a network's layers, but for the last linear one: no biases, no norms."""
    kinds = (nn.Conv2d, nn.Linear, nn.MultiheadAttention)
    layers = [m for m in network.modules() if isinstance(m, kinds)][:-1]
    return [m.in_proj_weight if isinstance(m, nn.MultiheadAttention) else m.weight for m in layers]


@pytest.mark.parametrize(
    ("build", "fields"),
    [
        (convnet, {}),
        (convnet, {"classes_per_iteration": 2}),
        (convnet, {"formation": 2}),
        (layered, {}),
        (attentive, {}),
    ],
)
@pytest.mark.parametrize("together", [128, 3])
def test_the_step_is_that_of_whole_classes(build, fields, together, monkeypatch):
    monkeypatch.setattr("atomhub.core.anynet._TOGETHER", together)  # or pieces of three images
    engine = engine_of(build, ipc=3, **ALONE, **fields)
    for iteration in range(2):
        draw = engine.draw(iteration)
        network = build().double().eval()
        network.load_state_dict(engine.matcher.weights(draw.weights))
        labels = torch.arange(3) if draw.classes is None else draw.classes
        seen = engine.synthetic.seen().requires_grad_()
        views = to_views(seen[labels], engine.recipe.formation)
        sides = [augment(x, draw.augmentation, engine.recipe.stages) for x in (engine.real[draw.indices], views)]
        with sdpa_kernel(SDPBackend.MATH):
            loss = 100 * 2.0 * distance(network, sides, labels, weights_of(network))
            (gradient,) = torch.autograd.grad(loss, seen)
        assert engine.gradient(iteration).item() == pytest.approx(loss.item(), rel=1e-9)
        assert (engine.gradients - gradient).norm() <= 1e-9 * gradient.norm()
        assert gradient.norm() > 0


@pytest.mark.parametrize("together", [128, 2])
def test_batch_norm_takes_its_statistics_of_real_images(together, monkeypatch):
    monkeypatch.setattr("atomhub.core.anynet._TOGETHER", together)
    engine = engine_of(Residual, matcher="resnet18", **ALONE)
    network, views, seen = whole_batches(engine, engine.draw(1))
    loss = 100 * 2.0 * distance(network, views, range(3), weights_of(network))
    (gradient,) = torch.autograd.grad(loss, seen)
    assert engine.gradient(1).item() == pytest.approx(loss.item(), rel=1e-9)
    assert (engine.gradients - gradient).norm() <= 1e-9 * gradient.norm()


def test_all_terms_are_added_up():
    others = {"bank": 2, "calibration": 0.3, "norm": "none"}
    engines = [
        engine_of(
            lambda: ConvNet(3, 3, 16, 6, 2, "none"), trained=make_bank(engine_of(convnet, **others).recipe), **fields
        )
        for fields in ({**others, **ALONE, "calibration": 0}, others, {**others, "gradient": 2.0})
    ]  # fmt: skip
    losses = [engine.gradient(1).item() for engine in engines]
    assert losses[2] == pytest.approx(losses[0] + losses[1], rel=1e-9)
    apart, rest, whole = (engine.gradients for engine in engines)
    assert (apart + rest - whole).norm() <= 1e-9 * whole.norm()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (ZeroHead, r"No gradient reaches the weights of ZeroHead, as that of a last layer.*\nSet bank above 0"),
        (Fused, "The network Fused has no gradient of a gradient: derivative for .* is not implemented"),
    ],
)
def test_networks_that_move_no_image_are_refused_before_the_work(build, message):
    with pytest.raises(UsageError, match=message):
        engine_of(build, **ALONE)


def test_networks_that_a_bank_will_train_may_begin_at_zero():
    engine_of(ZeroHead, bank=2, **ALONE)


def test_given_weights_have_another_last_layer_in_every_iteration():
    engine = engine_of(convnet, matcher="resnet18", weights="some.safetensors", **ALONE)
    head = convnet().head.weight.numel()
    first, second = (engine.draw(iteration).weights[-head:] for iteration in range(2))
    assert not torch.equal(first, second)


def test_too_little_memory_is_blamed_on_what_takes_it():
    with pytest.raises(AtomhubError, match=r"synthetic image and the gradients of 3 classes.*\n.*fewer classes_per"):
        engine_of(convnet, options={"memory": 2**20}, **ALONE)
