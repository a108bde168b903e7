"""How good predicted parts are: scores pooled over images, and their mean and deviation over seeds.

Knows what is pooled over what. Refuses to know torch, files, HTML and what predicted.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from partshot.errors import BadLabels
from partshot.ops.overlap import confusion, iou, mean_iou, weighted_iou
from partshot.parts import PartSet


@dataclass(frozen=True, eq=False)
class Score:
    """Predictions of many images against their masks, pooled: pixels are counted over all images together.

    miou: mean IoU over all classes, background included, a class that occurs nowhere counting 0, as DatasetGAN's and
    DDPM-segmentation's released code have it. miou_nan: the same, such classes left out.
    wiou: ReGAN's weighted IoU. All in 0..1.
    per_part: IoU by part name; its plain mean is `miou`. absent: the names that occur nowhere.
    per_image: (name, mean IoU over the classes of that image) in the order given, where it has labeled pixels.
    confusion: int64 [k, k] pixel counts, rows = truth.
    """

    miou: float
    miou_nan: float
    wiou: float
    per_part: dict[str, float]
    absent: tuple[str, ...]
    per_image: tuple[tuple[str, float], ...]
    confusion: np.ndarray

    def worst(self, count: int) -> list[tuple[str, float]]:
        """The images that went worst, worst first."""
        return sorted(self.per_image, key=lambda row: row[1])[:count]

    def to_dict(self) -> dict:
        """Plain values for JSON; `from_dict` reads them back."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        images = [list(row) for row in self.per_image]
        return {
            **values,
            "absent": list(self.absent),
            "per_image": images,
            "confusion": self.confusion.tolist(),
        }

    @classmethod
    def from_dict(cls, values: Mapping) -> "Score":
        """The score that `to_dict` wrote. Earlier versions wrote "per_picture" instead of "per_image"."""
        values = dict(values)
        per_image = values.pop("per_picture") if "per_picture" in values else values["per_image"]
        images = tuple((str(name), float(miou)) for name, miou in per_image)
        counts = np.array(values["confusion"], np.int64)
        return cls(**{**values, "absent": tuple(values["absent"]), "per_image": images, "confusion": counts})


@dataclass(frozen=True)
class Summary:
    """Scores of one method at one k over several seeds: means, and population standard deviations (ddof 0).

    The names are those of `Score`; `seeds` is how many scores went in.
    """

    miou: float
    miou_std: float
    miou_nan: float
    miou_nan_std: float
    wiou: float
    wiou_std: float
    per_part: dict[str, float]
    per_part_std: dict[str, float]
    seeds: int

    def to_dict(self) -> dict:
        """Plain values for JSON; `Summary(**values)` reads them back."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def score(
    truths: Iterable[np.ndarray],
    predictions: Iterable[np.ndarray],
    parts: PartSet,
    names: Sequence[str] | None = None,
) -> Score:
    """Scores predictions against masks.

    truths, predictions: one uint8 [h, w] each per image, at the masks' own sizes; 255 in a truth is ignored. They
    may come one by one: only a confusion matrix per image is kept.
    names: one per image, for messages and for "worst first"; else their places.

    Raises BadLabels when the counts or a size differ, an id is outside `parts`, or no pixel is labeled at all.
    """
    matrices = confusions(truths, predictions, parts, names)
    names = [str(i) for i in range(len(matrices))] if names is None else names
    return pooled(matrices, range(len(matrices)), parts, names)


def score_confusion(counts: np.ndarray, parts: PartSet, per_image: Iterable[tuple[str, float]] = ()) -> Score:
    """The score of a confusion matrix that was pooled elsewhere, int64 [k, k], rows = truth."""
    if not counts.sum():
        raise BadLabels("the masks hold no labeled pixel (all are 255); nothing can be scored")
    nowhere = np.isnan(iou(counts, absent="nan"))
    return Score(
        miou=mean_iou(counts),
        miou_nan=mean_iou(counts, absent="nan"),
        wiou=weighted_iou(counts),
        per_part=dict(zip(parts.names, iou(counts).tolist(), strict=True)),
        absent=tuple(name for name, missing in zip(parts.names, nowhere, strict=True) if missing),
        per_image=tuple(per_image),
        confusion=counts,
    )


def summarize(scores: Sequence[Score]) -> Summary:
    """Mean and population standard deviation over seeds; BadLabels when there is no score."""
    if not scores:
        raise BadLabels("no score to summarize; run at least one seed")
    mean, std = _over(scores, np.mean), _over(scores, np.std)
    return Summary(
        miou=mean["miou"],
        miou_std=std["miou"],
        miou_nan=mean["miou_nan"],
        miou_nan_std=std["miou_nan"],
        wiou=mean["wiou"],
        wiou_std=std["wiou"],
        per_part={name: float(np.mean([s.per_part[name] for s in scores])) for name in scores[0].per_part},
        per_part_std={name: float(np.std([s.per_part[name] for s in scores])) for name in scores[0].per_part},
        seeds=len(scores),
    )


def confusions(
    truths: Iterable[np.ndarray], predictions: Iterable[np.ndarray], parts: PartSet, names: Sequence[str] | None
) -> np.ndarray:
    # One confusion matrix per image, int64 [n, k, k]; messages name the image.
    matrices = []
    for i, (truth, predicted) in enumerate(itertools.zip_longest(truths, predictions)):
        if truth is None or predicted is None:
            short, long = ("masks", "predictions") if truth is None else ("predictions", "masks")
            raise BadLabels(f"{i} {short} given and more {long}; one prediction for every mask is needed")
        try:
            matrices.append(confusion(truth, predicted, len(parts)))
        except BadLabels as error:
            raise BadLabels(f"{names[i] if names else f'image {i}'}: {error}") from error
    if names is not None and len(names) != len(matrices):
        raise BadLabels(f"{len(matrices)} masks and {len(names)} names given; one name for every mask is needed")
    return np.array(matrices, np.int64).reshape(-1, len(parts), len(parts))


def pooled(matrices: np.ndarray, places: Sequence[int], parts: PartSet, names: Sequence[str]) -> Score:
    images = [(names[i], mean_iou(matrices[i], absent="nan")) for i in places if matrices[i].any()]
    return score_confusion(matrices[list(places)].sum(0), parts, images)


def _over(scores: Sequence[Score], statistic: Callable) -> dict[str, float]:
    return {name: float(statistic([getattr(s, name) for s in scores])) for name in ("miou", "miou_nan", "wiou")}
