"""The example scripts run as their first lines say."""

import re
import subprocess
import sys

from conftest import ROOT


def test_classes_come_in_steps_and_the_memory_grows(home):
    script = ROOT / "docs" / "examples" / "continual.py"
    arguments = ["digits-ipc1", "--steps", "2", "--runs", "1"]
    done = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, check=True)
    head, columns, *rows = done.stdout.splitlines()
    assert "quick, convnet:width=32,depth=2,norm=instance, mean ± std of 1 networks" in head
    assert columns.split() == ["classes", "distilled", "random", "herding"]
    assert [row.split()[0] for row in rows] == ["5", "10"]
    for row in rows:
        distilled, random, _ = (float(x) for x in re.findall(r"(\d+\.\d) ±", row))
        assert 100 >= distilled > random > 20
