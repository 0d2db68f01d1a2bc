"""Sets that start at typical images: real ones that a trained network is sure of, and that differ from each other."""

import numpy as np
import pytest
import torch
from torch import nn

import atomhub
from atomhub.core import initial
from atomhub.core.real import RealImages
from atomhub.core.whitening import Normalization
from atomhub.errors import UsageError

FIELDS = {"init": "typical", "bank_epochs": 2, "width": 8, "iterations": 0}


def test_of_every_cluster_of_features_the_surest_image_is_taken():
    """Images of three colours, and a network that finds one more of class 1 the greener its first pixel is."""
    rng, colours = np.random.default_rng(0), np.repeat([0, 1, 2], 12)
    pixels = np.zeros((40, 3, 4, 4), np.uint8)
    pixels[np.arange(4, 40), colours] = 200 - rng.integers(0, 5, (36, 4, 4))
    green = rng.permutation(36)
    pixels[4:, 1, 0, 0] = green + 100 * (colours == 1)
    real = RealImages(pixels, Normalization((0.0,) * 3, (1.0,) * 3), torch.device("cpu"))
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    with torch.no_grad():
        teacher[1].weight.zero_()
        teacher[1].weight[1, 16] = 3.0
    found = initial.typical(real, teacher, 1, 4, 36, 3, seed=0)
    surest = [max(np.flatnonzero(colours == c), key=lambda row: green[row]) for c in range(3)]
    assert sorted(found) == sorted(surest)
    assert (initial.typical(real, teacher, 1, 4, 36, 3, seed=0) == found).all()
    everything = initial.typical(real, teacher, 1, 4, 36, 36, seed=0)
    assert sorted(everything) == list(range(36))


def test_a_set_of_typical_images_is_made_of_distinct_real_ones(home):
    real = atomhub.open_source("digits")
    one = atomhub.distill(real, 3, "atom", FIELDS)
    for k in range(10):
        own = {image.tobytes() for image in real.train.images[real.train.labels == k]}
        chosen = {image.numpy().tobytes() for image in one.images[one.labels == k]}
        assert len(chosen) == 3
        assert chosen <= own
    assert one.manifest.provenance.seconds > 0.1  # the training of the network that chooses counts
    assert not torch.equal(one.images, atomhub.distill(real, 3, "atom", FIELDS | {"init": "real"}).images)
    assert "init=typical" in one.manifest.provenance.recipe.describe()


def test_networks_that_images_are_matched_under_are_fresh_unless_there_is_a_bank(home):
    fields = FIELDS | {"iterations": 2, "real_batch": 4, "pixels": "float32"}
    fresh = atomhub.distill("digits", 1, "atom", fields)
    start = atomhub.distill("digits", 1, "atom", fields | {"iterations": 0})
    assert not torch.equal(fresh.images, start.images)
    trained = atomhub.distill("digits", 1, "atom", fields | {"bank": 1})
    assert not torch.equal(fresh.images, trained.images)
    assert torch.equal(atomhub.distill("digits", 1, "atom", fields | {"bank": 1, "iterations": 0}).images, start.images)


def test_a_run_goes_on_without_the_network_that_chose_its_images(home, tmp_path, stop_at):
    how = {"recipe": "atom", "overrides": FIELDS | {"real_batch": 4, "iterations": 6}}
    whole = atomhub.distill("digits", 1, **how)

    kept = {"checkpoints": tmp_path / "runs", "checkpoint_every": 2}
    with pytest.raises(KeyboardInterrupt):
        atomhub.distill("digits", 1, **how, **kept, progress=stop_at(4))
    (network,) = (home / "banks").glob("*.safetensors")
    network.unlink()
    assert torch.equal(atomhub.distill("digits", 1, **how, **kept, resume=True).images, whole.images)
    assert not network.exists()


def test_a_forecast_counts_the_network_and_the_choice(home):
    found = atomhub.forecast("digits", 1, "atom", FIELDS | {"iterations": 5, "real_batch": 4})
    assert found.networks == 1
    assert found.choosing_seconds > 0
    assert found.plan.count("1 of 1 networks to train first") == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"widths": (4, 8)}, "typical images are chosen by a network of one width and depth"),
        ({"matcher": "lenet", "weights": "w.safetensors", "statistics": "running"}, "and weights are given"),
    ],
)
def test_what_cannot_choose_is_refused(fields, message):
    with pytest.raises(UsageError, match=message):
        atomhub.Recipe.named("atom", FIELDS | fields)
