"""Drawn horses: a torso, tapered limbs on joints, a neck at any height, in a meadow or before a wall.

Horses face left or right, stand, walk, trot, gallop or graze. Mane and saddle cloth are labeled with the neck and
torso they lie on, hooves with the legs, bridle and forelock with the head. Knows horses; the meadow is scenery.
"""

import math
from dataclasses import dataclass

import numpy as np

from partshot.toy.canvas import (
    Canvas,
    Color,
    any_color,
    closed,
    clouds,
    curve,
    fade,
    flat,
    glow,
    hsv,
    limb,
    lit,
    mix,
    oval,
    turned,
)
from partshot.toy.scenery import backdrop, clutter, fabric, fence, landscape, light, noise_grid

HEAD, BODY, LEGS, TAIL = 1, 2, 3, 4

# Coat, mane and tail, lower legs: bay, chestnut, black, gray, palomino, dun, dark bay, white, roan.
COATS = (
    ((0.45, 0.25, 0.13), (0.07, 0.05, 0.05), (0.08, 0.06, 0.06)),
    ((0.62, 0.32, 0.15), (0.60, 0.32, 0.16), (0.55, 0.28, 0.14)),
    ((0.13, 0.11, 0.12), (0.08, 0.07, 0.08), (0.10, 0.09, 0.10)),
    ((0.66, 0.66, 0.68), (0.40, 0.40, 0.43), (0.38, 0.38, 0.41)),
    ((0.83, 0.64, 0.36), (0.95, 0.90, 0.78), (0.85, 0.70, 0.46)),
    ((0.70, 0.58, 0.40), (0.20, 0.15, 0.12), (0.30, 0.23, 0.18)),
    ((0.28, 0.17, 0.11), (0.06, 0.05, 0.05), (0.07, 0.05, 0.05)),
    ((0.92, 0.90, 0.87), (0.88, 0.86, 0.82), (0.86, 0.84, 0.81)),
    ((0.58, 0.47, 0.46), (0.30, 0.20, 0.18), (0.32, 0.24, 0.22)),
)

# Swing of the upper leg and bend of the lower one, radians, for near fore, far fore, near hind, far hind.
GAITS = (
    ((0.0, 0.0), (0.05, 0.0), (0.0, 0.0), (0.08, 0.0)),  # stands
    ((0.28, 0.1), (-0.25, 0.25), (-0.3, 0.1), (0.22, 0.1)),  # walks
    ((0.5, 1.0), (-0.4, 0.2), (-0.45, 0.25), (0.35, 0.2)),  # trots
    ((0.9, 0.5), (0.6, 1.1), (-0.75, 0.15), (-0.5, 0.2)),  # gallops
    ((0.05, 0.0), (0.3, 0.9), (0.05, 0.0), (-0.1, 0.0)),  # paws
)


@dataclass(frozen=True)
class Horse:
    """Its colors, its build, and how it holds itself; the unit is about the length of the torso, x forward, y down."""

    coat: Color
    mane: Color
    points: Color
    gait: tuple[tuple[float, float], ...]
    neck: float
    nod: float
    length: float
    leg: float
    girth: float

    @property
    def poll(self) -> np.ndarray:
        """Where the neck meets the head."""
        reach = 0.56
        return self.withers + reach * np.array([math.cos(self.neck), -math.sin(self.neck)])

    @property
    def withers(self) -> np.ndarray:
        """Where the neck leaves the torso, in the middle of its base."""
        return np.array([0.34 * self.length, -0.1])


def draw_horse(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """One horse: image uint8 [size, size, 3] and ids of "horses" uint8 [size, size]; all chance comes from rng."""
    canvas = Canvas(size)
    horse = _horse(rng)
    facing = 1.0 if rng.uniform() < 0.5 else -1.0
    turn = rng.uniform(0.8, 1.0)  # a horse not quite seen from the side is shorter
    left, right = -0.85 * horse.length, horse.poll[0] + 0.44 * math.cos(horse.nod)
    scale = min(rng.uniform(0.4, 0.55), 0.98 / (turn * (right - left)))
    x, ground = 0.5 + rng.uniform(-0.07, 0.07), rng.uniform(0.84, 0.95)
    hoof = 0.05 + 0.62 * horse.leg
    _scene(canvas, rng, horse, ground - rng.uniform(0.08, 0.3))
    x -= facing * turn * scale * (left + right) / 2
    canvas.paint(oval(x, ground, 0.6 * scale, 0.05), flat((0.02, 0.03, 0.02), 0.45, 0.02))
    with canvas.moved(x, ground - hoof * scale, facing * scale * turn, scale, rng.normal(0, 0.04)):
        _leg(canvas, rng, horse, 1)
        _leg(canvas, rng, horse, 3)
        _tail(canvas, rng, horse)
        _torso(canvas, rng, horse)
        _leg(canvas, rng, horse, 0)
        _leg(canvas, rng, horse, 2)
        _mane(canvas, rng, horse)
        _head(canvas, rng, horse)
    return canvas.develop(rng, light(rng, size), blur=rng.uniform(0, 0.006), noise=rng.uniform(0.5, 7))


def _horse(rng) -> Horse:
    coat, mane, points = COATS[rng.integers(len(COATS))]
    change = rng.uniform(-0.15, 0.15)
    if rng.uniform() < 0.3:
        mane = mix(mane, coat, 0.8)
    grazes = rng.uniform() < 0.2
    return Horse(
        coat=lit(coat, change),
        mane=lit(mane, change / 2),
        points=lit(mix(points, coat, rng.uniform(0, 0.6)), change / 2),
        gait=GAITS[0 if grazes else rng.integers(len(GAITS))],
        neck=rng.uniform(-0.75, -0.5) if grazes else rng.uniform(0.35, 1.1),
        nod=rng.uniform(-1.2, -0.95) if grazes else rng.uniform(-1.0, -0.45),
        length=rng.uniform(0.92, 1.1),
        leg=rng.uniform(0.92, 1.08),
        girth=rng.uniform(0.9, 1.12),
    )


def _scene(canvas, rng, horse, horizon):
    if rng.uniform() < 0.25:
        backdrop(canvas, rng, [horse.coat, horse.mane])
        return
    green = hsv(rng.uniform(0.1, 0.36), rng.uniform(0.25, 0.7), rng.uniform(0.3, 0.75))
    ground = green if rng.uniform() < 0.7 else lit(horse.coat, rng.uniform(-0.2, 0.4))
    landscape(canvas, rng, horizon, ground)
    if rng.uniform() < 0.4:
        fence(canvas, rng, horizon + rng.uniform(0.0, 0.08))
    clutter(canvas, rng, [horse.coat, horse.mane])


def _fur(horse, color, depth=0.0):
    """Lit from above."""
    return fade((0, -0.4), (0, 0.35), lit(color, 0.14 - depth), lit(color, -0.3 - depth))


def _torso(canvas, rng, horse):
    k, g = horse.length, horse.girth
    body = [
        (0.49, -0.02), (0.42, -0.2), (0.22, -0.245), (0.0, -0.2), (-0.22, -0.225), (-0.4, -0.215), (-0.52, -0.1),
        (-0.53, 0.06), (-0.4, 0.14), (-0.22, 0.155), (0.0, 0.2), (0.22, 0.21), (0.4, 0.14),
    ]  # fmt: skip
    points = np.array(body) * (k, 1)
    points[points[:, 1] > 0, 1] *= g
    base, poll = horse.withers, horse.poll
    bend = (base + poll) / 2 + turned(np.array([(0.0, -0.05)]), -horse.neck)[0]
    neck = limb(np.array([base - (0.12, 0), base, bend, poll]), [0.3, 0.4, 0.26, 0.17])
    torso = closed(points)
    canvas.paint(neck, _fur(horse, horse.coat), BODY)
    canvas.paint(torso, _fur(horse, horse.coat), BODY)
    patches = _patches(rng)
    for path in (neck, torso):
        with canvas.clipped(path):
            for patch in patches:
                canvas.paint(patch, flat((0.93, 0.91, 0.88)))
    with canvas.clipped(torso):
        if rng.uniform() < 0.2:
            canvas.wash(clouds(noise_grid(rng, 16, horse.coat, 0.08), 0.5))
        canvas.paint(oval(-0.33 * k, -0.03, 0.2, 0.2), glow(-0.33 * k, -0.08, 0.2, lit(horse.coat, 0.5), 0.3))
        canvas.paint(oval(0.34 * k, 0.0, 0.2, 0.2), glow(0.34 * k, -0.02, 0.2, lit(horse.coat, 0.5), 0.25))
        fold = curve([(0.23 * k, -0.17), (0.2 * k, 0.0), (0.26 * k, 0.14)])
        canvas.line(fold, 0.03, lit(horse.coat, -0.6), 0.4, 0.015)
        flank = curve([(-0.26 * k, -0.1), (-0.2 * k, 0.04), (-0.25 * k, 0.16)])
        canvas.line(flank, 0.03, lit(horse.coat, -0.6), 0.35, 0.015)
        if rng.uniform() < 0.18:
            _saddle(canvas, rng)


def _patches(rng):
    """The large white patches of a pinto; most horses have none."""
    paths = []
    angle = np.linspace(0, 2 * math.pi, 8)[:-1]
    for _ in range(4 if rng.uniform() < 0.18 else 0):
        middle, reach = rng.uniform((-0.5, -0.4), (0.7, 0.2)), rng.uniform(0.06, 0.18, 7)
        paths.append(closed(middle + np.stack([reach * np.cos(angle), reach * np.sin(angle)], 1)))
    return paths


def _saddle(canvas, rng):
    color = any_color(rng)
    cloth = [(-0.2, -0.26), (0.18, -0.28), (0.2, -0.02), (0.0, 0.04), (-0.2, 0.0)]
    canvas.paint(closed(cloth), fabric(rng, color, any_color(rng), 0.2))
    leather = hsv(0.07, 0.6, rng.uniform(0.15, 0.5))
    canvas.paint(
        closed([(-0.14, -0.27), (0.0, -0.24), (0.13, -0.29), (0.1, -0.12), (0.06, 0.0), (-0.04, -0.1)]), flat(leather)
    )
    canvas.line(curve([(0.04, -0.05), (0.05, 0.1), (0.04, 0.2)]), 0.02, lit(leather, -0.4))


def _leg(canvas, rng, horse, which):
    """One leg: 0 near fore, 1 far fore, 2 near hind, 3 far hind."""
    swing, bend = horse.gait[which]
    swing += rng.normal(0, 0.05)
    far, hind = which % 2, which >= 2
    k = horse.leg
    top = np.array([(-0.4 if hind else 0.36) * horse.length + 0.05 * far, 0.02])
    knee = top + 0.33 * k * np.array([math.sin(swing), math.cos(swing)])
    if hind:  # the hock points backward
        knee[0] -= 0.06
    lower = swing - bend if not hind else swing - bend + 0.16
    fetlock = knee + 0.25 * k * np.array([math.sin(lower), math.cos(lower)])
    hoof = fetlock + 0.085 * k * np.array([math.sin(lower + 0.35), math.cos(lower + 0.35)])
    widths = [0.3, 0.24, 0.105, 0.075, 0.085] if hind else [0.2, 0.17, 0.1, 0.07, 0.08]
    path = limb(np.array([top, (top + knee) / 2, knee, fetlock, hoof]), widths)
    depth = 0.28 * far
    upper, points = lit(horse.coat, -0.05 - depth), lit(horse.points, -depth)
    canvas.paint(path, fade(top, hoof, upper, points), LEGS)
    with canvas.clipped(path):
        if rng.uniform() < 0.35:
            canvas.line(curve([fetlock + (0, -0.03), hoof]), 0.16, lit((0.93, 0.91, 0.88), -depth))
        canvas.line(curve([top + (0.07, 0), knee + (0.05, 0), fetlock + (0.03, 0)]), 0.03, lit(upper, 0.3), 0.35, 0.015)
        canvas.line(curve([top - (0.1, 0), knee - (0.05, 0), fetlock - (0.04, 0)]), 0.05, (0.0, 0.0, 0.0), 0.3, 0.02)
    heel = hoof - (0.045, 0.03)
    nail = np.array([(0.01, 0), (0.075, 0.0), (0.105, 0.07), (-0.015, 0.07)])
    canvas.paint(closed(turned(nail, -lower * 0.6) + heel), flat(lit(hsv(0.09, 0.3, 0.25), -depth)), LEGS)


def _tail(canvas, rng, horse):
    root = np.array([-0.5 * horse.length, -0.13])
    fly, length = rng.uniform(0.05, 0.45), rng.uniform(0.45, 0.7)
    points = root + np.array([
        (0.04, 0.02), (-0.06 - 0.12 * fly, -0.02 - 0.08 * fly), (-0.1 - 0.5 * fly, 0.16),
        (-0.1 - 0.75 * fly, length * 0.65), (-0.06 - 0.95 * fly + rng.uniform(-0.08, 0.08), length),
    ])  # fmt: skip
    path = limb(points, [0.05, 0.08, 0.15, 0.16, 0.05])
    canvas.paint(path, _fur(horse, horse.mane), TAIL)
    with canvas.clipped(path):
        offsets = np.linspace(-0.06, 0.06, 5)[:, None, None] * (1, 0.3)
        canvas.line(curve(points[None] + offsets), 0.014, lit(horse.mane, 0.25), 0.35)


def _mane(canvas, rng, horse):
    """Along the crest of the neck."""
    base, poll = horse.withers, horse.poll
    along = np.linspace(0.05, 1.02, 6)[:, None]
    crest = turned(np.array([(0.0, -1.0)]), -horse.neck)[0]
    rim = base + along * (poll - base) + crest * np.linspace(0.17, 0.085, 6)[:, None]
    fall = rng.uniform(0.1, 0.2)
    ends = rim - crest * fall + np.array([-0.03, 0.02]) + rng.normal(0, 0.018, (6, 2))
    path = closed(np.vstack([rim + crest * 0.02, ends[::-1]]))
    canvas.paint(path, _fur(horse, horse.mane), BODY)
    with canvas.clipped(path):
        canvas.line(curve(np.stack([rim, (rim + ends) / 2 + (0.02, 0), ends], 1)), 0.014, lit(horse.mane, 0.25), 0.35)


def _head(canvas, rng, horse):
    """From the poll along the nod; drawn pointing to the right and turned."""
    with canvas.moved(*horse.poll.tolist(), 1.0, angle=-horse.nod):
        coat = horse.coat
        ear = np.array([(-0.05, -0.03), (-0.035, -0.17), (0.02, -0.13), (0.045, -0.05)])
        canvas.paint(closed(ear + (0.045, -0.01)), flat(lit(coat, -0.35)), HEAD)
        skull = [
            (-0.06, -0.06), (0.04, -0.1), (0.16, -0.085), (0.3, -0.05), (0.4, -0.035), (0.445, 0.01), (0.43, 0.065),
            (0.37, 0.085), (0.3, 0.06), (0.18, 0.11), (0.06, 0.135), (-0.03, 0.08),
        ]  # fmt: skip
        path = closed(skull)
        canvas.paint(path, fade((0, -0.12), (0, 0.15), lit(coat, 0.12), lit(coat, -0.3)), HEAD)
        with canvas.clipped(path):
            canvas.paint(oval(0.42, 0.04, 0.09, 0.1), flat(mix(lit(coat, -0.5), (0.2, 0.15, 0.16), 0.5), 0.8, 0.025))
            if rng.uniform() < 0.35:
                canvas.line(curve([(0.08, -0.1), (0.2, -0.08), (0.38, -0.04)]), 0.055, (0.94, 0.92, 0.9))
            canvas.line(curve([(0.08, 0.1), (0.12, 0.02), (0.06, -0.02)]), 0.02, lit(coat, -0.6), 0.35, 0.012)
        canvas.paint(closed(ear), _fur(horse, lit(coat, 0.05)), HEAD)
        if rng.uniform() < 0.7:
            lock = [(-0.02, -0.1), (0.06, -0.11), (0.15, -0.06), (0.08, -0.04), (0.0, -0.05)]
            canvas.paint(closed(lock), flat(horse.mane), HEAD)
        canvas.paint(oval(0.13, -0.035, 0.026, 0.019), flat((0.04, 0.03, 0.03)))
        canvas.paint(oval(0.137, -0.042, 0.008, 0.007), flat((1.0, 1.0, 1.0), 0.9))
        canvas.paint(oval(0.41, 0.01, 0.018, 0.013), flat((0.04, 0.02, 0.02), 0.85))
        canvas.line(curve([(0.43, 0.05), (0.38, 0.048), (0.34, 0.04)]), 0.011, (0.05, 0.03, 0.03), 0.7)
        if rng.uniform() < 0.3:
            strap = any_color(rng)
            canvas.line(curve([(0.27, -0.055), (0.28, 0.0), (0.26, 0.07)]), 0.022, strap)
            canvas.line(curve([(0.27, 0.03), (0.12, 0.05), (-0.02, 0.02)]), 0.02, strap)
