"""The k-shot protocol: every method learns from the same labeled images and is scored on the same test images.

A method is a function from labeled images to a function that predicts. Knows splits and tables. Refuses to know how a
method works, torch, files and HTML.
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
"""Images, uint8 [h, w, 3], to their labels, uint8 [h, w]."""

Method = Callable[[Shots], Predict]
"""What is compared: it is given labeled shots, takes its time, and gives back a function that predicts."""

Splits = Mapping[int, Mapping[int, Sequence[str]]]
"""k -> seed -> the names of the shots."""


@dataclass(frozen=True)
class Row:
    """One method, fitted on one draw: what a few-shot run yields, and what it resumes from.

    shots: the names of the labeled images. fit_seconds, predict_seconds: wall time, of all test images together.
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
    machine: str = "",
) -> list[Row]:
    """Fits every method on k labeled shots, for every k and seed, and scores it on the test images.

    pool: where the shots are drawn from. splits: which ones; else `pool.sample(k, seed)`, whose splits are nested.
    on_result: called with each new row as soon as it is there, so that it can be written down.
    done: rows of an earlier run; a row is taken over when method, k, seed and shots are the same, so all methods see
    the same shots and nothing is fitted twice. The caller sees to it that they are of the same test images.
    machine: what new rows say of where they were computed.

    Returns one row per method, k and seed. Raises BadLabels when a draw names a shot that is not in the pool, and
    what the methods raise.
    """
    _refuse_other_parts(pool.parts, test.parts)
    earlier = {(row.method, row.k, row.seed, row.shots): row for row in done}
    rows = []
    for k in ks:
        for seed in seeds:
            shots = _draw(pool, k, seed, splits)
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


def _draw(pool: Shots, k: int, seed: int, splits: Splits | None) -> Shots:
    if splits is None:
        return pool.sample(k, seed)
    if k not in splits or seed not in splits[k]:
        raise BadRecipe(f"the splits hold no k = {k} with seed {seed}; known k: {sorted(splits)}")
    unknown = [name for name in splits[k][seed] if name not in pool.names]
    if unknown:
        raise BadLabels(f"draw k = {k}, seed {seed} names '{unknown[0]}'; {nearest(unknown[0], pool.names[:20])}")
    return pool.subset([pool.names.index(name) for name in splits[k][seed]])


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


def _refuse_other_parts(trained: PartSet, tested: PartSet) -> None:
    if trained.names != tested.names:
        raise BadLabels(
            f"the labeled shots have the parts {_listed(trained.names)}, the test images {_listed(tested.names)}; "
            "use masks made with one classes.json"
        )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
