"""Several processes share the classes of a run; what comes out is what one process makes."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import numpy as np
import pytest
import torch
from conftest import ROOT, small_limit

import atomhub
from atomhub.errors import UsageError


def torchrun(processes, *arguments, **options):
    """Start the command line under torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    code = f"import atomhub; atomhub.__path__.append({str(ROOT)!r}); from atomhub.cli.main import main; main()"
    command += ["--no-python", sys.executable, "-c", code, *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=environment, **pipes, **options)


class TestParallel:
    """Processes own disjoint classes; what comes out is what one process makes."""

    def test_one_two_and_three_processes_agree(self, home, tmp_path, forks):
        one = {name: made(name) for name in SEVERAL}
        for size in (2, 3):
            processes = [forks.Process(target=share, args=(r, size, tmp_path / str(size), home)) for r in range(size)]
            for process in processes:
                process.start()
            for process in processes:
                process.join()
                assert process.exitcode == 0
            for name, whole in {**one, "resumed": one["batch"]}.items():
                several = atomhub.load(tmp_path / str(size) / name)
                assert torch.allclose(whole.images, several.images, atol=1e-5)
                if name == "resumed":  # has reports of its own
                    continue
                losses = [np.array([loss for _, loss in s.manifest.provenance.history]) for s in (whole, several)]
                assert np.allclose(*losses, rtol=1e-5)

    def test_torchrun_prints_once_and_a_dead_process_leaves_a_checkpoint(self, home):
        arguments = ("distill", "digits", "--ipc", "1", "--recipe", "atom", "--set", "width=4", "--set", "real_batch=8",
                     "--iterations", "400", "--name", "shared", "--checkpoint-every", "50")  # fmt: skip
        process = torchrun(2, *arguments)
        runs = home / "runs" / "shared"
        deadline = time.monotonic() + 90
        while not list(runs.glob("iteration-*/run.json")) and time.monotonic() < deadline:
            time.sleep(0.05)
        workers = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
        os.kill(int(workers[-1]), signal.SIGKILL)
        out, err = process.communicate(timeout=90)
        assert process.returncode != 0
        assert [line for line in out.splitlines() if not line.startswith("[Gloo]")] == []  # torch 2.8's own
        assert err.count("Note: Images 8x8 were resized") == 1
        assert "another of its processes has ended" in err or "Another process of this run has ended" in err
        assert not (home / "sets").exists()
        # one process goes on with what two began
        resumed = atomhub.distill(
            "digits", 1, "atom", {"width": 4, "real_batch": 8, "iterations": 400}, checkpoints=runs, resume=True,
            checkpoint_every=50,
        )  # fmt: skip
        assert len(resumed) == 10

    def test_more_processes_than_classes(self):
        from atomhub.core.parallel import Team

        team = Team()
        team.size = 4
        with pytest.raises(UsageError, match=r"(?s)4 processes cannot share 3 classes.*at most 3"):
            team.shares(3)
        assert [len(share) for share in team.shares(10)] == [3, 3, 2, 2]


SHARED = {"iterations": 5, "width": 8, "real_batch": 8, "pixels": "float32"}
SEVERAL = {
    "instance": {"norm": "instance"},
    "batch": {"norm": "batch"},
    "pieces": {"norm": "batch", "statistics": "real"},  # with a limit under which some have to take images in pieces
    # with batch norm, views of digits have units at ReLU's edge, which rounding alone tips over, also in one process
    "plus": {"norm": "instance", "formation": 2, "bank": 2, "bank_epochs": 1, "calibration": 0.1},
}


def made(name):
    """Make one of the sets, alone or as one of several processes."""
    memory = small_limit(2**21) if name == "pieces" else None
    return atomhub.distill("digits", 1, "atom", SHARED | SEVERAL[name], memory=memory)


def share(rank, size, folder, home):
    """One of several processes, as torchrun would start it, each as if on a machine of its own."""
    os.environ["ATOMHUB_HOME"] = str(home / str(rank))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}-rendezvous", rank=rank, world_size=size)
    for name in SEVERAL:
        distilled = made(name)
        if rank == 0:
            distilled.save(folder / name)

    def interrupt(_, done, *rest):
        if rank == 1 and done == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    # one is told to stop, and all do; the first process alone has checkpoints, and all continue from them
    runs = {"checkpoints": home / str(rank) / f"runs-{size}", "checkpoint_every": 2}
    with suppress(KeyboardInterrupt):
        atomhub.distill("digits", 1, "atom", SHARED | SEVERAL["batch"], progress=interrupt, **runs)
        raise AssertionError("nobody stopped")
    resumed = atomhub.distill("digits", 1, "atom", SHARED | SEVERAL["batch"], resume=True, **runs)
    if rank == 0:
        resumed.save(folder / "resumed")
    torch.distributed.destroy_process_group()
