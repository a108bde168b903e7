"""Pictures in a report: the picture, its truth, what was predicted, and where the two disagree, side by side.

Knows which columns a set of pictures has and in which order pictures are worth looking at. Refuses to know where the
masks come from.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from partshot.data.shots import Shots
from partshot.parts import IGNORE
from partshot.report.page import Page, number

_SMALL = 128  # longest side, in pixels, up to which a picture is shown small


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture and what is known of it; what is None has no column.

    image: uint8 [h, w, 3] RGB. truth, teacher, prediction: labels, uint8 [h, w], 255 = ignore.
    uncertainty: float [h, w] in 0..1. score: mean IoU of this picture. note: a few words below its name.
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
    """Pictures in the order given, at most `most` of them.

    note: a sentence above them. truth, prediction: what these columns are called ("label", "student").
    """

    heading: str
    pictures: Sequence[Picture]
    note: str = ""
    most: int = 12
    prediction: str = "prediction"
    truth: str = "truth"

    def html(self, page: Page) -> str:
        shown = self.pictures[: max(1, round(min(self.most, len(self.pictures)) * page.share))]
        if not shown:
            return ""
        tiles = [_tiles(picture, self, page) for picture in shown]
        cards = "".join(_card(picture, row) for picture, row in zip(shown, tiles, strict=True))
        note = f"<p>{escape(self.note)}</p>" if self.note else ""
        columns = max(map(len, tiles))
        # Small pictures are not blown up: more of them fit beside each other.
        small = max(side for picture in shown for side in picture.image.shape[:2]) <= _SMALL
        # On a phone tiles stand in twos, or in threes where twos would leave one alone.
        kind = "gallery" if columns % 2 == 0 else "gallery threes"
        style = f"--n:{columns};--w:{120 if small else 165}px"
        return f'{note}{page.legend()}<div class="{kind}" style="{style}">{cards}</div>'


def shots_gallery(shots: Shots, heading: str = "The labelled pictures") -> Gallery:
    """All labelled pictures with their masks: what everything else was learned from."""
    rows = zip(shots.names, shots.images, shots.labels, strict=True)
    pictures = [Picture(name, image, truth=labels) for name, image, labels in rows]
    note = "Everything was learned from these; check that the masks are right."
    return Gallery(heading, pictures, note, most=20, truth="label")


def worst_gallery(pictures: Sequence[Picture], most: int = 8, prediction: str = "prediction") -> Gallery:
    """The scored pictures that went worst, worst first."""
    scored = sorted((p for p in pictures if p.score is not None), key=lambda p: p.score)
    note = "Ordered by the mean IoU over the parts in each picture."
    return Gallery("Worst pictures first", scored, note, most, prediction)


def uncertain_gallery(pictures: Sequence[Picture], most: int = 8) -> Gallery:
    """The pictures whose labels the model doubts most, by mean uncertainty: the ones worth labelling next."""
    doubted = [p for p in pictures if p.uncertainty is not None]
    doubted = sorted(doubted, key=lambda p: -float(p.uncertainty.mean()))
    note = "The model is least sure of these pictures, so a label on one of them teaches it most."
    return Gallery("Label these next", doubted, note, most)


def _card(picture: Picture, tiles: Sequence[str]) -> str:
    score = "" if picture.score is None else f"<b>{number(picture.score)}</b> mIoU"
    note = f"<span>{escape(picture.note)}</span>" if picture.note else ""
    return (
        f'<article><h3>{escape(picture.name)}<span class="score">{score}</span>{note}</h3>'
        f'<div class="tiles">{"".join(tiles)}</div></article>'
    )


def _tiles(picture: Picture, gallery: Gallery, page: Page) -> list[str]:
    photo, shape = page.photo(picture.image), picture.image.shape[:2]
    tiles = [_tile(photo, shape, "picture")]
    for labels, name in (
        (picture.truth, gallery.truth),
        (picture.teacher, "teacher"),
        (picture.prediction, gallery.prediction),
    ):
        if labels is not None:
            tiles.append(_tile(photo, shape, name, page.mask(labels)))
    if picture.truth is not None and picture.prediction is not None:
        tiles.append(_differing(photo, "wrong", picture.prediction, picture.truth, page))
    elif picture.truth is not None and picture.teacher is not None:
        tiles.append(_differing(photo, "wrong", picture.teacher, picture.truth, page))
    elif picture.prediction is not None and picture.teacher is not None:
        tiles.append(_differing(photo, "differs from the teacher", picture.prediction, picture.teacher, page))
    if picture.uncertainty is not None:
        tiles.append(_tile(photo, shape, "uncertainty", page.heat(picture.uncertainty), "gray"))
    return tiles


def _differing(photo: str, word: str, labels: np.ndarray, reference: np.ndarray, page: Page) -> str:
    ignored = reference == IGNORE
    wrong = (labels != reference) & ~ignored
    share = wrong.sum() / max(1, (~ignored).sum())
    return _tile(photo, wrong.shape, f"{word}: {share:.1%}", page.wrong(wrong, ignored), "gray")


def _tile(photo: str, shape: tuple[int, int], caption: str, layer: str = "", kind: str = "") -> str:
    # Very tall or wide pictures are fitted into a bounded box, so that one of them cannot fill the screen.
    ratio = min(2.5, max(0.7, shape[1] / shape[0]))
    over = f'<img src="{layer}" alt="">' if layer else ""
    return (
        f'<figure><div class="tile {kind}" style="aspect-ratio:{ratio:.3f}" role="img" aria-label="{escape(caption)}">'
        f'<i class="{photo}"></i>{over}</div><figcaption>{escape(caption)}</figcaption></figure>'
    )
