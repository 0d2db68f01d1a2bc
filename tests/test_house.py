"""The house itself: which way imports go, what importing costs, and that nothing needs one operating system."""

import ast
import os
import pkgutil
import subprocess
import sys

from conftest import ROOT

import atomhub
import atomhub.cli

POSIX_ONLY = ("resource", "fcntl", "pwd", "grp", "termios", "pty", "tty")


def modules():
    """Return the names of all modules of the package, with those of ``cli``."""
    return sorted(m.name for m in pkgutil.walk_packages(atomhub.__path__, "atomhub.") if "__main__" not in m.name)


def run(code, **environment):
    """Run Python in a process of its own; returns what it printed."""
    start = f"import sys, atomhub; atomhub.__path__.append({str(ROOT)!r})\n"
    done = subprocess.run(
        [sys.executable, "-c", start + code], capture_output=True, text=True, env=os.environ | environment, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_no_room_knows_the_command_line():
    """The contracts in pyproject.toml see what lies in atomhub/; cards/ and cli/ lie beside it."""
    for path in (ROOT / "atomhub").rglob("*.py"):
        names = [n.module or "" for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom)]
        if path.name != "__main__.py":
            assert not [name for name in names if name.startswith("atomhub.cli")], path


def test_public_names_are_there_and_importing_the_package_costs_nothing():
    code = (
        "heavy = {'torch', 'datasets', 'pydantic', 'sklearn', 'matplotlib', 'rich', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "for name in atomhub.__all__: getattr(atomhub, name)\n"
        "print(len(atomhub.__all__), atomhub.__version__)\n"
    )
    count, version = run(code).split()
    assert int(count) == len(atomhub.__all__) >= 18
    assert version == atomhub.__version__
    assert set(atomhub.__all__) <= set(dir(atomhub))


def test_every_module_works_without_what_only_posix_has(tmp_path):
    code = (
        "import builtins, importlib, os, signal\n"
        "usual = builtins.__import__\n"
        "def elsewhere(name, globals=None, *rest, **more):\n"  # other libraries ask which system it is
        f"    if name in {POSIX_ONLY!r} and (globals or {{}}).get('__name__', '').startswith('atomhub'):\n"
        "        raise ImportError(name)\n"
        "    return usual(name, globals, *rest, **more)\n"
        "builtins.__import__ = elsewhere\n"
        "for name in ('symlink', 'mkfifo', 'setsid', 'killpg'): delattr(os, name)\n"
        "for name in ('SIGKILL', 'SIGHUP', 'SIGALRM', 'SIGUSR1', 'pthread_sigmask'): delattr(signal, name)\n"
        f"for name in {modules()!r}: importlib.import_module(name)\n"
        "made = atomhub.distill('digits', 1, 'atom', {'iterations': 2}, save=True, checkpoints=True)\n"
        "made.save(overwrite=True)\n"
        "loaded = atomhub.load('digits-ipc1')\n"
        "loader = loaded.loader(batch_size=4)\n"
        "from atomhub.training.protocols import PROTOCOLS, Protocol\n"
        "PROTOCOLS['brief'] = Protocol(2, 64, 'test')\n"
        "model = atomhub.train('mlp:width=4', loaded, 'brief')\n"
        "print(len(loaded), sum(len(labels) for _, labels in loader), atomhub.accuracy(model, loaded) >= 0)\n"
    )
    assert run(code, ATOMHUB_HOME=str(tmp_path)).split() == ["10", "10", "True"]
