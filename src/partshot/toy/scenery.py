"""Backgrounds, fabrics, clutter and illumination of the toy images.

Backgrounds are walls, rooms, landscapes and patterns. Some of their colors are copied from the foreground on purpose,
so that color alone does not separate a part from the background. Everything drawn here has the background label.
"""

import math

import numpy as np
import skia

from partshot.toy.canvas import (
    Canvas,
    Color,
    closed_curve,
    curve,
    hsv,
    lighten,
    linear_gradient,
    mix,
    oval,
    polygon,
    random_color,
    rect,
    rects,
    solid,
    stretched_image,
    tiled_image,
)


def noise_grid(rng: np.random.Generator, cells: int, color: Color, spread: float) -> np.ndarray:
    """A coarse grid [cells, cells, 3] of random colors around one: brightness varies most, hue a little."""
    gray = rng.standard_normal((cells, cells, 1)) * spread
    return np.array(color) + gray + rng.standard_normal((cells, cells, 3)) * spread * 0.35


def fabric(rng: np.random.Generator, first: Color, second: Color, width: float) -> skia.Paint:
    """A textile paint in two colors: plain, stripes, checks, plaid, dots or a mottled weave; width: of one tile."""
    n = 16
    row, column = np.mgrid[0:n, 0:n] / n
    kind = rng.integers(7)
    angle = (0.0, math.pi / 2, math.pi / 4, -math.pi / 5)[rng.integers(4)]
    if kind <= 1:
        return tiled_image(noise_grid(rng, n, first, 0.02), width, angle)
    if kind == 2:
        t = (column < rng.uniform(0.25, 0.6)).astype(float)
    elif kind == 3:
        t = ((row < 0.5) ^ (column < 0.5)).astype(float)
    elif kind == 4:
        t = ((row < 0.35).astype(float) + (column < 0.35)) / 2
    elif kind == 5:
        t = (np.hypot(row - 0.5, column - 0.5) < rng.uniform(0.2, 0.36)).astype(float)
    else:
        t = np.clip(rng.standard_normal((n, n)) * 0.35 + 0.4, 0, 1)
    return tiled_image(np.array(first) + (np.array(second) - np.array(first)) * t[..., None], width, angle)


def backdrop(canvas: Canvas, rng: np.random.Generator, foreground: list[Color]) -> None:
    """Draws a wall, a pattern, a room or a landscape, with clutter.

    foreground: colors of the foreground object; some background colors are taken from them.
    """
    first, second = (_foreground_or_random(rng, foreground, 0.3) for _ in range(2))
    paint = (_wall, _mottled, _pattern, _room, _bokeh, _open_air)[rng.integers(6)]
    paint(canvas, rng, first, second)
    clutter(canvas, rng, foreground)
    if rng.uniform() < 0.35:
        grain = noise_grid(rng, int(rng.integers(4, 20)), (0.5, 0.5, 0.5), rng.uniform(0.08, 0.25))
        canvas.draw_paint(stretched_image(grain), skia.BlendMode.kSoftLight)


def _foreground_or_random(rng, foreground, probability) -> Color:
    if foreground and rng.uniform() < probability:
        return lighten(foreground[rng.integers(len(foreground))], rng.uniform(-0.15, 0.15))
    return random_color(rng)


def _wall(canvas, rng, first, second):
    a = rng.uniform(0, 2 * math.pi)
    d = 0.6 * np.array([math.cos(a), math.sin(a)])
    canvas.draw_paint(linear_gradient(0.5 - d, 0.5 + d, first, mix(first, second, rng.uniform(0.2, 1))))


def _mottled(canvas, rng, first, second):
    canvas.draw_paint(stretched_image(noise_grid(rng, int(rng.integers(3, 12)), mix(first, second, 0.3), 0.13)))


def _pattern(canvas, rng, first, second):
    second = mix(first, second, rng.uniform(0.25, 0.8))
    canvas.draw_paint(fabric(rng, first, second, rng.uniform(0.06, 0.3)))


def _room(canvas, rng, first, second):
    _wall(canvas, rng, first, mix(first, second, 0.4))
    x, y, w, h = rng.uniform(-0.1, 0.8), rng.uniform(-0.1, 0.3), rng.uniform(0.2, 0.5), rng.uniform(0.25, 0.6)
    frame = lighten(second, -0.3)
    canvas.fill(rect(x, y, x + w, y + h), solid(frame))
    canvas.fill(
        rect(x + 0.025, y + 0.025, x + w - 0.025, y + h - 0.025),
        linear_gradient((x, y), (x + w, y + h), lighten(second, 0.5), random_color(rng)),
    )
    shelf = rng.uniform(0.35, 0.8)
    left = rng.uniform(0, 0.7)
    for _ in range(rng.integers(3, 9)):
        width, height = rng.uniform(0.02, 0.06), rng.uniform(0.1, 0.2)
        canvas.fill(rect(left, shelf - height, left + width, shelf), solid(lighten(random_color(rng), -0.2)))
        left += width + 0.003
    canvas.fill(rect(left - 0.5, shelf, left + 0.1, shelf + 0.02), solid(frame))


def _bokeh(canvas, rng, first, second):
    canvas.draw_paint(linear_gradient((0, 0), (rng.uniform(-0.4, 0.4), 1), lighten(first, -0.4), lighten(second, -0.2)))
    for _ in range(rng.integers(6, 16)):
        x, y, r = rng.uniform(), rng.uniform(), rng.uniform(0.03, 0.13)
        canvas.fill(
            oval(x, y, r, r), solid(lighten(mix(first, second, rng.uniform()), 0.3), rng.uniform(0.2, 0.6), 0.006)
        )


def _open_air(canvas, rng, first, second):
    landscape(canvas, rng, rng.uniform(0.45, 0.8), hsv(rng.uniform(0.18, 0.38), 0.5, rng.uniform(0.3, 0.7)))


def clutter(canvas: Canvas, rng: np.random.Generator, foreground: list[Color]) -> None:
    """Draws up to three balls, boxes or blobs near the sides, often in the foreground colors."""
    for _ in range(rng.integers(0, 4)):
        _object(canvas, rng, _foreground_or_random(rng, foreground, 0.6))


def _object(canvas, rng, color):
    x = rng.uniform(-0.05, 0.3) if rng.uniform() < 0.5 else rng.uniform(0.7, 1.05)
    y, r, stretch = rng.uniform(0, 1), rng.uniform(0.04, 0.16), rng.uniform(0.6, 1.6)
    paint = linear_gradient((x - r, y - r), (x + r, y + r), lighten(color, 0.15), lighten(color, -0.35))
    kind = rng.integers(3)
    if kind == 0:
        canvas.fill(oval(x, y, r, r * stretch), paint)
    elif kind == 1:
        canvas.fill(rect(x - r, y - r * stretch, x + r, y + r * stretch), paint)
    else:
        angle = np.linspace(0, 2 * math.pi, 8)[:-1]
        reach = r * rng.uniform(0.6, 1.2, 7)
        canvas.fill(closed_curve(np.stack([x + reach * np.cos(angle), y + stretch * reach * np.sin(angle)], 1)), paint)


def landscape(canvas: Canvas, rng: np.random.Generator, horizon: float, ground: Color) -> None:
    """Draws sky, hills, trees or houses, and a ground of the given color below `horizon` (y in 0..1)."""
    sky = hsv(rng.uniform(0.52, 0.64), rng.uniform(0.05, 0.55), rng.uniform(0.6, 1.0))
    if rng.uniform() < 0.2:
        sky = hsv(rng.uniform(0.0, 0.12), rng.uniform(0.2, 0.5), rng.uniform(0.7, 0.95))
    canvas.draw_paint(linear_gradient((0, 0), (0, horizon), sky, lighten(sky, rng.uniform(0.2, 0.6))))
    for _ in range(rng.integers(0, 4)):
        x, y, w = rng.uniform(), rng.uniform(0, horizon * 0.7), rng.uniform(0.08, 0.2)
        canvas.fill(oval(x, y, w, w * 0.3), solid((1.0, 1.0, 1.0), rng.uniform(0.3, 0.8), 0.02))
    _hills(canvas, rng, horizon)
    kind = rng.integers(4)
    if kind <= 1:
        _trees(canvas, rng, horizon)
    elif kind == 2:
        _houses(canvas, rng, horizon)
    meadow = noise_grid(rng, 56, ground, 0.05)
    canvas.fill(rect(-0.1, horizon, 1.1, 1.1), stretched_image(meadow))
    canvas.fill(
        rect(-0.1, horizon, 1.1, 1.1), linear_gradient((0, horizon), (0, 1), lighten(ground, 0.35), ground, (0.6, 0.0))
    )


def _hills(canvas, rng, horizon):
    x = np.linspace(-0.2, 1.2, 8)
    y = horizon - rng.uniform(0, 0.16, 8)
    color = hsv(rng.uniform(0.25, 0.6), rng.uniform(0.15, 0.5), rng.uniform(0.35, 0.7))
    top = closed_curve(np.vstack([np.stack([x, y], 1), [(1.3, horizon + 0.2), (-0.3, horizon + 0.2)]]))
    canvas.fill(top, linear_gradient((0, horizon - 0.15), (0, horizon), color, lighten(color, 0.25)))


def _trees(canvas, rng, horizon):
    leaves = hsv(rng.uniform(0.1, 0.4), rng.uniform(0.3, 0.7), rng.uniform(0.2, 0.55))
    for _ in range(rng.integers(2, 7)):
        x, h = rng.uniform(-0.05, 1.05), rng.uniform(0.15, 0.42)
        canvas.stroke(curve([(x, horizon + 0.03), (x + 0.01, horizon - h * 0.6)]), 0.02 + 0.02 * h, (0.26, 0.18, 0.12))
        for _ in range(4):
            dx, dy, r = rng.uniform(-0.4, 0.4) * h, rng.uniform(0.4, 1.0) * h, rng.uniform(0.18, 0.32) * h
            green = lighten(leaves, rng.uniform(-0.25, 0.2))
            canvas.fill(oval(x + dx * 0.6, horizon - dy, r, r), solid(green))


def _houses(canvas, rng, horizon):
    x = rng.uniform(-0.2, 0.0)
    while x < 1.0:
        w, h = rng.uniform(0.12, 0.35), rng.uniform(0.15, horizon * 0.9)
        wall = hsv(rng.uniform(0, 0.15), rng.uniform(0, 0.45), rng.uniform(0.35, 0.9))
        canvas.fill(
            rect(x, horizon - h, x + w, horizon + 0.02),
            linear_gradient((x, 0), (x + w, 0), lighten(wall, 0.1), lighten(wall, -0.2)),
        )
        pane = lighten(mix(wall, (0.2, 0.25, 0.35), 0.8), rng.uniform(-0.2, 0.2))
        with canvas.clipped(rect(x + 0.02, horizon - h + 0.02, x + w - 0.02, horizon - 0.05)):
            corners = [(x + 0.016 + 0.08 * i, horizon - h + 0.04 + 0.1 * j) for i in range(4) for j in range(7)]
            canvas.fill(rects(corners, 0.045, 0.055), solid(pane))
        x += w + rng.uniform(0, 0.12)


def fence(canvas: Canvas, rng: np.random.Generator, y: float) -> None:
    """Draws a rail fence at height y."""
    color = hsv(rng.uniform(0.05, 0.12), rng.uniform(0, 0.5), rng.uniform(0.3, 0.95))
    posts = [(x, y - 0.16) for x in np.arange(rng.uniform(-0.1, 0.1), 1.1, rng.uniform(0.16, 0.26))]
    canvas.fill(rects(posts, 0.024, 0.21), solid(lighten(color, -0.1)))
    for dy in (0.13, 0.06):
        canvas.fill(polygon([(0, y - dy), (1, y - dy), (1, y - dy + 0.024), (0, y - dy + 0.024)]), solid(color))


def illumination(rng: np.random.Generator, size: int) -> np.ndarray:
    """Random illumination, a gain float32 [size, size, 3].

    It combines brightness, a linear gradient, a color cast and, with probability .35, a highlight.
    """
    angle, slope = rng.uniform(0, 2 * math.pi), rng.uniform(0.0, 0.55)
    axis = ((np.arange(size) + 0.5) / size - 0.5).astype(np.float32)
    x, y = axis[None, :, None], axis[:, None, None]
    gain = 1 + slope * (math.cos(angle) * x + math.sin(angle) * y)
    highlight, strength = rng.uniform(-0.6, 0.6, 2), rng.uniform(0.1, 0.45)
    if rng.uniform() < 0.35:
        gain += np.float32(strength) * np.exp(-6 * (x - highlight[0]) ** 2) * np.exp(-6 * (y - highlight[1]) ** 2)
    cast = np.array(mix((1.0, 1.0, 1.0), hsv(rng.uniform(), 0.3, 1.0), rng.uniform(0, 0.8) ** 1.5))
    return gain.astype(np.float32) * (cast * rng.uniform(0.75, 1.2)).astype(np.float32)
