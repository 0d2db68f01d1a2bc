"""Whether claims of accuracy hold: networks are trained anew, and means compared by their standard errors."""

import dataclasses
import json
import statistics
import sys

import pytest
from scipy.stats import ttest_ind

import atomhub
from atomhub.errors import NotFoundError, UsageError
from atomhub.job.evaluation import distances
from atomhub.training.measure import summary
from atomhub.training.protocols import PROTOCOLS, Protocol, columns


@pytest.fixture
def measured(home):
    distilled = atomhub.distill("digits", 1, "atom", {"iterations": 40}).save()
    atomhub.evaluate(distilled, protocol="quick", runs=3, baseline=None)
    return distilled


def test_an_honest_claim_holds(measured):
    (verdict,) = atomhub.verify(measured, runs=2)
    assert verdict.holds
    assert verdict.measured.seed != verdict.claim.seed
    assert len(atomhub.load(measured.name).manifest.results.measured) == 1  # nothing is stored


def test_a_claim_of_ten_networks_that_is_a_point_and_a_half_too_high_does_not_hold(home, monkeypatch):
    monkeypatch.setitem(PROTOCOLS, "quick", dataclasses.replace(PROTOCOLS["quick"], epochs=100, drops=(50,)))
    distilled = atomhub.load("digits-ipc1")
    claim = atomhub.evaluate(distilled, "convnet:width=16", "quick", 10, baseline=None)
    score = claim.score.model_copy(update={"mean": claim.score.mean + 1.5})
    lie = claim.model_copy(update={"score": score})
    distilled.manifest = distilled.manifest.replace(results={"measured": (claim, lie)})
    honest, found_out = atomhub.verify(distilled, runs=10)
    assert honest.holds
    assert not found_out.holds
    assert honest.allowed < honest.seen < 1.5


def test_distances_are_those_of_welchs_test():
    """Against SciPy's own test of two samples: the p-value is 1 % where the distance of the means is the allowed."""
    a, b = [70.0, 71.5, 69.5, 70.2], [68.0, 68.9, 68.7]
    allowed, seen = distances(summary(a, 1), summary(b, 1), 0.01)
    away = statistics.fmean(a) - statistics.fmean(b) - allowed
    assert ttest_ind(a, [x + away for x in b], equal_var=False).pvalue == pytest.approx(0.01, rel=1e-3)
    assert seen > allowed


def test_one_network_is_taken_to_have_the_spread_of_the_others():
    allowed, _ = distances(summary([70.0], 1), summary([69.0, 70.0, 71.0], 1), 0.01)
    assert allowed == pytest.approx(9.925 * (1 + 1 / 3) ** 0.5, rel=1e-3)  # t with 2 degrees of freedom


def test_equal_accuracies_have_the_spread_of_one_test_image():
    allowed, _ = distances(summary([97.5, 97.5], 1), summary([97.5, 97.5], 1), 0.28)
    assert allowed > 0.28


def test_one_network_cannot_verify(digits1):
    with pytest.raises(UsageError, match="(?s)runs cannot be 1.*Use 2 or more"):
        atomhub.verify(digits1, runs=1)


def test_a_set_that_claims_nothing(digits1):
    with pytest.raises(NotFoundError, match="claims no accuracy"):
        atomhub.verify(digits1)


def test_a_claim_cannot_make_its_own_test_a_weak_one(home, monkeypatch):
    """Neither by a spread of its own making, nor by a test split of one image or none."""
    monkeypatch.setitem(PROTOCOLS, "quick", Protocol(20, 256, "test"))
    distilled = atomhub.load("digits-ipc1")
    claim = atomhub.evaluate(distilled, protocol="quick", runs=3, baseline=None)
    lies = []
    for change in ({"std": 60.0}, {}, {}):
        score = claim.score.model_copy(update={"mean": claim.score.mean - 25, **change})
        lies.append(claim.model_copy(update={"score": score, "test_images": len(lies)}))
    distilled.manifest = distilled.manifest.replace(results={"measured": tuple(lies)})
    assert not any(verdict.holds for verdict in atomhub.verify(distilled, runs=4))


def test_what_is_not_installed_is_no_fault_of_the_claim(home, monkeypatch):
    distilled = atomhub.load("digits-ipc1")
    other = distilled.manifest.results.measured[0].model_copy(update={"network": "timm/resnet18"})
    distilled.manifest = distilled.manifest.replace(results={"measured": (other,)})
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError, match=r"needs timm.\nInstall what is missing: pip install 'atomhub\[models\]'"):
        atomhub.verify(distilled)


def test_a_verdict_of_nothing_is_not_kept(home, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    distilled = atomhub.load("digits-ipc1")
    old = distilled.manifest.results.measured[0].model_copy(update={"revision": 1})
    distilled.manifest = distilled.manifest.replace(results={"measured": (old,)})
    distilled.save(home / "old")
    code, out, _ = run("verify", str(home / "old"), "--record", "me", "--json")
    assert (code, "record" in out, json.loads(out)["claims"][0]["why"]) == (1, False, "The protocol has changed since.")
    assert not (home / "old" / "verified.json").exists()


def test_a_claim_under_an_older_revision_of_a_protocol_cannot_be_repeated(home, run):
    distilled = atomhub.load("digits-ipc1")
    old = distilled.manifest.results.measured[0].model_copy(update={"revision": 1})
    distilled.manifest = distilled.manifest.replace(results={"measured": (old,)})
    (verdict,) = atomhub.verify(distilled)
    assert (verdict.measured, verdict.why) == (None, "The protocol has changed since.")
    assert columns([old]) == {}
    distilled.save(home / "old")
    code, _, err = run("verify", str(home / "old"))
    assert code == 1
    assert f"{old.protocol}, {old.network} cannot be repeated: The protocol has changed since." in err
