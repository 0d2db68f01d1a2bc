"""What is installed: one package, all of it."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import lazy_loader
import pytest
import yaml

import atomhub
from atomhub.errors import AtomhubWarning, UsageError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of what is packaged."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("atomhub", "cards", "cli"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    return tree


@pytest.fixture(scope="module")
def wheel(tree, tmp_path_factory):
    """The wheel that a plain install puts into site-packages."""
    work = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", work, tree]
    subprocess.run([*map(str, command), "--quiet"], check=True)
    return next(work.glob("*.whl"))


def test_the_wheel_holds_the_tree_and_no_other_package(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {n.split("/")[0] for n in names if ".dist-info/" not in n} == {"atomhub"}
    kinds = (".py", ".pyi", ".j2", ".toml", ".css", ".js", ".json", "py.typed")
    expected = {f"atomhub/{p.relative_to(ROOT / 'atomhub').as_posix()}" for p in (ROOT / "atomhub").rglob("*")}
    for name in ("cards", "cli"):
        expected |= {f"atomhub/{name}/{p.relative_to(ROOT / name).as_posix()}" for p in (ROOT / name).rglob("*")}
    starter = {f"atomhub/{p.relative_to(ROOT / 'atomhub').as_posix()}" for p in starter_files()}
    assert {n for n in names if n.startswith("atomhub/")} == {n for n in expected if n.endswith(kinds)} | starter
    assert sum(p.stat().st_size for p in starter_files()) < 14e6


def starter_files():
    """Return the files of the sets that come with atomhub."""
    return [p for p in (ROOT / "atomhub" / "starter").rglob("*") if p.is_file()]


def test_an_installed_wheel_runs(wheel, tmp_path):
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    code = (
        "import atomhub.cli, atomhub.cards, atomhub.storage.cards, atomhub.core.engine\n"
        "from atomhub.cli.main import main\n"
        "assert len(atomhub.load('cifar10-ipc10').as_tensors()[0]) == 400\n"
        "main(['recipes', 'atom', '--toml'])\n"
    )
    # -P: the working directory is not searched, so the checkout cannot stand in for the wheel
    run = [sys.executable, "-P", "-c", f"import sys; sys.path.insert(0, {str(site)!r})\n{code}"]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert tomllib.loads(done.stdout)["name"] == "atom"


def test_an_editable_install_finds_cards_and_cli_in_the_checkout(tree, tmp_path):
    site = tmp_path / "site"
    build = f"import setuptools.build_meta as b; print(b.build_editable({str(tmp_path)!r}))"
    subprocess.run([sys.executable, "-c", build], cwd=tree, check=True, capture_output=True)
    zipfile.ZipFile(next(tmp_path.glob("*.whl"))).extractall(site)
    assert not {"cli", "cards"} & {p.stem for p in site.iterdir()}
    shutil.copytree(Path(lazy_loader.__file__).parent, site / "lazy_loader")  # all that the package itself needs
    code = (
        f"import site; site.addsitedir({str(site)!r})\n"
        "import atomhub.cli, atomhub.cards, atomhub.errors as e; print(atomhub.cli.__file__, e.__file__)"
    )
    # -S: only the site folder made here counts
    run = [sys.executable, "-S", "-P", "-c", code]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split() == [str(tree / "cli" / "__init__.py"), str(tree / "atomhub" / "errors.py")], done.stderr


def test_what_a_release_needs_agrees_with_the_package():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == version
    assert f"## {version}, " in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    for path in (ROOT / ".github").rglob("*.yml"):
        assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict), path


def test_loading_a_set_needs_little():
    """Who only trains on sets need not have what draws curves, fits baselines and reads tables."""
    code = (
        "import sys\n"
        "for name in ('matplotlib', 'sklearn', 'scipy', 'datasets', 'pyarrow', 'pandas', 'jinja2'):\n"
        "    sys.modules[name] = None\n"
        "import atomhub\n"
        "for images, labels in atomhub.load('digits-ipc1').loader():\n"
        "    print(tuple(images.shape))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "(40, 1, 16, 16)\n", done.stderr


def test_what_an_extra_brings_is_asked_for_in_a_sentence(monkeypatch, home):
    for package in ("matplotlib", "sklearn", "timm"):
        monkeypatch.setitem(sys.modules, package, None)
    distill = r"pip install 'atomhub\[distill\]'"
    with pytest.raises(UsageError, match=rf"^Distilling needs matplotlib and sklearn\..*\n.*{distill}$"):
        atomhub.distill("digits", 1)
    with pytest.raises(UsageError, match="^Distilling needs"):
        atomhub.forecast("digits", 1)
    with pytest.raises(UsageError, match=rf"^The source 'digits' needs sklearn\.\n.*{distill}$"):
        atomhub.evaluate(atomhub.load("digits-ipc1"))
    with pytest.raises(UsageError, match=r"^The network 'timm/resnet18' needs timm\.\n.*'atomhub\[models\]'$"):
        atomhub.train_classifier(atomhub.load("digits-ipc1"), "timm/resnet18")


def test_a_set_is_saved_without_them_as_well(monkeypatch, home):
    for package in ("matplotlib", "sklearn"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.warns(AtomhubWarning, match="mine is saved without curve.png, which needs matplotlib: pip install"):
        saved = atomhub.load("digits-ipc1").save(home / "mine")
    assert "curve.png" not in saved.manifest.files
    assert len(atomhub.load(home / "mine")) == 10
