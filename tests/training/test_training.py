"""One network is trained as its protocol says: batches, augmentation, labels, rates, errors; several as each alone."""

import pytest
import torch
from models import Recorder, tiny

from atomhub.core.cutmix import boxes, paste
from atomhub.errors import AtomhubError
from atomhub.training import fit as fitting
from atomhub.training.nets import InputSpec
from atomhub.training.networks import find_network
from atomhub.training.protocols import Protocol

OPERATIONS = ("color", "crop", "cutout", "flip", "scale", "rotate")


def with_dropout():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.Linear(256, 10))


def train(model, images, labels, protocol, operations=(), seed=0):
    fitting.fit([model], [images], labels, protocol, [operations], 10, [seed])


def test_a_last_batch_of_one_joins_the_one_before():
    seen = []
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 10), torch.nn.BatchNorm1d(10))
    model.register_forward_pre_hook(lambda _, arguments: seen.append(len(arguments[0])))
    train(model, torch.randn(9, 1, 16, 16), torch.arange(9), Protocol(2, 4, "test"))
    assert seen == [4, 5, 4, 5]


def test_training_batches_are_augmented_and_mixed_as_the_protocol_says():
    images, labels = torch.rand(8, 1, 16, 16) + 1, torch.arange(8)
    for operations, cutmix, changed in (((), 0.0, False), (("cutout",), 0.0, True), ((), 1.0, True)):
        model = Recorder()
        torch.manual_seed(0)
        train(model, images, labels, Protocol(1, 8, "test", cutmix=cutmix), operations)
        (batch,) = model.batches
        same = {tuple(i.flatten().tolist()) for i in batch} == {tuple(i.flatten().tolist()) for i in images}
        assert same != changed


@pytest.mark.parametrize("spec", ["convnet:width=8", "convnet:width=8,norm=batch", "mlp:width=16", "lenet"])
def test_networks_trained_together_are_what_each_would_be_alone(spec):
    network = find_network(spec, InputSpec(1, 10, 16))
    sets = [torch.randn(20, 1, 16, 16, generator=torch.Generator().manual_seed(s)) for s in (5, 6, 7)]
    labels = torch.arange(20) % 10
    rules = Protocol(6, 16, "test", cutmix=0.5)  # two batches an epoch, the second smaller

    def fresh():
        models = []
        for seed in range(3):
            with fitting.seeded(seed, torch.device("cpu")):
                models.append(network.build())
        return models

    together, alone = fresh(), fresh()
    fitting.fit(together, sets, labels, rules, [OPERATIONS], 10, [0, 1, 2])
    for seed, model in enumerate(alone):
        train(model, sets[seed], labels, rules, OPERATIONS, seed)
    for a, b in zip(together, alone, strict=True):
        for (name, x), y in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
            assert torch.allclose(x, y, atol=2e-5), name
        assert not a.training
    assert not torch.allclose(*(torch.cat([p.flatten() for p in m.parameters()]) for m in together[:2]))


def test_training_is_a_function_of_the_seed_with_dropout_too():
    images, labels = torch.randn(16, 1, 16, 16), torch.arange(16) % 10
    found = []
    for seed in (0, 0, 1):
        torch.rand(3)
        with fitting.seeded(9, torch.device("cpu")):
            models = [with_dropout(), with_dropout()]
        fitting.fit(models, [images] * 2, labels, Protocol(2, 16, "test"), [OPERATIONS], 10, [seed, seed + 1])
        found.append(models[1][2].weight.detach())
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_a_compiled_training_gives_the_same(monkeypatch):
    network = find_network("convnet:width=8", InputSpec(1, 10, 16))
    images, labels = torch.randn(20, 1, 16, 16), torch.arange(20) % 10
    found = []
    for long in (10**12, 0):
        monkeypatch.setattr(fitting, "_LONG", long)
        with fitting.seeded(0, torch.device("cpu")):
            model = network.build()
        train(model, images, labels, Protocol(4, 20, "test"), OPERATIONS)
        found.append(model.head.weight.detach())
    assert torch.allclose(*found, atol=1e-4)


def test_without_a_compiler_training_goes_on_uncompiled(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(fitting, "_LONG", 0)
    monkeypatch.setattr(torch, "compile", lambda model, **_: broken)
    model = tiny()
    before = model[1].weight.detach().clone()
    train(model, torch.randn(8, 1, 16, 16), torch.arange(8), Protocol(2, 8, "test"))
    assert not torch.equal(model[1].weight, before)


def test_cutmix_pastes_a_box_of_the_partner_and_mixes_the_labels_by_its_share():
    images = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 1, 16, 16).contiguous()
    mixed = 0
    for seed in range(20):
        u = torch.rand(1, 4, generator=torch.Generator().manual_seed(seed))
        box = boxes(u, 0.5, images.shape[-2:])
        batch, targets = paste(images[None], torch.eye(8)[None], box, torch.arange(8).roll(1)[None])
        own = (batch[0] == images).flatten(1).float().mean(1)  # share of pixels kept
        assert torch.allclose(targets[0].diagonal(), own)
        assert torch.allclose(targets[0].sum(1), torch.ones(8))
        partner = (batch[0] == images.roll(1, 0)).flatten(1).float().mean(1)
        assert torch.allclose(own + partner, torch.ones(8))
        mixed += int(own[0] < 1)
    assert 4 <= mixed <= 16  # about half of the batches


def test_soft_labels_teach_what_they_say():
    images = torch.randn(10, 1, 16, 16)
    soft = torch.eye(10).roll(1, 1)  # every image is taught as the next class
    model = tiny()
    train(model, images, soft, Protocol(200, 10, "test", lr=0.1))
    assert model(images).argmax(1).tolist() == soft.argmax(1).tolist()


class Output:
    """What models of transformers return."""

    def __init__(self, logits):
        self.logits = logits


def test_a_model_whose_output_holds_logits_is_understood():
    class Wrapped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = tiny()

        def forward(self, images):
            return Output(self.model(images))

    models = [Wrapped(), Wrapped()]
    before = models[0].model[1].weight.detach().clone()
    fitting.fit(models, [torch.randn(8, 1, 16, 16)] * 2, torch.arange(8), Protocol(2, 8, "test"), (), 10, [0, 1])
    assert not torch.equal(models[0].model[1].weight, before)


def test_the_learning_rate_drops_where_the_protocol_says(monkeypatch):
    rates = []
    step = torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: (rates.append(self.param_groups[0]["lr"]), step(self)))
    rules = Protocol(6, 8, "test", lr=1.0, drops=(3, 5), factor=0.1)
    train(tiny(), torch.randn(8, 1, 16, 16), torch.arange(8), rules)
    assert rates == pytest.approx([1, 1, 1, 0.1, 0.1, 0.01])


def test_a_training_loss_that_is_not_finite_names_the_epoch():
    good, bad = torch.randn(4, 1, 16, 16), torch.full((4, 1, 16, 16), float("nan"))
    for models in ([tiny(), tiny()], [with_dropout(), with_dropout()]):  # together, and one by one
        with pytest.raises(AtomhubError, match="training loss of network 2 of 2 is nan in epoch 1 of 2"):
            fitting.fit(models, [good, bad], torch.arange(4), Protocol(2, 4, "test"), [], 10, [0, 1])
