"""ADA: transformations against torchvision, their probabilities, and the adaptation of p."""

import math

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from partshot.pretext import ada
from partshot.pretext.ada import Ada, color_matrix, geometric_matrix, transform, wavelet_downsample, wavelet_upsample

SAME = torch.eye(4)[None, :3]


@pytest.fixture
def images():
    """Smooth images in [-0.9, 0.9], for which interpolation methods agree."""
    coarse = torch.rand(4, 3, 6, 6, generator=torch.Generator().manual_seed(0)) * 1.6 - 0.8
    return torch.nn.functional.interpolate(coarse, size=48, mode="bicubic", align_corners=False).clamp(-0.9, 0.9)


def inner(x):
    return x[:, :, 12:-12, 12:-12]


def moved(images, matrix):
    return transform(images, matrix[None, :2].expand(len(images), -1, -1), SAME.expand(len(images), -1, -1))


def test_identity_changes_nothing(images):
    assert Ada()(images) is images
    # Unaugmented images must stay sharp, even noise.
    noise = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    assert torch.equal(moved(noise, torch.eye(3)), noise)
    # Upsampling and downsampling is lossless except at the border.
    torch.testing.assert_close(inner(wavelet_downsample(wavelet_upsample(noise))), inner(noise), atol=1e-5, rtol=0)


def test_coordinates_are_float32_under_autocast(images):
    augmentation = Ada()
    augmentation.p.fill_(0.8)
    torch.manual_seed(0)
    exact = augmentation(images)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(augmentation(images), exact)


@pytest.mark.parametrize("angle", [90.0, 17.0, -40.0])
def test_rotations_equal_torchvision(images, angle):
    ours = moved(images, ada._rotation(torch.tensor([math.radians(angle)]))[0])
    theirs = tv.rotate(images, angle, interpolation=tv.InterpolationMode.BILINEAR)
    assert (inner(ours) - inner(theirs)).abs().mean() < 0.01


def test_scaling_and_translation_equal_torchvision(images):
    def affine(scale=1.0, shift=(0, 0)):
        return tv.affine(images, 0, list(shift), scale, [0.0], interpolation=tv.InterpolationMode.BILINEAR)

    half = torch.tensor([0.5])
    assert (inner(moved(images, ada._scaling(half, half)[0])) - inner(affine(scale=2.0))).abs().mean() < 0.01
    shift = ada._translation(torch.tensor([6 / 24]), torch.tensor([-4 / 24]))[0]
    assert (inner(moved(images, shift)) - inner(affine(shift=(-6, 4)))).abs().mean() < 0.01


def test_flips_are_exact_up_to_the_filter(images):
    flip = ada._scaling(torch.tensor([-1.0]), torch.tensor([1.0]))[0]
    assert (inner(moved(images, flip)) - inner(images.flip(3))).abs().max() < 0.03


def recolored(images, matrix):
    identity = torch.eye(3)[None, :2].expand(len(images), -1, -1)
    plain = transform(images, identity, SAME.expand(len(images), -1, -1))
    return plain, transform(images, identity, matrix[:, :3].expand(len(images), -1, -1))


def test_color_transformations_equal_torchvision(images):
    unit = lambda x: (x + 1) / 2  # noqa: E731  torchvision's floats are in [0, 1]
    by = torch.tensor([0.3])
    plain, brighter = recolored(images, ada.brightness(by))
    torch.testing.assert_close(brighter, plain + 0.3)
    _, gray = recolored(images, ada.saturation(torch.tensor([0.0])))
    torch.testing.assert_close(gray, plain.mean(1, keepdim=True).expand_as(plain), atol=1e-5, rtol=0)
    _, flat = recolored(images, ada.contrast(torch.tensor([0.5])))
    torch.testing.assert_close(unit(flat), 0.5 + (unit(plain) - 0.5) * 0.5)
    _, negative = recolored(images, ada.luma_flip(torch.tensor([1.0])))
    # A luma flip keeps differences between channels and negates their mean.
    torch.testing.assert_close(negative.mean(1), -plain.mean(1), atol=1e-5, rtol=0)
    torch.testing.assert_close(negative[:, 0] - negative[:, 1], plain[:, 0] - plain[:, 1], atol=1e-5, rtol=0)
    # A rotation by 120 degrees maps red to green and green to blue, as torchvision's hue does for pure colors.
    _, rotated = recolored(images, ada.hue(torch.tensor([2 * math.pi / 3])))
    torch.testing.assert_close(rotated, plain[:, [2, 0, 1]], atol=1e-5, rtol=0)
    pure = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    green = tv.adjust_hue(pure, 1 / 3)
    torch.testing.assert_close(green.flatten(), (ada.hue(torch.tensor([2 * math.pi / 3]))[0, :3, :3] @ pure.flatten()))


def test_differentiability(images):
    x = images.clone().requires_grad_()
    torch.manual_seed(0)
    transform(x, geometric_matrix(4, 48, 0.8), color_matrix(4, 0.8)).square().sum().backward()
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("side", [4, 8])
def test_images_smaller_than_the_filter_are_transformed(side):
    torch.manual_seed(0)
    gray = transform(
        torch.full((2, 3, side, side), 0.5), geometric_matrix(2, side, 1.0), torch.eye(4)[:3].expand(2, 3, 4)
    )
    torch.testing.assert_close(gray, torch.full_like(gray, 0.5), atol=1e-3, rtol=0)


def test_transformations_are_applied_with_probability_p():
    torch.manual_seed(0)
    eye = torch.eye(4)
    assert torch.equal(geometric_matrix(50, 32, 0.0), torch.eye(3)[:2].expand(50, -1, -1))
    assert torch.equal(color_matrix(50, 0.0), eye[:3].expand(50, -1, -1))
    p = 0.2
    identity = (geometric_matrix(20_000, 32, p) - torch.eye(3)[:2]).abs().amax((1, 2)) < 1e-6
    # Both rotations together count as one. Half of the flips and a quarter of the 90 degree rotations are identities.
    expected = (1 - p / 2) * (1 - 3 / 4 * p) * (1 - p) ** 5
    np.testing.assert_allclose(identity.float().mean(), expected, atol=0.015)
    identity = (color_matrix(20_000, p) - eye[:3]).abs().amax((1, 2)) < 1e-6
    np.testing.assert_allclose(identity.float().mean(), (1 - p) ** 4 * (1 - p / 2), atol=0.015)


def test_p_is_adapted_to_the_signs_of_the_logits():
    augmentation = Ada(target=0.6, kimg=1.0)
    for _ in range(Ada.EVERY):
        augmentation.accumulate(torch.tensor([3.0] * 10))
        augmentation.adjust()
    assert float(augmentation.p) == pytest.approx(40 / 1000)
    for _ in range(2 * Ada.EVERY):
        augmentation.accumulate(torch.tensor([3.0, -1.0] * 5))
        augmentation.adjust()
    assert float(augmentation.p) == 0
    for _ in range(40 * Ada.EVERY):
        augmentation.accumulate(torch.tensor([3.0] * 10))
        augmentation.adjust()
    assert float(augmentation.p) == pytest.approx(0.8)
