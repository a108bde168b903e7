"""Overlap of predicted and true parts, all read off one confusion matrix that pools as many pixels as are given.

Knows the two conventions for a class that occurs nowhere (the papers count it as 0, most libraries leave it out) and
ReGAN's weighting by pixel share. Refuses to know images, part names and files.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from partshot.errors import BadLabels
from partshot.parts import IGNORE

Absent = Literal["zero", "nan"]
"""What a class counts that occurs neither in the truth nor in the prediction: 0, or NaN (left out of means)."""


def confusion(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """How many pixels of each true class were given each class.

    truth, predicted: integer arrays of one shape, any number of dimensions, ids 0..classes-1; pixels whose truth is
    255 count nowhere. A prediction may not say 255: a segmenter has to decide.
    Returns int64 [classes, classes]: rows are the truth, columns the prediction. Matrices of several images add up.

    Raises BadLabels when the shapes differ or an id is outside 0..classes-1.
    """
    if truth.shape != predicted.shape:
        raise BadLabels(f"prediction is {_size(predicted)} but its mask is {_size(truth)}; predict at the mask's size")
    valid = truth != IGNORE
    rows, columns = truth[valid], predicted[valid]
    for ids, what in ((rows, "mask"), (columns, "prediction")):
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < classes:
            worst = int(ids.min()) if ids.min() < 0 else int(ids.max())
            raise BadLabels(f"{what} holds id {worst}, the parts end at {classes - 1}; use its own PartSet")
    cells = rows.astype(np.int64) * classes + columns
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def iou(confusion: np.ndarray, absent: Absent = "zero") -> np.ndarray:
    """Intersection over union of every class, float64 [classes] in 0..1.

    absent: "zero" as DatasetGAN's and DDPM-segmentation's released code have it, "nan" to mark such classes. A class
    that was predicted but is not in the truth has a union and scores 0 in both.
    """
    both = np.diagonal(confusion).astype(float)
    either = confusion.sum(0) + confusion.sum(1) - both
    missing = 0.0 if absent == "zero" else np.nan
    return np.divide(both, either, out=np.full(len(both), missing), where=either > 0)


def mean_iou(confusion: np.ndarray, absent: Absent = "zero", leave_out: Sequence[int] = ()) -> float:
    """Plain mean of `iou` over the classes, background included; NaN when no class is left to average.

    leave_out: ids that do not enter the mean although their pixels still count against the others, as
    DDPM-segmentation treats its ignored class.
    """
    kept = np.delete(iou(confusion, absent), list(leave_out))
    kept = kept[~np.isnan(kept)]
    return float(kept.mean()) if kept.size else float("nan")


def weighted_iou(confusion: np.ndarray, leave_out: Sequence[int] = ()) -> float:
    """ReGAN's weighted IoU, also used by GANORCON: the sum over classes of (share of the true pixels) * IoU, in 0..1.

    leave_out: ids that get no weight; ReGAN's three-class figure leaves the background out. NaN when no true pixel is
    left. A class that is not in the truth has no weight, so its convention does not matter.
    """
    weights = confusion.sum(1).astype(float)
    weights[list(leave_out)] = 0
    total = weights.sum()
    return float(weights @ iou(confusion) / total) if total else float("nan")


def _size(array: np.ndarray) -> str:
    return "x".join(str(n) for n in array.shape[::-1])
