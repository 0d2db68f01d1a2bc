"""kill -9 at random moments: nothing is lost but the work since the last checkpoint, nothing is half-written or left.

``ATOMHUB_KILLS=10 pytest tests/trust/test_kills.py`` (``make kills``) kills each command ten times.
"""

import os
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

import atomhub
from atomhub.hub.push import push
from atomhub.storage import store
from atomhub.storage.parquet import check_parquet

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
KILLS = int(os.environ.get("ATOMHUB_KILLS", "3"))
BRIEF = {"iterations": 60, "width": 8, "real_batch": 8}


@pytest.fixture(autouse=True)
def one_thread(home):
    atomhub.open_source("digits")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def kill_often(work, check=lambda: None):
    """Kill a command at random moments, look after each, and let it end at last."""
    from forks import ended, fork, killed

    start = time.monotonic()
    assert ended(fork(work)) in (0, 3)
    usual = time.monotonic() - start
    for seed in range(KILLS):
        killed(work, usual, seed)
        check()
    assert ended(fork(work)) in (0, 3)
    check()


def nothing_left(home):
    hidden = [p for p in home.rglob(".*") if p.parent.name != "locks"]
    assert hidden == []


def whole(name, *images):
    """A set is there as one of these, or not at all."""
    if store.find(name) is not None:
        found = atomhub.load(name)
        check_parquet(found, found.path)
        assert any(torch.equal(found.images, one) for one in images)


def test_distil(home):
    expected = atomhub.distill("digits", 1, "atom", BRIEF).images
    kill_often(
        lambda: atomhub.distill("digits", 1, "atom", BRIEF, save=True, overwrite=True, checkpoints=True,
                                checkpoint_every=5, resume=True),
        lambda: whole("digits-ipc1", expected, atomhub.load(store.STARTER / "digits-ipc1").images),
    )  # fmt: skip
    assert torch.equal(atomhub.load("digits-ipc1").images, expected)
    nothing_left(home)


def test_save(home, digits1):
    digits1.save()
    kill_often(lambda: digits1.save(overwrite=True), lambda: whole("digits-ipc1", digits1.images))
    assert (home / "sets" / "digits-ipc1").is_dir()
    nothing_left(home)


def test_evaluate(home, digits1):
    digits1.save()
    first = atomhub.evaluate(atomhub.load("digits-ipc1"), "mlp:width=7", "quick", runs=1, baseline=None)

    def kept():
        assert first in atomhub.load("digits-ipc1").manifest.results.measured

    kill_often(
        lambda: atomhub.evaluate(atomhub.load("digits-ipc1"), "mlp:width=8", "quick", runs=1, baseline=None), kept
    )
    assert len(atomhub.load("digits-ipc1").manifest.results.measured) == 2
    nothing_left(home)


def test_soften(home, digits1):
    digits1.save()
    kill_often(
        lambda: atomhub.soften(atomhub.load("digits-ipc1"), "mlp:width=8", epochs=1).save(overwrite=True),
        lambda: (whole("digits-ipc1", digits1.images), whole("digits-ipc1-soft", digits1.images)),
    )
    nothing_left(home)


def test_search(home, digits1, tmp_path):
    digits1.save()
    (tmp_path / "space.toml").write_text('network = "mlp"\n[options]\nwidth = [8, 9, 10, 11]\n')

    def work():
        atomhub.search(atomhub.load("digits-ipc1"), tmp_path / "space.toml", log=tmp_path / "log.jsonl")

    kill_often(work)
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert len({line for line in lines if '"candidate"' in line}) >= 4
    assert [p.name for p in tmp_path.glob(".*")] == []


def test_push_and_pull(home, hub, digits1, monkeypatch, request):
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    saved = digits1.save()

    def remote():
        for repo in hub.repos.values():
            assert set(repo.commits[-1].files) == {".gitattributes"} or "manifest.json" in repo.commits[-1].files

    kill_often(lambda: push(saved, "alice/killed"), remote)
    kill_often(lambda: atomhub.load("alice/killed"))
    assert torch.equal(atomhub.load("alice/killed").images, digits1.images)
    assert list(Path(constants.HF_HUB_CACHE).glob("datasets--alice--killed/snapshots/*/manifest.json"))
    nothing_left(home)
