"""Hair of the toy faces: hair behind the neck, hair over the shoulders, and the hair on the head with its hairline.

A haircut is a few numbers (volume, length, hairline, wave), from which shapes on a Head (head_shape.py) are drawn.
"""

import math
from dataclasses import dataclass

import numpy as np

from partshot.toy.canvas import (
    Canvas,
    Color,
    closed_curve,
    curve,
    lighten,
    linear_gradient,
    oval,
    solid,
    tapered_stroke,
)
from partshot.toy.head_shape import Head

# name: range of the volume (above the skull), range of the length (y where the back ends; None: not visible), hairline,
# covers the ears
_CUTS = {
    "short": ((0.05, 0.13), None, "even", False),
    "side": ((0.07, 0.16), None, "parted", False),
    "crop": ((0.02, 0.04), None, "even", False),
    "bob": ((0.12, 0.2), (0.5, 1.0), "fringe", True),
    "long": ((0.09, 0.18), (1.2, 2.4), "middle", True),
    "swept": ((0.1, 0.2), (1.0, 2.2), "parted", True),
    "fringed": ((0.1, 0.18), (1.0, 2.2), "fringe", True),
    "curls": ((0.14, 0.26), None, "even", False),
    "mane": ((0.2, 0.32), (0.7, 1.3), "even", True),
    "bun": ((0.04, 0.08), None, "even", False),
    "tail": ((0.05, 0.09), None, "parted", False),
    "bald": ((0.02, 0.03), None, "bald", False),
}
# Sampled uniformly: a name that occurs twice is twice as likely.
_FREQUENT = (
    "short", "short", "side", "side", "crop", "bob", "long", "swept", "fringed", "curls", "mane", "bun", "tail", "bald",
)  # fmt: skip


@dataclass(frozen=True)
class Haircut:
    """A haircut on a head.

    length: the y at which it ends behind the neck; None: none is visible there. part: x of the parting.
    low: offset of the hairline, positive is lower.
    """

    name: str
    head: Head
    color: Color
    volume: float
    length: float | None
    hairline: str
    hides_ears: bool
    wave: float
    part: float
    low: float


def choose(rng: np.random.Generator, head: Head, color: Color) -> Haircut:
    """A random haircut for a head. Hair that covers the ears is tucked behind them with probability .45."""
    name = _FREQUENT[rng.integers(len(_FREQUENT))]
    volume, length, hairline, hides = _CUTS[name]
    tucked = rng.uniform() < 0.45
    return Haircut(
        name=name,
        head=head,
        color=color,
        volume=rng.uniform(*volume),
        length=None if length is None else rng.uniform(*length),
        hairline=hairline,
        hides_ears=hides and not tucked,
        wave=rng.uniform(0.0, 0.09) if name != "curls" else 0.0,
        part=(-1.0, 1.0)[rng.integers(2)] * rng.uniform(0.15, 0.4),
        low=rng.uniform(-0.08, 0.1),
    )


def paint_back(canvas: Canvas, rng: np.random.Generator, cut: Haircut, part: int) -> None:
    """Draws the hair behind the neck: long hair, a bun or a ponytail; part: the id of hair."""
    w = cut.head.width + cut.volume
    shift = -0.12 * math.sin(cut.head.yaw)
    dark = lighten(cut.color, -0.35)
    if cut.name == "bun":
        r = rng.uniform(0.26, 0.4)
        canvas.fill(oval(shift * 2, -1.02 - r * 0.5, r, r * 0.85), _hair_gradient(cut, -0.1), part)
    elif cut.name == "tail":
        side = -1.0 if cut.head.yaw > 0 else 1.0
        points = np.array([(0.1, -0.75), (0.75, -0.8), (1.02, -0.3), (0.98, 0.4), (1.1, rng.uniform(0.8, 1.5))])
        canvas.fill(tapered_stroke(points * (side, 1), [0.2, 0.3, 0.36, 0.3, 0.06]), _hair_gradient(cut, -0.12), part)
    elif cut.length is not None:
        end = cut.length
        y = np.linspace(-0.4, end, 6)
        bulge = w * np.array([0.97, 1.02, 1.02, 1.04, 1.05, 0.95])
        right, left = (np.stack([s * bulge + _waves(y, cut, f), y], 1) for s, f in ((1, 0.0), (-1, 2.0)))
        path = closed_curve(np.vstack([[(0, -0.95)], right, [(0.2, end + 0.06)], left[::-1]]) + (shift, 0))
        canvas.fill(path, linear_gradient((0, -0.5), (0, end), dark, lighten(cut.color, -0.15)), part)
        with canvas.clipped(path):
            _strands(canvas, rng, cut, np.linspace(-w, w, 12) + shift, 0.0, end)


def paint_locks(canvas: Canvas, rng: np.random.Generator, cut: Haircut, part: int) -> None:
    """Draws long hair over the shoulders, in front of the clothes."""
    if cut.length is None:
        return
    end = cut.length * rng.uniform(0.8, 1.05)
    shift = -0.15 * math.sin(cut.head.yaw)
    for side, phase in ((-1.0, 2.0), (1.0, 0.0)):
        if rng.uniform() < 0.2:
            continue
        y = np.linspace(-0.55, end, 6)
        x = side * (cut.head.width + cut.volume - 0.15) + _waves(y, cut, phase) + shift
        width = rng.uniform(0.26, 0.36) * np.array([0.8, 1.0, 1.1, 1.15, 1.0, 0.5])
        path = tapered_stroke(np.stack([x, y], 1), width)
        canvas.fill(path, _hair_gradient(cut, -0.05), part)
        with canvas.clipped(path):
            middle = side * (cut.head.width + cut.volume - 0.15) + shift
            _strands(canvas, rng, cut, middle + np.array([-0.1, -0.04, 0.03, 0.09]), -0.5, end)


def paint_front(canvas: Canvas, rng: np.random.Generator, cut: Haircut, part: int) -> None:
    """Draws the hair on the head from ear to ear, with its hairline, over the face."""
    if cut.hairline == "bald" and rng.uniform() < 0.5:
        return
    outer, inner = _cap(rng, cut)
    outlines = [np.vstack([outer, inner])] if cut.hairline != "bald" else _balding_sides(cut, outer)
    for outline in outlines:
        path = closed_curve(outline)
        with canvas.clipped(closed_curve(cut.head.outline())):
            canvas.fill(path, solid((0.05, 0.02, 0.02), 0.5, 0.05))  # its shadow on the face
        if cut.name in ("curls", "mane"):
            path = _curly(rng, cut, path, outer, inner)
        canvas.fill(path, _hair_gradient(cut, 0.0), part)
        with canvas.clipped(path):
            _strands_and_highlight(canvas, rng, cut, outer, inner)


def _cap(rng, cut):
    """The outer contour from the left to the right ear over the crown [9, 2], and the hairline back [10, 2]."""
    head, volume = cut.head, cut.volume
    skull = head.outline()[[12, 13, 14, 15, 0, 1, 2, 3, 4]]
    grown = volume * (1 + rng.uniform(-0.15, 0.15, (9, 1)))
    outer = skull * (1.015 + grown / np.hypot(skull[:, :1], skull[:, 1:]))
    outer[2:7, 1] -= volume * rng.uniform(0.0, 0.5)
    outer[[0, -1], 1] = 0.05 if cut.hides_ears else -0.05
    x = np.array([0.74, 0.68, 0.56, 0.34, 0.12, -0.12, -0.34, -0.56, -0.68, -0.74])
    burn = rng.uniform(0.0, 0.3) if not cut.hides_ears else 0.45
    even = np.array([burn, -0.2, -0.5, -0.62, -0.66, -0.66, -0.62, -0.5, -0.2, burn])
    if cut.hairline == "fringe":
        even[2:8] = -0.36 + rng.uniform(-0.05, 0.05, 6)
    elif cut.hairline == "parted":
        even[2:8] += 0.26 * (0.56 - np.sign(cut.part) * x[2:8]) / 1.12 - 0.12
    elif cut.hairline == "middle":
        even[2:8] -= 0.22 * (1 - np.abs(x[2:8]) / 0.56) - 0.12
    elif cut.hairline == "bald":
        even[1:9] = np.array([-0.35, -0.7, -0.9, -0.97, -0.97, -0.9, -0.7, -0.35])
    else:
        even[2:8] += rng.uniform(-0.05, 0.05, 6)
    even[1:9] += cut.low
    return outer, head.project(np.stack([x, even], 1))


def _balding_sides(cut, outer):
    """Two patches of hair above the ears."""
    rim = np.array([(-0.5, -0.6), (-0.54, -0.28), (-0.66, 0.1)])
    left, right = (cut.head.project(rim * (s, 1)) for s in (1, -1))
    return [np.vstack([outer[:3], left]), np.vstack([outer[:-4:-1], right])]


def _curly(rng, cut, path, outer, inner):
    """Adds circles along both contours to the path."""
    middle = np.vstack([outer, (outer[1:-1] + outer[:-2]) / 2])
    for x, y in middle:
        r = cut.volume * rng.uniform(0.55, 0.95)
        path.addOval(_circle_bounds(x * 0.97, y * 0.97, r))
    for x, y in inner[1:-1]:
        path.addOval(_circle_bounds(x, y - 0.05, rng.uniform(0.09, 0.15)))
    return path


def _circle_bounds(x, y, r):
    return oval(x, y, r, r).getBounds()


def _hair_gradient(cut, shade):
    base = lighten(cut.color, shade)
    return linear_gradient((-0.3, -1.2), (0.35, 0.6), lighten(base, 0.12), lighten(base, -0.25))


def _waves(y, cut, phase):
    return cut.wave * np.sin(5.5 * y + phase)


def _strands_and_highlight(canvas, rng, cut, outer, inner):
    """Draws strands from the parting to the hairline, and a highlight."""
    top = np.array([cut.part if cut.hairline == "parted" else 0.0, -1.0 - cut.volume * 0.7])
    roots = inner[rng.permutation(len(inner))[:8]] + rng.uniform(-0.06, 0.06, (8, 1))
    out = roots[:, :1] - top[0]
    bend = (top + roots) / 2 + np.hstack([0.22 * out, -0.16 * np.abs(out)])
    _two_tones(canvas, rng, cut, np.stack([np.broadcast_to(top, roots.shape), bend, roots], 1))
    highlight = outer[2:7] * 0.9
    canvas.stroke(curve(highlight), 0.08, lighten(cut.color, 0.6), rng.uniform(0.05, 0.35), 0.04)


def _strands(canvas, rng, cut, x, top, bottom):
    """Draws hanging strands at the given x."""
    y = np.broadcast_to(np.linspace(top, bottom, 5), (len(x), 5))
    x = x[:, None] + _waves(y, cut, np.where(x > 0, 0.0, 2.0)[:, None])
    _two_tones(canvas, rng, cut, np.stack([x, y], 2))


def _two_tones(canvas, rng, cut, lines):
    """Strokes lines [lines, points, 2], alternately darker and lighter than the hair."""
    for rows, tone in ((lines[::2], rng.uniform(-0.6, -0.25)), (lines[1::2], rng.uniform(0.1, 0.4))):
        canvas.stroke(curve(rows), rng.uniform(0.015, 0.045), lighten(cut.color, tone), 0.35)
