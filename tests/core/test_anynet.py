"""Any network as matcher: what is matched of it, and gradients that agree with slow, obvious ones in float64."""

import multiprocessing

import pytest
import torch
from engines import SIZE, Residual, engine_of, make_bank, make_engine, whole_batches
from torch import nn
from torch.nn import functional as F

from atomhub.core.augment import augment
from atomhub.core.convnet import ConvNet
from atomhub.core.parallel import Team
from atomhub.core.synthetic import to_views
from atomhub.errors import AtomhubError, AtomhubWarning, UsageError
from atomhub.training.protocols import PROTOCOLS


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"power": 4.0, "depth": 3},
        {"spatial": 0.5, "channel": 0.0, "formation": 2},
        {"norm": "batch", "statistics": "real"},
        {"norm": "batch", "statistics": "real", "power": 2.0, "depth": 3, "classes_per_iteration": 2},
        {"bank": 2, "calibration": 0.3, "norm": "none", "augmentation_draw": "all", "bank_reach": 0.5},
    ],
    ids=str,
)
def test_under_a_convnet_it_is_the_same_as_the_closed_form(fields):
    fast = make_engine(**fields)
    recipe = fast.recipe
    slow = engine_of(
        lambda: ConvNet(3, 3, SIZE, recipe.width, recipe.depth, recipe.norm),
        trained=make_bank(recipe) if recipe.bank else None, **fields,
    )  # fmt: skip

    def draw(seed, iteration, trained=False):
        """The same weights, which the closed form has in another order, and without norm layers."""
        if slow.matcher.bank is not None:
            return drawn(seed, iteration, trained)
        fast.embedding.draw(seed, iteration)
        return 0, slow.matcher._flat(dict(fast.embedding.networks[0].named_parameters())), None

    drawn, slow.matcher.draw = slow.matcher.draw, draw
    for iteration in range(2):
        assert slow.gradient(iteration).item() == pytest.approx(fast.gradient(iteration).item(), rel=1e-9)
        assert (slow.gradients - fast.gradients).norm() <= 1e-9 * fast.gradients.norm()


def reference(engine, iteration):
    """Loss and gradient of an iteration under Residual, by whole batches and its own account of its stages."""
    recipe = engine.recipe
    network, views, seen = whole_batches(engine, engine.draw(iteration))
    means = []
    for side in views:
        x = side.flatten(0, 1)
        attention = []
        for z in network.stages(x)[:-1]:
            a = z.abs() ** recipe.power
            attention += [F.normalize(a.sum(1).flatten(1))] * bool(recipe.spatial)
            attention += [F.normalize(a.sum((2, 3)))] * bool(recipe.channel)
        features = network.features(network.stages(x)[-1].mean((2, 3)))
        means.append([v.view(len(side), -1, v.shape[1]).mean(1) for v in (*attention, features)])
    weights = [w for w in (recipe.spatial, recipe.channel) if w] * 2 + [recipe.feature]
    loss = sum(w * (a.detach() - b).square().sum() for w, a, b in zip(weights, *means, strict=True))
    loss = recipe.loss_scale * loss
    return loss, torch.autograd.grad(loss, seen)[0]


@pytest.mark.parametrize("fields", [{}, {"power": 2.0}, {"channel": 0.0}, {"pixels": "float32"}], ids=str)
@pytest.mark.parametrize("memory", [None, 2**20])
def test_stages_are_found_and_gradients_agree_with_whole_batches(fields, memory, monkeypatch):
    if memory is not None:  # pieces of an image or two
        monkeypatch.setattr("atomhub.core.anynet._TOGETHER", 2)
    engine = engine_of(Residual, **fields)
    loss, gradient = reference(engine, 1)
    assert engine.gradient(1).item() == pytest.approx(loss.item(), rel=1e-9)
    assert (engine.gradients - gradient).norm() <= 1e-9 * gradient.norm()
    assert gradient.norm() > 0


def test_the_steps_lower_the_loss_and_a_run_goes_on_where_it_was():
    engine = engine_of(Residual, iterations=6, seed=3)
    reports = list(engine.run(report_every=1))
    first, again = engine_of(Residual, iterations=6, seed=3), engine_of(Residual, iterations=6, seed=3)
    next(report for report in first.run(report_every=1) if report.done == 3)
    again.restore(first.state())
    assert list(again.run(3, report_every=1)) == reports[3:]
    assert torch.equal(again.synthetic.images, engine.synthetic.images)
    before = engine_of(Residual, seed=3).gradient(0)
    assert engine.gradient(0) < before


def test_too_little_memory_is_said_with_what_would_be_enough():
    with pytest.raises(AtomhubError, match=r"The memory is too small: .* needs .* MiB") as caught:
        engine_of(Residual, options={"memory": 2**20})
    assert 'Give `memory="' in caught.value.hint


def features_of_both(engine, iteration):
    """Class numbers and features of the real and of the synthetic images that networks see, and the stored images."""
    draw, recipe = engine.draw(iteration), engine.recipe
    network = Residual().double().eval()
    weights = engine.matcher.weights(draw.weights)
    network.load_state_dict(weights, strict=False)
    for module, other in zip(network.modules(), engine.matcher.model.modules(), strict=True):
        if isinstance(module, nn.BatchNorm2d):
            module.load_state_dict({**module.state_dict(), **dict(other.named_buffers())})
    seen = engine.synthetic.seen().requires_grad_()
    classes = torch.arange(3) if draw.classes is None else draw.classes
    features, labels = [], []
    for images in (engine.real[draw.indices], to_views(seen[classes], recipe.formation)):
        views = images if recipe.layer and not features else augment(images, draw.augmentation, recipe.stages)
        views = views.flatten(0, 1)
        features.append(network.features(network.stages(views)[-1].mean((2, 3))))
        labels.append(classes.repeat_interleave(images.shape[1]))
    return labels, features, seen


def check_agreement(engine, wanted):
    """Check loss and gradient of two iterations against those of a reference."""
    for iteration in range(2):
        loss, gradient = wanted(engine, iteration)
        assert engine.gradient(iteration).item() == pytest.approx(loss.item(), rel=1e-9)
        rows = engine.draw(iteration).classes
        rows = slice(None) if rows is None else rows
        assert (engine.gradients[rows] - gradient[rows]).norm() <= 1e-9 * gradient.norm()
        assert gradient.norm() > 0


def linear_reference(engine, iteration):
    """Loss and gradient of linear gradient matching, by autograd through the cross-entropy's own gradient."""
    recipe = engine.recipe
    labels, features, seen = features_of_both(engine, iteration)
    drawn = engine.matcher.head(engine.draw(iteration).weights)
    length = features[0].square().sum(1).mean().sqrt()
    sides = []
    for found, numbers in zip(features, labels, strict=True):
        head = (drawn / length).detach().requires_grad_()
        loss = F.cross_entropy(found @ head.T, numbers)
        sides.append(torch.autograd.grad(loss, head, create_graph=True)[0].flatten())
    loss = recipe.loss_scale * recipe.linear * (1 - F.cosine_similarity(sides[0].detach(), sides[1], dim=0))
    return loss, torch.autograd.grad(loss, seen)[0]


def with_statistics():
    """Residual as it comes with trained weights: its batch norms have statistics."""
    network = Residual()
    generator = torch.Generator().manual_seed(7)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = 0.2 * torch.rand(module.num_features, generator=generator) - 0.1
            module.running_var = 0.1 * torch.rand(module.num_features, generator=generator) + 0.05
    return network


LINEAR = {"linear": 0.5, "feature": 0, "spatial": 0, "channel": 0, "statistics": "running", "weights": "x.safetensors"}


@pytest.mark.parametrize("fields", [{}, {"classes_per_iteration": 2}], ids=str)
@pytest.mark.parametrize("together", [128, 2])
def test_linear_gradients_agree_with_those_of_a_linear_layer(fields, together, monkeypatch):
    monkeypatch.setattr("atomhub.core.anynet._TOGETHER", together)
    engine = engine_of(with_statistics, matcher="resnet18", **LINEAR, **fields)
    check_agreement(engine, linear_reference)


LAYER = LINEAR | {"linear": 0, "layer": 0.5}


def layer_reference(engine, iteration):
    """Loss and gradient of the layer's term: SGD of the protocol ``probe`` on a layer, every step by autograd."""
    rules = PROTOCOLS["probe"]
    recipe = engine.recipe
    labels, features, seen = features_of_both(engine, iteration)
    length = features[1].square().sum(1).mean().sqrt()
    there, here, (real, own) = features[0].detach() / length, features[1] / length, labels
    layer = [torch.zeros(3, here.shape[1]).double().requires_grad_(), torch.zeros(3).double().requires_grad_()]
    speed = [0.0, 0.0]
    for epoch in range(rules.epochs):
        lost = F.cross_entropy(F.linear(here, *layer), own)
        slopes = torch.autograd.grad(lost, layer, create_graph=True)
        speed = [rules.momentum * v + g for v, g in zip(speed, slopes, strict=True)]
        rate = rules.lr * rules.factor ** sum(epoch >= drop for drop in rules.drops)
        layer = [w - rate * v for w, v in zip(layer, speed, strict=True)]
    of_classes = [F.cross_entropy(F.linear(there, *layer)[real == k], real[real == k]) for k in own.unique()]
    shares = torch.tensor([int(engine.counts[k]) for k in own.unique()]).double()
    loss = recipe.loss_scale * recipe.layer * (torch.stack(of_classes) * shares).sum() / shares.sum()
    return loss, torch.autograd.grad(loss, seen)[0]


@pytest.mark.parametrize("fields", [{}, {"classes_per_iteration": 2, "formation": 2}, {"formation": 4}], ids=str)
@pytest.mark.parametrize("together", [128, 2])
def test_the_layer_is_trained_as_sgd_trains_one(fields, together, monkeypatch):
    monkeypatch.setattr("atomhub.core.anynet._TOGETHER", together)
    engine = engine_of(with_statistics, matcher="resnet18", **LAYER, **fields)
    check_agreement(engine, layer_reference)


def test_a_layer_with_too_little_memory_may_have_fewer_real_images():
    with pytest.raises(AtomhubError, match="The memory is too small") as caught:
        engine_of(with_statistics, matcher="resnet18", options={"memory": 2**20}, **LAYER)
    assert caught.value.hint.endswith("Or a smaller real_batch.")


def test_features_of_real_images_are_found_once_and_a_run_goes_on_to_the_same_bits(monkeypatch):
    monkeypatch.setattr("atomhub.core.known._CHUNK", 7)
    given = {"matcher": "resnet18", "iterations": 8, "seed": 3, **LAYER}
    engine, seen = engine_of(with_statistics, **given), []
    see = engine.matcher.see
    monkeypatch.setattr(engine.matcher, "see", lambda w, m, x: seen.append(len(x)) or see(w, m, x))
    reports = list(engine.run(report_every=1))
    assert sum(seen) == len(engine.real.images) + 8 * engine.synthetic.images[:, :, 0, 0, 0].numel()
    first, again = engine_of(with_statistics, **given), engine_of(with_statistics, **given)
    next(report for report in first.run(report_every=1) if report.done == 5)
    again.restore(first.state())
    assert list(again.run(5, report_every=1)) == reports[5:]
    assert torch.equal(again.synthetic.images, engine.synthetic.images)


def test_no_more_real_images_are_loaded_together_than_there_is_room_for(monkeypatch):
    monkeypatch.setattr("atomhub.core.anynet._TOGETHER", 2)
    engine, loaded = engine_of(with_statistics, matcher="resnet18", **LAYER), []
    pixels = engine.real.pixels

    def counted(rows):
        found = pixels(rows)
        loaded.append(found[..., 0, 0, 0].numel())
        return found

    monkeypatch.setattr(engine.real, "pixels", counted)
    engine.real_side(engine.draw(0))
    assert max(loaded) == 2


def test_features_for_which_there_is_no_room_are_found_anew_and_that_is_said(monkeypatch):
    fields = {"matcher": "resnet18", "real_batch": 1024, **LAYER}
    kept = engine_of(with_statistics, **fields)
    monkeypatch.setattr("atomhub.core.iterations.budget", lambda *_: 1500 * 2**10)
    with pytest.warns(AtomhubWarning, match=r"no room: those of 3072 are found at every iteration"):
        anew = engine_of(with_statistics, **fields)
    assert kept.known.held > 0 and anew.known.held == 0
    for iteration in range(2):
        assert kept.gradient(iteration).item() == pytest.approx(anew.gradient(iteration).item(), rel=1e-9)
        assert (kept.gradients - anew.gradients).norm() <= 1e-9 * anew.gradients.norm()


def test_a_linear_layer_of_its_own_is_drawn_for_every_iteration():
    engine = engine_of(with_statistics, matcher="resnet18", **LINEAR)
    first, again, second = (engine.matcher.head(engine.draw(i).weights) for i in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert first.shape == (3, 12)


def test_all_terms_are_added_up():
    fields = [{"linear": 0.5}, {"layer": 2.0}]
    apart = [engine_of(Residual, matcher="resnet18", spatial=0, channel=0, feature=0, **own) for own in fields]
    others = engine_of(Residual, matcher="resnet18")
    whole = engine_of(Residual, matcher="resnet18", **fields[0], **fields[1])
    losses = [engine.gradient(1).item() for engine in (*apart, others, whole)]
    assert losses[-1] == pytest.approx(sum(losses[:-1]), rel=1e-9)
    total = sum(engine.gradients for engine in (*apart, others))
    assert (total - whole.gradients).norm() <= 1e-9 * whole.gradients.norm()


class Flat(nn.Module):
    """A network without a picture in it."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3 * SIZE**2, 3)

    def forward(self, x):
        return F.relu(self.head(x.flatten(1))) if self.cut else self.head(x.flatten(1))

    cut = False


def test_a_network_without_stages_is_matched_by_its_features_alone():
    with pytest.raises(UsageError, match="Flat has no activations of two resolutions") as caught:
        engine_of(Flat)
    assert "spatial and channel to 0" in caught.value.hint
    assert engine_of(Flat, spatial=0, channel=0).gradient(0) > 0


def test_a_network_that_does_not_end_in_a_linear_layer_is_refused(monkeypatch):
    monkeypatch.setattr(Flat, "cut", True)
    with pytest.raises(UsageError, match="Flat does not end in a linear layer"):
        engine_of(Flat, spatial=0, channel=0)


SHARED = [
    {"classes_per_iteration": None}, {"classes_per_iteration": 1},
    {"gradient": 1.0, "classes_per_iteration": 2},
    {"matcher": "resnet18", "linear": 1.0}, {"matcher": "resnet18", "linear": 1.0, "classes_per_iteration": 1},
    {"matcher": "resnet18", "layer": 1.0},
    {"matcher": "resnet18", "layer": 1.0, "linear": 1.0, "classes_per_iteration": 2},
    {"matcher": "resnet18", **LAYER, "classes_per_iteration": 2},
]  # fmt: skip


def share(rank, size, folder):
    """One of several processes."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=size)
    for i, fields in enumerate(SHARED):
        engine = engine_of(Residual, options={"team": Team()}, **fields)
        reports = list(engine.run(report_every=1))
        losses = torch.tensor([engine.team.total([report.loss])[0] for report in reports])
        found = engine.state()["images"]
        if rank == 0:
            torch.save((found, losses), folder / f"{i}.pt")
    torch.distributed.destroy_process_group()


def test_processes_share_the_classes_and_change_nothing_but_rounding(tmp_path):
    processes = [multiprocessing.get_context("fork").Process(target=share, args=(r, 2, tmp_path)) for r in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    for i, fields in enumerate(SHARED):
        alone = engine_of(Residual, **fields)
        losses = torch.tensor([report.loss for report in alone.run(report_every=1)])
        found, theirs = torch.load(tmp_path / f"{i}.pt", weights_only=True)
        assert (losses - theirs).abs().max() < 1e-6 * losses.max()
        assert (alone.state()["images"] - found).abs().max() < 1e-9
