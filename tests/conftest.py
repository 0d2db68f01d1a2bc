"""Everything runs on loopback and in temporary folders; the Hub is a local server."""

import dataclasses
import multiprocessing
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "trust")]

from hub_server import HubServer  # noqa: E402 before huggingface_hub, which reads its environment once

_WORK = tempfile.TemporaryDirectory(prefix="atomhub-tests-")
HUB = HubServer()
os.environ.update(
    HF_ENDPOINT=HUB.url,
    HF_HOME=f"{_WORK.name}/hf",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_XET="1",
    ATOMHUB_HOME=f"{_WORK.name}/atomhub",
    MPLCONFIGDIR=f"{_WORK.name}/matplotlib",
    CUDA_VISIBLE_DEVICES="",  # the same everywhere: `benchmarks/gpu.py` tests a GPU
)
LIVE_TOKEN = os.environ.get("HF_TOKEN", "")
"""For the one test that may talk to the real Hub."""
for name in ("ATOMHUB_DATA", "HF_TOKEN", "HF_HUB_OFFLINE"):
    os.environ.pop(name, None)
if "PYTEST_XDIST_WORKER" in os.environ:  # a core each: spinning threads of two torch programs slow each other down
    os.environ["OMP_NUM_THREADS"] = "1"

import atomhub  # noqa: E402

try:
    import atomhub.cli
except ModuleNotFoundError:  # a plain install, and the checkout's atomhub/ found first
    atomhub.__path__.append(str(ROOT))

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from pretended import pretended_gpu  # noqa: E402, F401 a fixture

from atomhub import requests  # noqa: E402
from atomhub.cli.main import main  # noqa: E402
from atomhub.core import plan  # noqa: E402
from atomhub.memory import used_memory  # noqa: E402
from atomhub.training.protocols import PROTOCOLS, Protocol  # noqa: E402


@pytest.fixture
def stop_at():
    """Makes a progress that stops a run as Ctrl-C does, when so many iterations are done."""

    def at(iterations):
        def progress(what, done, *rest):
            if (what, done) == ("iterations", iterations):
                raise KeyboardInterrupt

        return progress

    return at


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A store and cache of the test's own."""
    monkeypatch.setenv("ATOMHUB_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def writer(hub, monkeypatch):
    """Alice, logged in with a token that may write; nothing waits long."""
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    monkeypatch.setattr(requests, "_PATIENCE", 0.01)
    monkeypatch.setitem(PROTOCOLS, "quick", dataclasses.replace(PROTOCOLS["quick"], epochs=40))
    return hub


@pytest.fixture
def short(monkeypatch):
    """``quick`` with a tenth of its epochs, where the accuracy itself does not matter."""
    monkeypatch.setitem(PROTOCOLS, "quick", Protocol(20, 256, "test"))


@pytest.fixture
def saved(digits1, home, tmp_path):
    """Digits at ipc 1 in the store, under a name of the test's own (clients remember names)."""
    name = re.sub(r"[^a-z0-9]+", "-", tmp_path.name)[:80].strip("-")
    manifest = digits1.manifest.model_copy(update={"name": name})
    return dataclasses.replace(digits1, manifest=manifest).save()


@pytest.fixture
def shell(home):
    """Run a recorded line of the shell: its commands ``atomhub ...`` and ``python -c ...``, in this process."""

    def run(line):
        for part in line.split(" && "):
            program, *words = shlex.split(part)
            if program == "atomhub":
                main(words)
            else:
                assert (program, words[0]) == ("python", "-c")
                exec(words[1], {})

    return run


@pytest.fixture
def hub():
    """The local Hub; an unknown route or a malformed request fails the test."""
    HUB.reset()
    yield HUB
    assert HUB.complaints == []


@pytest.fixture(scope="session")
def _digits1():
    return atomhub.distill("digits", 1, "atom", {"iterations": 3})


@pytest.fixture
def digits1(_digits1):
    """Digits at ipc 1, briefly distilled, in memory; the test's own to measure."""
    return dataclasses.replace(_digits1)


@pytest.fixture
def photos(tmp_path):
    """An image folder: train/ with 8 and test/ with 3 colour images of cats and of dogs, 20x20 PNG."""
    return image_folder(tmp_path / "photos", {"train": 8, "test": 3})


def image_folder(root, splits, classes=("cat", "dog"), size=(20, 20), mode="RGB"):
    """Write random images; a split of None puts the class folders into the root."""
    rng = np.random.default_rng(0)
    for split, count in splits.items():
        for k, name in enumerate(classes):
            folder = root / (split or "") / name
            folder.mkdir(parents=True)
            for i in range(count):
                noise = rng.integers(0, 128, (*size[::-1], 3), dtype=np.uint8)
                Image.fromarray(noise + np.uint8(100 * k)).convert(mode).save(folder / f"{i}.png")
    return root


@pytest.fixture
def forks(monkeypatch):
    """Processes that are quick to start: a server imports once, then forks; its environment is that of its start."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "job")]))
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(["test_run", "test_parallel", "sklearn.datasets", "sklearn.model_selection"])
    return forks


def small_limit(left):
    """A limit that leaves about so many bytes for the work, whatever this process has taken."""
    return used_memory(torch.device("cpu")) + plan.LIBRARIES + left


@pytest.fixture
def run(capsys, home):
    """Run the command line in this process; returns (exit code, standard output, standard error)."""
    from atomhub.cli.main import main

    def call(*arguments):
        code = 0
        try:
            main([str(a) for a in arguments])
        except SystemExit as leave:
            code = leave.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return call


def spawn(*arguments, **options):
    """Start the command line in a process of its own."""
    code = (
        f"import sys, atomhub; atomhub.__path__.append({str(ROOT)!r})\n"
        "from atomhub.cli.main import main; main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
