"""The protocols of the literature, against a slow trainer that is written from the papers' descriptions, in float64."""

import math
from dataclasses import replace

import pytest
import reference
import torch

from atomhub.training import fit as fitting
from atomhub.training.measure import network_for
from atomhub.training.probes import Probe
from atomhub.training.protocols import PROTOCOLS, for_set

SIDE, CLASSES, IMAGES = 8, 3, 7


def test_protocols_are_those_of_the_literature():
    """Epochs, batch, optimiser, rate, decay, the epochs after which the rate falls, by what, CutMix, norm."""
    table = {
        name: (p.epochs, p.batch, p.optimizer, p.lr, p.decay, p.drops, p.factor, p.restart, p.cutmix, p.norm)
        for name, p in PROTOCOLS.items()
    }
    assert table == {
        # `range(Epoch + 1)`, and a new optimiser after the epoch of number Epoch // 2 + 1, counted from 0
        "dm": (1001, 256, "sgd", 0.01, 5e-4, (502,), 0.1, True, 0, "instance"),
        "datadam": (1801, 64, "sgd", 0.01, 5e-4, (902,), 0.1, True, 0, "batch"),
        "idc": (1000, 64, "sgd", 0.01, 5e-4, (666, 833), 0.2, False, 0.5, "instance"),
        "dance": (1500, 64, "sgd", 0.01, 5e-4, (1000, 1250), 0.2, False, 0.5, "instance"),
        "ncfm": (2000, 128, "adamw", 0.001, 0.01, (400, 800, 1200, 1600), 0.5, False, 0.5, "instance"),
        "rded": (300, 50, "adamw", 0.001, 0.01, (), 0.1, False, 1.0, None),
        "quick": (201, 256, "sgd", 0.01, 5e-4, (102,), 0.1, True, 0, None),
        "probe": (300, 256, "sgd", 1.0, 0, (150,), 0.1, False, 0, None),
    }
    rded = PROTOCOLS["rded"]
    assert (rded.cosine, rded.decays_all, rded.temperature, rded.network) == (600, False, 20, "resnet18:norm=batch")
    assert [for_set("rded", ipc, classes).batch for ipc, classes in ((1, 10), (10, 10), (50, 10), (10, 100))] == [
        10, 50, 100, 100
    ]  # fmt: skip
    dsa, warps = ("color", "crop", "cutout", "flip", "scale", "rotate"), ("crop", "scale", "rotate")
    idc = (("flip",), ("color",), warps)
    expected = {"dm": (dsa,), "datadam": (dsa,), "quick": (dsa,), "idc": idc, "dance": idc, "ncfm": (*idc, ("cutout",))}
    expected |= {"rded": (("shuffle",), ("resize",), ("flip",)), "probe": ()}
    assert {name: p.augmentation for name, p in PROTOCOLS.items()} == expected


@pytest.mark.parametrize("name", PROTOCOLS)
def test_training_is_what_the_papers_describe(name):
    """A linear classifier, for a few epochs in which the rate falls as often as in the whole protocol.

    Under ``probe`` its inputs are features: pixels that are squashed, divided by their root mean square length.
    """
    rules = replace(PROTOCOLS[name], epochs=7, batch=4, drops=(2, 3, 5, 6)[: len(PROTOCOLS[name].drops)], lr=0.1)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(IMAGES, 1, SIDE, SIDE, dtype=torch.float64, generator=generator)
    labels = torch.arange(IMAGES) % CLASSES
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(SIDE**2, CLASSES)).double()
    if rules.frozen:
        model = Probe(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Sigmoid(), model[1])).double()
    before = [p.detach().clone() for p in (model.head if rules.frozen else model).parameters()]
    teacher = torch.randn(CLASSES, SIDE**2, dtype=torch.float64, generator=generator) if rules.temperature else None
    learnt, length = images, 1.0
    if rules.frozen:
        learnt = [1 / (1 + (-image).exp()) for image in images]
        length = math.sqrt(sum(image.square().sum() for image in learnt) / IMAGES)
    weight, bias = slowly(*before, [image / length for image in learnt], labels, rules, teacher)
    expected = weight / length, bias
    taught = {} if teacher is None else {"teacher": lambda x: x.flatten(1) @ teacher.T}
    fitting.fit([model], [images], labels, rules, rules.augmentation, CLASSES, [3], **taught)
    found_ones = [p for p in model.parameters() if p.requires_grad]
    for found, wanted, start in zip(found_ones, expected, before, strict=True):
        assert torch.allclose(found, wanted, rtol=0, atol=1e-9)
        assert not torch.allclose(found, start, atol=1e-2)


def slowly(weight, bias, images, labels, rules, teacher=None):
    """Return weight and bias after training: one image after the other, the optimisers written out."""
    state = {}
    for epoch, batches in enumerate(fitting.drawn(len(images), rules, [3], torch.device("cpu"))):
        if rules.restart and epoch in rules.drops:
            state = {}
        rate = rules.lr * rules.factor ** sum(epoch >= drop for drop in rules.drops)
        if rules.cosine:
            rate = rules.lr * 0.5 * (1 + math.cos(math.pi * epoch / rules.cosine))
        for rows, u, mix in batches:
            batch = augmented([images[i] for i in rows[0]], u[0].double(), rules.augmentation)
            targets = [torch.eye(CLASSES, dtype=torch.float64)[labels[i]] for i in rows[0]]
            batch, targets = mixed(batch, targets, u[0], mix[0], rules.cutmix)
            if teacher is not None:
                targets = [torch.softmax(teacher @ image.flatten() / rules.temperature, 0) for image in batch]
            gradients = [torch.zeros_like(weight), torch.zeros_like(bias)]
            heat = rules.temperature or 1.0
            for image, target in zip(batch, targets, strict=True):  # of the mean divergence, in closed form
                error = (torch.softmax((weight @ image.flatten() + bias) / heat, 0) - target) / heat / len(batch)
                gradients[0] += torch.outer(error, image.flatten())
                gradients[1] += error
            update = sgd if rules.optimizer == "sgd" else adamw
            weight, bias = (
                update(p, g, state.setdefault(i, {}), rate, rules)
                for i, (p, g) in enumerate(zip((weight, bias), gradients, strict=True))
            )
    return weight, bias


def augmented(images, u, stages):
    """Of each stage one operation, the same for the whole batch, with numbers of every image's own."""
    for stage in stages:
        images = [
            reference.augment(image, [u[0, 0], *own[1:]], stage) for image, own in zip(images, u, strict=True)
        ]  # fmt: skip
    return images


def mixed(images, targets, u, mix, probability):
    """CutMix: a box of as many whole pixels on either side of a pixel, cut off at the edge, from a partner."""
    coin, kept, x, y = mix.tolist() if probability else (1, 1, 0, 0)
    if coin >= probability:
        return images, targets
    half = int(SIDE * math.sqrt(1 - kept)) // 2
    columns, rows = (range(max(0, int(c * SIDE) - half), min(SIDE, int(c * SIDE) + half)) for c in (x, y))
    share = len(columns) * len(rows) / SIDE**2
    partners = sorted(range(len(images)), key=lambda i: u[i, -1])
    pasted = [image.clone() for image in images]
    for image, partner in zip(pasted, partners, strict=True):
        for row in rows:
            for column in columns:
                image[:, row, column] = images[partner][:, row, column]
    return pasted, [(1 - share) * t + share * targets[p] for t, p in zip(targets, partners, strict=True)]


def sgd(p, g, state, rate, rules):
    state["v"] = rules.momentum * state.get("v", 0) + g + rules.decay * p
    return p - rate * state["v"]


def adamw(p, g, state, rate, rules):
    """Loshchilov and Hutter, ICLR 2019, algorithm 2, with torch's betas and epsilon."""
    n = state["n"] = state.get("n", 0) + 1
    state["m"] = 0.9 * state.get("m", 0) + 0.1 * g
    state["v"] = 0.999 * state.get("v", 0) + 0.001 * g**2
    step = state["m"] / (1 - 0.9**n) / (torch.sqrt(state["v"] / (1 - 0.999**n)) + 1e-8)
    decay = rules.decay if rules.decays_all or p.dim() > 1 else 0
    return p * (1 - rate * decay) - rate * step


@pytest.mark.parametrize(
    "protocol, named, expected",
    [
        ("dm", None, "convnet:width=128,norm=instance"),
        ("datadam", None, "convnet:width=128,norm=batch"),
        ("dance", "resnet18", "resnet18:norm=instance"),
        ("datadam", "convnet:width=64", "convnet:width=64,norm=batch"),
        ("dm", "convnet:norm=batch", "convnet:width=128,norm=batch"),
        ("quick", None, "convnet:width=32,depth=2,norm=instance"),  # its own
    ],
)
def test_a_protocol_names_its_network(digits1, protocol, named, expected):
    assert network_for(digits1, named, PROTOCOLS[protocol]).spec == expected
