import numpy as np
import pytest
from skimage.filters import gaussian

from partshot.data.shots import Shots
from partshot.errors import BadLabels, NotFitted
from partshot.parts import IGNORE, PartSet
from partshot.train.forest import Forest, pixel_features, sample_pixels

PARTS = PartSet.of("background", "disk", "never seen")


def disk(height: int, width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A red disk at a random place on noisy green, and its mask."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    center = rng.uniform(0.35, 0.65, 2) * (height, width)
    inside = np.hypot(rows - center[0], columns - center[1]) < 0.25 * min(height, width)
    image = rng.integers(0, 60, (height, width, 3)).astype(np.uint8)
    image[..., 1] += 100
    image[inside, 0] += 150
    return image, inside.astype(np.uint8)


def shots_of(pairs) -> Shots:
    images, labels = zip(*pairs, strict=True)
    return Shots(images=images, labels=labels, names=tuple(f"s{i}" for i in range(len(images))), parts=PARTS)


@pytest.fixture(scope="module")
def forest() -> Forest:
    return Forest(PARTS, size=32).fit(shots_of([disk(40, 56, 0), disk(32, 32, 1)]))


def test_finds_the_disk_in_a_new_image_at_its_own_size(forest):
    image, truth = disk(48, 70, 2)

    (labels,) = forest.predict([image])

    assert labels.shape == (48, 70) and labels.dtype == np.uint8
    overlap = ((labels == 1) & (truth == 1)).sum() / ((labels == 1) | (truth == 1)).sum()
    assert overlap > 0.85


def test_images_are_predicted_independently(forest):
    images = [disk(30, 30, 3)[0], disk(20, 44, 4)[0]]

    together = forest.predict(images)

    for image, labels in zip(images, together, strict=True):
        np.testing.assert_array_equal(forest.predict([image])[0], labels)


def test_a_part_that_no_shot_shows_keeps_its_id(forest):
    probabilities = forest._probabilities(disk(32, 32, 5)[0])

    assert probabilities.shape == (3, 32, 32)
    assert not probabilities[2].any()
    np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-5)


def test_the_result_depends_on_the_seed_alone():
    shots, image = shots_of([disk(24, 24, 0)]), disk(24, 24, 1)[0]

    first, again, other = (Forest(PARTS, 24, seed).fit(shots)._probabilities(image) for seed in (0, 0, 1))

    np.testing.assert_allclose(first, again, atol=1e-6)
    assert not np.allclose(first, other, atol=1e-3)


def test_ignored_pixels_have_no_effect():
    labeled, ignored, new = disk(24, 24, 0), disk(24, 24, 1), disk(24, 24, 2)
    ignored = (ignored[0], np.full_like(ignored[1], IGNORE))

    without, with_ignored = (
        Forest(PARTS, 24).fit(shots_of(pairs))._probabilities(new[0]) for pairs in ([labeled], [labeled, ignored])
    )

    np.testing.assert_allclose(without, with_ignored, atol=1e-6)


def test_refuses_to_predict_before_fit_and_to_fit_without_labels():
    image, labels = disk(16, 16, 0)
    with pytest.raises(NotFitted, match="fit"):
        Forest(PARTS, 16).predict([image])
    with pytest.raises(BadLabels, match="label some"):
        Forest(PARTS, 16).fit(shots_of([(image, np.full_like(labels, IGNORE))]))


def test_features_are_color_filters_blobs_and_position():
    image, _ = disk(20, 30, 0)

    features = pixel_features(image)

    assert features.shape == (20, 30, 6 + 6 * 4 * 4 + 6 * 3 + 2)
    assert np.isfinite(features).all()
    red = image[..., 0].astype(np.float32) / 255
    np.testing.assert_allclose(features[..., 0], red, atol=1e-6)
    blurs = [gaussian(red, sigma, preserve_range=True) for sigma in (1, 2)]
    np.testing.assert_allclose(features[..., 6], blurs[0], atol=1e-5)
    np.testing.assert_allclose(features[..., 6 + 96], blurs[1] - blurs[0], atol=1e-5)
    np.testing.assert_allclose(features[7, :, -2], 7 / 20)
    np.testing.assert_allclose(features[:, 6, -1], 6 / 30)


def test_rare_parts_keep_their_pixels_and_ignored_ones_are_never_sampled():
    labels = np.zeros(10_000, np.uint8)
    labels[:50], labels[50:150] = 1, IGNORE

    chosen = sample_pixels(labels, 1_000, np.random.default_rng(0))

    assert len(chosen) == len(set(chosen)) == 1_000
    assert (labels[chosen] != IGNORE).all()
    assert (labels[chosen] == 1).sum() > 25  # uniform sampling would keep about 5
    np.testing.assert_array_equal(chosen, np.sort(chosen))
    assert len(sample_pixels(labels, 20_000, np.random.default_rng(0))) == 9_900
