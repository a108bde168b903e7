"""Sentences that summarize scores: mean IoU, comparison with the best other method, best and worst part.

A difference smaller than the standard deviation over seeds is reported as such.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from partshot.report.numbers import Cell, Table


@runtime_checkable
class Expected(Protocol):
    """A cross-validation estimate. miou: 0..1. error: its standard error. share: of the schedule trained per fold.

    corrected: whether miou is corrected for the folds' shorter training and fewer labels.
    """

    miou: float
    error: float
    share: float
    corrected: bool


@runtime_checkable
class Measured(Protocol):
    """Scores on held-out masks. miou: 0..1. error: its standard error, NaN for one image. images: how many.

    per_part: IoU of the parts that occur in the masks or predictions. absent: the names of the other parts.
    """

    miou: float
    error: float
    images: int
    per_part: Mapping[str, float]
    absent: tuple[str, ...]


def table_in_words(table: Table, method: str, images: int, awaited: Sequence[str] = ()) -> str:
    """The mean IoU of `method`, with the most and the fewest labels, compared with the best other method.

    images: number of held-out images. awaited: methods that are not measured yet, which are listed first. The method
    must be in the table.
    """
    ks = sorted(table[method])
    most, cell = ks[-1], table[method][ks[-1]]
    text = (
        f"With {_labeled(most)}, {method} has a mean IoU of {cell.miou:.3f} on {_images(images, 'held-out ')}"
        f"{_compared(table, method, most)}."
    )
    if len(ks) > 1:
        few = table[method][ks[0]]
        text += f" With {_labeled(ks[0])}, its mean IoU is {few.miou:.3f}{_compared(table, method, ks[0])}."
    text = f"{text} {best_and_worst_in_words(cell.per_part)}".strip()
    return f"Not measured yet: {', '.join(awaited)}. {text}" if awaited else text


def scores_in_words(miou: float, per_part: Mapping[str, float], images: int) -> str:
    """Scores of one model on images with masks: mean IoU over all parts, best and worst part."""
    text = f"On {_images(images)} with masks, the mean IoU over all parts is {miou:.3f}."
    return f"{text} {best_and_worst_in_words(per_part)}".strip()


def estimate_in_words(expected: Expected | None, shots: int) -> str:
    """The expected mean IoU of the final student without held-out masks; expected: None if there is no estimate."""
    if expected is None and shots < 2:
        return (
            "No score: there are no held-out masks, and cross-validation needs at least two labeled images. Check the "
            "predictions below, or label a second image to get an estimate."
        )
    if expected is None:
        return (
            "No score: there are no held-out masks, and cross-validation is not possible, because the teacher was "
            "trained on all labeled images. Check the predictions below, or score the student on held-out masks "
            "(--check-masks)."
        )
    if not expected.corrected:
        return (
            f"Mean IoU in cross-validation: {expected.miou:.2f} ± {expected.error:.2f} (standard error). For each "
            f"fold, a student was trained without some of the {shots} labeled images, for {expected.share:.0%} of the "
            "schedule, and tested on those images. The final student, trained on all of them and for longer, is "
            "usually better. This score is not corrected for that, because --minutes shortened the schedule. A longer "
            "run gives better masks."
        )
    return (
        f"Expected mean IoU of the final student: {expected.miou:.2f} ± {expected.error:.2f} (standard error), "
        f"estimated by cross-validation. For each fold, a student was trained without some of the {shots} labeled "
        f"images, for {expected.share:.0%} of the schedule, and tested on those images. The estimate is corrected for "
        "the shorter training and the missing labels. It is uncertain because it uses few images; held-out masks "
        "(--check-masks) give a more reliable score."
    )


def check_in_words(measured: Measured) -> str:
    """The mean IoU of the final student on held-out masks (--check-masks)."""
    masks = "a held-out mask" if measured.images == 1 else "held-out masks"
    error = f" ± {measured.error:.2f}" if measured.error == measured.error else ""
    text = (
        f"Measured mean IoU of the final student: {measured.miou:.2f}{error}, on {_images(measured.images)} with "
        f"{masks} (--check-masks). Training used these images, but not their masks."
    )
    text += (
        " ± is the standard error (bootstrap over these images)." if error else " One image gives no standard error."
    )
    if measured.absent:
        text += f" Parts in neither masks nor predictions are not in the mean: {', '.join(measured.absent)}."
    return f"{text} {best_and_worst_in_words(measured.per_part)}".strip()


def best_and_worst_in_words(per_part: Mapping[str, float]) -> str:
    """The parts with the highest and lowest IoU. The background (the first part) is left out; it is mostly the best."""
    parts = list(per_part)[1:]
    if len(parts) < 2:
        return ""
    best, worst = max(parts, key=per_part.__getitem__), min(parts, key=per_part.__getitem__)
    return f"The best part is {best} ({per_part[best]:.3f}), the worst is {worst} ({per_part[worst]:.3f})."


def _compared(table: Table, method: str, k: int) -> str:
    # A row with identical scores is the same network under another name, so it is not compared.
    own = table[method][k]
    others = {n: by_k[k] for n, by_k in table.items() if k in by_k and by_k[k].per_part != own.per_part}
    if not others:
        return ""
    best = max(others, key=lambda name: others[name].miou)
    difference, std = own.miou - others[best].miou, _std(own, others[best])
    side = "above" if difference >= 0 else "below"
    seeds = others[best].seeds
    note = f"; the difference is below the standard deviation over {seeds} seeds" if abs(difference) < std else ""
    return f", {abs(difference):.3f} {side} the best other method ({best}, {others[best].miou:.3f}){note}"


def _std(a: Cell, b: Cell) -> float:
    return max(a.miou_std, b.miou_std) if min(a.seeds, b.seeds) > 1 else 0.0


def _labeled(k: int) -> str:
    return "one labeled image" if k == 1 else f"{k} labeled images"


def _images(count: int, kind: str = "") -> str:
    return f"one {kind}image" if count == 1 else f"{count} {kind}images"
