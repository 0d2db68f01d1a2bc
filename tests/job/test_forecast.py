"""Before a long run: what it will do, and about how long that takes."""

import json
import logging

import pytest

import atomhub
from atomhub.errors import SourceError
from atomhub.recipe import Recipe

SMALL = {"width": 4, "real_batch": 4, "iterations": 30, "bank_epochs": 2}


def test_a_forecast_says_what_a_run_will_do_and_keeps_nothing(home):
    found = atomhub.forecast("digits", 2, "dance", SMALL | {"bank": 2})
    assert "1,437 images of 16x16 in 10 classes become 2 for each class, with 2x2 views each" in found.plan
    assert "2 of 2 networks to train first, then 30 iterations on CPU" in found.plan
    assert (found.networks, found.iterations) == (2, 30)
    assert found.network_seconds > 0
    assert found.seconds == 2 * found.network_seconds + found.choosing_seconds + 30 * found.iteration_seconds
    assert not {p.name for p in home.iterdir()} & {"banks", "runs", "sets"}


def test_a_forecast_times_what_a_run_does_with_its_networks(home, monkeypatch):
    """Also where they are not trained yet: images are calibrated under them, and tiles chosen by them."""
    from atomhub.job import forecast

    engines, make = [], forecast.engine_for
    monkeypatch.setattr(forecast, "engine_for", lambda *a, **k: engines.append(make(*a, **k)) or engines[-1])
    found = atomhub.forecast("digits", 1, "dance", SMALL | {"bank": 2})
    assert engines[0].draw(0).trained is not None
    assert found.choosing_seconds == 0
    for networks in (1, 0):
        found = atomhub.forecast("digits", 1, "atom-photo", SMALL)
        assert found.networks == networks
        assert found.seconds > found.choosing_seconds > 0
        atomhub.distill("digits", 1, "atom-photo", SMALL | {"iterations": 0})


def test_networks_that_are_there_already_cost_nothing(home):
    atomhub.distill("digits", 1, "dance", SMALL | {"bank": 1, "iterations": 1})
    assert atomhub.forecast("digits", 1, "dance", SMALL | {"bank": 1}).networks == 0
    assert atomhub.forecast("digits", 1, "dance", SMALL | {"bank": 3}).networks == 2
    assert atomhub.forecast("digits", 1, Recipe.named("atom", {"width": 4})).network_seconds == 0


def test_a_memory_limit_is_named_and_what_cannot_be_is_refused(home):
    assert "at most 3.2 GB" in atomhub.forecast("digits", 1, "atom", SMALL, memory="3GiB").plan
    with pytest.raises(SourceError, match="fewer than ipc 500"):
        atomhub.forecast("digits", 500, "atom")


def test_a_run_says_its_plan_first(home, caplog):
    caplog.set_level(logging.INFO, "atomhub")
    atomhub.distill("digits", 1, "atom", SMALL)
    assert caplog.messages[0].startswith("digits: 1,437 images of 16x16 in 10 classes become 1 for each class. 30 iter")


def test_the_command_line_prints_it_and_stops(run, home):
    words = ("distill", "digits", "--ipc", 1, "--recipe", "atom", "--set", "width=4", "--iterations", 30, "--dry-run")
    code, out, _ = run(*words)
    assert (code, "become 1 for each class" in out, "In all: about" in out) == (0, True, True)
    code, out, _ = run(*words, "--json")
    assert json.loads(out)["iterations"] == 30
    assert not (home / "sets").exists()
    code, out, err = run(*[word for word in words if word != "--dry-run"])
    assert (code, err.count("become 1 for each class"), "become" in out) == (0, 1, False)
