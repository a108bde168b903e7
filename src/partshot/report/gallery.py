"""Images in a report: the image, its truth, what was predicted, and where the two disagree, side by side.

Knows which columns a set of images has and in which order images are worth looking at. Refuses to know where the
masks come from.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from partshot.data.shots import Shots
from partshot.parts import IGNORE
from partshot.report.page import Page, number

_SMALL = 128  # longest side, in pixels, up to which an image is shown small


@dataclass(frozen=True, eq=False)
class Example:
    """An image and what is known of it; what is None has no column.

    image: uint8 [h, w, 3] RGB. truth, teacher, prediction: labels, uint8 [h, w], 255 = ignore.
    uncertainty: float [h, w] in 0..1. score: mean IoU of this image. note: a few words below its name.
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
    """Images in the order given, at most `most` of them.

    note: a sentence above them. truth, prediction: what these columns are called ("label", "student").
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
        note = f"<p>{escape(self.note)}</p>" if self.note else ""
        columns = max(map(len, tiles))
        # Small images are not blown up: more of them fit beside each other.
        small = max(side for image in shown for side in image.image.shape[:2]) <= _SMALL
        # On a phone tiles stand in twos, or in threes where twos would leave one alone.
        kind = "gallery" if columns % 2 == 0 else "gallery threes"
        style = f"--n:{columns};--w:{120 if small else 165}px"
        return f'{note}{page.legend()}<div class="{kind}" style="{style}">{cards}</div>'


def shots_gallery(shots: Shots, heading: str = "The labeled images") -> Gallery:
    """All labeled images with their masks: what everything else was learned from."""
    rows = zip(shots.names, shots.images, shots.labels, strict=True)
    images = [Example(name, image, truth=labels) for name, image, labels in rows]
    note = "Everything was learned from these; check that the masks are right."
    return Gallery(heading, images, note, most=20, truth="label")


def worst_gallery(images: Sequence[Example], most: int = 8, prediction: str = "prediction") -> Gallery:
    """The scored images that went worst, worst first."""
    scored = sorted((p for p in images if p.score is not None), key=lambda p: p.score)
    note = "Ordered by the mean IoU over the parts in each image."
    return Gallery("Worst images first", scored, note, most, prediction)


def uncertain_gallery(images: Sequence[Example], most: int = 8) -> Gallery:
    """The images whose labels the model doubts most, by mean uncertainty: the ones worth labeling next."""
    doubted = [p for p in images if p.uncertainty is not None]
    doubted = sorted(doubted, key=lambda p: -float(p.uncertainty.mean()))
    note = "The model is least sure of these images, so a label on one of them teaches it most."
    return Gallery("Label these next", doubted, note, most)


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
        tiles.append(_differing(photo, "wrong", image.prediction, image.truth, page))
    elif image.truth is not None and image.teacher is not None:
        tiles.append(_differing(photo, "wrong", image.teacher, image.truth, page))
    elif image.prediction is not None and image.teacher is not None:
        tiles.append(_differing(photo, "differs from the teacher", image.prediction, image.teacher, page))
    if image.uncertainty is not None:
        tiles.append(_tile(photo, shape, "uncertainty", page.heat(image.uncertainty), "gray"))
    return tiles


def _differing(photo: str, word: str, labels: np.ndarray, reference: np.ndarray, page: Page) -> str:
    ignored = reference == IGNORE
    wrong = (labels != reference) & ~ignored
    share = wrong.sum() / max(1, (~ignored).sum())
    return _tile(photo, wrong.shape, f"{word}: {share:.1%}", page.wrong(wrong, ignored), "gray")


def _tile(photo: str, shape: tuple[int, int], caption: str, layer: str = "", kind: str = "") -> str:
    # Very tall or wide images are fitted into a bounded box, so that one of them cannot fill the screen.
    ratio = min(2.5, max(0.7, shape[1] / shape[0]))
    over = f'<img src="{layer}" alt="">' if layer else ""
    return (
        f'<figure><div class="tile {kind}" style="aspect-ratio:{ratio:.3f}" role="img" aria-label="{escape(caption)}">'
        f'<i class="{photo}"></i>{over}</div><figcaption>{escape(caption)}</figcaption></figure>'
    )
