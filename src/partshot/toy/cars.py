"""Drawn cars: a side profile pulled out to a solid, turned, seen in perspective and painted from back to front.

Any model is a profile and a few lengths; views run from the pure side to nearly the front or the rear, heading left or
right. Tyres and rims are wheel; mirrors, bumpers and grille are body. Knows cars; the street is scenery.
"""

import math

import numpy as np

from partshot.toy.canvas import (
    Canvas,
    any_color,
    box,
    closed,
    curve,
    fade,
    flat,
    hsv,
    lit,
    mix,
    oval,
    polygon,
)
from partshot.toy.car_models import MODELS, Car, View, facing, rounded
from partshot.toy.scenery import backdrop, clutter, landscape, light

BODY, WHEEL, WINDOW, LIGHT, PLATE = 1, 2, 3, 4, 5


def draw_car(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """One car: image uint8 [size, size, 3] and ids of "cars" uint8 [size, size]; all chance comes from rng."""
    canvas = Canvas(size)
    car = _car(rng)
    outline = np.vstack([car.side(car.model.profile, s) for s in (1.0, -1.0)])
    low, high = outline.min(0), outline.max(0)
    span = high - low
    scale = min(rng.uniform(0.68, 0.96) / span[0], 0.7 / span[1])
    x = 0.5 + rng.uniform(-0.5, 0.5) * (0.98 - span[0] * scale)
    y = rng.uniform(max(0.6, span[1] * scale + 0.08), 0.9)
    middle = (low + high) / 2
    mirror = 1.0 if rng.uniform() < 0.5 else -1.0
    _scene(canvas, rng, car, y - 0.35 * span[1] * scale)
    with canvas.moved(x - mirror * middle[0] * scale, y - high[1] * scale, mirror * scale, scale):
        _shadow(canvas, car)
        _wheels(canvas, rng, car, -1.0)
        _solid(canvas, rng, car)
        _ends(canvas, rng, car)
        _flank(canvas, rng, car)
        _glass(canvas, rng, car)
        _lamps(canvas, rng, car)
        _wheels(canvas, rng, car, 1.0)
    return canvas.develop(rng, light(rng, size), blur=rng.uniform(0, 0.006), noise=rng.uniform(0.5, 7))


def _car(rng) -> Car:
    yaw = rng.uniform(0.3, 1.1) * (1 if rng.uniform() < 0.6 else -1) if rng.uniform() < 0.8 else rng.uniform(-0.2, 0.2)
    view = View(yaw, rng.uniform(0.04, 0.27), rng.uniform(8, 18))
    paint = hsv(rng.uniform(), rng.uniform(0.5, 0.95), rng.uniform(0.35, 0.95))
    if rng.uniform() < 0.45:
        paint = lit(mix((0.93, 0.93, 0.94), (0.07, 0.07, 0.09), rng.uniform()), 0.0)
    trim = lit(paint, -0.5) if rng.uniform() < 0.5 else (0.12, 0.12, 0.13)
    return Car(MODELS[rng.integers(len(MODELS))], view, paint, trim, rng.uniform(0.8, 0.92))


def _scene(canvas, rng, car, horizon):
    if rng.uniform() < 0.25:
        backdrop(canvas, rng, [car.paint])
        return
    horizon = min(max(horizon, 0.25), 0.62)
    gray = mix((0.5, 0.5, 0.5), hsv(rng.uniform(), 0.5, 0.6), rng.uniform(0, 0.35))
    road = lit(gray, rng.uniform(-0.5, 0.3))
    landscape(canvas, rng, horizon, road)
    clutter(canvas, rng, [car.paint, (0.1, 0.1, 0.1)])
    if rng.uniform() < 0.6:
        curb = horizon + rng.uniform(0.02, 0.06)
        canvas.paint(box(0, horizon, 1, curb), flat(lit(road, rng.uniform(-0.3, 0.4)), 0.8))
    if rng.uniform() < 0.5:
        y = rng.uniform(0.9, 0.97)
        dash = np.array([(0, 0), (0.17, 0), (0.15, 0.025), (-0.02, 0.025)])
        for x in np.arange(rng.uniform(-0.2, 0), 1, 0.3):
            canvas.paint(polygon(dash + (x, y)), flat((1.0, 1.0, 0.9), 0.7))


def _shadow(canvas, car):
    ends = car.model.profile[0][0] - 0.15, car.model.profile[-1][0] + 0.15
    w = car.half * 1.1
    floor = np.array([(ends[0], 0, -w), (ends[1], 0, -w), (ends[1], 0, w), (ends[0], 0, w)])
    canvas.paint(polygon(car.view.project(floor)), flat((0.0, 0.0, 0.03), 0.65, 0.1))
    inner = floor * (0.92, 1, 0.9) + (0, 0.03, 0)
    canvas.paint(polygon(car.view.project(inner)), flat((0.02, 0.02, 0.03), 0.9))


def _wheels(canvas, rng, car, side):
    """Both wheels of one side: 1.0 the near, -1.0 the far one, of which only the tyres are seen."""
    rim = lit((0.75, 0.76, 0.78), rng.uniform(-0.6, 0.15))
    spokes, phase = int(rng.integers(4, 10)), rng.uniform(0, 6)
    flank = polygon(car.side(rounded(car.model.profile)))
    for x in (car.model.profile[0][0] + 0.78, car.model.profile[-1][0] - 0.8):
        arch, back, middle, face, hub, well, cap = _disks(car, x, side)
        if side > 0:
            with canvas.clipped(flank):
                canvas.paint(closed(arch), flat((0.02, 0.02, 0.03)), BODY)
        for disk, gray in ((back, 0.055), (middle, 0.08), (face, 0.115)):
            canvas.paint(closed(disk), flat((gray, gray, gray)), WHEEL)
        if side > 0:
            canvas.paint(closed(hub), fade(hub[4], hub[12], lit(rim, 0.25), lit(rim, -0.45)))
            canvas.paint(closed(well), flat((0.05, 0.05, 0.06), 0.75))
            angle = phase + np.arange(spokes) * 2 * np.pi / spokes
            center, right, down = face.mean(0), face[0] - face.mean(0), face[4] - face.mean(0)
            tips = center + 0.6 * (np.cos(angle)[:, None] * right + np.sin(angle)[:, None] * down)
            canvas.line(curve(np.stack([np.broadcast_to(center, tips.shape), tips], 1)), 0.05, rim)
            canvas.paint(closed(cap), flat(lit(rim, 0.2)))


def _disks(car, x, side):
    """The circles of a wheel at x as seen [7, 16, 2]: arch, inner edge, tread, face, hub, its well, the cap."""
    radius = car.model.wheels * np.array([1.2, 1.0, 1.0, 1.0, 0.66, 0.56, 0.15])[:, None]
    depth = np.array([0.0, 0.22, 0.1, 0.0, 0.0, 0.0, 0.0])[:, None]
    turn = np.linspace(0, 2 * np.pi, 17)[:-1]
    z = np.broadcast_to(side * (car.half - depth), (7, 16))
    points = np.stack([x + radius * np.cos(turn), car.model.wheels + radius * np.sin(turn), z], -1)
    return car.view.project(points.reshape(-1, 3)).reshape(7, 16, 2)


def _solid(canvas, rng, car):
    """The strips across the car, from the far ones to the near ones, then the near side."""
    profile = rounded(car.model.profile)
    near, far = car.side(profile), car.side(profile, -1.0)
    canvas.paint(polygon(far), flat(lit(car.paint, -0.6)), BODY)
    toward = profile[:, 0] * math.sin(car.view.yaw) + profile[:, 1] * math.sin(car.view.pitch)
    step = profile[1:] - profile[:-1]
    normal = np.stack([-step[:, 1], step[:, 0]], 1) / np.maximum(np.hypot(*step.T), 1e-6)[:, None]
    quads = np.stack([near[:-1], near[1:], far[1:], far[:-1]], 1)
    seen = facing(quads) < 0
    for i in np.argsort(toward[1:] + toward[:-1]):
        if not seen[i]:
            continue
        glare = 0.3 * max(normal[i, 1], 0.0) ** 2 - 0.32 * max(-normal[i, 1], 0.0) - 0.18 * abs(normal[i, 0])
        path, color = polygon(quads[i]), lit(car.paint, glare)
        canvas.paint(path, flat(color), BODY)
        canvas.line(path, 0.012, color)  # else the background shines through where two strips meet
    path = polygon(near)
    top, belt, sill = (car.side([(0.0, h)])[0] for h in (car.model.roof, car.model.belt - 0.1, 0.35))
    canvas.paint(path, fade(top, sill, lit(car.paint, 0.2), lit(car.paint, -0.45)), BODY)
    with canvas.clipped(path):
        shine = [(x, car.model.belt - 0.12) for x in (-2.5, 0, 2.5)]
        canvas.line(curve(car.side(shine)), 0.09, lit(car.paint, 0.6), rng.uniform(0.2, 0.6), 0.04)
        canvas.line(curve(car.side([(x, 0.36) for x in (-2.5, 0, 2.5)])), 0.16, car.trim)


def _flank(canvas, rng, car):
    """Doors, handles, sometimes a stripe."""
    model = car.model
    ink = lit(car.paint, -0.7)
    span = np.array([model.rear[0], model.front[0]])
    edges = [span[0] + 0.35, *(span[0] + t * (span[1] - span[0]) for t in model.pillars), span[1] - 0.12]
    if model.belt < 1.1 or rng.uniform() < 0.7:
        for x in edges[1:]:
            line = [(x, model.belt), (x + 0.03, 0.7), (x - 0.02, 0.42)]
            canvas.line(curve(car.side(line)), 0.022, ink, 0.8)
        for x in edges[1:]:
            handle = [(x - 0.3, model.belt - 0.14), (x - 0.2, model.belt - 0.135), (x - 0.12, model.belt - 0.14)]
            canvas.line(curve(car.side(handle)), 0.04, lit(car.paint, -0.45))
    if rng.uniform() < 0.2:
        stripe = [(x, model.belt - 0.25) for x in (-1.6, 0.0, 1.5)]
        canvas.line(curve(car.side(stripe)), 0.07, any_color(rng), 0.9)


def _glass(canvas, rng, car):
    model = car.model
    tone = mix((0.1, 0.13, 0.16), (0.45, 0.55, 0.62), rng.uniform() ** 1.5)
    if rng.uniform() < 0.12:
        tone = lit(car.paint, -0.3)
    low, high = model.belt + 0.02, model.roof - 0.07
    bottom = np.array([model.rear[0] + 0.16, model.front[0] - 0.17])
    top = np.array([model.rear[1] + 0.08, model.front[1] - 0.06])
    cuts = [0.0, *model.pillars, 1.0]
    blind = model.roof > 1.8 and rng.uniform() < 0.6  # a delivery van has glass beside the driver only
    for k in range(len(cuts) - 1):
        if blind and k < len(cuts) - 2:
            continue
        t = np.array([cuts[k] + 0.02 * (k > 0), cuts[k + 1] - 0.02 * (k < len(cuts) - 2)])
        b, u = bottom[0] + t * (bottom[1] - bottom[0]), top[0] + t * (top[1] - top[0])
        shape = np.array([(b[0], low), (u[0], high), (u[1], high), (b[1], low)])
        _pane(canvas, car, car.side(shape), tone)
    for base, tip in ((model.front, 1), (model.rear, 0)):
        _screen(canvas, car, base, bool(tip), tone)
    x = model.front[0] - 0.3
    mirror = car.side([(x, low), (x + 0.05, low + 0.15), (x + 0.16, low + 0.14), (x + 0.16, low)], out=0.14)
    canvas.paint(closed(mirror), flat(lit(car.paint, -0.2)), BODY)


def _screen(canvas, car, base, front, tone):
    """The windshield or the rear window, when it faces the viewer."""
    low, high = car.model.belt + 0.03, car.model.roof - 0.05
    t = np.array([0.06, 0.9])
    x = base[0] + t * (base[1] - base[0])
    y = low + t * (high - low)
    w = car.width(x, y) * 0.88
    corners = [(x[0], y[0], w[0]), (x[1], y[1], w[1]), (x[1], y[1], -w[1]), (x[0], y[0], -w[0])]
    quad = car.view.project(np.array(corners))
    if (facing(quad[None])[0] > 0) == front:
        _pane(canvas, car, quad, lit(tone, 0.08))


def _pane(canvas, car, quad, tone):
    path = polygon(quad)
    middle = quad.mean(0)
    canvas.paint(path, fade(quad.min(0), quad.max(0), lit(tone, 0.35), lit(tone, -0.25)), WINDOW)
    with canvas.clipped(path):
        streak = np.array([(-0.3, 0.4), (-0.05, -0.4), (0.12, -0.4), (-0.13, 0.4)]) + middle
        canvas.paint(polygon(streak), flat((1.0, 1.0, 1.0), 0.22))
    canvas.line(path, 0.02, (0.03, 0.03, 0.04), 0.8)


def _ends(canvas, rng, car):
    """Grille or tailgate, bumper and plate of the end that is seen."""
    if abs(car.view.yaw) < 0.06:
        return
    front = car.view.yaw > 0
    low, waist = car.model.profile[0][1], car.model.belt

    def panel(bottom, top, half):
        return car.end([bottom, top, top, bottom], [-half, -half, half, half], front)

    canvas.paint(polygon(panel(low, low + 0.2, 0.97)), flat(car.trim))
    if front:
        top = low + (waist - low) * 0.62
        canvas.paint(polygon(panel(top - 0.14, top, 0.45)), flat((0.06, 0.06, 0.07)))
        for h in (top - 0.11, top - 0.07, top - 0.03):
            canvas.line(curve(car.end([h, h, h], [-0.44, 0, 0.44], True)), 0.018, (0.6, 0.6, 0.62), 0.8)
    else:
        seam = low + (waist - low) * 0.45
        canvas.line(curve(car.end([seam] * 3, [-0.85, 0, 0.85], False)), 0.025, lit(car.paint, -0.6), 0.8)
    height = low + (0.12 if front else rng.uniform(0.1, 0.32))
    board = panel(height, height + 0.19, 0.36)
    ground = ((0.95, 0.95, 0.93), (0.95, 0.95, 0.93), (0.96, 0.8, 0.25), (0.85, 0.9, 0.97))[rng.integers(4)]
    canvas.paint(polygon(board), flat(ground), PLATE)
    middle = height + 0.095
    for z in np.linspace(-0.26, 0.26, 6):
        stroke = car.end([middle - 0.045, middle + 0.045], [z, z + rng.uniform(-0.03, 0.03)], front)
        canvas.line(curve(stroke), 0.025, (0.1, 0.1, 0.15), 0.85)


def _lamps(canvas, rng, car):
    low, waist = car.model.profile[0][1], car.model.belt
    round_ones = rng.uniform() < 0.4
    for front in (True, False):
        color = (0.97, 0.96, 0.86) if front else (0.82, 0.08, 0.08)
        middle = low + (waist - low) * (0.6 if front else 0.68)
        tall = rng.uniform(0.08, 0.12) if front else rng.uniform(0.08, 0.17)
        y = np.array([middle - tall, middle + tall])
        x = car.reach(y, front)
        back = -0.3 if front else 0.22
        wrap = [(x[0], y[0]), (x[1], y[1]), (x[1] + back, y[1] - 0.03), (x[0] + back * 0.5, y[0])]
        _lamp(canvas, car.side(wrap, out=0.005), color, False)
        if (car.view.yaw > 0) != front or abs(car.view.yaw) < 0.06:
            continue
        for side in (-1, 1):
            if round_ones and front:
                turn = np.linspace(0, 2 * np.pi, 13)[:-1]
                z = side * 0.74 + 0.19 * np.cos(turn)
                _lamp(canvas, car.end(middle + 0.13 * np.sin(turn), z, front), color, True)
            else:
                z = side * np.array([0.52, 0.56, 0.99, 0.99])
                _lamp(canvas, car.end([y[0] + 0.02, y[1], y[1], y[0]], z, front), color, False)


def _lamp(canvas, points, color, smooth):
    path = closed(points) if smooth else polygon(points)
    canvas.paint(path, fade(points.min(0), points.max(0), lit(color, 0.4), lit(color, -0.2)), LIGHT)
    canvas.line(path, 0.018, (0.1, 0.1, 0.1), 0.6)
    x, y = points.mean(0)
    canvas.paint(oval(x, y, 0.035, 0.035), flat(lit(color, 0.8), 0.8))
