"""Training and measuring: protocols as data, honest numbers, baselines under the same rules."""

import itertools
import json
import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from models import Recorder, tiny

import atomhub
from atomhub.cli.main import cli
from atomhub.errors import AtomhubError, AtomhubWarning, UsageError
from atomhub.results import Score
from atomhub.training import fit as fitting
from atomhub.training.accuracy import accuracy
from atomhub.training.baselines import herding_real, random_real
from atomhub.training.measure import summary
from atomhub.training.protocols import PROTOCOLS, Protocol, columns


def test_distilled_digits_beat_as_many_random_real_ones(home):
    distilled = atomhub.distill("digits", 1, "atom", {"iterations": 60})
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
    brief = atomhub.evaluate(again, tiny, "brief", runs=1, baseline=())
    assert [r.protocol for r in atomhub.load(saved.name).manifest.results.measured] == ["quick", "brief"]
    card = (saved.path / "README.md").read_text()
    measured, random = result.score, result.baseline["random"]
    assert f"| tiny() | 2 | **{measured.text}** | ± {measured.interval:.1f} | {random.text} |" in card
    assert f"| tiny() | 1 | **{brief.score.mean:.1f} (1 network)** | – |" in card
    assert card.index("Protocol quick:") < card.index("Protocol brief:")
    assert json.loads((saved.path / "manifest.json").read_text())["results"]["measured"][0]["score"]["runs"] == 2


def test_classes_are_told_apart_where_that_is_asked_for(home, digits1, short):
    saved = digits1.save()
    score = atomhub.evaluate(saved, protocol="quick", runs=2, baseline=None, per_class=True).score
    counts = torch.tensor(score.confusion)
    assert counts.shape == (10, 10)
    tests = torch.from_numpy(saved.real().test.labels).bincount(minlength=10)
    assert counts.sum(1).tolist() == (2 * tests).tolist()  # of two networks
    assert 100 * counts.trace() / counts.sum() == pytest.approx(score.mean)
    percent, other = score.of_class(3)
    assert percent == pytest.approx(100 * counts[3, 3].item() / counts[3].sum().item())
    assert counts[3, other] == max(c for k, c in enumerate(score.confusion[3]) if k != 3)
    assert atomhub.load(saved.name).manifest.results.measured[0].score == score
    assert "confusion" not in atomhub.evaluate(saved, protocol="quick", runs=1, baseline=None).model_dump()["score"]
    done = CliRunner().invoke(cli, ["evaluate", saved.name, "--protocol", "quick", "--runs", "1", "--per-class"])
    assert re.search(r"\n  3 +\d+\.\d \(else mostly \d\)", done.stdout)


def test_a_confusion_matrix_is_square_and_not_too_large():
    with pytest.raises(ValueError, match="a confusion matrix is square"):
        Score(mean=50, std=0, runs=1, accuracies=(50,), seconds=1, confusion=((1, 2), (3,)))
    with pytest.raises(ValueError, match="at most 200"):
        Score(mean=50, std=0, runs=1, accuracies=(50,), seconds=1, confusion=((0,) * 201,) * 201)


def test_a_baseline_that_was_not_measured_again_stays(home, digits1, short):
    saved = digits1.save()
    first = atomhub.evaluate(saved, tiny, "quick", runs=1)
    later = atomhub.evaluate(saved, tiny, "quick", runs=2, baseline=())
    (kept,) = atomhub.load(saved.name).manifest.results.measured
    assert kept.score == later.score
    assert kept.baseline == first.baseline


def test_fewer_runs_never_take_the_place_of_more(home, digits1, short):
    saved = digits1.save()
    for runs in (2, 1):
        atomhub.evaluate(saved, tiny, "quick", runs=runs, baseline=None)
    assert [r.score.runs for r in atomhub.load(saved.name).manifest.results.measured] == [2, 1]


def test_baselines_stay_with_their_seeds_and_tables_show_most_networks(home, digits1, short):
    saved = digits1.save()
    for runs, seed in ((2, 0), (1, 0), (1, 5)):
        atomhub.evaluate(saved, "convnet", "quick", runs=runs, seed=seed, baseline=None if runs == 1 else "random")
    measured = atomhub.load(saved.name).manifest.results.measured
    assert [(r.score.runs, r.seed, list(r.baseline)) for r in measured][-1] == (1, 5, [])
    (shown,) = columns(measured).values()
    assert shown.score.runs == 2


def test_a_name_is_no_set(home, digits1):
    for given in (atomhub.evaluate, atomhub.soften, lambda name: atomhub.concat([name, digits1])):
        with pytest.raises(UsageError, match=r"(?s)A set cannot be of type str.*atomhub\.load"):
            given("digits-ipc1")


def test_soft_labels_are_not_for_a_protocol_with_a_teacher(digits1):
    with pytest.raises(UsageError, match="Under 'rded' a teacher labels every batch"):
        atomhub.evaluate(digits1, "mlp:width=8", "rded", runs=1, labels="soft")


def test_a_network_without_a_name_is_refused(digits1):
    with pytest.raises(UsageError, match="There is no network ''"):
        atomhub.evaluate(digits1, "", "quick", runs=1)


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
    atomhub.distill("digits", 1, "atom", {"iterations": 1}).save(overwrite=True)
    with pytest.warns(AtomhubWarning, match="Another set lies in"):
        atomhub.evaluate(saved, tiny, "quick", runs=1, baseline=None)
    assert atomhub.load(saved.name).manifest.results.measured == ()


def test_a_float_set_is_measured_rounded_to_8_bits_as_well(home):
    overrides = {"iterations": 3, "pixels": "float32"}
    saved = atomhub.distill("digits", 1, "atom", overrides).save()
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
    assert "'mlp()'" in verdict.why


def test_every_run_needs_a_new_network(home, digits1):
    model = tiny()
    for together in (1, 5):
        with pytest.raises(UsageError, match="(?s)gives the same Sequential every time.*new one"):
            atomhub.evaluate(digits1, lambda: model, "quick", runs=2, together=together, baseline=None)
    with pytest.raises(UsageError, match="gives NoneType, not a torch.nn.Module"):
        atomhub.evaluate(digits1, lambda: None, "quick", runs=1, baseline=None)


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


def test_a_long_training_says_how_far_it_is(digits1, home, short, monkeypatch):
    clock = itertools.count(0, 0.3)  # a batch takes 0.3 seconds
    monkeypatch.setattr("atomhub.training.progress.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    told = []
    atomhub.evaluate(digits1, "lenet", "quick", 2, together=1, baseline=None, progress=lambda *a: told.append(a))
    done = [networks for _, networks, _ in told]
    assert done == sorted(done)
    assert 0 < done[0] < 0.5 and done[-1] == 2 and len(done) > 10
    assert {(kind, total) for kind, _, total in told} == {("distilled", 2)}
