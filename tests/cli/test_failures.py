"""What the command line says and leaves behind when something is wrong, or is stopped."""

import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, spawn

import atomhub

BRIEF = ("--recipe", "atom", "--iterations", "3", "--set", "width=4", "--set", "real_batch=4")


def test_a_push_that_will_not_be_allowed_is_told_before_the_work(run, hub, home, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    code, _, err = run("distill", "digits", "--ipc", 1, "--iterations", 10**9, "--push")
    assert code == 1
    assert "this token can only read" in err
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    code, _, err = run("distill", "digits", "--ipc", 1, "--iterations", 10**9, "--push", "bob/digits")
    assert code == 1
    assert "bob/digits belongs to another account" in err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["distill", "digits", "--ipc", "0"], 2, "0 is not in the range x>=1"),
        (["distill", "digits", "--ipc", "x"], 2, "'x' is not a valid integer"),
        (["distill", "digits"], 2, "Missing option '--ipc'"),
        (["distill", "digits", "--ipc", "1", "--set", "power"], 2, "'power' is not KEY=VALUE"),
        (["distill", "digits", "--ipc", "1", "--set", "powr=2"], 2, "Did you mean 'power'?"),
        (["distill", "digits", "--ipc", "1", "--set", "power=99"], 2, "a number >= 1 and <= 8"),
        (["distill", "digits", "--ipc", "1", "--recipe", "atmo"], 2, "Did you mean 'atom'?"),
        (["distill", "digits", "--ipc", "1", "--device", "gpu"], 2, "no device 'gpu'"),
        (["distill", "digits", "--ipc", "1", "--name", "a/b"], 2, "cannot be named 'a/b'"),
        (["distill", "digits", "--ipc", "1", "--memory", "lots"], 2, "memory cannot be 'lots'"),
        (["distill", "digits", "--ipc", "1", "--memory", "1KB"], 1, "the work on 4 synthetic images at once needs"),
        (["distill", "digits", "--ipc", "500"], 1, "fewer than ipc 500"),
        (["distill", "digit", "--ipc", "1"], 1, "Did you mean 'digits'?"),
        (["distill", "/nowhere/at/all", "--ipc", "1"], 1, "There is no source '/nowhere/at/all'"),
        (["evaluate", "nothing"], 1, "no distilled set 'nothing'"),
        (["search", "nothing"], 1, "no distilled set 'nothing'"),
        (["train", "nothing"], 1, "no distilled set 'nothing'"),
        (["soften", "nothing"], 1, "no distilled set 'nothing'"),
        (["export", "nothing", "--format", "npz"], 1, "no distilled set 'nothing'"),
        (["export", "nothing", "--format", "gif"], 2, "'gif' is not one of"),
        (["import", "nothing.pt", "--like", "digits"], 1, "The file 'nothing.pt' cannot be read"),
        (["import", "nothing.pt", "--like", "digits", "--network", "mpl"], 2, "no network 'mpl'"),
        (["info", "nothing"], 1, "no distilled set 'nothing'"),
        (["preview", "nothing"], 1, "no distilled set 'nothing'"),
        (["remove", "nothing", "--yes"], 1, "no distilled set 'nothing'"),
        (["recipes", "nothing"], 2, "no recipe 'nothing'"),
        (["distil", "digits"], 2, "No such command 'distil'"),
    ],
)
def test_bad_input_is_one_sentence_and_an_exit_code(run, home, arguments, code, words):
    got, out, err = run(*arguments)
    assert got == code
    assert words in err
    assert out == ""
    assert "Traceback" not in err
    assert not (home / "sets").exists()


def test_an_existing_name_is_refused_before_the_work(run):
    assert run("distill", "digits", "--ipc", 1, *BRIEF)[0] == 0
    code, _, err = run("distill", "digits", "--ipc", 1, "--iterations", 10**9)
    assert code == 1
    assert "'digits-ipc1' already exists" in err
    assert "--overwrite" in err
    assert run("distill", "digits", "--ipc", 1, *BRIEF, "--overwrite")[0] == 0


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(run, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work")
    monkeypatch.chdir(tmp_path / "full")
    for output, words in (
        (".", "is the folder you are in"),
        ("/dev/null/set", "part of the path is a file"),
        (tmp_path / "file", "'file' already exists"),
        (tmp_path / "full" / "..", "already exists"),
    ):
        code, _, err = run("distill", "digits", "--ipc", 1, "--iterations", 10**9, "--output", output)
        assert code == 1
        assert words in err
    code, _, err = run(
        "distill", "digits", "--ipc", 1, "--iterations", 10**9, "--output", tmp_path / "file", "--overwrite"
    )
    assert (code, "was not written by this command" in err) == (1, True)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_hub_that_cannot_be_reached_is_a_sentence(home):
    process = spawn("distill", "someone/pictures", "--ipc", "1", env=os.environ | {"HF_ENDPOINT": "http://127.0.0.1:1"})
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "Error: The Hub cannot be reached for someone/pictures" in err
    assert "Hint: Check the network." in err


def test_a_traceback_only_with_debug(run, monkeypatch):
    assert "Traceback" not in run("info", "nothing")[2]
    assert "Traceback" in run("info", "nothing", "--debug")[2]
    monkeypatch.setenv("ATOMHUB_DEBUG", "1")
    assert "Traceback" in run("info", "nothing")[2]


def test_output_to_nowhere(home):
    """Standard streams may be closed, and a reader may have seen enough."""
    process = spawn("recipes", preexec_fn=lambda: (os.close(0), os.close(2)))
    assert "atom" in process.communicate(timeout=60)[0]
    assert process.returncode == 0


def test_a_damaged_set_does_not_hide_the_others(run, home):
    for name in ("good", "bad"):
        assert run("distill", "digits", "--ipc", 1, *BRIEF, "--name", name)[0] == 0
    (home / "sets" / "bad" / "manifest.json").write_text("{}")
    code, out, err = run("list")
    assert code == 0
    assert "good" in out
    assert "Skipped:" in err


def test_a_signal_while_the_process_ends_has_no_traceback(home):
    code = f"""
import atexit, os, signal, sys, atomhub
atomhub.__path__.append({str(ROOT)!r})
atexit.register(os.kill, os.getpid(), signal.SIGTERM)
from atomhub.cli.main import main
main(["recipes"])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGTERM
    assert "atom" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_a_checkpoint_and_no_set(home, run, number):
    arguments = (
        "distill",
        "digits",
        "--ipc",
        "1",
        "--recipe",
        "atom",
        "--set",
        "width=4",
        "--set",
        "real_batch=8",
        "--iterations",
        "150",
    )
    process = spawn(*arguments)
    deadline = time.monotonic() + 60
    while "Distilling" not in process.stderr.readline() and time.monotonic() < deadline:
        pass
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Stopped at iteration" in err
    assert "Interrupted" in err
    assert "Traceback" not in err
    assert not (home / "sets").exists()

    code, _, err = run(*arguments)
    assert code == 2
    assert "There is an unfinished run" in err
    assert run(*arguments, "--resume")[0] == 0
    assert not list((home / "runs").rglob("iteration-*"))
    resumed = atomhub.load("digits-ipc1").images
    assert run(*arguments, "--overwrite")[0] == 0
    assert (atomhub.load("digits-ipc1").images == resumed).all()


@pytest.mark.parametrize(("limit", "prepared"), [(100_000, False), (20_000, True)])
def test_a_full_disk_is_a_sentence_and_leaves_nothing(home, run, limit, prepared):
    """A limit on the size of files stands in for the disk: first the decoded images do not fit, then the pictures."""
    resource = pytest.importorskip("resource")
    if prepared:
        assert run("distill", "digits", "--ipc", 1, *BRIEF, "--name", "other")[0] == 0
    process = spawn(
        "distill", "digits", "--ipc", "1", *BRIEF,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "Error: Cannot write" in err
    assert "File too large" in err
    assert "Traceback" not in err
    left = {p.name for folder in ("sets", "real") for p in (home / folder).glob("*")}
    assert {name for name in left if not (home / "real" / name / "meta.json").exists()} == (
        {"other"} if prepared else set()
    )


def test_a_preview_replaces_pictures_and_nothing_else(run, tmp_path):
    thesis, picture = tmp_path / "thesis.txt", tmp_path / "a.png"
    thesis.write_text("years of work")
    code, _, err = run("preview", "digits-ipc1", "--output", thesis)
    assert code and "is there already, and is no PNG" in err
    assert thesis.read_text() == "years of work"
    assert [run("preview", "digits-ipc1", "--output", picture)[0] for _ in range(2)] == [0, 0]


def test_a_set_of_this_machine_is_said_to_be_here(run, home):
    code, _, err = run("pull", "digits-ipc1")
    assert code
    assert "'digits-ipc1' is a set on this machine, and none of the Hub" in err
    assert "Did you mean 'digits-ipc1'" not in err


def test_protocols_and_debugging_by_other_words(run, monkeypatch):
    assert "There is no protocol 'nope'" in run("list", "--remote", "--protocol", "nope")[2]
    monkeypatch.setenv("ATOMHUB_DEBUG", "verbose")
    assert run("recipes")[0] == 0
