"""Soft labels: a teacher's, kept with the set and reported apart."""

import dataclasses

import pytest
import torch
from models import tiny

import atomhub
from atomhub.errors import AtomhubError, UsageError
from atomhub.provenance import Teacher
from atomhub.training.protocols import PROTOCOLS, Protocol


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


def test_labels_made_anew_come_without_the_results_of_the_old_ones(home, digits1, monkeypatch):
    monkeypatch.setitem(PROTOCOLS, "brief", Protocol(2, 256, "test"))
    first = atomhub.soften(digits1, "mlp:width=8", epochs=1, name="first").save()
    for labels in ("hard", "soft"):
        atomhub.evaluate(first, tiny, "brief", runs=1, labels=labels, baseline=None)
    second = atomhub.soften(atomhub.load("first"), "mlp:width=8", epochs=2, name="second")
    assert [r.labels for r in second.manifest.results.measured] == ["hard"]


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
