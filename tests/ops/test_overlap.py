"""IoU metrics against values computed by hand, and against scikit-learn and torchmetrics."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from partshot.errors import BadLabels
from partshot.ops.overlap import confusion, iou, mean_iou, weighted_iou

# Class 3 is absent; class 2 is predicted once and is not in the truth; one pixel is ignored.
TRUTH = np.array([[0, 0, 0, 1], [0, 1, 1, 255]], np.uint8)
PREDICTED = np.array([[0, 0, 1, 1], [0, 1, 2, 2]], np.uint8)
COUNTS = np.array([[3, 1, 0, 0], [0, 2, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]])


def test_confusion_by_hand():
    counts = confusion(TRUTH, PREDICTED, 4)
    assert counts.dtype == np.int64
    assert np.array_equal(counts, COUNTS)


def test_iou_by_hand():
    # background: 3 of 4; part 1: 2 of (3 true + 3 predicted - 2); part 2: not in the truth; part 3: absent
    assert np.allclose(iou(COUNTS), [3 / 4, 2 / 4, 0, 0])
    assert np.allclose(iou(COUNTS, absent="nan"), [3 / 4, 2 / 4, 0, np.nan], equal_nan=True)


def test_means_by_hand():
    assert mean_iou(COUNTS) == pytest.approx((0.75 + 0.5) / 4)
    assert mean_iou(COUNTS, absent="nan") == pytest.approx((0.75 + 0.5) / 3)
    assert weighted_iou(COUNTS) == pytest.approx(4 / 7 * 0.75 + 3 / 7 * 0.5)


def test_the_mean_of_no_class_is_nan():
    nothing = np.zeros((2, 2), int)
    assert np.isnan(weighted_iou(nothing)) and np.isnan(mean_iou(nothing, absent="nan"))
    assert mean_iou(nothing) == 0


def test_invalid_ids_and_sizes_are_refused():
    with pytest.raises(BadLabels, match="mask contains id 7, but the parts have ids 0 to 3"):
        confusion(np.full((2, 2), 7, np.uint8), np.zeros((2, 2), np.uint8), 4)
    with pytest.raises(BadLabels, match="prediction contains id 255"):
        confusion(np.zeros((2, 2), np.uint8), np.full((2, 2), 255, np.uint8), 4)
    with pytest.raises(BadLabels, match="prediction is 3x2 but its mask is 2x2"):
        confusion(np.zeros((2, 2), np.uint8), np.zeros((2, 3), np.uint8), 4)
    # Predictions at ignored pixels are not checked.
    assert confusion(np.full((1, 1), 255, np.uint8), np.full((1, 1), 99, np.uint8), 4).sum() == 0


IDS = arrays(np.uint8, (6, 7), elements=st.sampled_from([0, 1, 2, 3, 255]))
PREDICTIONS = arrays(np.uint8, (6, 7), elements=st.integers(0, 3))


@given(IDS, PREDICTIONS)
def test_ignored_pixels_have_no_effect(truth, predicted):
    other = np.where(truth == 255, (predicted + 1) % 4, predicted)
    assert np.array_equal(confusion(truth, predicted, 4), confusion(truth, other, 4))
    assert confusion(truth, predicted, 4).sum() == (truth != 255).sum()


@given(IDS, PREDICTIONS)
def test_confusion_matrices_can_be_added(truth, predicted):
    halves = confusion(truth[:3], predicted[:3], 4) + confusion(truth[3:], predicted[3:], 4)
    assert np.array_equal(halves, confusion(truth, predicted, 4))


def test_equals_scikit_learn_and_torchmetrics():
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    torch = pytest.importorskip("torch")
    torchmetrics = pytest.importorskip("torchmetrics.functional")
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, (5, 24, 24)).astype(np.uint8)
    predicted = np.where(rng.random(truth.shape) < 0.6, truth, rng.integers(0, 4, truth.shape)).astype(np.uint8)
    truth[rng.random(truth.shape) < 0.1] = 255
    counts, valid = confusion(truth, predicted, 5), truth != 255  # class 4 occurs nowhere

    def sklearn_jaccard(average):
        flat = truth[valid], predicted[valid]
        return sklearn_metrics.jaccard_score(*flat, labels=range(5), average=average, zero_division=0)

    assert np.array_equal(counts, sklearn_metrics.confusion_matrix(truth[valid], predicted[valid], labels=range(5)))
    assert np.allclose(iou(counts), sklearn_jaccard(None), atol=1e-12)
    assert mean_iou(counts) == pytest.approx(sklearn_jaccard("macro"), abs=1e-12)
    assert weighted_iou(counts) == pytest.approx(sklearn_jaccard("weighted"), abs=1e-12)

    def torch_jaccard(average):
        tensors = torch.from_numpy(predicted).long(), torch.from_numpy(truth).long()
        return torchmetrics.jaccard_index(
            *tensors, task="multiclass", num_classes=5, ignore_index=255, average=average, validate_args=False
        ).numpy()

    assert np.allclose(iou(counts), torch_jaccard("none"), atol=1e-6)
    # torchmetrics excludes absent classes from the macro mean, as absent="nan" does.
    assert mean_iou(counts, absent="nan") == pytest.approx(float(torch_jaccard("macro")), abs=1e-6)
    assert weighted_iou(counts) == pytest.approx(float(torch_jaccard("weighted")), abs=1e-6)
