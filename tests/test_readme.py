"""The README's Python works as it stands, with fewer epochs."""

import re

import pytest
from conftest import ROOT

import atomhub
from atomhub.training.protocols import PROTOCOLS, Protocol


def test_the_examples_run_one_after_the_other(home, tmp_path, monkeypatch):
    for extra in ("timm", "transformers"):
        pytest.importorskip(extra)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(PROTOCOLS, "quick", Protocol(2, 64, "test"))
    atomhub.distill("digits", 10, "atom", {"iterations": 2, "width": 8}).save()
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) >= 8
    names = {}
    for block in blocks:
        if "load_model" in block:
            atomhub.save_model(atomhub.train_classifier(names["distilled"], "lenet", "quick"), "digits-resnet18")
        block = block.replace("range(200)", "range(2)").replace("num_train_epochs=200", "num_train_epochs=1")
        exec(compile(block, "README.md", "exec"), names)
    assert len(names["buffer"]) == 25
