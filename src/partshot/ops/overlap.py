"""IoU metrics, computed from one confusion matrix over all pixels.

Two conventions exist for a class that occurs neither in the truth nor in the prediction: the papers count it as 0, most
libraries leave it out. Both are supported, and so is ReGAN's weighting by pixel share.
"""

from typing import Literal

import numpy as np

from partshot.errors import BadLabels, size_text
from partshot.parts import IGNORE

Absent = Literal["zero", "nan"]
"""IoU of a class that occurs neither in the truth nor in the prediction: 0, or NaN (left out of means)."""


def confusion(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Confusion matrix in pixels, int64 [classes, classes]: rows are the truth, columns the prediction.

    truth, predicted: integer arrays of one shape, any number of dimensions, ids 0..classes-1. Pixels whose truth is 255
    are ignored. 255 is not allowed in a prediction at other pixels. Matrices of several images can be added.

    Raises BadLabels when the shapes differ or an id is outside 0..classes-1.
    """
    if truth.shape != predicted.shape:
        given, needed = size_text(predicted.shape), size_text(truth.shape)
        raise BadLabels(f"prediction is {given} but its mask is {needed}; predict at the mask's size")
    valid = truth != IGNORE
    rows, columns = truth[valid], predicted[valid]
    for ids, what in ((rows, "mask"), (columns, "prediction")):
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < classes:
            worst = int(ids.min()) if ids.min() < 0 else int(ids.max())
            raise BadLabels(
                f"{what} contains id {worst}, but the parts have ids 0 to {classes - 1}; use its own PartSet"
            )
    cells = rows.astype(np.int64) * classes + columns
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def iou(confusion: np.ndarray, absent: Absent = "zero") -> np.ndarray:
    """Intersection over union of every class, float64 [classes] in 0..1.

    absent: "zero" as in DatasetGAN's and DDPM-segmentation's released code, "nan" to mark absent classes. A class that
    was predicted but is not in the truth has a non-empty union, so its IoU is 0 in both conventions.
    """
    intersection = np.diagonal(confusion).astype(float)
    union = confusion.sum(0) + confusion.sum(1) - intersection
    missing = 0.0 if absent == "zero" else np.nan
    return np.divide(intersection, union, out=np.full(len(intersection), missing), where=union > 0)


def mean_iou(confusion: np.ndarray, absent: Absent = "zero") -> float:
    """Unweighted mean of `iou` over the classes, background included; NaN when there is no class to average."""
    found = iou(confusion, absent)
    kept = found[~np.isnan(found)]
    return float(kept.mean()) if kept.size else float("nan")


def weighted_iou(confusion: np.ndarray) -> float:
    """ReGAN's weighted IoU, also used by GANORCON: the sum over classes of (share of the true pixels) * IoU, in 0..1.

    NaN when there is no true pixel. A class that is not in the truth has weight 0, so the convention for absent classes
    does not matter.
    """
    weights = confusion.sum(1).astype(float)
    total = weights.sum()
    return float(weights @ iou(confusion) / total) if total else float("nan")
