"""Sets of tiles: real crops that a trained network is surest of, and the protocol in which it labels every batch."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import atomhub
from atomhub.cli.main import cli
from atomhub.core import initial
from atomhub.core.real import RealImages
from atomhub.core.whitening import Normalization
from atomhub.errors import SourceError, UsageError
from atomhub.job.teachers import taught
from atomhub.presets import TUNED
from atomhub.training.protocols import PROTOCOLS

FIELDS = {"matcher": "lenet", "bank_epochs": 4}


@pytest.fixture
def tiled(home):
    return atomhub.distill("digits", 2, "rded", FIELDS)


def test_a_tile_is_a_crop_that_the_teacher_is_surer_of_than_of_others():
    """A teacher that finds an image more of class 1 the brighter it is."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 1, 16, 16), dtype=np.uint8)
    real = RealImages(pixels, Normalization((0.0,), (1.0,)), torch.device("cpu"))
    brightness = []

    def teacher(x):
        assert x.shape[1:] == (1, 16, 16)
        assert (x[..., :4, :] == 0).all()  # zeros around the crop
        assert (x[..., -4:] == 0).all()
        brightness.append(x.sum((1, 2, 3)))
        return torch.stack([torch.zeros(len(x)), brightness[-1] / 50], 1)

    found = initial.tiles(real, teacher, 1, 8, 30, 12, 8, seed=0)
    assert found.shape == (12, 1, 8, 8)
    best = torch.cat(brightness).view(30, 5).max(1).values  # five crops of each image, and the best of these
    assert torch.allclose(found.sum((1, 2, 3)), best.sort(descending=True).values[:12])
    whole = torch.nn.functional.interpolate(
        torch.from_numpy(pixels[8:38]) / 255, size=8, mode="bilinear", antialias=True
    )
    assert found.mean() > whole.mean()
    again = initial.tiles(real, teacher, 1, 8, 30, 12, 8, seed=0)
    assert torch.equal(again, found)
    assert not torch.equal(initial.tiles(real, teacher, 1, 8, 30, 12, 8, seed=1), found)


def test_an_image_holds_four_tiles_and_nothing_is_optimised(tiled):
    assert tiled.images.shape == (20, 1, 16, 16)
    assert tiled.manifest.format.formation == 1
    assert tiled.manifest.provenance.recipe.iterations == 0
    assert tiled.manifest.provenance.history == ()
    views = atomhub.distill("digits", 2, "rded", FIELDS | {"formation": 2})
    assert torch.equal(views.images, tiled.images)  # the same tiles, seen one by one
    assert len(views.training_pixels()) == 80


def test_photographs_start_from_the_same_tiles_and_are_matched_under_their_teacher(home):
    fields = FIELDS | {"real_batch": 8, "pixels": "float32"}
    tiles = atomhub.distill("digits", 2, "rded", fields | {"formation": 2})
    start, end = (atomhub.distill("digits", 2, "atom-photo", fields | {"iterations": n}) for n in (0, 10))
    assert torch.equal(start.images, tiles.images)
    moved = (end.images - start.images).square().mean((1, 2, 3)).sqrt() / end.manifest.format.std[0]
    assert (moved > 0.005).all()
    assert (moved < 10 * 0.05 / (1 - 0.5)).all()  # as far as the rate and the momentum go


def test_a_run_from_tiles_goes_on_with_the_same_images(home, tmp_path, stop_at):
    how = {"recipe": "atom-photo", "overrides": FIELDS | {"bank_epochs": 1, "real_batch": 4, "iterations": 6}}

    kept = {"checkpoints": tmp_path / "runs", "checkpoint_every": 2}
    with pytest.raises(KeyboardInterrupt):
        atomhub.distill("digits", 2, **how, **kept, progress=stop_at(4))
    resumed = atomhub.distill("digits", 2, **how, **kept, resume=True)
    assert torch.equal(resumed.images, atomhub.distill("digits", 2, **how).images)


def test_a_set_of_tiles_is_saved_and_shown_as_any_other(tiled):
    saved = tiled.save()
    assert {path.name for path in saved.path.iterdir()} >= {"preview.png", "README.md", "distilled.safetensors"}
    assert CliRunner().invoke(cli, ["info", saved.name]).exit_code == 0


def test_tiles_need_a_trained_network_and_enough_images(home):
    with pytest.raises(UsageError, match="tiles are chosen by a trained network: set bank above 0"):
        atomhub.distill("digits", 1, "rded", {"bank": 0})
    with pytest.raises(UsageError, match="tiles are parts of images, and zca is of whole ones"):
        atomhub.distill("digits", 1, "rded", {"zca": True})
    with pytest.raises(SourceError, match="fewer than ipc 60 of 4 tiles") as caught:
        atomhub.distill("digits", 60, "rded", FIELDS)
    assert caught.value.hint == "Use `ipc=34` or less, or init=real."
    with pytest.raises(SourceError) as caught:
        atomhub.distill("digits", 60, "atom-photo", FIELDS)
    assert caught.value.hint == "Use `ipc=34` or less, or formation=1 and init=real."


class TestTeacher:
    @pytest.fixture(autouse=True)
    def brief(self, monkeypatch):
        """A teacher and networks that learn for a few epochs."""
        monkeypatch.setitem(TUNED["digits"], "bank_epochs", 4)
        monkeypatch.setitem(PROTOCOLS, "rded", replace(PROTOCOLS["rded"], epochs=40))

    def test_it_labels_the_set_and_its_baselines_and_is_said(self, tiled, home):
        result = atomhub.evaluate(tiled, "lenet", "rded", runs=2)
        assert result.labels == "soft"
        assert result.teacher == "convnet:width=32,depth=2,norm=instance, 4 epochs on digits"
        assert set(result.baseline) == {"random"}
        assert result.score.mean > 25
        done = CliRunner().invoke(
            cli, ["evaluate", tiled.save().name, "--network", "lenet", "--protocol", "rded", "--runs", "1"]
        )
        assert "protocol rded, labels of convnet:width=32,depth=2,norm=instance, 4 epochs on digits" in done.stdout
        banks = sorted((home / "banks").iterdir())
        (verdict,) = atomhub.verify(tiled, runs=2)
        assert verdict.holds
        assert verdict.measured.teacher == result.teacher
        assert sorted((home / "banks").iterdir()) == banks  # one teacher for all measurements

    def test_its_labels_are_those_of_the_set_as_it_is_normalised(self, tiled, home):
        """A set that is normalised in another way shows its networks, and the teacher, the same images."""
        other = tiled.manifest.replace(format={"mean": (0.5,), "std": (0.25,)})
        moved = atomhub.DistilledDataset(tiled.images, tiled.labels, other)
        first, second = (taught(one, "rded", {})["teacher"]().logits(one.as_tensors()[0]) for one in (tiled, moved))
        assert torch.allclose(first, second, atol=1e-3)

    def test_without_one_the_protocol_is_for_measuring_alone(self, tiled):
        tiled.save()
        for verb, more in (("train", ["--output", "x"]), ("search", [])):
            done = CliRunner().invoke(cli, [verb, tiled.name, "--protocol", "rded", *more])
            assert "The protocol 'rded' is for measuring alone" in done.stderr + str(done.exception)
