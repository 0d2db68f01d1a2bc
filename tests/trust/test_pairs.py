"""Two processes at one thing: nothing is lost, nothing broken, and who comes too late is told at once."""

import os

import pytest
import torch

import atomhub
from atomhub.errors import AtomhubError
from atomhub.hub.push import push
from atomhub.job import cleaning
from atomhub.storage import store
from atomhub.storage.parquet import check_parquet

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
BRIEF = {"iterations": 40, "width": 8, "real_batch": 8}


@pytest.fixture(autouse=True)
def one_thread(home):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def distil(**options):
    atomhub.distill("digits", 1, "atom", BRIEF, save=True, checkpoints=True, **options)


def test_the_second_run_of_a_name_is_refused_before_its_work(home):
    from atomhub.files import locked

    with locked(home / "sets" / "digits-ipc1", doing="distilling in"):
        from forks import together

        assert together(distil) == [3]
    assert sorted(together(distil, distil)) == [0, 3]
    assert torch.equal(atomhub.load("digits-ipc1").images, atomhub.distill("digits", 1, "atom", BRIEF).images)
    refused = pytest.raises(AtomhubError, match="Another process is distilling in .*digits-ipc1")
    with locked(home / "runs" / "digits-ipc1", doing="distilling in"), refused:
        distil(overwrite=True)


def test_results_of_many_at_once_are_all_kept(home, digits1):
    from forks import together

    digits1.save()
    works = [
        lambda k=k: atomhub.evaluate(atomhub.load("digits-ipc1"), f"mlp:width={k}", "quick", runs=1, baseline=None)
        for k in range(4, 16)
    ]
    assert together(*works) == [0] * 12
    measured = atomhub.load("digits-ipc1").manifest.results.measured
    assert {r.network for r in measured} == {f"mlp:width={k}" for k in range(4, 16)}
    assert all(f"mlp:width={k} " in (home / "sets/digits-ipc1/README.md").read_text() for k in range(4, 16))


def actions(digits1, tmp_path):
    space = tmp_path / "space.toml"
    space.write_text('network = "mlp"\n[options]\nwidth = [8, 9]\n')
    load = lambda: atomhub.load("digits-ipc1")  # noqa: E731
    return {
        "distil": lambda: distil(overwrite=True, resume=False),
        "save": lambda: digits1.save(overwrite=True),
        "evaluate": lambda: atomhub.evaluate(load(), "mlp:width=8", "quick", runs=1, baseline=None),
        "soften": lambda: atomhub.soften(load(), "mlp:width=8", epochs=1).save(overwrite=True),
        "search": lambda: atomhub.search(load(), space, log=tmp_path / "log.jsonl"),
        "push": lambda: push(load(), "alice/pairs"),
        "remove": lambda: store.remove("digits-ipc1"),
        "clean": lambda: cleaning.clean(cleaning.removable()),
        "load": lambda: load().test_split(),
    }


NAMES = ("distil", "save", "evaluate", "soften", "search", "push", "remove", "clean", "load")


@pytest.mark.parametrize("one", NAMES)
def test_every_pair(one, home, hub, digits1, tmp_path, monkeypatch):
    from forks import together

    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    works = actions(digits1, tmp_path)
    for other in NAMES[NAMES.index(one) :]:
        if not (home / "sets" / "digits-ipc1").exists():
            digits1.save()
        codes = together(works[one], works[other])
        assert set(codes) <= {0, 3}, (one, other, codes)
        assert 0 in codes, (one, other, codes)
        if (home / "sets" / "digits-ipc1").exists():
            found = atomhub.load("digits-ipc1")
            check_parquet(found, found.path)
    assert [p for p in home.rglob(".*") if p.parent.name != "locks"] == []
