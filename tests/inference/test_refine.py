"""Edge refinement: the filter against a naive loop, borders that move to edges, independence of the tile size."""

import tracemalloc

import numpy as np
import pytest

from partshot.inference.refine import linear_models, refine


def disc(height: int, width: int, shift: int = 0) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    inside = (rows - height / 2) ** 2 + (columns - width / 2 - shift) ** 2 < (min(height, width) / 3) ** 2
    return inside.astype(np.uint8)


def render(labels: np.ndarray) -> np.ndarray:
    """A noisy image of labels, each in its own color."""
    colors = np.array([[60, 90, 120], [160, 100, 60], [90, 190, 90]])
    noise = np.random.default_rng(0).normal(0, 5, (*labels.shape, 3))
    return (colors[labels] + noise).clip(0, 255).astype(np.uint8)


def constant(labels: np.ndarray) -> np.ndarray:
    return np.full(labels.shape, 220, np.uint8)


def test_linear_models_match_a_naive_loop():
    rng = np.random.default_rng(0)
    guide, values = rng.random((3, 9, 7), np.float32), rng.random((2, 9, 7), np.float32)
    radius, epsilon = 2, 1e-2
    windows = {
        (y, x): (slice(max(0, y - radius), y + radius + 1), slice(max(0, x - radius), x + radius + 1))
        for y in range(9)
        for x in range(7)
    }
    expected = np.empty((2, 4, 9, 7))
    for k, value in enumerate(values.astype(float)):
        fitted = np.empty((4, 9, 7))
        for (y, x), window in windows.items():
            colors, here = guide[:, *window].reshape(3, -1).astype(float), value[window].ravel()
            cov = np.cov(colors, bias=True) + epsilon * np.eye(3)
            cov_value = ((colors - colors.mean(1, keepdims=True)) * (here - here.mean())).mean(1)
            slopes = np.linalg.solve(cov, cov_value)
            fitted[:, y, x] = *slopes, here.mean() - slopes @ colors.mean(1)
        for (y, x), window in windows.items():
            expected[k, :, y, x] = fitted[:, *window].mean((1, 2))

    np.testing.assert_allclose(linear_models(guide, values, radius, epsilon), expected, atol=1e-4)


@pytest.mark.parametrize("factor, shift", [(1.6, 1), (4, 2), (7.5, 4)])
def test_border_beside_an_edge_moves_to_the_edge(factor, shift):
    truth, labels = disc(150, 171), disc(150, 171, shift)

    found, confidence = refine(render(truth), labels, constant(labels), factor)

    assert (found != truth).sum() < 0.2 * (labels != truth).sum()
    moved = found != labels
    assert (confidence[~moved] == 220).all() and confidence[moved].mean() < 220


def test_labels_that_match_the_edges_stay():
    truth = disc(150, 171)
    assert (refine(render(truth), truth, constant(truth), 4)[0] != truth).mean() < 1e-3


def test_border_without_an_edge_stays():
    labels = np.repeat([0, 1], 64).astype(np.uint8) * np.ones((90, 1), np.uint8)
    np.testing.assert_array_equal(refine(np.full((90, 128, 3), 99, np.uint8), labels, constant(labels), 4)[0], labels)


@pytest.mark.parametrize("factor", [1.2, 3.3, 9, 100])
def test_result_does_not_depend_on_tiles(factor):
    truth = disc(203, 310) + (disc(203, 310, 60) > 0)
    labels = np.roll(truth, 3, 1)
    image, confidence = render(truth), np.random.default_rng(1).integers(150, 256, truth.shape, dtype=np.uint8)

    whole, tiles = (refine(image, labels, confidence, factor, tile) for tile in (10**6, 80))

    assert (whole[0] != labels).any()
    assert (whole[0] != tiles[0]).mean() < 1e-4
    same = whole[0] == tiles[0]
    assert np.abs(whole[1].astype(int) - tiles[1])[same].max() <= 1


def test_nothing_changes_at_factor_1_or_with_a_single_label():
    truth, labels = disc(80, 80), disc(80, 80, 3)
    kept = refine(render(truth), labels, constant(labels), 1.0)
    assert kept[0] is labels

    one = np.full((80, 80), 2, np.uint8)
    for before, after in zip((one, constant(one)), refine(render(truth), one, constant(one), 4), strict=True):
        np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize("shape", [(1, 1), (1, 90), (33, 2), (129, 128)])
def test_any_size_and_non_contiguous_arrays(shape):
    labels = np.random.default_rng(0).integers(0, 3, shape, dtype=np.uint8)
    before = labels.copy()

    found, confidence = refine(render(labels)[:, ::-1], labels[:, ::-1], constant(labels), 5)

    assert found.shape == confidence.shape == shape and found.max() <= 2
    np.testing.assert_array_equal(labels, before)


def test_memory_holds_the_result_and_one_tile():
    def peak(height: int) -> int:
        labels = np.tile(disc(150, 150), (height // 150, 2))
        image, confidence = render(labels), constant(labels)
        tracemalloc.start()
        refine(image, labels, confidence, 8.0)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found - 2 * labels.size

    assert peak(1200) < 1.2 * peak(300)
