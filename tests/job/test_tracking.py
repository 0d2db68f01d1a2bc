"""Watching a run: what is reported goes where a user looks at it."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

import atomhub
from atomhub.errors import AtomhubWarning, UsageError

FIELDS = {"width": 4, "real_batch": 4}


@pytest.fixture(autouse=True)
def here(home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def distil(iterations=30, **options):
    return atomhub.distill("digits", 1, "atom", FIELDS | {"iterations": iterations}, **options)


def rows(path):
    with (path / "digits-ipc1-track" / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_csv_file_has_a_row_for_every_report_and_the_images_lie_beside_it(here, short):
    one = distil(track="csv", measure_every=20)
    found = rows(here)
    assert [(int(r["iteration"]), float(r["loss"])) for r in found] == list(one.manifest.provenance.history)
    assert [(int(r["iteration"]), float(r["accuracy"])) for r in found if r["accuracy"]] == list(
        one.manifest.provenance.accuracy_history
    )
    assert all(0 <= float(r["clipped"]) <= 1 and float(r["memory"]) > 1e6 for r in found)
    pictures = sorted((here / "digits-ipc1-track").glob("images-*.png"))
    assert [int(p.stem.split("-")[1]) for p in pictures] == [10, 20, 30]
    assert np.array_equal(Image.open(pictures[-1]), one.preview())


def test_a_run_that_goes_on_has_every_row_once(here, stop_at):
    with pytest.raises(KeyboardInterrupt):
        distil(track="csv", checkpoints=here / "runs", checkpoint_every=10, progress=stop_at(20))
    distil(track="csv", checkpoints=here / "runs", resume=True)
    assert [int(r["iteration"]) for r in rows(here)] == [1, 10, 20, 30]
    assert sorted(float(r["seconds"]) for r in rows(here)) == [float(r["seconds"]) for r in rows(here)]


def test_another_run_begins_a_new_file_and_leaves_the_old_one(here):
    distil(track="csv")
    before = (here / "digits-ipc1-track" / "log.csv").read_text()
    distil(iterations=10, track="csv")
    assert [int(r["iteration"]) for r in rows(here)] == [1, 10]
    assert (here / "digits-ipc1-track" / "log-1.csv").read_text() == before


def test_tensorboard_reads_what_is_written_for_it(here):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    one = distil(track=["csv", "tensorboard"])
    events = EventAccumulator(str(here / "digits-ipc1-track")).Reload()
    losses = [(e.step, e.value) for e in events.Scalars("loss")]
    assert losses == [(i, pytest.approx(v, rel=1e-5)) for i, v in one.manifest.provenance.history]
    assert [e.step for e in events.Images("images")] == [10, 20, 30]


SERVICE = """
import json
calls = []
def init(**run): calls.append(["init", run["project"], run["name"], run["config"]["recipe"]])
def log(values, step): calls.append(["log", step, sorted(values)])
def finish():
    with open("calls.json", "w") as file: json.dump(calls, file)
class Image:
    def __init__(self, array): assert array.dtype == "uint8" and array.ndim == 3
"""


@pytest.mark.parametrize("kind", ["wandb", "trackio"])
def test_a_service_has_a_run_with_the_name_of_the_set(here, kind, monkeypatch):
    """A package with the interface that both have, in place of one that calls somebody."""
    (here / "packages").mkdir()
    (here / "packages" / f"{kind}.py").write_text(SERVICE)
    monkeypatch.syspath_prepend(here / "packages")
    monkeypatch.delitem(__import__("sys").modules, kind, raising=False)
    distil(iterations=10, track=kind)
    first, *logged = json.loads((here / "calls.json").read_text())
    assert first == ["init", "atomhub", "digits-ipc1", "atom"]
    assert [call[1] for call in logged] == [1, 10, 10]
    assert logged[-1] == ["log", 10, ["images"]]


def test_a_run_outlives_what_it_is_tracked_with(here):
    def remove(what, done, *rest):
        if done == 10:
            (here / "digits-ipc1-track" / "log.csv").unlink()
            (here / "digits-ipc1-track" / "log.csv").mkdir()

    with pytest.warns(AtomhubWarning, match="The run is not tracked any more"):
        one = distil(track="csv", progress=remove)
    assert one.manifest.provenance.history[-1][0] == 30


def test_what_cannot_be_is_said_before_the_work(here, monkeypatch):
    with pytest.raises(UsageError, match="cannot be tracked with 'tensorbord'"):
        distil(track="tensorbord")
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(UsageError, match="Tracking with wandb needs it") as caught:
        distil(track="wandb")
    assert "pip install wandb" in caught.value.hint
    (here / "digits-ipc1-track").write_text("a file of mine")
    with pytest.raises(atomhub.AtomhubError, match="digits-ipc1-track"):
        distil(track="csv")
