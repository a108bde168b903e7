"""Tables in a sentence or two: what a result means, with the comparison that makes it good or bad.

Knows how to say a number without overstating it: a lead within the spread over seeds is called that. Refuses to
compute anything that the table does not hold.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from partshot.report.numbers import Cell, Table


@runtime_checkable
class Expected(Protocol):
    """What a report tells of an estimate: miou, 0..1, its standard error, and the share of the training that it saw."""

    miou: float
    error: float
    share: float


@runtime_checkable
class Measured(Protocol):
    """What a report tells of masks kept apart: miou, 0..1, its standard error (NaN where there is none), how many
    images, IoU per_part of the parts that occur, and the names of those that do not."""

    miou: float
    error: float
    images: int
    per_part: Mapping[str, float]
    absent: tuple[str, ...]


def table_in_words(table: Table, method: str, images: int, awaited: Sequence[str] = ()) -> str:
    """What `method` reaches with the most labels, against the best of the others, and with the fewest.

    images: how many held-out images were scored. awaited: rows that are still being measured, which is said first.
    The method must be in the table.
    """
    ks = sorted(table[method])
    most, cell = ks[-1], table[method][ks[-1]]
    text = (
        f"From {_labeled(most)} the {method} reaches a mean IoU of {cell.miou:.3f} on {_images(images)} it never "
        f"saw{_against(table, method, most)}."
    )
    if len(ks) > 1:
        text += f" From {_labeled(ks[0])} it reaches {table[method][ks[0]].miou:.3f}{_against(table, method, ks[0])}."
    text = f"{text} {weakest_in_words(cell.per_part)}".strip()
    return f"Unfinished; still being measured: {', '.join(awaited)}. {text}" if awaited else text


def scores_in_words(miou: float, per_part: Mapping[str, float], images: int) -> str:
    """One model on images with masks: mean IoU over its parts, and its best and weakest part."""
    text = f"On {_images(images)} with masks the mean IoU over all parts is {miou:.3f}."
    return f"{text} {weakest_in_words(per_part)}".strip()


def estimate_in_words(expected: Expected | None, shots: int) -> str:
    """No held-out masks: what cross-validation says of the delivered student. expected: None when it was impossible."""
    if expected is None and shots < 2:
        return (
            "No held-out masks were given, and one labeled image leaves none to test on. Look at the images below, and "
            "label a second one for a measured estimate."
        )
    if expected is None:
        return (
            "No held-out masks were given, and the teacher of the student has seen all labeled images, so that none is "
            "left to test on. Look at the images below, and score the student on other masks (--check-masks)."
        )
    return (
        f"Expected mean IoU of the delivered student: {expected.miou:.2f} ± {expected.error:.2f}. It was estimated by "
        f"training the same student anew without some of the {shots} labeled images, for {expected.share:.0%} of the "
        "time, and predicting those. The estimate rests on few images; a handful of masks kept apart would make it "
        "firm (--check-masks)."
    )


def check_in_words(measured: Measured) -> str:
    """Masks kept apart: what the delivered student reaches on their images."""
    where = "one image whose mask was" if measured.images == 1 else f"{measured.images} images whose masks were"
    error = f" ± {measured.error:.2f}" if measured.error == measured.error else ""
    text = (
        f"Measured mean IoU of the delivered student: {measured.miou:.2f}{error}, on {where} kept apart for this check "
        "(--check-masks): it was not trained on them, though it saw the images without labels."
    )
    text += " The ± is a standard error, by resampling these images." if error else " One image has no standard error."
    if measured.absent:
        text += f" Neither in these masks nor predicted there, and not in the mean: {', '.join(measured.absent)}."
    return f"{text} {weakest_in_words(measured.per_part)}".strip()


def weakest_in_words(per_part: Mapping[str, float]) -> str:
    """The best and the weakest part, the background (the first one) left out: it is nearly always the best."""
    parts = list(per_part)[1:]
    if len(parts) < 2:
        return ""
    best, worst = max(parts, key=per_part.__getitem__), min(parts, key=per_part.__getitem__)
    return f"Its best part is {best} ({per_part[best]:.3f}), its weakest {worst} ({per_part[worst]:.3f})."


def _against(table: Table, method: str, k: int) -> str:
    # A row with the very same figures is the same network under another name, no rival.
    mine = table[method][k]
    others = {n: by_k[k] for n, by_k in table.items() if k in by_k and by_k[k].per_part != mine.per_part}
    if not others:
        return ""
    rival = max(others, key=lambda name: others[name].miou)
    lead, spread = mine.miou - others[rival].miou, _spread(mine, others[rival])
    side = "above" if lead >= 0 else "below"
    doubt = f", which is within the spread over {others[rival].seeds} seeds" if abs(lead) < spread else ""
    return f", {abs(lead):.3f} {side} the best of the other methods ({rival}, {others[rival].miou:.3f}){doubt}"


def _spread(a: Cell, b: Cell) -> float:
    return max(a.miou_std, b.miou_std) if min(a.seeds, b.seeds) > 1 else 0.0


def _labeled(k: int) -> str:
    return "one labeled image" if k == 1 else f"{k} labeled images"


def _images(count: int) -> str:
    return "one image" if count == 1 else f"{count} images"
