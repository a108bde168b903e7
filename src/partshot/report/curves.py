"""Line charts of a report as inline SVG: training curves from journals, and mean IoU over the number of labels.

A journal is a list of flat JSON objects, one per logged step; every numeric key becomes a curve.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from partshot.report.page import Page

# Keys for the x axis, in order of preference. Neither these nor the clocks become curves.
_COUNTERS = ("images", "kimg", "step", "epoch")
_CLOCKS = ("seconds",)

_MAX_POINTS = 240  # per curve; about one per pixel of a panel
_MAX_PANELS = 8  # per journal
_LOG_RATIO = 50.0  # the y axis is logarithmic if the largest value is more than this many times the smallest
_LEFT, _BOTTOM, _TOP, _RIGHT = 46, 24, 10, 10  # margins around the plot for its labels


@dataclass(frozen=True)
class Curves:
    """Training curves: every value of every journal. journals: name of the run -> lines, oldest first."""

    journals: Mapping[str, Sequence[Mapping]]
    heading: str = "Training curves"

    def html(self, page: Page) -> str:
        runs = [(name, _panels(lines)) for name, lines in self.journals.items()]
        return "".join(
            f'<h3 class="run">{escape(name)}</h3><div class="panels">{panels}</div>' for name, panels in runs if panels
        )


def lines_over_k(scores: Mapping[str, Mapping[int, float]], page: Page) -> str:
    """Mean IoU over the number of labels, one line per method; "" if there is only one number of labels."""
    ks = sorted({k for by_k in scores.values() for k in by_k})
    if len(ks) < 2:
        return ""
    values = [v for by_k in scores.values() for v in by_k.values()]
    frame = _Frame(x=(0.0, len(ks) - 1.0), y=_round_range(min(values), max(values)), width=520, height=250)
    svg = frame.grid(_ticks(*frame.y)) + "".join(frame.x_label(float(i), f"{k}", "middle") for i, k in enumerate(ks))
    # The first method is the main one: it comes last in the SVG, on top of the others.
    for method in reversed(list(scores)):
        points = [(float(ks.index(k)), v) for k, v in sorted(scores[method].items())]
        svg += frame.line(points, page.color_of(method), 2.5)
        svg += "".join(frame.point(x, y, page.color_of(method)) for x, y in points)
    title = "mean IoU by number of labels"
    return f'<figure class="chart">{_svg(svg, title, frame)}<figcaption>{title}</figcaption></figure>'


def _panels(lines: Sequence[Mapping]) -> str:
    counter = next((name for name in _COUNTERS if any(name in line for line in lines)), None)
    names = dict.fromkeys(key for line in lines for key in line if key not in (*_COUNTERS, *_CLOCKS))
    panels = []
    for name in names:
        points = [
            (float(line.get(counter, i) if counter else i), float(line[name]))
            for i, line in enumerate(lines)
            if _is_number(line.get(name))
        ]
        if len(points) > 1:
            panels.append(_panel(name, counter or "line", points))
    return "".join(panels[:_MAX_PANELS])


def _panel(name: str, counter: str, points: Sequence[tuple[float, float]]) -> str:
    raw = _thin(points)
    x, y = np.array(raw).T
    log = y.min() > 0 and y.max() / y.min() > _LOG_RATIO
    low, high = (math.log10(y.min()), math.log10(y.max())) if log else _round_range(y.min(), y.max())
    if log and high - low < 1:
        low, high = low - 0.5, high + 0.5
    frame = _Frame(x=(float(x[0]), float(x[-1] if x[-1] > x[0] else x[0] + 1)), y=(low, high))
    height = np.log10(y) if log else y
    marks = _decades(low, high) if log else _ticks(low, high)
    svg = (
        frame.grid(marks)
        + frame.x_label(frame.x[0], _short(frame.x[0]), "start")
        + frame.x_label(frame.x[1], f"{_short(frame.x[1])} {counter}", "end")
        + frame.line(list(zip(x, height, strict=True)), "var(--s0)", 1.0, opacity=0.35)
        + frame.line(list(zip(x, _smooth(height), strict=True)), "var(--s0)", 2.0)
    )
    title, last = f"{name} over {counter}", f"<span>last: {_short(points[-1][1])}</span>"
    caption = f"<figcaption><b>{escape(name)}</b>{last}</figcaption>"
    return f'<figure class="chart">{caption}{_svg(svg, title, frame)}</figure>'


@dataclass(frozen=True)
class _Frame:
    # The plot area; x and y are the ranges of the data. The width is that of a chart in a desktop browser in pixels, so
    # that its text has the page's font size.
    x: tuple[float, float]
    y: tuple[float, float]
    width: int = 320
    height: int = 170

    def at(self, x: float, y: float) -> tuple[float, float]:
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return _LEFT + across * (self.width - _LEFT - _RIGHT), self.height - _BOTTOM - up * (
            self.height - _BOTTOM - _TOP
        )

    def grid(self, ticks: Sequence[tuple[float, str]]) -> str:
        svg = ""
        for value, text in ticks:
            x, y = self.at(self.x[0], value)
            svg += f'<line class="grid" x1="{x}" x2="{self.width - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            svg += f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{escape(text)}</text>'
        return svg

    def x_label(self, x: float, text: str, anchor: str) -> str:
        across, _ = self.at(x, self.y[0])
        return f'<text x="{across:.1f}" y="{self.height - 6}" text-anchor="{anchor}">{escape(text)}</text>'

    def line(self, points: Sequence[tuple[float, float]], color: str, width: float, opacity: float = 1.0) -> str:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (self.at(*point) for point in points))
        return (
            f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="{width}" '
            f'stroke-opacity="{opacity}" stroke-linejoin="round" stroke-linecap="round"/>'
        )

    def point(self, x: float, y: float, color: str) -> str:
        cx, cy = self.at(x, y)
        return f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="4" fill="{color}"/>'


def _svg(svg: str, title: str, frame: _Frame) -> str:
    return f'<svg viewBox="0 0 {frame.width} {frame.height}" role="img" aria-label="{escape(title)}">{svg}</svg>'


def _thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    # Means of groups of (nearly) equal size, rather than every n-th point, so that spikes neither vanish nor dominate.
    groups = np.array_split(np.array(points), min(len(points), _MAX_POINTS))
    return [tuple(group.mean(0)) for group in groups]


def _smooth(values: np.ndarray) -> np.ndarray:
    # Centered moving average over 1/15 of the run; the window is cut off at both ends.
    reach = len(values) // 30
    sums = np.cumsum(np.concatenate([[0.0], values]))
    starts = np.maximum(np.arange(len(values)) - reach, 0)
    ends = np.minimum(np.arange(len(values)) + reach + 1, len(values))
    return (sums[ends] - sums[starts]) / (ends - starts)


def _round_range(low: float, high: float) -> tuple[float, float]:
    if high - low < 1e-9:
        return low - max(abs(low), 1) * 0.1, high + max(abs(high), 1) * 0.1
    step = _step(low, high)
    return math.floor(low / step) * step, math.ceil(high / step) * step


def _ticks(low: float, high: float) -> list[tuple[float, str]]:
    step = _step(low, high)
    first, last = math.ceil(low / step - 1e-6), math.floor(high / step + 1e-6)
    return [(i * step, _short(i * step)) for i in range(first, last + 1)]


def _decades(low: float, high: float) -> list[tuple[float, str]]:
    # At most five powers of ten. low and high are log10 values.
    powers = range(math.ceil(low), math.floor(high) + 1)
    return [(float(t), _short(10.0**t)) for t in powers[:: max(1, math.ceil(len(powers) / 5))]]


def _step(low: float, high: float) -> float:
    # 1, 2 or 5 times a power of ten; about four steps fill the range.
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)


def _short(value: float) -> str:
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    if 0 < abs(value) < 1e-3:
        return f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-")
    return f"{value:.3g}"


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
