"""What is kept on this machine: what changed there is made again, and what was being replaced comes back."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import atomhub
from atomhub.errors import AtomhubWarning, NotFoundError


class TestCache:
    def test_decoded_images_that_changed_are_decoded_again(self, home, photos):
        good = np.array(atomhub.open_source(photos).test.images)
        (path,) = (home / "real").glob("*/test.npy")
        with path.open("r+b") as file:
            file.seek(-500, os.SEEK_END)
            file.write(b"\0" * 500)
        with pytest.warns(AtomhubWarning, match="are damaged: they are decoded again"):
            again = atomhub.open_source(photos)
        assert np.array_equal(again.test.images, good)

    def test_so_are_constants_that_changed_and_other_sources_are_left_in_peace(self, home, photos):
        atomhub.open_source(photos)
        (path,) = (home / "real").glob("*/meta.json")
        path.write_text(path.read_text().replace('"std"', '"STD"'))
        (home / "real" / "odd").mkdir()
        for content in ("[]", '{"info": 5}', "{", '{"info": {"fingerprint": []}}'):
            (home / "real" / "odd" / "meta.json").write_text(content)
            assert atomhub.load("digits-ipc1").test_split()[1].shape == (360,)
        with pytest.warns(AtomhubWarning, match="decoded again"):
            atomhub.open_source(photos)

    def test_verify_looks_at_the_content_of_what_was_checked_before(self, home, photos):
        fields = {"iterations": 1, "width": 4, "real_batch": 4}
        one = atomhub.distill(photos, 1, "atom", fields)
        atomhub.evaluate(one, "mlp:width=8", "quick", runs=1, baseline=None)
        (path,) = (home / "real").glob("*/test.npy")
        stat, content = path.stat(), path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert len(one.test_split()[1]) == 6  # size and time are those of what was checked
        with pytest.raises(NotFoundError, match="real images of 'photos' are not on this machine"):
            atomhub.verify(one)
        with pytest.warns(AtomhubWarning, match="are damaged: they are decoded again"):
            atomhub.open_source(photos)
        assert path.read_bytes() == content

    def test_a_trained_network_that_changed_is_trained_again(self, home):
        fields = {"iterations": 1, "bank": 1, "bank_epochs": 1, "width": 4}
        first = atomhub.distill("digits", 1, "atom", fields)
        (path,) = (home / "banks").glob("*.safetensors")
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        with pytest.warns(AtomhubWarning, match="is damaged, and is trained again"):
            assert torch.equal(atomhub.distill("digits", 1, "atom", fields).images, first.images)

    def test_leftovers_of_the_dead_go_and_a_set_that_was_being_replaced_comes_back(self, home, digits1):
        digits1.save()
        dead = subprocess.Popen([sys.executable, "-c", "pass"])
        dead.wait()
        from atomhub import files

        one = home / "sets" / f".digits-ipc1.{files._HOST}-{dead.pid}.abc"
        one.mkdir()
        (home / "sets" / "digits-ipc1").rename(one / "old")
        other = home / "sets" / f".other.{files._HOST}-{dead.pid}.abc"
        other.mkdir()
        mine = home / "sets" / f".mine.{files._HOST}-{os.getpid()}.abc"
        mine.mkdir()
        assert torch.equal(atomhub.load("digits-ipc1").images, digits1.images)
        digits1.save(overwrite=True)
        assert sorted(p.name for p in (home / "sets").iterdir()) == [mine.name, "digits-ipc1"]
