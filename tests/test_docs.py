"""Everything that README and docs say to type works as it stands, with fewer iterations and epochs."""

import dataclasses
import io
import re
import shlex

import pytest
import torch
from conftest import ROOT, image_folder
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Pillow
from safetensors.torch import save_file

import atomhub
from atomhub.cli.main import cli
from atomhub.hub import names
from atomhub.presets import PRESETS, TUNED
from atomhub.training.nets import InputSpec
from atomhub.training.networks import find_network
from atomhub.training.protocols import PROTOCOLS

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SMALL = {
    "range(200)": "range(2)",
    "num_train_epochs=200": "num_train_epochs=1",
    "max_epochs=200": "max_epochs=1",
    "fit_one_cycle(200": "fit_one_cycle(1",
    '"iterations": 100': '"iterations": 2',
    "--iterations 300": "--iterations 2",
    "--budget 24 --check 12": "--space space.toml --check 2 --check-epochs 1",
    "--epochs 20": "--epochs 1",
    "--epochs 300": "--epochs 2",
    "--recipe atom-photo": "--recipe atom-photo --set matcher=lenet",
    "--labels stored": "--labels stored --network lenet",
    "photos-64 --network resnet18": "photos-64 --network lenet",
    "--network resnet18 --herding --whole": "--herding --whole --runs 1",
    "photos-rded --protocol rded": "photos-rded --protocol rded --runs 1 --no-baseline",
    "--teacher convnet": "--teacher lenet",
    "cifar100 --ipc 50": "cifar100 --ipc 2",
    "--size 64 --recipe rded": "--size 16 --recipe rded",
    "--size 64 --test-fraction 0.2 --recipe probe": "--size 16 --test-fraction 0.2 --recipe probe",
    "torchvision/resnet18": "lenet",
    "index add alice/cifar100-ipc10": "index add alice/cifar10-ipc10 --name cifar100-ipc10",
}
"""What takes long, and what stands for it here."""
HEAVY = ("lightning", "fastai")
"""Libraries that the development environment does not have."""


def blocks(page, language):
    found = re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    for long, short in SMALL.items():
        found = [block.replace(long, short) for block in found]
    return found


def with_blocks(language):
    pages = [page for page in PAGES if blocks(page, language)]
    return pytest.mark.parametrize("page", pages, ids=[page.name for page in pages])


@pytest.fixture
def quickly(home, tmp_path, monkeypatch):
    """An empty folder to work in, recipes of few iterations and small networks, protocols of few epochs."""
    monkeypatch.chdir(tmp_path)
    for name, fields in PRESETS.items():
        small = {"iterations": min(2, fields.get("iterations", 2)), "width": 8, "real_batch": 8}
        small |= {"bank": 1, "bank_epochs": 1} if "bank" in fields else {}
        monkeypatch.setitem(PRESETS, name, fields | small)
    monkeypatch.setitem(TUNED, "digits", {"norm": "instance", "matcher": "convnet"})
    for name, protocol in PROTOCOLS.items():
        monkeypatch.setitem(PROTOCOLS, name, dataclasses.replace(protocol, epochs=2))


def pictures(classes, each, size=32):
    """Rows of noise, class by class."""
    generator = torch.Generator().manual_seed(0)
    rows = {"image": [], "label": []}
    for k in range(len(classes)):
        for _ in range(each):
            noise = torch.randint(0, 256, (size, size, 3), generator=generator, dtype=torch.uint8)
            file = io.BytesIO()
            Pillow.fromarray(noise.numpy()).save(file, "PNG")
            rows["image"].append({"bytes": file.getvalue(), "path": None})
            rows["label"].append(k)
    return Dataset.from_dict(rows, Features({"image": Image(), "label": ClassLabel(names=list(classes))}))


@pytest.fixture
def there(writer, quickly, tmp_path, monkeypatch):  # in this order: both shorten protocols
    """What the commands name: folders, files, sets on the Hub; and a set may be made twice."""
    for command in ("IMPORT", "EXPORT"):
        monkeypatch.setenv(f"ATOMHUB_{command}_OVERWRITE", "1")
    data = tmp_path / "data"
    monkeypatch.setenv("ATOMHUB_DATA", str(data))
    ten = atomhub.load("cifar10-ipc10").class_names
    for name, classes, each in (("cifar10", ten, 50), ("cifar100", [f"class {k}" for k in range(20)], 8)):
        (data / name).mkdir(parents=True)
        pictures(classes, each).to_parquet(data / name / "train.parquet")
        pictures(classes, 1).to_parquet(data / name / "test.parquet")
    image_folder(tmp_path / "photos", {None: 60}, size=(40, 40))
    tables = image_folder(tmp_path / "tables", {"train": 50, "test": 3})
    for split in ("train", "test"):
        files = sorted((tables / split).rglob("*.png"))
        lines = [f"{file.relative_to(tables / split)},{file.parent.name}" for file in files]
        (tables / split / "metadata.csv").write_text("\n".join(["file_name,breed", *lines]) + "\n")
    (tmp_path / "space.toml").write_text('network = "convnet"\n[options]\nwidth = [4, 8]\n')
    save_file(find_network("lenet", InputSpec(3, 2, 16)).build().state_dict(), tmp_path / "backbone.safetensors")
    images, labels = torch.randn(10, 3, 32, 32), torch.arange(10)
    torch.save({"data": [[images, labels]]}, tmp_path / "res_DM_CIFAR10_ConvNet_10ipc.pt")
    torch.save([images, labels], tmp_path / "data_best.pt")
    distilled = atomhub.distill("cifar10", 10, "atom", {"iterations": 1}, name="cifar10-ipc10")
    atomhub.evaluate(distilled, "convnet:width=4", runs=2)
    distilled.save()
    distilled.push_to_hub("alice/cifar10-ipc10", tags=["v1"])
    writer.add("atomhub/index", {"index.json": names.SHIPPED.read_bytes()})
    parquet = tmp_path / "user.parquet"
    pictures(("cat", "dog"), 50).to_parquet(parquet)
    files = {f"data/{split}-00000-of-00001.parquet": parquet.read_bytes() for split in ("train", "test")}
    writer.add("user/pictures", files)
    return tmp_path


@with_blocks("python")
def test_python_runs_block_after_block(page, quickly):
    for extra in ("timm", "transformers"):
        pytest.importorskip(extra)
    run_blocks(page, [block for block in blocks(page, "python") if not any(heavy in block for heavy in HEAVY)])


def test_so_do_those_of_lightning_and_fastai(quickly):
    """They are installed by ``make docs``, which runs this test."""
    for heavy in HEAVY:
        pytest.importorskip(heavy)
    page = ROOT / "docs" / "train.md"
    run_blocks(page, [block for block in blocks(page, "python") if "load_model" not in block])


def run_blocks(page, found):
    """Run blocks of Python in one scope."""
    scope = {}
    for block in found:
        if "-labels" in block:
            atomhub.label(atomhub.load("digits-ipc10"), epochs=1).save()
        if "load_model" in block:
            atomhub.save_model(atomhub.train_classifier(scope["distilled"], "lenet", "quick"), "digits-resnet18")
        exec(compile(block, page.name, "exec"), scope)


@with_blocks("sh")
def test_commands_run_line_after_line(page, there, run):
    for line in "\n".join(blocks(page, "sh")).replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] != ["atomhub"]:  # pip, hf, torchrun, srun
            continue
        target = words.pop() if words[-2] == ">" else None
        code, out, err = run(*[word for word in words[1:] if word != ">"])
        assert code == 0, f"{line}\n{err}"
        if target:
            (there / target).write_text(out)


def test_every_command_and_every_public_name_is_in_the_docs():
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    for name, command in cli.commands.items():
        assert f"atomhub {name}" in text
        assert command.get_short_help_str()
    reference = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert {f"atomhub.{name}" for name in atomhub.__all__ if name != "__version__"} == set(
        re.findall(r":: (atomhub\.\w+)", reference)
    )


def test_links_between_pages_lead_somewhere():
    for page in [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_readme_is_one_that_a_visitor_finishes():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
