"""How good predicted parts are: scores of many pictures, few-shot protocols over seeds, and the tables they fill.

Knows what is pooled over what, how the published protocols split their pictures, and what a method is (labelled
shots in, a predicting function out). Refuses to know how any method works, torch, files and HTML.
"""

import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple

import numpy as np

from partshot.data.shots import Shots
from partshot.errors import BadLabels, BadRecipe, nearest
from partshot.ops.overlap import confusion, iou, mean_iou, weighted_iou
from partshot.parts import PartSet

Predict = Callable[[list[np.ndarray]], list[np.ndarray]]
"""Pictures, uint8 [h, w, 3], to their labels, uint8 [h, w]."""

Method = Callable[[Shots], Predict]
"""What is compared: it is given labelled shots, takes its time, and gives back a function that predicts."""

Draws = Mapping[int, Mapping[int, Sequence[str]]]
"""k -> seed -> the names of the shots."""


@dataclass(frozen=True, eq=False)
class Score:
    """Predictions of many pictures against their masks, pooled: pixels are counted over all pictures together.

    miou: mean IoU over all classes, background included, a class that occurs nowhere counting 0, as DatasetGAN's and
    DDPM-segmentation's released code have it. miou_nan: the same, such classes left out.
    wiou: ReGAN's weighted IoU. All in 0..1.
    per_part: IoU by part name; its plain mean is `miou`. absent: the names that occur nowhere.
    per_picture: (name, mean IoU over the classes of that picture) in the order given, where it has labelled pixels.
    confusion: int64 [k, k] pixel counts, rows = truth.
    """

    miou: float
    miou_nan: float
    wiou: float
    per_part: dict[str, float]
    absent: tuple[str, ...]
    per_picture: tuple[tuple[str, float], ...]
    confusion: np.ndarray

    def worst(self, count: int) -> list[tuple[str, float]]:
        """The pictures that went worst, worst first."""
        return sorted(self.per_picture, key=lambda row: row[1])[:count]

    def to_dict(self) -> dict:
        """Plain values for JSON; `from_dict` reads them back."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        pictures = [list(row) for row in self.per_picture]
        return {
            **values,
            "absent": list(self.absent),
            "per_picture": pictures,
            "confusion": self.confusion.tolist(),
        }

    @classmethod
    def from_dict(cls, values: Mapping) -> "Score":
        """What `to_dict` wrote."""
        pictures = tuple((str(name), float(miou)) for name, miou in values["per_picture"])
        counts = np.array(values["confusion"], np.int64)
        return cls(**{**values, "absent": tuple(values["absent"]), "per_picture": pictures, "confusion": counts})


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


@dataclass(frozen=True)
class Row:
    """One method, fitted on one draw: what a few-shot run yields, and what it resumes from.

    shots: the names of the labelled pictures. fit_seconds, predict_seconds: wall time, of all test pictures together.
    machine: on what and with what it was computed, for people; empty where nobody said.
    """

    method: str
    k: int
    seed: int
    shots: tuple[str, ...]
    fit_seconds: float
    predict_seconds: float
    score: Score
    machine: str = ""

    def to_dict(self) -> dict:
        """Plain values for a line of JSON; `from_dict` reads them back."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**values, "shots": list(self.shots), "score": self.score.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping) -> "Row":
        """What `to_dict` wrote."""
        return cls(**{**values, "shots": tuple(values["shots"]), "score": Score.from_dict(values["score"])})


class Fold(NamedTuple):
    """One fold of the published protocol: which candidate its validation part chose, and the score of the rest.

    validation: names of the pictures that chose. candidates: mean IoU of each on those, 0..1.
    """

    chosen: str
    validation: tuple[str, ...]
    candidates: dict[str, float]
    score: Score


Table = dict[str, dict[int, Summary]]
"""method -> k -> summary."""


def score(
    truths: Iterable[np.ndarray],
    predictions: Iterable[np.ndarray],
    parts: PartSet,
    names: Sequence[str] | None = None,
) -> Score:
    """Scores predictions against masks.

    truths, predictions: one uint8 [h, w] each per picture, at the masks' own sizes; 255 in a truth is ignored. They
    may come one by one: only a confusion matrix per picture is kept.
    names: one per picture, for messages and for "worst first"; else their places.

    Raises BadLabels when the counts or a size differ, an id is outside `parts`, or no pixel is labelled at all.
    """
    matrices = _confusions(truths, predictions, parts, names)
    names = [str(i) for i in range(len(matrices))] if names is None else names
    return _pool(matrices, range(len(matrices)), parts, names)


def score_confusion(counts: np.ndarray, parts: PartSet, per_picture: Iterable[tuple[str, float]] = ()) -> Score:
    """The score of a confusion matrix that was pooled elsewhere, int64 [k, k], rows = truth."""
    if not counts.sum():
        raise BadLabels("the masks hold no labelled pixel (all are 255); nothing can be scored")
    nowhere = np.isnan(iou(counts, absent="nan"))
    return Score(
        miou=mean_iou(counts),
        miou_nan=mean_iou(counts, absent="nan"),
        wiou=weighted_iou(counts),
        per_part=dict(zip(parts.names, iou(counts).tolist(), strict=True)),
        absent=tuple(name for name, missing in zip(parts.names, nowhere, strict=True) if missing),
        per_picture=tuple(per_picture),
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


def kshot(
    methods: Mapping[str, Method],
    pool: Shots,
    test: Shots,
    ks: Sequence[int],
    seeds: Sequence[int],
    draws: Draws | None = None,
    on_result: Callable[[Row], None] | None = None,
    done: Iterable[Row] = (),
    machine: str = "",
) -> list[Row]:
    """Fits every method on k labelled shots, for every k and seed, and scores it on the test pictures.

    pool: where the shots are drawn from. draws: which ones; else `pool.draw(k, seed)`, whose draws are nested.
    on_result: called with each new row as soon as it is there, so that it can be written down.
    done: rows of an earlier run; a row is taken over when method, k, seed and shots are the same, so all methods see
    the same shots and nothing is fitted twice. The caller sees to it that they are of the same test pictures.
    machine: what new rows say of where they were computed.

    Returns one row per method, k and seed. Raises BadLabels when a draw names a shot that is not in the pool, and
    what the methods raise.
    """
    _refuse_other_parts(pool.parts, test.parts)
    earlier = {(row.method, row.k, row.seed, row.shots): row for row in done}
    rows = []
    for k in ks:
        for seed in seeds:
            shots = _draw(pool, k, seed, draws)
            for name, method in methods.items():
                row = earlier.get((name, k, seed, shots.names))
                if row is None:
                    row = _measure(name, method, k, seed, shots, test, machine)
                    if on_result is not None:
                        on_result(row)
                rows.append(row)
    return rows


def tabulate(rows: Iterable[Row]) -> Table:
    """Rows as method -> k -> summary over the seeds, methods and ks in the order in which they first occur."""
    groups: dict[str, dict[int, list[Score]]] = {}
    for row in rows:
        groups.setdefault(row.method, {}).setdefault(row.k, []).append(row.score)
    return {method: {k: summarize(scores) for k, scores in by_k.items()} for method, by_k in groups.items()}


def table_to_dict(table: Table) -> dict:
    """A table as plain values for JSON: {"student": {"1": {"miou": .., "wiou": .., "per_part": {..}, ..}}}."""
    return {method: {str(k): cell.to_dict() for k, cell in by_k.items()} for method, by_k in table.items()}


def table_to_markdown(table: Table, measure: Literal["miou", "wiou"] = "miou") -> str:
    """A table for people: one line per method, its mean and deviation over seeds per k, the best in bold.

    measure: mean IoU, or ReGAN's weighted IoU.
    """
    ks = sorted({k for by_k in table.values() for k in by_k})
    best = {k: max(getattr(by_k[k], measure) for by_k in table.values() if k in by_k) for k in ks}
    title = {"miou": "mIoU", "wiou": "weighted IoU"}[measure]
    lines = [f"| {title} | " + " | ".join(f"k = {k}" for k in ks) + " |", "|---|" + "---|" * len(ks)]
    for method, by_k in table.items():
        lines.append(f"| {method} | " + " | ".join(_cell(by_k.get(k), best[k], measure) for k in ks) + " |")
    return "\n".join(lines) + "\n"


def folds(names: Sequence[str], count: int = 5) -> list[tuple[list[int], list[int]]]:
    """DatasetGAN's folds, also GANORCON's: for each, the places in `names` of its validation and of its test pictures.

    Names are sorted lexicographically; fold i validates on the i-th run of floor(n / count) pictures and tests on all
    others. Pictures past count * floor(n / count) are always tested on, and the test sets overlap, so the spread over
    folds is no spread over seeds. Raises BadLabels when there are fewer pictures than folds.
    """
    length = len(names) // count
    if not length:
        raise BadLabels(f"{len(names)} pictures cannot make {count} folds; {count} or more are needed")
    order = sorted(range(len(names)), key=lambda place: names[place])
    cuts = [(order[i * length : (i + 1) * length], i) for i in range(count)]
    return [(validation, order[: i * length] + order[(i + 1) * length :]) for validation, i in cuts]


def score_folds(
    candidates: Mapping[str, Iterable[np.ndarray]],
    truths: Sequence[np.ndarray],
    parts: PartSet,
    names: Sequence[str],
) -> list[Fold]:
    """The five-fold protocol of DatasetGAN and GANORCON over the checkpoints of one training run.

    candidates: name -> predictions of all pictures. In each fold the candidate with the highest mean IoU on the
    validation part is scored on the rest; of equal ones the first. Report `summarize([f.score for f in result])`.
    """
    counts = {name: _confusions(truths, predictions, parts, names) for name, predictions in candidates.items()}
    results = []
    for validation, rest in folds(names):
        mious = {name: mean_iou(matrices[validation].sum(0)) for name, matrices in counts.items()}
        chosen = max(mious, key=mious.__getitem__)
        chose = tuple(names[place] for place in validation)
        results.append(Fold(chosen, chose, mious, _pool(counts[chosen], rest, parts, names)))
    return results


def _confusions(
    truths: Iterable[np.ndarray], predictions: Iterable[np.ndarray], parts: PartSet, names: Sequence[str] | None
) -> np.ndarray:
    # One confusion matrix per picture, int64 [n, k, k]; messages name the picture.
    matrices = []
    for i, (truth, predicted) in enumerate(itertools.zip_longest(truths, predictions)):
        if truth is None or predicted is None:
            short, long = ("masks", "predictions") if truth is None else ("predictions", "masks")
            raise BadLabels(f"{i} {short} given and more {long}; one prediction for every mask is needed")
        try:
            matrices.append(confusion(truth, predicted, len(parts)))
        except BadLabels as error:
            raise BadLabels(f"{names[i] if names else f'picture {i}'}: {error}") from error
    if names is not None and len(names) != len(matrices):
        raise BadLabels(f"{len(matrices)} masks and {len(names)} names given; one name for every mask is needed")
    return np.array(matrices, np.int64).reshape(-1, len(parts), len(parts))


def _pool(matrices: np.ndarray, places: Sequence[int], parts: PartSet, names: Sequence[str]) -> Score:
    pictures = [(names[i], mean_iou(matrices[i], absent="nan")) for i in places if matrices[i].any()]
    return score_confusion(matrices[list(places)].sum(0), parts, pictures)


def _over(scores: Sequence[Score], statistic: Callable) -> dict[str, float]:
    return {name: float(statistic([getattr(s, name) for s in scores])) for name in ("miou", "miou_nan", "wiou")}


def _refuse_other_parts(trained: PartSet, tested: PartSet) -> None:
    if trained.names != tested.names:
        raise BadLabels(
            f"the labelled shots have the parts {_listed(trained.names)}, the test pictures {_listed(tested.names)}; "
            "use masks made with one classes.json"
        )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _draw(pool: Shots, k: int, seed: int, draws: Draws | None) -> Shots:
    if draws is None:
        return pool.draw(k, seed)
    if k not in draws or seed not in draws[k]:
        raise BadRecipe(f"the draws hold no k = {k} with seed {seed}; known k: {sorted(draws)}")
    unknown = [name for name in draws[k][seed] if name not in pool.names]
    if unknown:
        raise BadLabels(f"draw k = {k}, seed {seed} names '{unknown[0]}'; {nearest(unknown[0], pool.names[:20])}")
    return pool.subset([pool.names.index(name) for name in draws[k][seed]])


def _measure(name: str, method: Method, k: int, seed: int, shots: Shots, test: Shots, machine: str) -> Row:
    start = time.perf_counter()
    predict = method(shots)
    fitted = time.perf_counter()
    predictions = predict(list(test.images))
    ended = time.perf_counter()
    result = score(test.labels, predictions, test.parts, test.names)
    return Row(name, k, seed, shots.names, fitted - start, ended - fitted, result, machine)


def _cell(cell: Summary | None, best: float, measure: str) -> str:
    if cell is None:
        return "-"
    value, deviation = getattr(cell, measure), getattr(cell, f"{measure}_std")
    text = f"{value:.3f}" + (f" ± {deviation:.3f}" if cell.seeds > 1 else "")
    return f"**{text}**" if value == best else text
