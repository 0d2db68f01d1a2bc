"""Any network as matcher: what is matched of it, and gradients that agree with slow, obvious ones in float64."""

import multiprocessing

import numpy as np
import pytest
import torch
from engines import MANY, SIZE, SIZES, make_bank, make_engine
from torch import nn
from torch.nn import functional as F

from atomhub.core.anynet import AnyEngine
from atomhub.core.augment import augment
from atomhub.core.convnet import ConvNet
from atomhub.core.parallel import Team
from atomhub.core.whitening import Normalization
from atomhub.errors import AtomhubError, UsageError
from atomhub.recipe import Recipe

NORMALIZATION = Normalization((0.4, 0.5, 0.45), (0.2, 0.25, 0.3))


class Residual(nn.Module):
    """Three stages of a network as people write it: modules that are used twice, functions, in-place ones, dropout."""

    def __init__(self, classes=3):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6))
        self.branch = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6))
        self.down = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.last = nn.Sequential(nn.Conv2d(8, 10, 3, stride=2, padding=1), nn.BatchNorm2d(10), nn.ReLU(inplace=True))
        self.relu, self.dropout = nn.ReLU(inplace=True), nn.Dropout(0.5)
        self.hidden, self.head = nn.Linear(10, 12), nn.Linear(12, classes)

    def stages(self, x):
        """The last activation of every stage."""
        x = self.relu(self.stem(x))
        first = self.relu(self.branch(x) + x)
        second = F.gelu(self.down(first))
        return first, second, self.last(second)

    def forward(self, x):
        x = self.stages(x)[-1].mean((2, 3))
        return self.head(self.features(x))

    def features(self, x):
        return self.dropout(F.relu(self.hidden(x)))


def engine_of(build, channels=3, ipc=2, options=None, trained=None, seed=0, **fields):
    """Like make_engine, under any network."""
    rng, sizes = np.random.default_rng(1), MANY if "formation" in fields else SIZES
    images = rng.integers(0, 256, (sum(sizes), channels, SIZE, SIZE), dtype=np.uint8)
    recipe = Recipe.named("atom", {"width": 6, "real_batch": 4, "iterations": 5, "norm": "instance", **fields})
    return AnyEngine(
        images, np.cumsum([0, *sizes]), recipe.resolved(ipc, SIZE), ipc, NORMALIZATION, seed, dtype=torch.float64,
        build=build, bank=trained, **(options or {}),
    )  # fmt: skip


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"power": 4.0, "depth": 3},
        {"spatial": 0.5, "channel": 0.0, "formation": 2},
        {"norm": "batch", "statistics": "real"},
        {"norm": "batch", "statistics": "real", "power": 2.0, "depth": 3, "classes_per_iteration": 2},
        {"bank": 2, "calibration": 0.3, "norm": "none", "augmentation_draw": "all"},
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
    draw, recipe = engine.draw(iteration), engine.recipe
    network = Residual().double().eval()
    for (_, own), given in zip(network.named_parameters(), engine.matcher.weights(draw.weights).values(), strict=True):
        own.data = given
    real = engine.real[draw.indices]
    seen = engine.synthetic.seen().requires_grad_()
    views = augment(real, draw.augmentation, recipe.stages), augment(seen, draw.augmentation, recipe.stages)
    for norm in (m for m in network.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.train().momentum = 1.0
    x = views[0].flatten(0, 1)
    network(x)
    stages = network.stages(x)  # for how many values each norm saw, which PyTorch corrects its variance for
    for norm, values in zip((network.stem[1], network.branch[1], network.last[1]), (0, 0, 2), strict=True):
        n = stages[values][:, 0].numel()
        norm.eval().running_var.mul_((n - 1) / n)
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


def share(rank, size, folder):
    """One of several processes."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=size)
    for each in (None, 1):
        engine = engine_of(Residual, options={"team": Team()}, classes_per_iteration=each)
        list(engine.run())
        found = engine.state()["images"]
        if rank == 0:
            torch.save(found, folder / f"{each}.pt")
    torch.distributed.destroy_process_group()


def test_processes_share_the_classes_and_change_nothing_but_rounding(tmp_path):
    processes = [multiprocessing.get_context("fork").Process(target=share, args=(r, 2, tmp_path)) for r in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    for each in (None, 1):
        alone = engine_of(Residual, classes_per_iteration=each)
        list(alone.run())
        found = torch.load(tmp_path / f"{each}.pt", weights_only=True)
        assert (alone.state()["images"] - found).abs().max() < 1e-9
