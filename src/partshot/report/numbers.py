"""Scores of a report: the headline, the comparison of methods, IoU per part and the confusion matrix.

The best score of each column is bold, and the largest confusions are listed first. Scores are not computed here: tables
come from `benchmark.kshot.tabulate`, or have the same shape.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Protocol, runtime_checkable

import numpy as np

from partshot.report.curves import lines_over_k
from partshot.report.page import Page, number

_DENSE = 16  # with more parts than this, the confusion matrix is smaller and has no decimals
_MIN_CONFUSION = 0.02  # confusions of a smaller share of a part's pixels are not listed


@runtime_checkable
class Cell(Protocol):
    """The scores of one method with k labels, such as a `metrics.Summary`."""

    miou: float
    miou_std: float
    wiou: float
    per_part: Mapping[str, float]
    seeds: int


Table = Mapping[str, Mapping[int, Cell]]


@dataclass(frozen=True)
class Figure:
    """One number of the headline: its name, its value as text, and a note, such as the test set."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Headline:
    """The main result: a sentence (see `words`) and a few numbers."""

    sentence: str
    figures: Sequence[Figure] = ()
    heading: str = "Result"

    def html(self, page: Page) -> str:
        tiles = "".join(
            f"<div><b>{escape(f.value)}</b><span>{escape(f.name)}</span><small>{escape(f.note)}</small></div>"
            for f in self.figures
        )
        return f'<p class="sentence">{escape(self.sentence)}</p><div class="figures">{tiles}</div>'


@dataclass(frozen=True)
class Methods:
    """Comparison of methods: mean IoU by number of labels, then IoU of every part; the best is bold.

    table: method -> k (number of labels) -> scores, the main method first. note: how the scores were measured.
    """

    table: Table
    note: str = ""
    heading: str = "Comparison of methods"

    def html(self, page: Page) -> str:
        ks = sorted({k for by_k in self.table.values() for k in by_k})
        if not ks:
            return ""
        overview = self._overview(ks, page)
        chart = lines_over_k({m: {k: c.miou for k, c in by_k.items()} for m, by_k in self.table.items()}, page)
        note = f"<p>{escape(self.note)}</p>" if self.note else ""
        details = "".join(self._per_part(k, page, unfold=k == ks[-1]) for k in ks)
        return f'{note}<div class="pair">{overview}{chart}</div>{details}'

    def _overview(self, ks: Sequence[int], page: Page) -> str:
        best = {k: max(by_k[k].miou for by_k in self.table.values() if k in by_k) for k in ks}
        head = _head("mean IoU", *(f"{k} {'label' if k == 1 else 'labels'}" for k in ks))
        rows = "".join(
            f"<tr><th>{_method(name, page)}</th>{''.join(_miou_cell(by_k.get(k), best[k]) for k in ks)}</tr>"
            for name, by_k in self.table.items()
        )
        return f'<div class="scroll"><table class="bars">{head}{rows}</table></div>'

    def _per_part(self, k: int, page: Page, unfold: bool) -> str:
        cells = {name: by_k[k] for name, by_k in self.table.items() if k in by_k}
        columns = {name: [c.miou, c.wiou, *(c.per_part.get(p) for p in page.parts.names)] for name, c in cells.items()}
        present = ([v for v in column if v is not None] for column in zip(*columns.values(), strict=True))
        best = [max(column, default=None) for column in present]
        head = _head(
            "IoU", "mean", "weighted", *(f"{page.swatch(i)}{escape(n)}" for i, n in enumerate(page.parts.names))
        )
        rows = "".join(
            f"<tr><th>{_method(name, page)}</th>"
            + "".join(_cell(v, v is not None and v == top) for v, top in zip(values, best, strict=True))
            + "</tr>"
            for name, values in columns.items()
        )
        return (
            f"<details{' open' if unfold else ''}><summary>Every part, {k} {'label' if k == 1 else 'labels'}</summary>"
            f'<div class="scroll"><table>{head}{rows}</table></div>'
            "</details>"
        )


@dataclass(frozen=True)
class PartBars:
    """IoU of every part as bars, one per method. by_method: method -> part -> IoU in 0..1.

    shares: part -> its share of the labeled pixels, 0..1, shown beside its name, because small parts are harder.
    """

    by_method: Mapping[str, Mapping[str, float]]
    shares: Mapping[str, float] | None = None
    heading: str = "IoU per part"

    def html(self, page: Page) -> str:
        if not self.by_method:
            return ""
        rows = "".join(self._row(i, part, page) for i, part in enumerate(page.parts.names))
        keys = "".join(f"<span>{_method(name, page)}</span>" for name in self.by_method)
        return f'<div class="legend">{keys}</div><div class="partbars">{rows}</div>'

    def _row(self, i: int, part: str, page: Page) -> str:
        share = f"<small>{_percent(self.shares[part])} of the pixels</small>" if self.shares else ""
        bars = ""
        for method, per_part in self.by_method.items():
            value = per_part.get(part)
            width = 0 if value is None or np.isnan(value) else 100 * value
            bars += (
                f'<div class="bar" title="{escape(method)}"><i style="width:{width:.1f}%;'
                f'background:{page.color_of(method)}"></i><span>{number(value)}</span></div>'
            )
        return f"<div><b>{page.swatch(i)}{escape(part)}</b>{share}</div><div>{bars}</div>"


@dataclass(frozen=True, eq=False)
class Confusion:
    """The confusion matrix. counts: int [k, k] pixels, rows = ground truth; shown normalized by row."""

    counts: np.ndarray
    note: str = ""
    heading: str = "Confusion matrix"

    def html(self, page: Page) -> str:
        if not self.counts.sum():
            return ""
        totals = self.counts.sum(1, keepdims=True)
        shares = np.divide(self.counts, totals, out=np.zeros(self.counts.shape), where=totals > 0)
        names, dense = page.parts.names, len(page.parts) > _DENSE
        corner = "<th>truth ↓ prediction →<br>in % of the row</th>"
        head = "".join(f'<th class="up"><span>{escape(n)}</span>{page.swatch(i)}</th>' for i, n in enumerate(names))
        rows = ""
        for i, name in enumerate(names):
            cells = "".join(_share(shares[i, j], i == j, dense) for j in range(len(names)))
            cells = cells if totals[i] else f'<td colspan="{len(names)}" class="dim">not in these masks</td>'
            rows += f"<tr><th>{page.swatch(i)}{escape(name)}</th>{cells}<td>{int(totals[i, 0]):,}</td></tr>"
        note = f"<p>{escape(self.note)}</p>" if self.note else ""
        kind = "confusion dense" if dense else "confusion"
        return (
            f'{note}{_worst_confusions(shares, names)}<div class="scroll"><table class="{kind}">'
            f"<thead><tr>{corner}{head}<th>pixels</th></tr></thead>{rows}</table></div>"
        )


def _worst_confusions(shares: np.ndarray, names: Sequence[str]) -> str:
    wrong = shares * (1 - np.eye(len(names)))
    order = np.dstack(np.unravel_index(np.argsort(-wrong, axis=None), wrong.shape))[0][:4]
    bold = [f"<b>{escape(name)}</b>" for name in names]
    items = "".join(
        f"<li><b>{_percent(wrong[i, j])}</b> of {bold[i]} is predicted as {bold[j]}</li>"
        for i, j in order
        if wrong[i, j] >= _MIN_CONFUSION
    )
    return f"<ul>{items}</ul>" if items else "<p>No part has 2 % or more of its pixels predicted as another part.</p>"


def _share(value: float, diagonal: bool, dense: bool) -> str:
    kind = "hit" if diagonal else "miss"
    # Color intensity shows the share; errors get twice the intensity, because an error of 20 % is already large.
    intensity = value if diagonal else min(1.0, 2 * value)
    digits = 0 if dense or value >= 0.0995 else 1
    text = "" if round(100 * value, digits) == 0 else f"{100 * value:.{digits}f}"
    strong = " strong" if intensity > 0.55 else ""
    return f'<td class="{kind}{strong}" style="--v:{100 * intensity:.0f}%">{text}</td>'


def _head(*cells: str) -> str:
    return f"<thead><tr>{''.join(f'<th>{cell}</th>' for cell in cells)}</tr></thead>"


def _method(name: str, page: Page) -> str:
    return f'<i class="dot" style="background:{page.color_of(name)}"></i>{escape(name)}'


def _miou_cell(cell: Cell | None, best: float) -> str:
    if cell is None:
        return "<td>–</td>"
    std = f"<small>±{cell.miou_std:.3f}</small>" if cell.seeds > 1 else ""
    text = f"<b>{number(cell.miou)}</b>" if cell.miou == best else number(cell.miou)
    return f'<td style="--v:{100 * np.nan_to_num(cell.miou):.1f}%">{text}{std}</td>'


def _cell(value: float | None, best: bool) -> str:
    return f"<td><b>{number(value)}</b></td>" if best else f"<td>{number(value)}</td>"


def _percent(value: float) -> str:
    digits = 0 if value >= 0.1 else 1 if value >= 0.001 else 2
    return f"{100 * value:.{digits}f} %"
