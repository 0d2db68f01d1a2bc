"""500 mutated files of strangers: only AtomhubErrors come out, in bounded memory and time (longer: ``make fuzz``)."""

import subprocess
import sys

from conftest import ROOT


def test_mutated_files(tmp_path):
    found = subprocess.run(
        [sys.executable, ROOT / "tests" / "trust" / "fuzz.py", "500"], capture_output=True, text=True, timeout=240
    )
    assert found.returncode == 0, found.stderr[-5000:]
    assert int(found.stdout.split()[-1]) < 700
