"""Gradient matching: images are moved by the gradient of a gradient, which agrees with a slow one in float64."""

import pytest
import torch
from engines import Residual, engine_of, make_bank, whole_batches
from torch import nn
from torch.nn import functional as F

from atomhub.core.augment import augment
from atomhub.core.convnet import ConvNet
from atomhub.core.synthetic import to_views

ALONE = {"gradient": 2.0, "spatial": 0, "channel": 0, "feature": 0}


def convnet():
    return ConvNet(3, 3, 16, 6, 2, "instance")


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
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    return [layer.weight for layer in layers[:-1]]


@pytest.mark.parametrize("fields", [{}, {"classes_per_iteration": 2}, {"formation": 2}], ids=str)
@pytest.mark.parametrize("together", [128, 3])
def test_under_a_convnet_the_step_is_that_of_whole_classes(fields, together, monkeypatch):
    monkeypatch.setattr("atomhub.core.anynet._TOGETHER", together)  # or pieces of three images
    engine = engine_of(convnet, ipc=3, **ALONE, **fields)
    for iteration in range(2):
        draw = engine.draw(iteration)
        network = convnet().double()
        network.load_state_dict(engine.matcher.weights(draw.weights))
        labels = torch.arange(3) if draw.classes is None else draw.classes
        seen = engine.synthetic.seen().requires_grad_()
        views = to_views(seen[labels], engine.recipe.formation)
        sides = [augment(x, draw.augmentation, engine.recipe.stages) for x in (engine.real[draw.indices], views)]
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
