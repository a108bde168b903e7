"""One-sided objects are detected from many images, and never from five or fewer: that could be coincidence."""

import numpy as np
import pytest

from partshot.data.symmetry import LIMIT, asymmetry, one_sided
from partshot.toy.dataset import draw


@pytest.fixture(scope="module")
def faces():
    return np.stack([draw("faces", 32, 1, i)[0] for i in range(60)])


def arrows(count, right=1.0):
    """Bright bars on noise; right: fraction of the images with the bar in the right half instead of the left."""
    rng = np.random.default_rng(0)
    images = rng.integers(60, 190, (count, 32, 32, 3)).astype(np.uint8)
    for image in images:
        row, side = rng.integers(4, 24), 20 if rng.random() < right else 4
        image[row : row + 6, side : side + 8] = 250
    return images


def test_objects_that_face_one_way_are_detected():
    assert asymmetry(arrows(40)) > 2 * LIMIT
    assert one_sided(arrows(40)) and one_sided(arrows(40, right=0))
    assert not one_sided(arrows(40, right=0.5))


def test_toy_faces_and_horses_are_not_one_sided(faces):
    horses = np.stack([draw("horses", 32, 1, i)[0] for i in range(60)])
    assert not one_sided(faces) and not one_sided(horses)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 10])
def test_few_images_of_faces_are_not_one_sided(faces, count):
    assert not any(one_sided(faces[first : first + count]) for first in range(0, 50, count))


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_five_images_or_fewer_are_not_one_sided_though_all_face_one_way(count):
    images = arrows(40)
    assert not any(one_sided(images[first : first + count]) for first in range(0, 40 - count))


def test_flipping_all_images_does_not_change_the_asymmetry(faces):
    assert asymmetry(faces[:, :, ::-1].copy()) == pytest.approx(asymmetry(faces), abs=1e-3)
    assert asymmetry(arrows(40)[:, :, ::-1].copy()) == pytest.approx(asymmetry(arrows(40)), abs=1e-3)
    both = np.concatenate([arrows(20), arrows(20)[:, :, ::-1]])
    assert asymmetry(both) == 0 and not one_sided(both)


def test_the_images_are_not_modified(faces):
    before = faces.copy()
    one_sided(faces)
    assert np.array_equal(faces, before)


def test_odd_and_small_sizes_are_accepted():
    assert asymmetry(np.zeros((3, 9, 9, 3), np.uint8)) == 0
    assert asymmetry(np.zeros((3, 50, 50, 3), np.uint8)) == 0
