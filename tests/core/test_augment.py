"""Differentiable siamese augmentation: one operation a group, the same for every image of the group."""

import pytest
import torch
from pretended import GPU, Copies
from torchvision.transforms import InterpolationMode, functional as TF

from atomhub.core import augment

G, M, C, SIDE = 4, 3, 3, 16


@pytest.fixture
def images():
    return torch.randn(G, M, C, SIDE, SIDE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def u():
    return torch.rand(G, augment.DRAWS, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", augment.OPERATIONS)
def test_images_of_a_group_share_their_parameters(name, images, u):
    same = images[:, :1].expand_as(images)
    out = augment.augment(same, u, [[name]])
    assert torch.equal(out, out[:, :1].expand_as(out))


@pytest.mark.parametrize("operations", [*([name] for name in augment.OPERATIONS), list(augment.OPERATIONS)], ids=str)
def test_what_a_gpu_does_is_the_same(operations, images):
    """There all groups go through all operations, so that nothing waits for the choice."""
    u = torch.rand(G, augment.DRAWS, dtype=torch.float64, generator=torch.Generator().manual_seed(len(operations)))
    a, b = (f(images.requires_grad_(), u, [operations]) for f in (augment.augment, augment.augment_static))
    assert torch.allclose(a, b, rtol=0, atol=1e-12)
    (grad_a,), (grad_b,) = (torch.autograd.grad(x.square().sum(), images) for x in (a, b))
    assert torch.allclose(grad_a, grad_b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", augment.OPERATIONS)
def test_every_operation_is_differentiable(name, u):
    images = torch.randn(2, 1, 2, 8, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: augment.augment(x, u[:2], [[name]]), images)


def test_rotation_agrees_with_torchvision(images, u):
    out = augment.rotate(images, u)
    for g in range(G):
        degrees = float(2 * u[g, 11] - 1) * 15
        expected = TF.rotate(images[g], -degrees, InterpolationMode.BILINEAR) if degrees else images[g]
        other = TF.rotate(images[g], degrees, InterpolationMode.BILINEAR)
        assert min((out[g] - expected).abs().max(), (out[g] - other).abs().max()) < 1e-6


def test_mirroring_agrees_with_torchvision(images, u):
    u = u.clone()
    u[:, 8] = torch.tensor([0.0, 0.49, 0.5, 0.99])
    expected = torch.cat([TF.hflip(images[:2]), images[2:]])
    assert torch.equal(augment.flip(images, u), expected)


def test_crops_agree_with_torchvision(images, u):
    out = augment.crop(images, u)
    for g in range(G):
        dx, dy = (int(v * 5) - 2 for v in (u[g, 4], u[g, 5]))  # 16 pixels: at most 2 either way
        padded = TF.pad(images[g], [2, 2, 2, 2])
        assert torch.allclose(out[g], TF.crop(padded, 2 - dy, 2 - dx, SIDE, SIDE), atol=1e-6)


def test_holes_agree_with_torchvision(images, u):
    u = u.clone()
    u[:, 6:8] = 0.25 + u[:, 6:8] / 2  # within the image, where torchvision can erase
    out = augment.cutout(images, u)
    for g in range(G):
        x, y = (int(v * (SIDE + 1)) - SIDE // 4 for v in (u[g, 6], u[g, 7]))
        assert torch.equal(out[g], TF.erase(images[g], y, x, SIDE // 2, SIDE // 2, torch.zeros(()).double()))


def test_contrast_agrees_with_torchvision_on_grey_images(u):
    grey = torch.rand(G, M, 1, SIDE, SIDE, dtype=torch.float64)
    u = u.clone()
    u[:, 1] = 0.5  # no brightness; saturation does nothing to grey
    for g in range(G):
        factor = float(u[g, 3]) + 0.5
        expected = torch.stack([TF.adjust_contrast(i, factor) for i in grey[g]])
        inside = (expected > 0) & (expected < 1)  # torchvision clamps
        assert torch.allclose(augment.color(grey, u)[g][inside], expected[inside])


def test_brightness_and_contrast_alone_agree_with_their_formulas(images, u):
    u = u.clone()
    u[:, 2], u[:, 3] = 0.5, 0.5  # saturation and contrast of 1: no change
    assert torch.allclose(augment.color(images, u), images + (u[:, 1] - 0.5).view(-1, 1, 1, 1, 1))
    u[:, 1], u[:, 2] = 0.5, 0.0  # saturation of 0: grey
    grey = augment.color(images, u)
    assert torch.allclose(grey, images.mean(2, keepdim=True).expand_as(images))


def test_crops_shift_whole_pixels_by_at_most_an_eighth(images):
    for draw, shift in ((0.0, -2), (0.5, 0), (0.999, 2)):
        u = torch.full((G, augment.DRAWS), draw, dtype=torch.float64)
        out = augment.crop(images, u)
        inner = images[..., 4:12, 4:12]
        assert torch.allclose(out[..., 4 + shift : 12 + shift, 4 + shift : 12 + shift], inner)


def test_cutout_zeroes_a_square_of_half_the_side(images):
    out = augment.cutout(images, torch.full((G, augment.DRAWS), 0.5, dtype=torch.float64))
    assert (out == 0).sum() == G * M * C * (SIDE // 2) ** 2


def test_scaling_by_one_changes_nothing(images):
    one = (1 - 1 / 1.2) / (1.2 - 1 / 1.2)
    out = augment.scale(images, torch.full((G, augment.DRAWS), one, dtype=torch.float64))
    assert torch.allclose(out, images)


def test_all_operations_are_drawn_equally_often():
    u = torch.rand(60_000, augment.DRAWS, generator=torch.Generator().manual_seed(0))
    names = augment.DSA[0]
    counts = torch.bincount((u[:, 0] * len(names)).long(), minlength=len(names))
    assert (counts - 10_000).abs().max() < 500
    images = torch.ones(len(u[:600]), 1, 1, 4, 4)
    changed = (augment.augment(images, u[:600], [names]) != 1).flatten(1).any(1).float().mean()
    assert 0.4 < changed < 0.9  # flips of ones and small shifts change nothing


def test_no_operations_change_nothing(images, u):
    assert augment.augment(images, u, []) is images
    assert augment.augment(images, u, [[]]) is images


def test_stages_follow_one_another(images, u):
    expected = augment.cutout(augment.rotate(augment.color(images, u), u), u)
    assert torch.equal(augment.augment(images, u, [["color"], ["rotate"], [], ["cutout"]]), expected)


def test_a_batch_has_one_operation_and_every_image_its_own_numbers():
    torch.manual_seed(0)
    same, seen = torch.randn(1, 3, 16, 16).expand(8, -1, -1, -1), set()
    for _ in range(20):
        out = augment.augment_batch(same, [["cutout", "color"]])
        seen.add(kind := bool((out == 0).any()))
        assert all(bool((image == 0).any()) == kind for image in out)
        assert len({tuple(image.flatten().tolist()) for image in out}) > 2
    assert seen == {True, False}


@pytest.mark.parametrize("name", augment.OPERATIONS)
def test_nothing_is_copied_to_a_gpu_meanwhile(pretended_gpu, name):
    """A step that is recorded may not wait for a copy."""
    images, u = torch.empty(G, 2, 3, 8, 8, device=GPU), torch.empty(G, augment.DRAWS, device=GPU)
    augment.augment_static(images, u, [[name]])  # tables are made once
    with Copies() as copies:
        augment.augment_static(images, u, [[name]])
    assert not copies.found
