"""Toy horses: a torso, articulated tapered legs and a neck at a random angle, in a landscape or before a backdrop.

Horses face left or right; they stand, walk, trot, gallop, paw or graze. Mane and saddle cloth are labeled as neck and
torso, hooves as legs, bridle and forelock as head. scenery.py draws the background.
"""

import math
from dataclasses import dataclass

import numpy as np

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
    radial_gradient,
    random_color,
    rotated,
    solid,
    stretched_image,
    tapered_stroke,
)
from partshot.toy.scenery import backdrop, clutter, fabric, fence, illumination, landscape, noise_grid

HEAD, BODY, LEGS, TAIL = 1, 2, 3, 4

# Colors of coat, mane and tail, lower legs: bay, chestnut, black, gray, palomino, dun, dark bay, white, roan.
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

# Joint angles in radians (swing of the upper leg, bend of the lower leg) of near fore, far fore, near hind, far hind.
GAITS = (
    ((0.0, 0.0), (0.05, 0.0), (0.0, 0.0), (0.08, 0.0)),  # stands
    ((0.28, 0.1), (-0.25, 0.25), (-0.3, 0.1), (0.22, 0.1)),  # walks
    ((0.5, 1.0), (-0.4, 0.2), (-0.45, 0.25), (0.35, 0.2)),  # trots
    ((0.9, 0.5), (0.6, 1.1), (-0.75, 0.15), (-0.5, 0.2)),  # gallops
    ((0.05, 0.0), (0.3, 0.9), (0.05, 0.0), (-0.1, 0.0)),  # paws
)


@dataclass(frozen=True)
class Horse:
    """Colors, proportions and pose of a horse. The unit is about the length of the torso; x points forward, y down.

    points: color of the lower legs. gait: joint angles of the four legs. neck, nod: angles of neck and head in radians.
    """

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
        """Where the neck meets the torso: the middle of the neck's base."""
        return np.array([0.34 * self.length, -0.1])


def draw_horse(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """One horse: image uint8 [size, size, 3] and ids of "horses" uint8 [size, size], determined by rng."""
    canvas = Canvas(size)
    horse = _horse(rng)
    facing = 1.0 if rng.uniform() < 0.5 else -1.0
    foreshortening = rng.uniform(0.8, 1.0)  # of a horse that is not seen exactly from the side
    left, right = -0.85 * horse.length, horse.poll[0] + 0.44 * math.cos(horse.nod)
    scale = min(rng.uniform(0.4, 0.55), 0.98 / (foreshortening * (right - left)))
    x, ground = 0.5 + rng.uniform(-0.07, 0.07), rng.uniform(0.84, 0.95)
    hoof = 0.05 + 0.62 * horse.leg
    _scene(canvas, rng, horse, ground - rng.uniform(0.08, 0.3))
    x -= facing * foreshortening * scale * (left + right) / 2
    canvas.fill(oval(x, ground, 0.6 * scale, 0.05), solid((0.02, 0.03, 0.02), 0.45, 0.02))
    with canvas.transformed(x, ground - hoof * scale, facing * scale * foreshortening, scale, rng.normal(0, 0.04)):
        _leg(canvas, rng, horse, 1)
        _leg(canvas, rng, horse, 3)
        _tail(canvas, rng, horse)
        _torso(canvas, rng, horse)
        _leg(canvas, rng, horse, 0)
        _leg(canvas, rng, horse, 2)
        _mane(canvas, rng, horse)
        _head(canvas, rng, horse)
    return canvas.render(rng, illumination(rng, size), blur=rng.uniform(0, 0.006), noise=rng.uniform(0.5, 7))


def _horse(rng) -> Horse:
    coat, mane, points = COATS[rng.integers(len(COATS))]
    change = rng.uniform(-0.15, 0.15)
    if rng.uniform() < 0.3:
        mane = mix(mane, coat, 0.8)
    grazes = rng.uniform() < 0.2
    return Horse(
        coat=lighten(coat, change),
        mane=lighten(mane, change / 2),
        points=lighten(mix(points, coat, rng.uniform(0, 0.6)), change / 2),
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
    ground = green if rng.uniform() < 0.7 else lighten(horse.coat, rng.uniform(-0.2, 0.4))
    landscape(canvas, rng, horizon, ground)
    if rng.uniform() < 0.4:
        fence(canvas, rng, horizon + rng.uniform(0.0, 0.08))
    clutter(canvas, rng, [horse.coat, horse.mane])


def _coat_gradient(color):
    """A linear gradient that is brighter at the top."""
    return linear_gradient((0, -0.4), (0, 0.35), lighten(color, 0.14), lighten(color, -0.3))


def _torso(canvas, rng, horse):
    k, g = horse.length, horse.girth
    body = [
        (0.49, -0.02), (0.42, -0.2), (0.22, -0.245), (0.0, -0.2), (-0.22, -0.225), (-0.4, -0.215), (-0.52, -0.1),
        (-0.53, 0.06), (-0.4, 0.14), (-0.22, 0.155), (0.0, 0.2), (0.22, 0.21), (0.4, 0.14),
    ]  # fmt: skip
    points = np.array(body) * (k, 1)
    points[points[:, 1] > 0, 1] *= g
    base, poll = horse.withers, horse.poll
    bend = (base + poll) / 2 + rotated(np.array([(0.0, -0.05)]), -horse.neck)[0]
    neck = tapered_stroke(np.array([base - (0.12, 0), base, bend, poll]), [0.3, 0.4, 0.26, 0.17])
    torso = closed_curve(points)
    canvas.fill(neck, _coat_gradient(horse.coat), BODY)
    canvas.fill(torso, _coat_gradient(horse.coat), BODY)
    patches = _patches(rng)
    for path in (neck, torso):
        with canvas.clipped(path):
            for patch in patches:
                canvas.fill(patch, solid((0.93, 0.91, 0.88)))
    with canvas.clipped(torso):
        if rng.uniform() < 0.2:
            canvas.draw_paint(stretched_image(noise_grid(rng, 16, horse.coat, 0.08), 0.5))
        canvas.fill(
            oval(-0.33 * k, -0.03, 0.2, 0.2), radial_gradient(-0.33 * k, -0.08, 0.2, lighten(horse.coat, 0.5), 0.3)
        )
        canvas.fill(
            oval(0.34 * k, 0.0, 0.2, 0.2), radial_gradient(0.34 * k, -0.02, 0.2, lighten(horse.coat, 0.5), 0.25)
        )
        fold = curve([(0.23 * k, -0.17), (0.2 * k, 0.0), (0.26 * k, 0.14)])
        canvas.stroke(fold, 0.03, lighten(horse.coat, -0.6), 0.4, 0.015)
        flank = curve([(-0.26 * k, -0.1), (-0.2 * k, 0.04), (-0.25 * k, 0.16)])
        canvas.stroke(flank, 0.03, lighten(horse.coat, -0.6), 0.35, 0.015)
        if rng.uniform() < 0.18:
            _saddle(canvas, rng)


def _patches(rng):
    """White patches of a pinto, with probability .18."""
    paths = []
    angle = np.linspace(0, 2 * math.pi, 8)[:-1]
    for _ in range(4 if rng.uniform() < 0.18 else 0):
        middle, reach = rng.uniform((-0.5, -0.4), (0.7, 0.2)), rng.uniform(0.06, 0.18, 7)
        paths.append(closed_curve(middle + np.stack([reach * np.cos(angle), reach * np.sin(angle)], 1)))
    return paths


def _saddle(canvas, rng):
    color = random_color(rng)
    cloth = [(-0.2, -0.26), (0.18, -0.28), (0.2, -0.02), (0.0, 0.04), (-0.2, 0.0)]
    canvas.fill(closed_curve(cloth), fabric(rng, color, random_color(rng), 0.2))
    leather = hsv(0.07, 0.6, rng.uniform(0.15, 0.5))
    canvas.fill(
        closed_curve([(-0.14, -0.27), (0.0, -0.24), (0.13, -0.29), (0.1, -0.12), (0.06, 0.0), (-0.04, -0.1)]),
        solid(leather),
    )
    canvas.stroke(curve([(0.04, -0.05), (0.05, 0.1), (0.04, 0.2)]), 0.02, lighten(leather, -0.4))


def _leg(canvas, rng, horse, which):
    """Draws one leg; which: 0 near fore, 1 far fore, 2 near hind, 3 far hind."""
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
    path = tapered_stroke(np.array([top, (top + knee) / 2, knee, fetlock, hoof]), widths)
    depth = 0.28 * far
    upper, points = lighten(horse.coat, -0.05 - depth), lighten(horse.points, -depth)
    canvas.fill(path, linear_gradient(top, hoof, upper, points), LEGS)
    with canvas.clipped(path):
        if rng.uniform() < 0.35:
            canvas.stroke(curve([fetlock + (0, -0.03), hoof]), 0.16, lighten((0.93, 0.91, 0.88), -depth))
        canvas.stroke(
            curve([top + (0.07, 0), knee + (0.05, 0), fetlock + (0.03, 0)]), 0.03, lighten(upper, 0.3), 0.35, 0.015
        )
        canvas.stroke(curve([top - (0.1, 0), knee - (0.05, 0), fetlock - (0.04, 0)]), 0.05, (0.0, 0.0, 0.0), 0.3, 0.02)
    heel = hoof - (0.045, 0.03)
    nail = np.array([(0.01, 0), (0.075, 0.0), (0.105, 0.07), (-0.015, 0.07)])
    canvas.fill(closed_curve(rotated(nail, -lower * 0.6) + heel), solid(lighten(hsv(0.09, 0.3, 0.25), -depth)), LEGS)


def _tail(canvas, rng, horse):
    root = np.array([-0.5 * horse.length, -0.13])
    lift, length = rng.uniform(0.05, 0.45), rng.uniform(0.45, 0.7)
    points = root + np.array([
        (0.04, 0.02), (-0.06 - 0.12 * lift, -0.02 - 0.08 * lift), (-0.1 - 0.5 * lift, 0.16),
        (-0.1 - 0.75 * lift, length * 0.65), (-0.06 - 0.95 * lift + rng.uniform(-0.08, 0.08), length),
    ])  # fmt: skip
    path = tapered_stroke(points, [0.05, 0.08, 0.15, 0.16, 0.05])
    canvas.fill(path, _coat_gradient(horse.mane), TAIL)
    with canvas.clipped(path):
        offsets = np.linspace(-0.06, 0.06, 5)[:, None, None] * (1, 0.3)
        canvas.stroke(curve(points[None] + offsets), 0.014, lighten(horse.mane, 0.25), 0.35)


def _mane(canvas, rng, horse):
    """Draws the mane along the crest of the neck."""
    base, poll = horse.withers, horse.poll
    along = np.linspace(0.05, 1.02, 6)[:, None]
    crest = rotated(np.array([(0.0, -1.0)]), -horse.neck)[0]
    rim = base + along * (poll - base) + crest * np.linspace(0.17, 0.085, 6)[:, None]
    fall = rng.uniform(0.1, 0.2)
    ends = rim - crest * fall + np.array([-0.03, 0.02]) + rng.normal(0, 0.018, (6, 2))
    path = closed_curve(np.vstack([rim + crest * 0.02, ends[::-1]]))
    canvas.fill(path, _coat_gradient(horse.mane), BODY)
    with canvas.clipped(path):
        canvas.stroke(
            curve(np.stack([rim, (rim + ends) / 2 + (0.02, 0), ends], 1)), 0.014, lighten(horse.mane, 0.25), 0.35
        )


def _head(canvas, rng, horse):
    """Draws the head pointing to the right, rotated about the poll by the nod."""
    with canvas.transformed(*horse.poll.tolist(), 1.0, angle=-horse.nod):
        coat = horse.coat
        ear = np.array([(-0.05, -0.03), (-0.035, -0.17), (0.02, -0.13), (0.045, -0.05)])
        canvas.fill(closed_curve(ear + (0.045, -0.01)), solid(lighten(coat, -0.35)), HEAD)
        skull = [
            (-0.06, -0.06), (0.04, -0.1), (0.16, -0.085), (0.3, -0.05), (0.4, -0.035), (0.445, 0.01), (0.43, 0.065),
            (0.37, 0.085), (0.3, 0.06), (0.18, 0.11), (0.06, 0.135), (-0.03, 0.08),
        ]  # fmt: skip
        path = closed_curve(skull)
        canvas.fill(path, linear_gradient((0, -0.12), (0, 0.15), lighten(coat, 0.12), lighten(coat, -0.3)), HEAD)
        with canvas.clipped(path):
            canvas.fill(
                oval(0.42, 0.04, 0.09, 0.1), solid(mix(lighten(coat, -0.5), (0.2, 0.15, 0.16), 0.5), 0.8, 0.025)
            )
            if rng.uniform() < 0.35:
                canvas.stroke(curve([(0.08, -0.1), (0.2, -0.08), (0.38, -0.04)]), 0.055, (0.94, 0.92, 0.9))
            canvas.stroke(curve([(0.08, 0.1), (0.12, 0.02), (0.06, -0.02)]), 0.02, lighten(coat, -0.6), 0.35, 0.012)
        canvas.fill(closed_curve(ear), _coat_gradient(lighten(coat, 0.05)), HEAD)
        if rng.uniform() < 0.7:
            lock = [(-0.02, -0.1), (0.06, -0.11), (0.15, -0.06), (0.08, -0.04), (0.0, -0.05)]
            canvas.fill(closed_curve(lock), solid(horse.mane), HEAD)
        canvas.fill(oval(0.13, -0.035, 0.026, 0.019), solid((0.04, 0.03, 0.03)))
        canvas.fill(oval(0.137, -0.042, 0.008, 0.007), solid((1.0, 1.0, 1.0), 0.9))
        canvas.fill(oval(0.41, 0.01, 0.018, 0.013), solid((0.04, 0.02, 0.02), 0.85))
        canvas.stroke(curve([(0.43, 0.05), (0.38, 0.048), (0.34, 0.04)]), 0.011, (0.05, 0.03, 0.03), 0.7)
        if rng.uniform() < 0.3:
            strap = random_color(rng)
            canvas.stroke(curve([(0.27, -0.055), (0.28, 0.0), (0.26, 0.07)]), 0.022, strap)
            canvas.stroke(curve([(0.27, 0.03), (0.12, 0.05), (-0.02, 0.02)]), 0.02, strap)
