import numpy as np
import pytest

from partshot.inference.windows import _BAND, sliding_window_predict, window_starts


def by_color(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Label 1 where red is high, 2 where blue is high; green is the confidence."""
    labels = np.where(images[..., 0] > 127, 1, np.where(images[..., 2] > 127, 2, 0)).astype(np.uint8)
    return labels, images[..., 1]


def blocks(height: int, width: int, side: int = 16) -> np.ndarray:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 2, (-(-height // side), -(-width // side), 3), dtype=np.uint8) * np.uint8(200)
    coarse[..., 1] = 204
    return np.repeat(np.repeat(coarse, side, 0), side, 1)[:height, :width]


def test_windows_cover_a_side_and_overlap_by_half():
    for length, window in [(100, 100), (100, 7), (101, 50), (1000, 333), (5, 9)]:
        found = window_starts(length, window)
        assert found[0] == 0 and max(0, length - window) == found[-1]
        assert all(0 < b - a <= window / 2 + 1 for a, b in zip(found, found[1:], strict=False))


@pytest.mark.parametrize(
    "height, width, window", [(200, 330, 64), (64, 64, 64), (20, 300, 50), (300, 17, 40), (5, 7, 32)]
)
def test_pixelwise_network_predicts_the_same_in_windows(height, width, window):
    image = blocks(height, width)
    labels, confidence = sliding_window_predict(by_color, image, [window], 3, 32)

    np.testing.assert_array_equal(labels, by_color(image)[0])
    assert np.abs(confidence.astype(int) - 204).max() <= 1


def test_large_windows_are_downsampled_and_labels_stay_in_place():
    image = blocks(300, 410, 50)
    shapes = []
    labels, _ = sliding_window_predict(lambda x: shapes.append(x.shape) or by_color(x), image, [200, 90], 3, 32)

    assert (labels == by_color(image)[0]).mean() > 0.98
    assert {shape[1:3] for shape in shapes} == {(64, 64)}
    assert all(shape[0] <= 8 for shape in shapes)


def test_window_centers_have_the_largest_weight():
    def wrong_at_the_border(images):
        labels = np.ones(images.shape[:3], np.uint8)
        labels[:, 4:-4, 4:-4] = 0
        return labels, np.full(images.shape[:3], 255, np.uint8)

    labels, _ = sliding_window_predict(wrong_at_the_border, np.zeros((200, 200, 3), np.uint8), [40], 2, 32)
    assert not labels[4:-4, 4:-4].any()


def test_memory_does_not_depend_on_the_height():
    import tracemalloc

    def peak(height: int) -> int:
        image = np.zeros((height, 512, 3), np.uint8)
        tracemalloc.start()
        sliding_window_predict(by_color, image, [64], 8, 32)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found - 2 * height * 512

    assert peak(20 * _BAND) < 1.2 * peak(5 * _BAND)
