"""Augmentation warps images and labels together, swaps left and right on flips, and is determined by its generator."""

import pytest
import torch

from partshot.data.augment import PRESETS, Augment, augment, photometric, transfer_colors, warp_grid, warp_soft_labels
from partshot.toy.dataset import toy_shots

NONE = PRESETS["none"]
GEOMETRIC = {
    "flip": NONE.changed(flip=True),
    "scale": NONE.changed(scale=2),
    "rotation": NONE.changed(rotation=40),
    "shift": NONE.changed(shift=0.4),
    "warp": NONE.changed(warp=0.04),
    "all": NONE.changed(flip=True, scale=1.5, rotation=20, shift=0.2, warp=0.02),
}
SWAP = [0, 2, 1, 3]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def colored(labels):
    """Images whose colors encode the labels: id -> a corner of the color cube."""
    bits = torch.stack([(labels >> bit) & 1 for bit in range(3)], 1)
    return bits.float() * 2 - 1


def ids_of_colors(images):
    return ((images > 0).long() * torch.tensor([1, 2, 4]).view(1, 3, 1, 1)).sum(1)


def quarters(b=8, h=64, w=64):
    """Four large areas of ids 0 to 3, so that few pixels lie on an edge."""
    labels = torch.zeros(b, h, w, dtype=torch.long)
    labels[:, : h // 2, w // 2 :] = 1
    labels[:, h // 2 :, : w // 2] = 2
    labels[:, h // 2 :, w // 2 :] = 3
    return labels


def test_none_is_the_identity():
    images, labels = torch.rand(2, 3, 20, 30, generator=seeded()) * 2 - 1, quarters(2, 20, 30)
    moved, ids = augment(images, labels, NONE, seeded(), SWAP)
    torch.testing.assert_close(moved, images, atol=1e-5, rtol=0)
    assert torch.equal(ids, labels)


@pytest.mark.parametrize("name", GEOMETRIC)
@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
def test_image_and_labels_are_warped_together(name, size):
    labels = quarters(8, *size)
    images, ids = augment(colored(labels), labels, GEOMETRIC[name], seeded(), [0, 1, 2, 3])
    inside = ids != 255
    assert not torch.equal(ids, labels)
    assert (ids_of_colors(images) == ids)[inside].float().mean() > 0.97


def test_soft_labels_are_warped_like_labels_and_zero_outside():
    labels = quarters()
    grid, flipped = warp_grid(8, (64, 64), GEOMETRIC["all"], seeded(3))
    _, ids = augment(colored(labels), labels, GEOMETRIC["all"], seeded(3), SWAP)
    scores = warp_soft_labels(torch.nn.functional.one_hot(labels, 4).permute(0, 3, 1, 2).float(), grid, flipped, SWAP)
    inside = scores.sum(1) > 0.999
    assert flipped.any() and not flipped.all()
    assert (scores.argmax(1) == ids)[inside].float().mean() > 0.99
    assert scores.sum(1).min() == 0 and (ids[scores.sum(1) == 0] == 255).all()


def test_a_flip_mirrors_the_image_and_swaps_left_and_right_ids():
    labels = quarters(64, 8, 8)
    labels[:, 0, 0] = 255
    images, ids = augment(colored(labels.clamp(max=3)), labels, NONE.changed(flip=True), seeded(), SWAP)
    swapped = labels.flip(2)
    swapped = torch.where(swapped == 1, 2, torch.where(swapped == 2, 1, swapped))
    mirrored = torch.tensor([torch.equal(one, swapped[0]) for one in ids])
    kept = torch.tensor([torch.equal(one, labels[0]) for one in ids])
    assert torch.all(mirrored ^ kept)
    assert 16 < mirrored.sum() < 48
    torch.testing.assert_close(images[mirrored], colored(labels.clamp(max=3)).flip(3)[mirrored], atol=1e-4, rtol=0)


def test_pixels_from_outside_are_ignored():
    labels = torch.ones(16, 32, 32, dtype=torch.long)
    _, ids = augment(colored(labels), labels, NONE.changed(shift=0.5), seeded(), [0, 1])
    assert set(ids.unique().tolist()) == {1, 255}
    # Shifts up to half a side leave at least a quarter of the image, and 9/16 on average.
    share = (ids == 1).float().mean((1, 2))
    assert share.min() > 0.24 and 0.35 < share.mean() < 0.8


def test_ignored_pixels_stay_ignored_and_images_need_no_labels():
    labels = torch.full((2, 32, 32), 255)
    images, ids = augment(torch.zeros(2, 3, 32, 32), labels, PRESETS["strong"], seeded(), [0, 1])
    assert (ids == 255).all()
    assert augment(torch.zeros(2, 3, 32, 32), None, PRESETS["strong"], seeded(), [0, 1])[1] is None


@pytest.mark.parametrize("name", PRESETS)
def test_the_generator_determines_the_result_and_the_range_is_kept(name):
    images, labels = toy_shots("faces", 32, 3).stack(32)
    images = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    labels = torch.from_numpy(labels).long()
    given = images.clone()
    ids = list(range(10))
    first = augment(images, labels, PRESETS[name], seeded(1), ids)
    torch.rand(5)
    second = augment(images, labels, PRESETS[name], seeded(1), ids)
    other = augment(images, labels, PRESETS[name], seeded(2), ids)
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    assert torch.equal(first[0], other[0]) == (name == "none")
    assert first[0].min() >= -1 and first[0].max() <= 1
    assert torch.equal(images, given)


def test_extreme_colors_stay_in_range():
    images = torch.cat([torch.full((4, 3, 32, 32), -1.0), torch.ones(4, 3, 32, 32)])
    extreme = Augment(color=1, gray=0.5, blur=3, noise=1, cutout=1)
    out = photometric(images, extreme, seeded())
    assert torch.isfinite(out).all() and out.min() >= -1 and out.max() <= 1


def test_images_smaller_than_the_blur_are_blurred():
    images = torch.rand(4, 3, 32, 16, generator=seeded()) * 2 - 1
    out = photometric(images, NONE.changed(blur=50), seeded())
    assert out.shape == images.shape and out.amin() >= -1 and out.amax() <= 1
    assert out.std() < images.std()


def test_gray_images_have_equal_channels():
    images = torch.rand(4, 3, 16, 16, generator=seeded()) * 2 - 1
    out = photometric(images, NONE.changed(color=0.5, gray=1), seeded())
    torch.testing.assert_close(out[:, 0], out[:, 2], atol=1e-4, rtol=0)
    torch.testing.assert_close(out[:, 0], out[:, 1], atol=1e-4, rtol=0)


def test_cutout_hides_one_rectangle_in_one_color():
    out = photometric(torch.zeros(32, 3, 32, 32), NONE.changed(cutout=0.5), seeded())
    hidden = out[:, 0] != 0
    assert 0 < hidden.float().mean() < 0.25
    for image, mask in zip(out, hidden, strict=True):
        if mask.any():
            rows, cols = mask.any(1).sum(), mask.any(0).sum()
            assert mask.sum() == rows * cols and rows <= 17 and cols <= 17
            assert image[:, mask].std(1).max() < 1e-6


def test_color_transfer_moves_the_mean_toward_the_other_image():
    mine, others = torch.rand(64, 3, 16, 16, generator=seeded()) - 0.5, torch.full((64, 3, 16, 16), 0.25)
    assert torch.equal(transfer_colors(mine, others, 0.0, seeded()), mine)
    some = transfer_colors(mine, others, 0.5, seeded())
    changed = (some != mine).flatten(1).any(1)
    assert 16 < changed.sum() < 48
    # The mean is between that of the image and that of the other image.
    closer = (some.mean((2, 3)) - 0.25).abs() <= (mine.mean((2, 3)) - 0.25).abs() + 1e-5
    assert closer.all() and some.abs().max() <= 1
