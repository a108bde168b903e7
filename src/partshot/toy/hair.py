"""Hair for the drawn faces: what hangs behind, what falls over the shoulders, and the cap with its hairline.

A cut is a handful of numbers: volume, length, hairline, wave. Knows how they become shapes on a Head; refuses to know
the face below.
"""

import math
from dataclasses import dataclass

import numpy as np

from partshot.toy.canvas import Canvas, Color, closed, curve, fade, flat, limb, lit, oval
from partshot.toy.head import Head

# name: volume (out of the skull), length of the back (y where it ends, None when nothing shows), hairline, covers ears
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
# Drawn evenly from this row: a name that occurs twice is worn twice as often.
_FREQUENT = (
    "short", "short", "side", "side", "crop", "bob", "long", "swept", "fringed", "curls", "mane", "bun", "tail", "bald",
)  # fmt: skip


@dataclass(frozen=True)
class Cut:
    """How the hair is worn; length: the y at which it ends behind, None when none shows behind the neck."""

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


def choose(rng: np.random.Generator, head: Head, color: Color) -> Cut:
    """A cut for a head; long hair is tucked behind the ears now and then."""
    name = _FREQUENT[rng.integers(len(_FREQUENT))]
    volume, length, hairline, hides = _CUTS[name]
    tucked = rng.uniform() < 0.45
    return Cut(
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


def paint_back(canvas: Canvas, rng: np.random.Generator, cut: Cut, part: int) -> None:
    """What is behind the neck: long hair, a bun, a pony tail."""
    w = cut.head.width + cut.volume
    shift = -0.12 * math.sin(cut.head.yaw)
    dark = lit(cut.color, -0.35)
    if cut.name == "bun":
        r = rng.uniform(0.26, 0.4)
        canvas.paint(oval(shift * 2, -1.02 - r * 0.5, r, r * 0.85), _sheen(cut, -0.1), part)
    elif cut.name == "tail":
        side = -1.0 if cut.head.yaw > 0 else 1.0
        points = np.array([(0.1, -0.75), (0.75, -0.8), (1.02, -0.3), (0.98, 0.4), (1.1, rng.uniform(0.8, 1.5))])
        canvas.paint(limb(points * (side, 1), [0.2, 0.3, 0.36, 0.3, 0.06]), _sheen(cut, -0.12), part)
    elif cut.length is not None:
        end = cut.length
        y = np.linspace(-0.4, end, 6)
        bulge = w * np.array([0.97, 1.02, 1.02, 1.04, 1.05, 0.95])
        right, left = (np.stack([s * bulge + _waves(y, cut, f), y], 1) for s, f in ((1, 0.0), (-1, 2.0)))
        path = closed(np.vstack([[(0, -0.95)], right, [(0.2, end + 0.06)], left[::-1]]) + (shift, 0))
        canvas.paint(path, fade((0, -0.5), (0, end), dark, lit(cut.color, -0.15)), part)
        with canvas.clipped(path):
            _strands(canvas, rng, cut, np.linspace(-w, w, 12) + shift, 0.0, end)


def paint_locks(canvas: Canvas, rng: np.random.Generator, cut: Cut, part: int) -> None:
    """Long hair that falls over the shoulders, in front of the clothes."""
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
        path = limb(np.stack([x, y], 1), width)
        canvas.paint(path, _sheen(cut, -0.05), part)
        with canvas.clipped(path):
            middle = side * (cut.head.width + cut.volume - 0.15) + shift
            _strands(canvas, rng, cut, middle + np.array([-0.1, -0.04, 0.03, 0.09]), -0.5, end)


def paint_front(canvas: Canvas, rng: np.random.Generator, cut: Cut, part: int) -> None:
    """The cap from ear to ear with its hairline, over the face."""
    if cut.hairline == "bald" and rng.uniform() < 0.5:
        return
    outer, inner = _cap(rng, cut)
    outlines = [np.vstack([outer, inner])] if cut.hairline != "bald" else _fringe_of_the_bald(cut, outer)
    for outline in outlines:
        path = closed(outline)
        with canvas.clipped(closed(cut.head.outline())):
            canvas.paint(path, flat((0.05, 0.02, 0.02), 0.5, 0.05))  # the shadow it throws on the face
        if cut.name in ("curls", "mane"):
            path = _curly(rng, cut, path, outer, inner)
        canvas.paint(path, _sheen(cut, 0.0), part)
        with canvas.clipped(path):
            _comb(canvas, rng, cut, outer, inner)


def _cap(rng, cut):
    """The contour from the left ear over the crown to the right one [9, 2], and the hairline back [10, 2]."""
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
    return outer, head.place(np.stack([x, even], 1))


def _fringe_of_the_bald(cut, outer):
    """Hair left above the ears only."""
    rim = np.array([(-0.5, -0.6), (-0.54, -0.28), (-0.66, 0.1)])
    left, right = (cut.head.place(rim * (s, 1)) for s in (1, -1))
    return [np.vstack([outer[:3], left]), np.vstack([outer[:-4:-1], right])]


def _curly(rng, cut, path, outer, inner):
    """Bumps along both contours."""
    middle = np.vstack([outer, (outer[1:-1] + outer[:-2]) / 2])
    for x, y in middle:
        r = cut.volume * rng.uniform(0.55, 0.95)
        path.addOval(_square(x * 0.97, y * 0.97, r))
    for x, y in inner[1:-1]:
        path.addOval(_square(x, y - 0.05, rng.uniform(0.09, 0.15)))
    return path


def _square(x, y, r):
    return oval(x, y, r, r).getBounds()


def _sheen(cut, shade):
    base = lit(cut.color, shade)
    return fade((-0.3, -1.2), (0.35, 0.6), lit(base, 0.12), lit(base, -0.25))


def _waves(y, cut, phase):
    return cut.wave * np.sin(5.5 * y + phase)


def _comb(canvas, rng, cut, outer, inner):
    """Strands from the parting to the hairline, and a band of gloss."""
    top = np.array([cut.part if cut.hairline == "parted" else 0.0, -1.0 - cut.volume * 0.7])
    roots = inner[rng.permutation(len(inner))[:8]] + rng.uniform(-0.06, 0.06, (8, 1))
    out = roots[:, :1] - top[0]
    bend = (top + roots) / 2 + np.hstack([0.22 * out, -0.16 * np.abs(out)])
    _two_tones(canvas, rng, cut, np.stack([np.broadcast_to(top, roots.shape), bend, roots], 1))
    gloss = outer[2:7] * 0.9
    canvas.line(curve(gloss), 0.08, lit(cut.color, 0.6), rng.uniform(0.05, 0.35), 0.04)


def _strands(canvas, rng, cut, x, top, bottom):
    """Hanging strands at the given x."""
    y = np.broadcast_to(np.linspace(top, bottom, 5), (len(x), 5))
    x = x[:, None] + _waves(y, cut, np.where(x > 0, 0.0, 2.0)[:, None])
    _two_tones(canvas, rng, cut, np.stack([x, y], 2))


def _two_tones(canvas, rng, cut, lines):
    """Every other line [lines, points, 2] darker than the hair, the rest lighter."""
    for rows, tone in ((lines[::2], rng.uniform(-0.6, -0.25)), (lines[1::2], rng.uniform(0.1, 0.4))):
        canvas.line(curve(rows), rng.uniform(0.015, 0.045), lit(cut.color, tone), 0.35)
