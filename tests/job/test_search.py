"""Architecture search: spaces as data, honest judges, resumable, and checked against real training."""

import json

import numpy as np
import pytest

import atomhub
from atomhub.errors import UsageError
from atomhub.job.search import plot
from atomhub.training import architectures as searching
from atomhub.training.architectures import Candidate, Check, Space, conclude, find_space
from atomhub.training.protocols import PROTOCOLS, Protocol


@pytest.fixture(autouse=True)
def brief(monkeypatch):
    """A protocol of few epochs."""
    monkeypatch.setitem(PROTOCOLS, "brief", Protocol(20, 256, "test", lr=0.05))


@pytest.fixture
def space(tmp_path):
    """Four small networks."""
    file = tmp_path / "small.toml"
    file.write_text('network = "mlp"\n[options]\nwidth = [1, 4, 16, 64]\n')
    return file


def test_the_space_of_the_literature_has_720_networks():
    specs = find_space("convnet-720").specs()
    assert len(specs) == len(set(specs)) == 720
    assert "convnet:width=128,depth=3,norm=instance,activation=relu,pooling=avg" in specs


def test_networks_are_ranked_by_real_training_images_the_test_images_choose_nothing(home, digits1, space, monkeypatch):
    seen = []
    measure = searching.accuracy

    def watched(model, images, labels, *rest):
        seen.append(images)
        return measure(model, images, labels, *rest)

    monkeypatch.setattr(searching, "accuracy", watched)
    found = atomhub.search(digits1, space, protocol="brief")
    scores = [c.accuracy for c in found.candidates]
    assert scores == sorted(scores, reverse=True)
    assert found.candidates[0].network == "mlp:width=64"
    assert found.candidates[0].parameters == 256 * 64 + 64 + 64 * 64 + 64 + 64 * 10 + 10
    training = {bytes(i) for i in np.asarray(digits1.real().train.images)}
    assert all(bytes(i.numpy()) in training for i in seen[0])
    assert (found.checks, found.correlation, found.regret) == ((), None, None)


def test_the_ranking_is_checked_by_training_on_the_whole_set(home, digits1, space, tmp_path):
    found = atomhub.search(digits1, space, protocol="brief", check=4, check_epochs=3)
    assert [c.network for c in found.checks] == [c.network for c in found.candidates]
    real = [c.accuracy for c in found.checks]
    assert found.regret == pytest.approx(max(real) - real[0], abs=1e-3)
    ranks = [np.argsort(np.argsort(a)) for a in ([c.accuracy for c in found.candidates], real)]
    assert found.correlation == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-3)  # no ties here
    assert found.images == (10, 1437)
    assert found.agreement == ""  # ranks of four networks say little
    plot(found, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_ten_networks_are_enough_for_a_rank_correlation(tmp_path):
    candidates = tuple(Candidate(f"n{i}", 60.0 - i, 10, 1.0) for i in range(11))
    checks = tuple(Check(f"n{i}", 80.0 - i if i < 10 else 10.0, 2.0) for i in range(11))
    found = conclude("some", candidates, checks, (100, 1000))
    assert found.agreement == "rank correlation 1.00"
    plot(found, tmp_path / "plot.png")  # with one far below
    assert conclude("some", candidates[:9], checks[:9], (100, 1000)).agreement == ""


def test_a_budget_draws_candidates_by_the_seed(home, digits1, space):
    drawn = [
        frozenset(c.network for c in atomhub.search(digits1, space, 2, protocol="brief", seed=s).candidates)
        for s in (0, 0, 1, 2, 3)
    ]
    assert all(len(few) == 2 for few in drawn)
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 1


def test_a_search_goes_on_where_it_was_interrupted(home, digits1, space, tmp_path, monkeypatch):
    log = tmp_path / "out" / "results.jsonl"
    trained = []
    fit = searching.fit

    def interrupted(models, *rest, **options):
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(models)
        fit(models, *rest, **options)

    monkeypatch.setattr(searching, "fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        atomhub.search(digits1, space, protocol="brief", log=log)
    log.write_text(log.read_text() + '{"candidate": {"netw')  # half a line, as a crash leaves it
    trained.clear()
    found = atomhub.search(digits1, space, protocol="brief", log=log)
    assert len(trained) == 2
    monkeypatch.setattr(searching, "fit", fit)
    assert [c.network for c in found.candidates] == [
        c.network for c in atomhub.search(digits1, space, protocol="brief").candidates
    ]
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]
    assert [next(iter(line)) for line in lines] == ["search"] + ["candidate"] * 4


def test_the_log_of_another_search_is_left_alone(home, digits1, space, tmp_path):
    log = tmp_path / "results.jsonl"
    atomhub.search(digits1, space, 1, protocol="brief", log=log)
    before = log.read_text()
    with pytest.raises(UsageError, match="(?s)is the log of another search: seed differs.*output="):
        atomhub.search(digits1, space, 1, protocol="brief", log=log, seed=1)
    assert log.read_text() == before
    thesis = tmp_path / "thesis.txt"
    thesis.write_text("years of work\n")
    with pytest.raises(UsageError, match="is not the log of a search"):
        atomhub.search(digits1, space, 1, protocol="brief", log=thesis)
    assert thesis.read_text() == "years of work\n"


def test_lines_of_a_log_that_are_no_results_are_passed_over(home, digits1, space, tmp_path, monkeypatch):
    log = tmp_path / "results.jsonl"
    whole = atomhub.search(digits1, space, protocol="brief", log=log)
    lines = log.read_text().splitlines()
    lines[2] = '{"candidate": {"network": "mlp:width=4", "accuracy": "high"}}'
    lines.insert(3, "noise")
    lines.insert(4, '{"candidate": 5}')
    log.write_text("\n".join(lines) + "\n")
    trained = []
    fit = searching.fit
    monkeypatch.setattr(
        searching, "fit", lambda models, *rest, **options: (trained.append(1), fit(models, *rest, **options))
    )
    again = atomhub.search(digits1, space, protocol="brief", log=log)
    assert len(trained) == 1
    assert {c.network: c.accuracy for c in again.candidates} == {c.network: c.accuracy for c in whole.candidates}


def test_a_check_that_fails_counts_nowhere_and_is_tried_again(home, digits1, space, tmp_path, monkeypatch):
    run = searching.Trials.run

    def failing(self, spec, images, *rest):
        if len(images) > 100 and spec == "mlp:width=4":
            return searching.Candidate(spec, 0.0, 1, 0.0, "no memory")
        return run(self, spec, images, *rest)

    monkeypatch.setattr(searching.Trials, "run", failing)
    log = tmp_path / "results.jsonl"
    found = atomhub.search(digits1, space, protocol="brief", check=4, check_epochs=2, log=log)
    (failed,) = [c for c in found.checks if c.failed]
    assert failed.network == "mlp:width=4"
    good = [c.accuracy for c in found.checks if not c.failed]
    assert found.regret == pytest.approx(max(good) - good[0], abs=1e-3)
    monkeypatch.setattr(searching.Trials, "run", run)
    again = atomhub.search(digits1, space, protocol="brief", check=4, check_epochs=2, log=log)
    assert not any(c.failed for c in again.checks)


def test_sets_of_one_name_are_told_apart(home, digits1, space, tmp_path):
    log = tmp_path / "results.jsonl"
    atomhub.search(digits1.subset([0, 1], name="p"), space, 1, protocol="brief", log=log)
    with pytest.raises(UsageError, match="log of another search: images differs"):
        atomhub.search(digits1.subset([2, 3], name="p"), space, 1, protocol="brief", log=log)


def test_what_a_space_does_not_say_is_as_the_set_was_distilled(home, tmp_path):
    distilled = atomhub.distill("digits", 1, "atom", {"iterations": 1, "width": 8})
    (tmp_path / "s.toml").write_text('network = "convnet"\n[options]\nactivation = ["relu"]\n')
    (one,) = atomhub.search(distilled, tmp_path / "s.toml", protocol="brief").candidates
    assert one.parameters == 1986


def test_what_cannot_be_trained_is_ranked_last_with_the_reason(home, digits1, tmp_path):
    file = tmp_path / "deep.toml"
    file.write_text('network = "convnet"\n[options]\nwidth = [4]\ndepth = [2, 6]\n')
    found = atomhub.search(digits1, file, protocol="brief", check=2, check_epochs=1)
    assert [c.network for c in found.candidates] == ["convnet:width=4,depth=2", "convnet:width=4,depth=6"]
    assert "nothing is left of them after 6 poolings" in found.candidates[1].failed
    assert [c.network for c in found.checks] == ["convnet:width=4,depth=2"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("network = 3", "network: Input should be a valid string"),
        ('network = "mlp"\n[options]\nwidth = []', "options.width: List should have at least 1"),
        ('netwrok = "mlp"', "Field required|netwrok"),
        ("network = ", "cannot be read"),
        ('network = "mlp:width=4"', "network is a name alone"),
        ('network = "mlp"\n[options]\nwidth = [4, 4]', "width has a value twice"),
        ('network = "mlp"\n[options]\nwidth = [true]', r"options\.width\.0.*valid"),
    ],
)
def test_a_file_that_is_no_space_is_refused(tmp_path, text, message):
    (tmp_path / "space.toml").write_text(text)
    with pytest.raises(UsageError, match=message):
        find_space(tmp_path / "space.toml")


def test_impossible_searches(home, digits1, space, tmp_path):
    with pytest.raises(UsageError, match="(?s)no space 'convnet-72'.*'convnet-720'"):
        find_space("convnet-72")
    with pytest.raises(UsageError, match="cannot be read"):
        find_space(tmp_path / "none.toml")
    for arguments, message in (({"budget": 0}, "budget cannot be 0"), ({"check": 1}, "check cannot be 1")):
        with pytest.raises(UsageError, match=message):
            atomhub.search(digits1, space, **arguments)
    (tmp_path / "odd.toml").write_text('network = "mlp"\n[options]\nwdth = [1]\n')
    with pytest.raises(UsageError, match="no option 'wdth'"):
        atomhub.search(digits1, tmp_path / "odd.toml", protocol="brief")
    (tmp_path / "late.toml").write_text('network = "mlp"\n[options]\nwidth = [4, "abc"]\n')
    with pytest.raises(UsageError, match="width of the network 'mlp' cannot be 'abc'"):
        atomhub.search(digits1, tmp_path / "late.toml", protocol="brief", log=tmp_path / "log.jsonl")
    assert not (tmp_path / "log.jsonl").exists()


def test_a_space_without_options_is_one_network():
    assert Space(network="resnet18").specs() == ["resnet18"]
