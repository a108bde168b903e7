"""The k-shot protocol: every method learns from the same labeled images and is scored on the same test images.

A method is a function that fits to labeled images and returns a predictor. This module samples the splits, measures the
methods and summarizes the rows in tables. It does not depend on torch and does not read or write files.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np

from partshot.data.shots import Shots
from partshot.errors import BadLabels, BadRecipe, nearest
from partshot.metrics import Score, Summary, score, summarize
from partshot.parts import PartSet

Predict = Callable[[list[np.ndarray]], list[np.ndarray]]
"""Predicts labels, uint8 [h, w] each, for images, uint8 [h, w, 3] each."""

Method = Callable[[Shots], Predict]
"""A method to compare: fits to labeled shots and returns a predictor."""

Splits = Mapping[int, Mapping[int, Sequence[str]]]
"""k -> seed -> names of the labeled images."""


@dataclass(frozen=True)
class Row:
    """Result of one method on one split. Rows are also what an interrupted run resumes from.

    shots: names of the labeled images. fit_seconds, predict_seconds: wall time; predict_seconds is the time for all
    test images together. machine: hardware and library version, as text for people; empty if unknown.
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
        """The row that `to_dict` wrote, also one written by an earlier version."""
        return cls(**{**values, "shots": tuple(values["shots"]), "score": Score.from_dict(values["score"])})


Table = dict[str, dict[int, Summary]]
"""method -> k -> summary."""


def kshot(
    methods: Mapping[str, Method],
    pool: Shots,
    test: Shots,
    ks: Sequence[int],
    seeds: Sequence[int],
    splits: Splits | None = None,
    on_result: Callable[[Row], None] | None = None,
    done: Iterable[Row] = (),
) -> list[Row]:
    """Fits every method on k labeled shots, for every k and seed, and scores it on the test images.

    pool: labeled images that the shots are sampled from. splits: names of the shots for every k and seed; None samples
    them with `pool.sample(k, seed)`, which gives nested splits.
    on_result: called with each new row as soon as it is measured, for example to save it.
    done: rows of an earlier run. A row is reused if method, k, seed and shots are the same; all methods get the same
    shots and nothing is fitted twice. The caller must ensure that these rows were measured on the same test images.

    Returns one row per method, k and seed. Raises BadRecipe if `splits` lacks a k or seed, BadLabels if a split names
    an image that is not in the pool, and whatever the methods raise.
    """
    _refuse_other_parts(pool.parts, test.parts)
    earlier = {(row.method, row.k, row.seed, row.shots): row for row in done}
    rows = []
    for k in ks:
        for seed in seeds:
            shots = _sampled(pool, k, seed, splits)
            for name, method in methods.items():
                row = earlier.get((name, k, seed, shots.names))
                if row is None:
                    row = _measure(name, method, k, seed, shots, test)
                    if on_result is not None:
                        on_result(row)
                rows.append(row)
    return rows


def tabulate(rows: Iterable[Row]) -> Table:
    """Summarizes rows over the seeds: method -> k -> summary, in the order in which methods and ks first occur."""
    groups: dict[str, dict[int, list[Score]]] = {}
    for row in rows:
        groups.setdefault(row.method, {}).setdefault(row.k, []).append(row.score)
    return {method: {k: summarize(scores) for k, scores in by_k.items()} for method, by_k in groups.items()}


def table_to_dict(table: Table) -> dict:
    """A table as plain values for JSON: {"student": {"1": {"miou": .., "wiou": .., "per_part": {..}, ..}}}."""
    return {method: {str(k): cell.to_dict() for k, cell in by_k.items()} for method, by_k in table.items()}


def table_to_markdown(table: Table, measure: Literal["miou", "wiou"] = "miou") -> str:
    """A Markdown table: one line per method with mean and standard deviation over the seeds for each k; best in bold.

    measure: "miou" for mean IoU, "wiou" for ReGAN's weighted IoU.
    """
    ks = sorted({k for by_k in table.values() for k in by_k})
    best = {k: max(getattr(by_k[k], measure) for by_k in table.values() if k in by_k) for k in ks}
    title = {"miou": "mIoU", "wiou": "weighted IoU"}[measure]
    lines = [f"| {title} | " + " | ".join(f"k = {k}" for k in ks) + " |", "|---|" + "---|" * len(ks)]
    for method, by_k in table.items():
        lines.append(f"| {method} | " + " | ".join(_cell(by_k.get(k), best[k], measure) for k in ks) + " |")
    return "\n".join(lines) + "\n"


def _sampled(pool: Shots, k: int, seed: int, splits: Splits | None) -> Shots:
    if splits is None:
        return pool.sample(k, seed)
    if k not in splits or seed not in splits[k]:
        raise BadRecipe(f"the splits have no k = {k} with seed {seed}; known k: {sorted(splits)}")
    unknown = [name for name in splits[k][seed] if name not in pool.names]
    if unknown:
        raise BadLabels(f"split k = {k}, seed {seed} names '{unknown[0]}'; {nearest(unknown[0], pool.names[:20])}")
    return pool.subset([pool.names.index(name) for name in splits[k][seed]])


def _measure(name: str, method: Method, k: int, seed: int, shots: Shots, test: Shots) -> Row:
    start = time.perf_counter()
    predict = method(shots)
    fitted = time.perf_counter()
    predictions = predict(list(test.images))
    ended = time.perf_counter()
    result = score(test.labels, predictions, test.parts, test.names)
    return Row(name, k, seed, shots.names, fitted - start, ended - fitted, result)


def _cell(cell: Summary | None, best: float, measure: str) -> str:
    if cell is None:
        return "-"
    value, deviation = getattr(cell, measure), getattr(cell, f"{measure}_std")
    text = f"{value:.3f}" + (f" ± {deviation:.3f}" if cell.seeds > 1 else "")
    return f"**{text}**" if value == best else text


def _refuse_other_parts(trained: PartSet, tested: PartSet) -> None:
    if trained.names != tested.names:
        raise BadLabels(
            f"the labeled shots have the parts {_listed(trained.names)}, the test images {_listed(tested.names)}; "
            "use masks made with one classes.json"
        )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
