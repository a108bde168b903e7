"""Augmentations against torchvision and torch, and the correspondence of shared points."""

import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms.v2 import functional as tv

from partshot.pretext.views import (
    Crops,
    blur_matrix,
    color_matrix,
    crop_matrix,
    overlapping,
    random_crops,
    shared_points,
    two_views,
)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("target", [8, 20, 32, 45])
def test_resizing_equals_torchs_antialiased_bilinear(target):
    image = torch.rand(2, 3, 20, 20, generator=rng())
    matrix = crop_matrix(torch.zeros(2), torch.ones(2), 20, target)

    ours = matrix[:, None] @ image @ matrix[:, None].transpose(2, 3)

    theirs = F.interpolate(image, size=target, mode="bilinear", antialias=True, align_corners=False)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_upsampled_crops_and_flips_equal_grid_sample():
    image = torch.rand(4, 3, 24, 24, generator=rng())
    crops = random_crops(4, 0.2, rng(1))
    (x, y), (across, down) = crops.center.unbind(1), crops.half.unbind(1)
    rows, columns = crop_matrix(y, down, 24, 32), crop_matrix(x, across * crops.sign, 24, 32)

    ours = rows[:, None] @ image @ columns[:, None].transpose(2, 3)

    zero = torch.zeros(4)
    theta = torch.stack(
        [torch.stack([across * crops.sign, zero, x], 1), torch.stack([zero, down, y], 1)],
        1,
    )
    grid = F.affine_grid(theta, [4, 3, 32, 32], align_corners=False)
    theirs = F.grid_sample(image, grid, padding_mode="border", align_corners=False)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_blur_equals_torchvision_away_from_borders():
    image = torch.rand(1, 3, 32, 32, generator=rng())
    matrix = blur_matrix(torch.tensor([1.3]), 32)

    ours = matrix @ image[0] @ matrix[0].T

    theirs = tv.gaussian_blur(image, kernel_size=[15, 15], sigma=[1.3, 1.3])[0]
    torch.testing.assert_close(ours[:, 8:-8, 8:-8], theirs[:, 8:-8, 8:-8], atol=1e-4, rtol=0)


def test_brightness_saturation_and_grayscale_equal_torchvision():
    image = 0.2 + 0.4 * torch.rand(1, 3, 8, 8, generator=rng())
    for brightness, saturation in ((1.2, 1.0), (1.0, 1.3), (0.8, 0.0)):
        matrix = color_matrix(torch.tensor([brightness]), torch.tensor([saturation]), torch.zeros(1))

        ours = torch.einsum("bij,bjhw->bihw", matrix, image)

        theirs = tv.adjust_brightness(tv.adjust_saturation(image, saturation), brightness)
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=0)


def test_hue_rotates_about_the_gray_axis():
    matrix = color_matrix(torch.ones(1), torch.ones(1), torch.tensor([1 / 3]))[0]
    red = torch.tensor([1.0, 0, 0])
    torch.testing.assert_close(matrix @ red, torch.tensor([0.0, 1, 0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(matrix @ torch.ones(3), torch.ones(3), atol=1e-6, rtol=0)


def test_crops_are_inside_the_image_and_have_the_requested_sizes():
    crops = random_crops(20_000, 0.2, rng())
    assert (crops.center.abs() + crops.half <= 1 + 1e-6).all()
    area = crops.half.prod(1)
    # Crops are clipped to the image, so their mean area is slightly below the mean of U(0.2, 1).
    assert area.min() > 0.19 and abs(area.mean() - 0.6) < 0.02
    assert abs((crops.sign < 0).float().mean() - 0.5) < 0.02
    unflipped = random_crops(20_000, 0.2, rng(), flip=False)
    assert bool((unflipped.sign == 1).all()) and torch.equal(unflipped.half, crops.half)


def test_disjoint_crops_are_moved_together():
    first = Crops(torch.tensor([[-0.6, -0.6], [0.0, 0.0]]), torch.full((2, 2), 0.4), torch.ones(2))
    second = Crops(torch.tensor([[0.5, 0.5], [0.1, 0.1]]), torch.full((2, 2), 0.5), torch.ones(2))

    _, moved = overlapping(first, second)

    torch.testing.assert_close(moved.center, torch.tensor([[-0.5, -0.5], [0.1, 0.1]]))


@pytest.mark.parametrize("size", [48, 96])
def test_shared_points_are_the_same_points_of_the_image(size):
    # Red and green are the coordinates of the pixel; without color jitter, equal colors mean equal points.
    ramp = torch.linspace(0, 255, 64).round().to(torch.uint8)
    image = torch.stack([ramp.expand(64, 64), ramp[:, None].expand(64, 64), torch.zeros(64, 64).byte()], -1)
    images = image.expand(32, 64, 64, 3).contiguous()

    views = two_views(images, size, 0.2, 0.0, 5, rng(3))

    sampled = [
        F.grid_sample(view, points[:, :, None], padding_mode="border", align_corners=False)[:, :, :, 0]
        for view, points in ((views.first, views.first_points), (views.second, views.second_points))
    ]
    colored = (views.first[:, 2].amax((1, 2)) < 0.01) & (views.second[:, 2].amax((1, 2)) < 0.01)
    assert colored.sum() > 10  # grayscale views (probability 0.2 each) mix the coordinates
    assert views.first_points.abs().max() <= 1 + 1e-5 and views.second_points.abs().max() <= 1 + 1e-5
    # Blur changes the ramp near a view's border, so only inner points are compared.
    inner = (views.first_points.abs().amax(2) < 0.85) & (views.second_points.abs().amax(2) < 0.85)
    keep = colored[:, None] & inner
    assert keep.sum() > 100
    difference = (sampled[0] - sampled[1]).abs().amax(1)[keep]
    assert difference.max() < 0.02
    assert sampled[0][:, :2].std() > 0.1


def test_points_fill_the_intersection():
    whole = Crops(torch.zeros(1, 2), torch.ones(1, 2), torch.ones(1))
    corner = Crops(torch.full((1, 2), 0.5), torch.full((1, 2), 0.5), torch.tensor([-1.0]))

    first, second = shared_points(whole, corner, 8, rng())

    assert first.min() >= 0 and first.max() <= 1
    assert second.min() < -0.8 and second.max() > 0.8
    torch.testing.assert_close(second[..., 0], -(first[..., 0] - 0.5) / 0.5)


def test_views_depend_only_on_the_generator_and_are_in_range():
    images = torch.randint(0, 256, (6, 40, 40, 3), generator=rng(), dtype=torch.uint8)
    first, again = two_views(images, 32, 0.2, 1.0, 3, rng(7)), two_views(images, 32, 0.2, 1.0, 3, rng(7))
    for one, two in zip(first, again, strict=True):
        assert torch.equal(one, two)
    other = two_views(images, 32, 0.2, 1.0, 3, rng(8))
    assert not torch.equal(first.first, other.first) and not torch.equal(first.first, first.second)
    assert first.first.shape == (6, 3, 32, 32) and first.first_points.shape == (6, 9, 2)
    assert 0 <= first.first.min() and first.first.max() <= 1
