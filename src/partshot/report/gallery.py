"""Galleries of a report: image, ground truth, prediction and errors side by side, one row per image.

Columns follow from the fields of `Example` that are set. The `*_gallery` functions select and sort the images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from partshot.data.shots import Shots
from partshot.parts import IGNORE
from partshot.report.page import Page, number

_UNCERTAINTY = "Uncertainty: transparent where the model is certain, red where it is not."
_SMALL = 128  # images with a long side of up to this many pixels are shown in smaller tiles


@dataclass(frozen=True, eq=False)
class Example:
    """An image with its labels and predictions; fields that are None get no column.

    image: uint8 [h, w, 3] RGB. truth, teacher, prediction: labels, uint8 [h, w], 255 = ignore.
    uncertainty: float [h, w] in 0..1. score: mean IoU of this image. note: a short text beside its name.
    """

    name: str
    image: np.ndarray
    truth: np.ndarray | None = None
    teacher: np.ndarray | None = None
    prediction: np.ndarray | None = None
    uncertainty: np.ndarray | None = None
    score: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Gallery:
    """Images in the given order, at most `most` of them.

    note: a sentence above the images. truth, prediction: captions of these columns, such as "label" and "student".
    """

    heading: str
    images: Sequence[Example]
    note: str = ""
    most: int = 12
    prediction: str = "prediction"
    truth: str = "truth"

    def html(self, page: Page) -> str:
        shown = self.images[: max(1, round(min(self.most, len(self.images)) * page.share))]
        if not shown:
            return ""
        tiles = [_tiles(image, self, page) for image in shown]
        cards = "".join(_card(image, row) for image, row in zip(shown, tiles, strict=True))
        uncertain = any(image.uncertainty is not None for image in shown)
        text = " ".join(filter(None, (self.note, _UNCERTAINTY if uncertain else "")))
        note = f"<p>{escape(text)}</p>" if text else ""
        columns = max(map(len, tiles))
        # Small images are not enlarged; more of them fit in a row.
        small = max(side for image in shown for side in image.image.shape[:2]) <= _SMALL
        # On a phone, tiles are in two columns, or in three if their number is odd.
        kind = "gallery" if columns % 2 == 0 else "gallery threes"
        style = f"--n:{columns};--w:{120 if small else 165}px"
        return f'{note}{page.legend()}<div class="{kind}" style="{style}">{cards}</div>'


def shots_gallery(shots: Shots, heading: str = "Labeled images") -> Gallery:
    """The training images with their masks, at most 20."""
    rows = zip(shots.names, shots.images, shots.labels, strict=True)
    images = [Example(name, image, truth=labels) for name, image, labels in rows]
    note = "All training labels come from these masks. Check that they are correct."
    return Gallery(heading, images, note, most=20, truth="label")


def worst_gallery(images: Sequence[Example], most: int = 8, prediction: str = "prediction") -> Gallery:
    """The images with the lowest score, lowest first."""
    scored = sorted((p for p in images if p.score is not None), key=lambda p: p.score)
    note = "Sorted by the mean IoU over the parts in each image, lowest first."
    return Gallery("Worst images first", scored, note, most, prediction)


def uncertain_gallery(images: Sequence[Example], most: int = 8) -> Gallery:
    """The images with the highest mean uncertainty: candidates to label next (active learning)."""
    uncertain = [p for p in images if p.uncertainty is not None]
    uncertain = sorted(uncertain, key=lambda p: -float(p.uncertainty.mean()))
    note = "The model is least certain about these images, so labeling one of them is likely to help most."
    return Gallery("Label these next", uncertain, note, most)


def _card(image: Example, tiles: Sequence[str]) -> str:
    score = "" if image.score is None else f"<b>{number(image.score)}</b> mIoU"
    note = f"<span>{escape(image.note)}</span>" if image.note else ""
    return (
        f'<article><h3>{escape(image.name)}<span class="score">{score}</span>{note}</h3>'
        f'<div class="tiles">{"".join(tiles)}</div></article>'
    )


def _tiles(image: Example, gallery: Gallery, page: Page) -> list[str]:
    photo, shape = page.photo(image.image), image.image.shape[:2]
    tiles = [_tile(photo, shape, "image")]
    for labels, name in (
        (image.truth, gallery.truth),
        (image.teacher, "teacher"),
        (image.prediction, gallery.prediction),
    ):
        if labels is not None:
            tiles.append(_tile(photo, shape, name, page.mask(labels)))
    if image.truth is not None and image.prediction is not None:
        tiles.append(_difference_tile(photo, "wrong", image.prediction, image.truth, page))
    elif image.truth is not None and image.teacher is not None:
        tiles.append(_difference_tile(photo, "wrong", image.teacher, image.truth, page))
    elif image.prediction is not None and image.teacher is not None:
        tiles.append(_difference_tile(photo, "differs from the teacher", image.prediction, image.teacher, page))
    if image.uncertainty is not None:
        tiles.append(_tile(photo, shape, "uncertainty", page.heat(image.uncertainty), "gray"))
    return tiles


def _difference_tile(photo: str, caption: str, labels: np.ndarray, reference: np.ndarray, page: Page) -> str:
    ignored = reference == IGNORE
    wrong = (labels != reference) & ~ignored
    share = wrong.sum() / max(1, (~ignored).sum())
    return _tile(photo, wrong.shape, f"{caption}: {share:.1%}", page.wrong(wrong, ignored), "gray")


def _tile(photo: str, shape: tuple[int, int], caption: str, layer: str = "", kind: str = "") -> str:
    # The aspect ratio of a tile is limited, so that a very tall or wide image does not fill the screen.
    aspect = min(2.5, max(0.7, shape[1] / shape[0]))
    overlay = f'<img src="{layer}" alt="">' if layer else ""
    return (
        f'<figure><div class="tile {kind}" style="aspect-ratio:{aspect:.3f}" role="img" aria-label="{escape(caption)}">'
        f'<i class="{photo}"></i>{overlay}</div><figcaption>{escape(caption)}</figcaption></figure>'
    )
