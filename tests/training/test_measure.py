"""Training and measuring: protocols as data, honest numbers, baselines under the same rules."""

import dataclasses
import json
import shutil

import pytest
import torch

import atomhub
from atomhub.errors import AtomhubError, AtomhubWarning, UsageError
from atomhub.provenance import Teacher
from atomhub.training import fit as fitting
from atomhub.training.accuracy import accuracy
from atomhub.training.measure import herding_real, random_real, summary
from atomhub.training.nets import InputSpec
from atomhub.training.networks import find_network
from atomhub.training.protocols import PROTOCOLS, Protocol


def tiny():
    """A user's own model."""
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 10))


def with_dropout():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.Linear(256, 10))


def train(model, images, labels, protocol, operations=(), seed=0):
    fitting.fit([model], [images], labels, protocol, [operations], 10, [seed])


def test_distilled_digits_beat_as_many_random_real_ones(home):
    distilled = atomhub.distill("digits", 1, overrides={"iterations": 60})
    result = atomhub.evaluate(distilled, protocol="quick", runs=3)
    assert result.score.mean > result.baseline["random"].mean + 5
    assert result.test_images == 360
    assert result.score.runs == len(result.score.accuracies) == 3


def test_the_same_seed_gives_the_same_accuracies_whatever_ran_before(home, digits1, short):
    first = atomhub.evaluate(digits1, protocol="quick", runs=2)
    torch.rand(7)
    state = torch.get_rng_state()
    second = atomhub.evaluate(digits1, protocol="quick", runs=2, baseline=())
    assert second.score.accuracies == first.score.accuracies
    assert torch.equal(torch.get_rng_state(), state)
    later = atomhub.evaluate(digits1, protocol="quick", runs=1, seed=1, baseline=())
    assert later.score.accuracies[0] == first.score.accuracies[1]


def test_results_are_stored_in_manifest_and_card_and_replaced_when_measured_again(home, digits1, short, monkeypatch):
    monkeypatch.setitem(PROTOCOLS, "brief", Protocol(2, 256, "test"))
    saved = digits1.save()
    for runs in (1, 2):
        result = atomhub.evaluate(saved, tiny, "quick", runs=runs)
    again = atomhub.load(saved.name)
    assert again.manifest.results.measured == (result,)
    atomhub.evaluate(again, tiny, "brief", runs=1, baseline=())
    assert [r.protocol for r in atomhub.load(saved.name).manifest.results.measured] == ["quick", "brief"]
    card = (saved.path / "README.md").read_text()
    assert "| trained on | quick, tiny() | brief, tiny() |" in card
    assert f"| this set | **{result.score.mean:.1f} ± {result.score.std:.1f}** |" in card
    assert f"| 95 % interval of the mean | ± {result.score.interval:.1f} | – |" in card
    assert f"| random real images | {result.baseline['random'].mean:.1f} ±" in card
    assert json.loads((saved.path / "manifest.json").read_text())["results"]["measured"][0]["score"]["runs"] == 2


def test_fewer_runs_never_take_the_place_of_more(home, digits1, short):
    saved = digits1.save()
    for runs in (2, 1):
        atomhub.evaluate(saved, tiny, "quick", runs=runs, baseline=None)
    assert [r.score.runs for r in atomhub.load(saved.name).manifest.results.measured] == [2, 1]


def test_a_result_of_an_older_revision_gives_way_whatever_its_runs(home, digits1, short):
    new = atomhub.evaluate(digits1, tiny, "quick", runs=1, baseline=None)
    old = new.model_copy(update={"revision": 1, "score": new.score.model_copy(update={"runs": 9})})
    manifest = digits1.manifest.replace(results={"measured": (old,)})
    assert manifest.with_result(new).results.measured == (new,)


def test_a_set_measured_in_memory_keeps_its_results_when_saved(home, digits1):
    result = atomhub.evaluate(digits1, tiny, "quick", runs=1, baseline=None)
    assert atomhub.load(digits1.save().path).manifest.results.measured == (result,)


def test_a_result_is_returned_even_if_it_cannot_be_stored(home, digits1):
    saved = digits1.save()
    shutil.rmtree(saved.path)
    with pytest.warns(AtomhubWarning, match="not stored with the set"):
        assert atomhub.evaluate(saved, tiny, "quick", runs=1, baseline=None).score.runs == 1


def test_a_result_is_never_stored_with_another_set(home, digits1):
    saved = digits1.save()
    atomhub.distill("digits", 1, overrides={"iterations": 1}).save(overwrite=True)
    with pytest.warns(AtomhubWarning, match="Another set lies in"):
        atomhub.evaluate(saved, tiny, "quick", runs=1, baseline=None)
    assert atomhub.load(saved.name).manifest.results.measured == ()


def test_a_float_set_is_measured_rounded_to_8_bits_as_well(home):
    overrides = {"iterations": 3, "pixels": "float32"}
    saved = atomhub.distill("digits", 1, overrides=overrides).save()
    assert "not measured yet" in (saved.path / "README.md").read_text()
    result = atomhub.evaluate(saved, tiny, "quick", runs=1, baseline=())
    change = f"{result.baseline['rounded'].mean - result.score.mean:+.1f} points."
    assert change in (saved.path / "README.md").read_text()
    assert abs(result.baseline["rounded"].mean - result.score.mean) < 10


def test_a_nameless_network_is_called_by_its_class(home, digits1):
    assert atomhub.evaluate(digits1, lambda: tiny(), "quick", runs=1, baseline=None).network == "Sequential()"


def test_a_network_of_ones_own_is_never_taken_for_one_of_ours(home, digits1, monkeypatch):
    monkeypatch.setitem(PROTOCOLS, "brief", Protocol(2, 256, "test"))

    def mlp():
        return tiny()

    assert atomhub.evaluate(digits1, mlp, "brief", runs=1, baseline=None).network == "mlp()"
    (verdict,) = atomhub.verify(digits1)
    assert verdict.measured is None


def test_every_run_needs_a_new_network(home, digits1):
    model = tiny()
    for together in (1, 5):
        with pytest.raises(UsageError, match="(?s)gives the same Sequential every time.*new one"):
            atomhub.evaluate(digits1, lambda: model, "quick", runs=2, together=together, baseline=None)
    with pytest.raises(UsageError, match="gives NoneType, not a torch.nn.Module"):
        atomhub.evaluate(digits1, lambda: None, "quick", runs=1, baseline=None)


def test_a_last_batch_of_one_joins_the_one_before():
    seen = []
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 10), torch.nn.BatchNorm1d(10))
    model.register_forward_pre_hook(lambda _, arguments: seen.append(len(arguments[0])))
    train(model, torch.randn(9, 1, 16, 16), torch.arange(9), Protocol(2, 4, "test"))
    assert seen == [4, 5, 4, 5]


def test_the_whole_training_set_is_a_baseline_too(home, digits1, monkeypatch):
    monkeypatch.setitem(PROTOCOLS, "brief", Protocol(3, 256, "test"))
    result = atomhub.evaluate(digits1, tiny, "brief", runs=1, baseline=("random", "whole"))
    assert result.baseline["whole"].mean > result.baseline["random"].mean


def test_herding_is_a_baseline_of_images_near_the_class_mean(home, digits1):
    real = atomhub.open_source("digits")
    images, labels = herding_real(digits1, real)
    assert labels.tolist() == list(range(10))
    zeros = digits1.normalize(torch.tensor(real.train.images[:]))[torch.from_numpy(real.train.labels) == 0]
    distances = (zeros - zeros.mean(0)).flatten(1).norm(dim=1)
    assert torch.equal(images[0], zeros[distances.argmin()])
    result = atomhub.evaluate(digits1, tiny, "quick", runs=2, baseline=("herding",))
    assert result.baseline["herding"].runs == 2


def test_random_real_images_differ_by_seed_and_keep_their_class(home, digits1):
    real = atomhub.open_source("digits")
    images, labels = random_real(digits1, real, 0)
    assert labels.tolist() == list(range(10))
    assert not torch.equal(images, random_real(digits1, real, 1)[0])
    training = {tuple(i.flatten().tolist()) for i in digits1.normalize(torch.tensor(real.train.images[:]))}
    assert {tuple(i.flatten().tolist()) for i in images} <= training


def test_accuracy_is_a_percentage_of_right_answers(digits1):
    images = torch.zeros(8, 1, 16, 16, dtype=torch.uint8)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 10))
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].bias.copy_(torch.eye(10)[3])  # always answers 3
    labels = torch.tensor([3, 3, 3, 3, 3, 3, 1, 2])
    assert accuracy(model, images, labels, digits1.normalization, torch.device("cpu"), 10) == 75


def test_the_interval_of_the_mean_is_students():
    score = summary([90.0, 92.0, 94.0], 1.0)
    assert score.interval == pytest.approx(4.303 * 2 / 3**0.5, rel=1e-3)  # t with 2 degrees of freedom
    assert summary([90.0], 1.0).interval == float("inf")


def test_spread_is_the_sample_standard_deviation():
    assert summary([90.0, 94.0], 1.0).std == pytest.approx(2.8284, abs=1e-4)
    assert summary([90.0], 1.0).std == 0


class Recorder(torch.nn.Module):
    """Keeps the batches it was given, and answers with its bias."""

    def __init__(self):
        super().__init__()
        self.bias = torch.nn.Parameter(torch.zeros(10))
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.batches = []

    def forward(self, images):
        self.batches.append(images.detach().clone())
        return self.bias.expand(len(images), 10) * self.weight


def test_each_network_differs_and_baselines_are_paired_with_the_set(home, digits1, short):
    made = []

    def network():
        made.append(tiny())
        return made[-1]

    weights = []
    plain = fitting.fit

    def fit(models, *arguments, **options):
        weights.extend(model[1].weight.detach().clone() for model in models)
        plain(models, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("atomhub.training.measure.fit", fit)
        atomhub.evaluate(digits1, network, "quick", runs=2)
    assert torch.equal(weights[0], weights[2])
    assert torch.equal(weights[1], weights[3])
    assert not torch.equal(weights[0], weights[1])


def test_training_batches_are_augmented_and_mixed_as_the_protocol_says():
    images, labels = torch.rand(8, 1, 16, 16) + 1, torch.arange(8)
    for operations, cutmix, changed in (((), 0.0, False), (("cutout",), 0.0, True), ((), 1.0, True)):
        model = Recorder()
        torch.manual_seed(0)
        train(model, images, labels, Protocol(1, 8, "test", cutmix=cutmix), operations)
        (batch,) = model.batches
        same = {tuple(i.flatten().tolist()) for i in batch} == {tuple(i.flatten().tolist()) for i in images}
        assert same != changed


@pytest.fixture
def short(monkeypatch):
    """``quick`` with a tenth of its epochs, where the accuracy itself does not matter."""
    monkeypatch.setitem(PROTOCOLS, "quick", Protocol(20, 256, "test"))


OPERATIONS = ("color", "crop", "cutout", "flip", "scale", "rotate")


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
    boxes = 0
    for seed in range(20):
        u = torch.rand(1, 4, generator=torch.Generator().manual_seed(seed))
        partners = torch.arange(8).roll(1).argsort()[None]
        batch, targets = fitting._cutmix(images[None], torch.eye(8)[None], 0.5, u, partners)
        own = (batch[0] == images).flatten(1).float().mean(1)  # share of pixels kept
        assert torch.allclose(targets[0].diagonal(), own)
        assert torch.allclose(targets[0].sum(1), torch.ones(8))
        partner = (batch[0] == images.roll(1, 0)).flatten(1).float().mean(1)
        assert torch.allclose(own + partner, torch.ones(8))
        boxes += int(own[0] < 1)
    assert 4 <= boxes <= 16  # about half of the batches


def test_soft_labels_teach_what_they_say():
    images = torch.randn(10, 1, 16, 16)
    soft = torch.eye(10).roll(1, 1)  # every image is taught as the next class
    model = tiny()
    train(model, images, soft, Protocol(200, 10, "test", lr=0.1))
    assert model(images).argmax(1).tolist() == soft.argmax(1).tolist()


def test_a_teacher_softens_labels_and_they_are_kept_and_reported_apart(home, digits1, monkeypatch):
    monkeypatch.setitem(PROTOCOLS, "brief", Protocol(20, 256, "test"))
    soft = atomhub.soften(digits1, "mlp:width=32", epochs=40, temperature=2.0)
    assert soft.soft_labels.shape == (10, 10)
    assert torch.allclose(soft.soft_labels.float().sum(1), torch.ones(10), atol=1e-2)
    assert (soft.soft_labels.argmax(1) == digits1.labels).sum() >= 8
    assert soft.manifest.provenance.teacher.accuracy > 60
    saved = soft.save()
    again = atomhub.load("digits-ipc1-soft")
    assert torch.equal(again.soft_labels, soft.soft_labels)
    atomhub.evaluate(again, tiny, "brief", runs=1)
    atomhub.evaluate(again, tiny, "brief", runs=1, labels="soft")
    assert [r.labels for r in atomhub.load("digits-ipc1-soft").manifest.results.measured] == ["hard", "soft"]
    card = (saved.path / "README.md").read_text()
    assert "brief, soft labels" in card
    assert "teacher mlp:width=32, 40 epochs" in card
    assert again.subset([1, 2]).soft_labels is None  # of classes that are gone
    assert again.subset(ipc=1).manifest.provenance.teacher == soft.manifest.provenance.teacher


def test_the_recorded_command_makes_the_same_soft_labels(home, digits1, shell):
    soft = atomhub.soften(digits1, "mlp:width=8", epochs=1, temperature=2.0, seed=3)
    shell(soft.manifest.provenance.command)
    again = atomhub.load("digits-ipc1-soft")
    assert torch.equal(again.soft_labels, soft.soft_labels)
    assert torch.equal(again.images, soft.images)
    assert again.manifest.provenance.teacher == soft.manifest.provenance.teacher


def test_soft_labels_that_are_no_probabilities_are_refused(home, digits1):
    soft = dataclasses.replace(
        digits1, soft_labels=torch.full((10, 10), 0.5, dtype=torch.float16),
        manifest=digits1.manifest.replace(
            format={"labels": "soft"}, provenance={"teacher": Teacher(network="mlp", epochs=1, seed=0)}, name="wrong"
        ),
    )  # fmt: skip
    with pytest.raises(AtomhubError, match="soft labels are not probabilities"):
        atomhub.load(soft.save().path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"teacher": "mpl"}, "(?s)no network 'mpl'.*'mlp'"),
        ({"epochs": 0}, "epochs cannot be 0"),
        ({"temperature": 0}, "temperature cannot be 0"),
        ({"teacher": tiny}, "teacher cannot be function"),
        ({"name": "a/b"}, "cannot be named 'a/b'"),
    ],
)
def test_impossible_teachers(digits1, arguments, message):
    with pytest.raises(UsageError, match=message):
        atomhub.soften(digits1, **arguments)


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


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 7)),
            r"gives \(8, 7\) for 8 images of 10",
        ),
        (lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(99, 10)), "cannot take images of 1x16x16"),
        (lambda: torch.nn.Conv2d(3, 10, 3), "cannot take images of 1x16x16"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(model, message):
    for count in (1, 2):
        with pytest.raises(UsageError, match=message):
            fitting.fit(
                [model() for _ in range(count)], [torch.randn(8, 1, 16, 16)] * count, torch.arange(8),
                Protocol(1, 8, "test"), (), 10, range(count),
            )  # fmt: skip


def test_digits_are_not_mirrored_while_measuring(home, digits1, monkeypatch):
    monkeypatch.setitem(PROTOCOLS, "mirror", Protocol(2, 256, "test", augmentation=[("flip",)]))
    models = []

    def network():
        models.append(Recorder())
        return models[-1]

    atomhub.evaluate(digits1, network, "mirror", runs=1, baseline=None)
    plain = {tuple(i.flatten().tolist()) for i in digits1.as_tensors()[0]}
    assert {tuple(i.flatten().tolist()) for i in models[0].batches[0]} == plain


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"network": "covnet"}, "(?s)no network 'covnet'.*'convnet'"),
        ({"protocol": "dn"}, "(?s)no protocol 'dn'.*dm"),
        ({"runs": 0}, "runs cannot be 0"),
        ({"baseline": ("herd",)}, "no baseline 'herd'"),
        ({"labels": "soft"}, "(?s)has no soft labels.*soften"),
        ({"labels": "medium"}, "no 'medium' labels"),
        ({"together": 0}, "together cannot be 0"),
        ({"network": torch.nn.Linear(1, 1)}, "(?s)network cannot be Linear.*returns a new model"),
    ],
)
def test_impossible_arguments(digits1, arguments, message):
    with pytest.raises(AtomhubError, match=message):
        atomhub.evaluate(digits1, **arguments)


def test_a_source_without_a_test_split_cannot_be_measured_on(home, photos):
    (photos / "test").rename(photos.parent / "other")
    distilled = atomhub.distill(
        photos, 1, overrides={"iterations": 1, "width": 4}, train_split="train", test_fraction=0
    )
    with pytest.raises(AtomhubError, match="(?s)has no test split.*test_fraction"):
        atomhub.evaluate(distilled, protocol="quick", runs=1)


def test_dd_rankings_measures_are_differences_of_last_epochs_means(home, digits1, short):
    result = atomhub.evaluate(digits1, tiny, "quick", runs=1, baseline=("random", "whole"))
    assert result.ior == pytest.approx(result.score.mean - result.baseline["random"].mean, abs=1e-3)
    assert result.hlr == pytest.approx(result.baseline["whole"].mean - result.score.mean, abs=1e-3)
    alone = result.model_copy(update={"baseline": {}})
    assert (alone.ior, alone.hlr) == (None, None)
    soft = result.model_copy(update={"labels": "soft"})
    assert (soft.ior, soft.hlr) == (None, None)
