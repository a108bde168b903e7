"""Segmentation scores: IoU pooled over images, and its mean and standard deviation over seeds. NumPy only."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from partshot.errors import BadLabels
from partshot.ops.overlap import confusion, iou, mean_iou, weighted_iou
from partshot.parts import PartSet


@dataclass(frozen=True, eq=False)
class Score:
    """Scores of predictions, computed from one confusion matrix that is summed over all images.

    miou: mean IoU over all classes, background included. A class in neither masks nor predictions counts as 0, as in
    the released code of DatasetGAN and DDPM-segmentation. miou_nan: the same without such classes. wiou: ReGAN's
    weighted IoU. All in 0..1.
    per_part: IoU by part name; its mean is `miou`. absent: names of the parts in neither masks nor predictions.
    per_image: (name, mean IoU over the classes in that image) of the images with labeled pixels, in input order.
    confusion: int64 [k, k] pixel counts, rows = ground truth.
    """

    miou: float
    miou_nan: float
    wiou: float
    per_part: dict[str, float]
    absent: tuple[str, ...]
    per_image: tuple[tuple[str, float], ...]
    confusion: np.ndarray

    @property
    def occurring(self) -> dict[str, float]:
        """IoU, 0..1, of the parts that occur in the masks or are predicted there."""
        return {name: value for name, value in self.per_part.items() if name not in self.absent}

    def worst(self, count: int) -> list[tuple[str, float]]:
        """The `count` images with the lowest mean IoU, lowest first: (name, mean IoU)."""
        return sorted(self.per_image, key=lambda row: row[1])[:count]

    def to_dict(self) -> dict:
        """JSON values; `from_dict` reads them."""
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
    """Scores of one method with k labels over several seeds: means and population standard deviations (ddof = 0).

    Fields are named as in `Score`. seeds: number of scores.
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
        """JSON values; `Summary(**values)` reads them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def score(
    truths: Iterable[np.ndarray],
    predictions: Iterable[np.ndarray],
    parts: PartSet,
    names: Sequence[str] | None = None,
) -> Score:
    """Scores predictions against masks.

    truths, predictions: one uint8 [h, w] per image, of the same size; 255 in a mask is ignored. Both may be generators:
    only a confusion matrix per image is kept.
    names: one per image, for `per_image` and error messages; by default their indices.

    Raises BadLabels if the number of images or a size differs, an id is not in `parts`, or no pixel is labeled.
    """
    matrices = confusions(truths, predictions, parts, names)
    names = [str(i) for i in range(len(matrices))] if names is None else names
    return pooled(matrices, range(len(matrices)), parts, names)


def score_confusion(counts: np.ndarray, parts: PartSet, per_image: Iterable[tuple[str, float]] = ()) -> Score:
    """The score of a confusion matrix, int64 [k, k], rows = ground truth, summed over images."""
    if not counts.sum():
        raise BadLabels("the masks have no labeled pixel (all are 255); nothing can be scored")
    is_absent = np.isnan(iou(counts, absent="nan"))
    return Score(
        miou=mean_iou(counts),
        miou_nan=mean_iou(counts, absent="nan"),
        wiou=weighted_iou(counts),
        per_part=dict(zip(parts.names, iou(counts).tolist(), strict=True)),
        absent=tuple(name for name, missing in zip(parts.names, is_absent, strict=True) if missing),
        per_image=tuple(per_image),
        confusion=counts,
    )


def summarize(scores: Sequence[Score]) -> Summary:
    """Mean and population standard deviation over seeds. Raises BadLabels if there is no score."""
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
    """One confusion matrix per image, int64 [n, k, k]. Arguments and errors as in `score`."""
    matrices = []
    for i, (truth, predicted) in enumerate(itertools.zip_longest(truths, predictions)):
        if truth is None or predicted is None:
            short, long = ("masks", "predictions") if truth is None else ("predictions", "masks")
            raise BadLabels(f"{i} {short} given and more {long}; one prediction per mask is needed")
        try:
            matrices.append(confusion(truth, predicted, len(parts)))
        except BadLabels as error:
            raise BadLabels(f"{names[i] if names else f'image {i}'}: {error}") from error
    if names is not None and len(names) != len(matrices):
        raise BadLabels(f"{len(matrices)} masks and {len(names)} names given; one name per mask is needed")
    return np.array(matrices, np.int64).reshape(-1, len(parts), len(parts))


def pooled(matrices: np.ndarray, indices: Sequence[int], parts: PartSet, names: Sequence[str]) -> Score:
    """The score of some images, pooled. matrices: of all images, as from `confusions`. indices: the images to score."""
    images = [(names[i], mean_iou(matrices[i], absent="nan")) for i in indices if matrices[i].any()]
    return score_confusion(matrices[list(indices)].sum(0), parts, images)


def _over(scores: Sequence[Score], statistic: Callable) -> dict[str, float]:
    return {name: float(statistic([getattr(s, name) for s in scores])) for name in ("miou", "miou_nan", "wiou")}
