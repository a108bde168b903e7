"""A report's figures: the headline, the table of methods, bars per part and the confusion matrix.

Knows how figures are laid out so that the best one and the worst confusion are seen first. Refuses to compute them:
tables are what `evaluate.tabulate` makes, or anything of that shape.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Protocol, runtime_checkable

import numpy as np

from partshot.report.curves import lines_over_k
from partshot.report.page import Page, number

_DENSE = 16  # parts above which the confusion matrix is drawn tighter, without decimals
_TELLING = 0.02  # a confusion below this share of the part is not worth a sentence


@runtime_checkable
class Cell(Protocol):
    """What a table needs of one method at one k; `evaluate.Summary` has it."""

    miou: float
    miou_std: float
    wiou: float
    per_part: Mapping[str, float]
    seeds: int


Table = Mapping[str, Mapping[int, Cell]]


@dataclass(frozen=True)
class Figure:
    """One number of the headline: its name, its value as text, and what it was measured on."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Headline:
    """What came out: a sentence that says what it means (see `words`), and the few numbers behind it."""

    sentence: str
    figures: Sequence[Figure] = ()
    heading: str = "What came out"

    def html(self, page: Page) -> str:
        tiles = "".join(
            f"<div><b>{escape(f.value)}</b><span>{escape(f.name)}</span><small>{escape(f.note)}</small></div>"
            for f in self.figures
        )
        return f'<p class="sentence">{escape(self.sentence)}</p><div class="figures">{tiles}</div>'


@dataclass(frozen=True)
class Methods:
    """Methods against each other: mean IoU by number of labels, then IoU of every part, the best in bold.

    table: method -> k -> cell, the method that the reader came for first. note: how it was measured.
    """

    table: Table
    note: str = ""
    heading: str = "Against the alternatives"

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
        known = ([v for v in column if v is not None] for column in zip(*columns.values(), strict=True))
        best = [max(column, default=None) for column in known]
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

    shares: part -> share of the true pixels in 0..1, shown beside its name: small parts are hard.
    """

    by_method: Mapping[str, Mapping[str, float]]
    shares: Mapping[str, float] | None = None
    heading: str = "Part by part"

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
    """What was taken for what. counts: int [k, k] pixels, rows = truth; each row is shown as shares of that part."""

    counts: np.ndarray
    note: str = ""
    heading: str = "What was taken for what"

    def html(self, page: Page) -> str:
        if not self.counts.sum():
            return ""
        totals = self.counts.sum(1, keepdims=True)
        shares = np.divide(self.counts, totals, out=np.zeros(self.counts.shape), where=totals > 0)
        names, dense = page.parts.names, len(page.parts) > _DENSE
        corner = "<th>truth ↓ taken for →<br>in % of the truth</th>"
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
    items = "".join(
        f"<li><b>{_percent(wrong[i, j])}</b> of <b>{escape(names[i])}</b> is taken for <b>{escape(names[j])}</b></li>"
        for i, j in order
        if wrong[i, j] >= _TELLING
    )
    return f"<ul>{items}</ul>" if items else "<p>No part loses 2 % or more of its pixels to any other.</p>"


def _share(value: float, diagonal: bool, dense: bool) -> str:
    kind = "hit" if diagonal else "miss"
    # The color says the share; misses are drawn stronger than hits, since a miss of 20 % is already a lot.
    strength = value if diagonal else min(1.0, 2 * value)
    digits = 0 if dense or value >= 0.0995 else 1
    text = "" if round(100 * value, digits) == 0 else f"{100 * value:.{digits}f}"
    strong = " strong" if strength > 0.55 else ""
    return f'<td class="{kind}{strong}" style="--v:{100 * strength:.0f}%">{text}</td>'


def _head(*cells: str) -> str:
    return f"<thead><tr>{''.join(f'<th>{cell}</th>' for cell in cells)}</tr></thead>"


def _method(name: str, page: Page) -> str:
    return f'<i class="dot" style="background:{page.color_of(name)}"></i>{escape(name)}'


def _miou_cell(cell: Cell | None, best: float) -> str:
    if cell is None:
        return "<td>–</td>"
    spread = f"<small>±{cell.miou_std:.3f}</small>" if cell.seeds > 1 else ""
    text = f"<b>{number(cell.miou)}</b>" if cell.miou == best else number(cell.miou)
    return f'<td style="--v:{100 * np.nan_to_num(cell.miou):.1f}%">{text}{spread}</td>'


def _cell(value: float | None, best: bool) -> str:
    return f"<td><b>{number(value)}</b></td>" if best else f"<td>{number(value)}</td>"


def _percent(value: float) -> str:
    digits = 0 if value >= 0.1 else 1 if value >= 0.001 else 2
    return f"{100 * value:.{digits}f} %"
