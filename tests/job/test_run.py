"""Long runs: interrupted at any moment, they go on as if nothing had happened."""

import json
import os
import random
import signal

import numpy as np
import pytest
import torch
from conftest import image_folder, small_limit

import atomhub
from atomhub.data.real import RealData, Split
from atomhub.devices import find_device
from atomhub.errors import AtomhubError, AtomhubWarning, UsageError

RUN = {"recipe": "atom", "overrides": {"iterations": 60, "width": 4, "real_batch": 4}, "checkpoint_every": 3}


def work(folder, runs):
    """In a process of its own: go on with the run until it is over, then keep the set."""
    torch.set_num_threads(1)
    atomhub.distill("digits", 1, **RUN, checkpoints=runs, resume=True, save=folder)


@pytest.fixture
def straight(home):
    """The set of a run that nothing interrupted, on one thread as in :func:`work`."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield atomhub.distill("digits", 1, **RUN)
    torch.set_num_threads(threads)


def test_a_run_killed_at_random_moments_ends_bit_for_bit_as_one_that_was_not(home, tmp_path, straight, forks):
    dice, kills, runs = random.Random(0), 0, tmp_path / "runs"
    while not (tmp_path / "set").exists():
        process = forks.Process(target=work, args=(tmp_path / "set", runs))
        process.start()
        process.join(dice.uniform(0.1, 0.6) if kills < 20 else 120)
        if process.is_alive():
            process.kill()
            kills += 1
        else:
            assert process.exitcode == 0
            if kills < 20 and kills > 0:  # finished early: once more, from the start
                (tmp_path / "set").rename(tmp_path / f"set-{kills}")
        process.join()
        assert len(list(runs.glob("iteration-*"))) <= 3  # two, and one more if it died before dropping the oldest
    assert kills >= 20
    assert torch.equal(atomhub.load(tmp_path / "set").images, straight.images)
    assert atomhub.load(tmp_path / "set").manifest.provenance.history == straight.manifest.provenance.history
    assert not list(runs.glob("iteration-*"))


def interrupted(runs, at=6, **changes):
    """Distil until an iteration, then be interrupted as by Ctrl-C."""

    def interrupt(what, done, *rest):
        if what == "iterations" and done >= at:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.warns(AtomhubWarning, match="Stopped at iteration"), pytest.raises(KeyboardInterrupt):
        atomhub.distill("digits", 1, **{**RUN, **changes}, checkpoints=runs, progress=interrupt)


class TestResume:
    def test_an_interrupt_keeps_where_the_run_was(self, home, tmp_path):
        whole = atomhub.distill("digits", 1, **RUN)
        interrupted(tmp_path / "runs", checkpoint_every=10**6)
        save = {"save": tmp_path / "set", "checkpoints": tmp_path / "runs", "resume": True}
        resumed = atomhub.distill("digits", 1, **RUN, **save)
        assert torch.equal(whole.images, resumed.images)
        assert not list((tmp_path / "runs").rglob("iteration-*"))

    def test_a_run_whose_set_could_not_be_saved_is_not_lost(self, home, tmp_path):
        made, done = atomhub.distill("digits", 1, **RUN), []

        def in_the_way(_, iteration, total, loss):
            if iteration == total:
                (tmp_path / "new").write_text("a file where the folder was to be")

        kept = {"save": tmp_path / "new" / "set", "checkpoints": tmp_path / "runs"}
        with pytest.raises(AtomhubError, match="Cannot write"):
            atomhub.distill("digits", 1, **RUN, **kept, progress=in_the_way)
        (tmp_path / "new").unlink()
        again = atomhub.distill("digits", 1, **RUN, **kept, resume=True, progress=lambda *a: done.append(a))
        assert torch.equal(again.images, made.images)
        assert again.manifest.provenance.history == made.manifest.provenance.history
        assert done == []  # nothing was computed anew
        assert torch.equal(atomhub.load(tmp_path / "new" / "set").images, made.images)
        assert not list((tmp_path / "runs").rglob("iteration-*"))

    def test_a_finished_run_is_not_computed_again(self, home, tmp_path):
        made, done = atomhub.distill("digits", 1, **RUN, checkpoints=tmp_path / "runs"), []
        again = atomhub.distill("digits", 1, **RUN, checkpoints=tmp_path / "runs", progress=lambda *a: done.append(a))
        assert (torch.equal(again.images, made.images), done) == (True, [])
        with pytest.raises(UsageError, match="another seed"):
            atomhub.distill("digits", 1, **RUN, seed=1, checkpoints=tmp_path / "runs")

    def test_an_unfinished_run_is_never_overwritten_unasked(self, home, tmp_path):
        interrupted(tmp_path / "runs")
        with pytest.raises(UsageError, match=r"(?s)unfinished run.*resume=True.*resume=False"):
            atomhub.distill("digits", 1, **RUN, checkpoints=tmp_path / "runs")
        atomhub.distill("digits", 1, **RUN, checkpoints=tmp_path / "runs", resume=False)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"seed": 1}, "another seed: 0, not 1"),
            ({"overrides": {**RUN["overrides"], "power": 3}}, "another recipe field 'power': 1.0, not 3.0"),
            ({"size": 20}, "another source"),
        ],
    )
    def test_checkpoints_of_another_run_are_refused(self, home, tmp_path, changes, message):
        interrupted(tmp_path / "runs")
        with pytest.raises(UsageError, match=message):
            atomhub.distill("digits", 1, **{**RUN, **changes}, checkpoints=tmp_path / "runs", resume=True)

    @pytest.mark.parametrize("name", ["state.safetensors", "run.json"])
    def test_a_damaged_checkpoint_falls_back_to_the_one_before(self, home, tmp_path, name):
        whole = atomhub.distill("digits", 1, **RUN)
        interrupted(tmp_path / "runs", at=9)
        old, new = sorted((tmp_path / "runs").iterdir())
        (new / name).write_bytes((new / name).read_bytes()[:-9])
        with pytest.warns(AtomhubWarning, match=f"{new.name} is damaged"):
            resumed = atomhub.distill("digits", 1, **RUN, checkpoints=tmp_path / "runs", resume=True)
        assert torch.equal(whole.images, resumed.images)

    def test_checkpoints_that_are_all_damaged(self, home, tmp_path):
        interrupted(tmp_path / "runs")
        for path in (tmp_path / "runs").glob("*/run.json"):
            path.write_text(json.dumps([]))
        with pytest.warns(AtomhubWarning), pytest.raises(AtomhubError, match=r"(?s)No checkpoint.*resume=False"):
            atomhub.distill("digits", 1, **RUN, checkpoints=tmp_path / "runs", resume=True)

    def test_a_loss_that_is_not_finite_names_the_last_good_checkpoint(self, home, tmp_path, monkeypatch):
        from atomhub.core.engine import Engine

        losses = Engine._losses

        def spoilt(self, iterations):
            return (loss * (1 if i < 8 else float("nan")) for i, loss in enumerate(losses(self, iterations)))

        monkeypatch.setattr(Engine, "_losses", spoilt)
        with pytest.raises(AtomhubError, match=r"(?s)loss is nan at iteration 9.*iteration 6 is good"):
            atomhub.distill("digits", 1, **RUN, checkpoints=tmp_path / "runs")


class TestMemory:
    def test_a_limit_changes_nothing_but_rounding(self, home):
        overrides = {"iterations": 3, "pixels": "float32"}
        free = atomhub.distill("digits", 2, "atom", overrides)
        tight = atomhub.distill("digits", 2, "atom", overrides, memory=small_limit(2**21))
        assert torch.allclose(free.images, tight.images, atol=1e-4)
        assert free.manifest.provenance.peak_memory > 10**7
        assert free.manifest.provenance.compiled is False  # too short to pay for it

    @pytest.mark.parametrize("size", ["lots", "-1GB", "8 PB", True])
    def test_sizes_that_are_none(self, size):
        with pytest.raises(UsageError, match="memory cannot be"):
            atomhub.distill("digits", 1, memory=size)

    def test_a_source_larger_than_memory(self, home, tmp_path, forks):
        """24 GB of (sparse) images in a process that may use 3 GB of its own."""
        path = tmp_path / "train.npy"
        np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(8_000_000, 3, 32, 32))
        process = forks.Process(target=distil_large, args=(path, 3 * 2**30))
        process.start()
        process.join()
        assert process.exitcode == 0


def distil_large(path, limit):
    """In a process of its own: distil images that do not fit."""
    import resource

    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    images = np.load(path, mmap_mode="r")
    labels = np.repeat(np.arange(10), len(images) // 10)
    info = atomhub.open_source("digits").info.model_copy(update={"size": 32, "channels": 3})
    real = RealData("large", info, tuple("0123456789"), Split(images, labels), None, (0.5,) * 3, (0.25,) * 3)
    distilled = atomhub.distill(real, 1, "atom", {"iterations": 2, "width": 8, "real_batch": 8})
    assert distilled.manifest.provenance.peak_memory < images.nbytes / 8


class TestDistil:
    def test_more_images_than_a_class_has(self, home, photos):
        with pytest.raises(AtomhubError, match="'cat' has 8 real training images, fewer than ipc 9"):
            atomhub.distill(photos, 9)
        with pytest.raises(AtomhubError, match=r"(?s)fewer than ipc 1 of 25 views\.\nUse formation=1\."):
            atomhub.distill(photos, 1, "atom", {"formation": 5})

    def test_impossible_arguments(self):
        with pytest.raises(UsageError, match="ipc cannot be 0"):
            atomhub.distill("digits", 0)
        with pytest.raises(UsageError, match="no device 'tpu9'"):
            atomhub.distill("digits", 1, device="tpu9")
        for arguments, message in (
            ({"ipc": "1"}, "ipc cannot be '1'"),
            ({"ipc": 1.5}, "ipc cannot be 1.5"),
            ({"ipc": True}, "ipc cannot be True"),
            ({"ipc": 1, "seed": -1}, "seed cannot be -1"),
            ({"ipc": 1, "device": "mps"}, "'mps' was asked for"),
            ({"ipc": 1, "sise": 16}, "no source option 'sise'"),
            ({"ipc": 1, "revision": "v1"}, "digits has no use for the option revision"),
        ):
            with pytest.raises(UsageError, match=message):
                atomhub.distill("digits", **arguments)

    def test_options_for_a_source_that_is_open_already(self, home):
        with pytest.raises(UsageError, match="'size' comes too late"):
            atomhub.distill(atomhub.open_source("digits"), 1, size=32)

    def test_accuracy_on_the_way_needs_test_images(self, home):
        real = atomhub.open_source("digits", test_fraction=0)
        with pytest.raises(UsageError, match="measure_every needs test images"):
            atomhub.distill(real, 1, measure_every=10)

    @pytest.mark.parametrize(
        ("arguments", "options"),
        [
            (("datadam", {"iterations": 2}), {"seed": 4, "size": 20}),
            (("dance", {"iterations": 2, "bank": 0, "calibration": 0, "augmentation": "flip,crop"}), {"flip": True}),
            ((atomhub.Recipe(name="mine", iterations=2, width=4, depth=2, init="noise", pixels="float32"),), {}),
        ],
        ids=["preset", "lists", "recipe"],
    )
    def test_the_recorded_command_makes_the_same_images(self, home, shell, arguments, options):
        first = atomhub.distill("digits", 2, *arguments, **options)
        shell(first.manifest.provenance.command)
        again = atomhub.load("digits-ipc2")
        assert torch.equal(first.images, again.images)
        assert again.manifest.provenance.recipe == first.manifest.provenance.recipe
        assert again.manifest.provenance.command == first.manifest.provenance.command

    def test_a_folder_that_begins_with_a_dash(self, home, photos, shell, monkeypatch):
        monkeypatch.chdir(photos.rename(photos.parent / "-photos").parent)
        made = atomhub.distill("-photos", 1, "atom", {"iterations": 1, "width": 4}, name="mine")
        shell(made.manifest.provenance.command)
        assert torch.equal(atomhub.load("mine").images, made.images)

    def test_the_options_of_an_open_source_are_recorded_as_well(self, home):
        real = atomhub.open_source("digits", size=20, test_fraction=0.25)
        made = atomhub.distill(real, 1, "atom", {"iterations": 1}, name="mine")
        command = "atomhub distill digits --ipc 1 --recipe atom --seed 0 --name mine --size 20 --test-fraction 0.25"
        assert made.manifest.provenance.command == f"{command} --set iterations=1"

    @pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
    def test_cuda_without_cuda(self):
        with pytest.raises(UsageError, match="(?s)'cuda' was asked for.*device=.cpu"):
            atomhub.distill("digits", 1, device="cuda")

    def test_every_job_on_a_gpu_begins_with_exact_float32(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
        assert find_device("cpu") == torch.device("cpu")
        assert torch.backends.cudnn.allow_tf32
        assert find_device("cuda:0") == torch.device("cuda", 0)
        assert not torch.backends.cudnn.allow_tf32

    def test_a_tuned_source_keeps_what_the_user_sets(self):
        from atomhub.recipe import choose_recipe

        assert choose_recipe("atom", "digits").width == 32
        assert choose_recipe("atom", "digits", {"width": 16}).width == 16
        assert choose_recipe("atom", "cifar10").width == 128

    def test_accuracy_on_the_way_is_recorded_and_changes_nothing(self, home):
        plain = atomhub.distill("digits", 1, "atom", {"iterations": 4})
        measured = atomhub.distill("digits", 1, "atom", {"iterations": 4}, measure_every=2)
        assert [iteration for iteration, _ in measured.manifest.provenance.accuracy_history] == [2, 4]
        assert torch.equal(plain.images, measured.images)

    def test_large_and_padded_sizes(self, home, tmp_path):
        root = image_folder(tmp_path / "odd", {"train": 3, "test": 1}, size=(28, 28))
        distilled = atomhub.distill(root, 1, "atom", {"iterations": 2, "width": 4})
        assert distilled.images.shape == (2, 3, 28, 28)
        assert distilled.manifest.provenance.recipe.depth == 3
