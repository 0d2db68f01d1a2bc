"""The picture of a set: what a visitor sees first."""

import base64
import dataclasses
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

import atomhub
from atomhub.preview import draw_preview, layout


def pictured(classes=3, ipc=4, size=16, formation=1, channels=3, **options):
    """Return the picture of images of one grey value each: 1 for the first of the first class, and so on."""
    values = torch.arange(1, classes * ipc + 1, dtype=torch.uint8).view(classes, ipc, 1, 1, 1)
    names = options.pop("names", [f"class {k}" for k in range(classes)])
    picture = draw_preview(values.expand(-1, -1, channels, size, size), names, formation, **options)
    return np.asarray(picture)


def area(picture, value):
    """Return how many pixels have a grey value, but for some in the letters."""
    return int((picture == value).all(-1).sum())


def place(picture, value):
    """Return the row and the column in the middle of the pixels of a grey value."""
    return tuple(int(np.median(axis)) for axis in np.nonzero((picture == value).all(-1)))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_class_is_a_row_of_enlarged_images(channels):
    picture = pictured(channels=channels)
    assert all(area(picture, value) >= 64 * 64 for value in range(1, 13))
    first, second = [place(picture, value) for value in (1, 2)]
    assert abs(second[0] - first[0]) < 3
    assert 64 < second[1] - first[1] < 70
    below = place(picture, 5)
    assert 64 < below[0] - first[0] < 80
    assert abs(below[1] - first[1]) < 3


def test_views_are_set_apart_and_large_images_reduced():
    assert 64 * 64 <= area(pictured(formation=2), 1) < 65 * 65
    assert area(pictured(formation=2), 255) > area(pictured(), 255)
    assert 120**2 < area(pictured(size=300, formation=2), 1) < 130**2


def test_no_more_is_shown_than_asked_for():
    assert area(pictured(shown=2), 3) < 50
    assert area(pictured(shown=2), 2) >= 64 * 64


def test_many_classes_are_wrapped():
    high, wide, _ = pictured(classes=60, ipc=1).shape
    assert 1 / 2 < wide / high < 3
    whole = draw_preview(torch.zeros(400, 1, 1, 16, 16, dtype=torch.uint8), ["x"] * 400)
    assert whole.width * whole.height < 4e6  # the first 200


def test_names_of_strangers_do_no_harm():
    names = ["\x1b[2J" * 50, "日本語 \N{RIGHT-TO-LEFT OVERRIDE}", ""]
    _, wide, _ = pictured(names=names).shape
    assert wide < 700


def test_a_notebook_shows_the_picture_and_what_was_measured_and_runs_nothing():
    one = atomhub.load("digits-ipc1")
    html = one._repr_html_()
    picture = Image.open(io.BytesIO(base64.b64decode(re.search('base64,([^"]+)"', html)[1])))
    assert np.array_equal(picture, one.preview())
    for result in one.manifest.results.measured:
        assert result.score.text in html
        assert result.network in html
    evil = one.manifest.replace(name="<script>alert(1)</script>")
    assert "<script>" not in dataclasses.replace(one, manifest=evil)._repr_html_()
    # classes of a preview are where its layout says, which is what a gallery shows on hover
    places = layout((10, 1, 1, 16, 16), one.class_names, one.manifest.format.formation)
    assert places.size == picture.size
    for x, y, wide, high in places.boxes:
        inside = np.asarray(picture.crop((x, y, x + wide, y + high)))
        around = np.asarray(picture.crop((x - 1, y - 1, x + wide + 1, y + high + 1)))
        assert (inside < 255).any()
        assert (around[[0, -1]] == 255).all()
        assert (around[:, [0, -1]] == 255).all()
