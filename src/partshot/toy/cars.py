"""Toy cars: a side profile extruded to a solid, rotated, projected in perspective and drawn from back to front.

Models are in car_models.py. Views range from the side to nearly the front or the rear, heading left or right. Tires
and rims are labeled as wheel, bumpers and grille as body. scenery.py draws the background.
"""

import math

import numpy as np

from partshot.toy.canvas import (
    Canvas,
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
    solid,
)
from partshot.toy.car_models import MODELS, Car, View, facing, rounded
from partshot.toy.scenery import backdrop, clutter, illumination, landscape

BODY, WHEEL, WINDOW, LIGHT, PLATE = 1, 2, 3, 4, 5


def draw_car(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """One car: image uint8 [size, size, 3] and ids of "cars" uint8 [size, size], determined by rng."""
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
    with canvas.transformed(x - mirror * middle[0] * scale, y - high[1] * scale, mirror * scale, scale):
        _shadow(canvas, car)
        _wheels(canvas, rng, car, -1.0)
        _solid(canvas, rng, car)
        _ends(canvas, rng, car)
        _side_details(canvas, rng, car)
        _windows(canvas, rng, car)
        _lights(canvas, rng, car)
        _wheels(canvas, rng, car, 1.0)
    return canvas.render(rng, illumination(rng, size), blur=rng.uniform(0, 0.006), noise=rng.uniform(0.5, 7))


def _car(rng) -> Car:
    yaw = rng.uniform(0.3, 1.1) * (1 if rng.uniform() < 0.6 else -1) if rng.uniform() < 0.8 else rng.uniform(-0.2, 0.2)
    view = View(yaw, rng.uniform(0.04, 0.27), rng.uniform(8, 18))
    paint = hsv(rng.uniform(), rng.uniform(0.5, 0.95), rng.uniform(0.35, 0.95))
    if rng.uniform() < 0.45:
        paint = lighten(mix((0.93, 0.93, 0.94), (0.07, 0.07, 0.09), rng.uniform()), 0.0)
    trim = lighten(paint, -0.5) if rng.uniform() < 0.5 else (0.12, 0.12, 0.13)
    return Car(MODELS[rng.integers(len(MODELS))], view, paint, trim, rng.uniform(0.8, 0.92))


def _scene(canvas, rng, car, horizon):
    if rng.uniform() < 0.25:
        backdrop(canvas, rng, [car.paint])
        return
    horizon = min(max(horizon, 0.25), 0.62)
    gray = mix((0.5, 0.5, 0.5), hsv(rng.uniform(), 0.5, 0.6), rng.uniform(0, 0.35))
    asphalt = lighten(gray, rng.uniform(-0.5, 0.3))
    landscape(canvas, rng, horizon, asphalt)
    clutter(canvas, rng, [car.paint, (0.1, 0.1, 0.1)])
    if rng.uniform() < 0.6:
        curb = horizon + rng.uniform(0.02, 0.06)
        canvas.fill(rect(0, horizon, 1, curb), solid(lighten(asphalt, rng.uniform(-0.3, 0.4)), 0.8))
    if rng.uniform() < 0.5:
        y = rng.uniform(0.9, 0.97)
        dash = np.array([(0, 0), (0.17, 0), (0.15, 0.025), (-0.02, 0.025)])
        for x in np.arange(rng.uniform(-0.2, 0), 1, 0.3):
            canvas.fill(polygon(dash + (x, y)), solid((1.0, 1.0, 0.9), 0.7))


def _shadow(canvas, car):
    ends = car.model.profile[0][0] - 0.15, car.model.profile[-1][0] + 0.15
    w = car.half * 1.1
    floor = np.array([(ends[0], 0, -w), (ends[1], 0, -w), (ends[1], 0, w), (ends[0], 0, w)])
    canvas.fill(polygon(car.view.project(floor)), solid((0.0, 0.0, 0.03), 0.65, 0.1))
    inner = floor * (0.92, 1, 0.9) + (0, 0.03, 0)
    canvas.fill(polygon(car.view.project(inner)), solid((0.02, 0.02, 0.03), 0.9))


def _wheels(canvas, rng, car, side):
    """Draws both wheels of one side: 1.0 is the near side, -1.0 the far side, where only tires are visible."""
    rim = lighten((0.75, 0.76, 0.78), rng.uniform(-0.6, 0.15))
    spokes, phase = int(rng.integers(4, 10)), rng.uniform(0, 6)
    flank = polygon(car.side(rounded(car.model.profile)))
    for x in (car.model.profile[0][0] + 0.78, car.model.profile[-1][0] - 0.8):
        arch, back, middle, face, hub, well, cap = _disks(car, x, side)
        if side > 0:
            with canvas.clipped(flank):
                canvas.fill(closed_curve(arch), solid((0.02, 0.02, 0.03)), BODY)
        for disk, gray in ((back, 0.055), (middle, 0.08), (face, 0.115)):
            canvas.fill(closed_curve(disk), solid((gray, gray, gray)), WHEEL)
        if side > 0:
            canvas.fill(closed_curve(hub), linear_gradient(hub[4], hub[12], lighten(rim, 0.25), lighten(rim, -0.45)))
            canvas.fill(closed_curve(well), solid((0.05, 0.05, 0.06), 0.75))
            angle = phase + np.arange(spokes) * 2 * np.pi / spokes
            center, right, down = face.mean(0), face[0] - face.mean(0), face[4] - face.mean(0)
            tips = center + 0.6 * (np.cos(angle)[:, None] * right + np.sin(angle)[:, None] * down)
            canvas.stroke(curve(np.stack([np.broadcast_to(center, tips.shape), tips], 1)), 0.05, rim)
            canvas.fill(closed_curve(cap), solid(lighten(rim, 0.2)))


def _disks(car, x, side):
    """The projected circles of a wheel at x [7, 16, 2]: arch, inner edge, tread, face, hub, its well, the cap."""
    radius = car.model.wheels * np.array([1.2, 1.0, 1.0, 1.0, 0.66, 0.56, 0.15])[:, None]
    depth = np.array([0.0, 0.22, 0.1, 0.0, 0.0, 0.0, 0.0])[:, None]
    angle = np.linspace(0, 2 * np.pi, 17)[:-1]
    z = np.broadcast_to(side * (car.half - depth), (7, 16))
    points = np.stack([x + radius * np.cos(angle), car.model.wheels + radius * np.sin(angle), z], -1)
    return car.view.project(points.reshape(-1, 3)).reshape(7, 16, 2)


def _solid(canvas, rng, car):
    """Draws the strips across the car from far to near (painter's algorithm), then the near side."""
    profile = rounded(car.model.profile)
    near, far = car.side(profile), car.side(profile, -1.0)
    canvas.fill(polygon(far), solid(lighten(car.paint, -0.6)), BODY)
    toward = profile[:, 0] * math.sin(car.view.yaw) + profile[:, 1] * math.sin(car.view.pitch)
    step = profile[1:] - profile[:-1]
    normal = np.stack([-step[:, 1], step[:, 0]], 1) / np.maximum(np.hypot(*step.T), 1e-6)[:, None]
    quads = np.stack([near[:-1], near[1:], far[1:], far[:-1]], 1)
    seen = facing(quads) < 0
    for i in np.argsort(toward[1:] + toward[:-1]):
        if not seen[i]:
            continue
        brightness = 0.3 * max(normal[i, 1], 0.0) ** 2 - 0.32 * max(-normal[i, 1], 0.0) - 0.18 * abs(normal[i, 0])
        path, color = polygon(quads[i]), lighten(car.paint, brightness)
        canvas.fill(path, solid(color), BODY)
        canvas.stroke(path, 0.012, color)  # hides gaps between adjacent strips
    path = polygon(near)
    top, belt, sill = (car.side([(0.0, h)])[0] for h in (car.model.roof, car.model.belt - 0.1, 0.35))
    canvas.fill(path, linear_gradient(top, sill, lighten(car.paint, 0.2), lighten(car.paint, -0.45)), BODY)
    with canvas.clipped(path):
        shine = [(x, car.model.belt - 0.12) for x in (-2.5, 0, 2.5)]
        canvas.stroke(curve(car.side(shine)), 0.09, lighten(car.paint, 0.6), rng.uniform(0.2, 0.6), 0.04)
        canvas.stroke(curve(car.side([(x, 0.36) for x in (-2.5, 0, 2.5)])), 0.16, car.trim)


def _side_details(canvas, rng, car):
    """Draws door lines and handles, and a stripe with probability .2."""
    model = car.model
    ink = lighten(car.paint, -0.7)
    span = np.array([model.rear[0], model.front[0]])
    edges = [span[0] + 0.35, *(span[0] + t * (span[1] - span[0]) for t in model.pillars), span[1] - 0.12]
    if model.belt < 1.1 or rng.uniform() < 0.7:
        for x in edges[1:]:
            line = [(x, model.belt), (x + 0.03, 0.7), (x - 0.02, 0.42)]
            canvas.stroke(curve(car.side(line)), 0.022, ink, 0.8)
        for x in edges[1:]:
            handle = [(x - 0.3, model.belt - 0.14), (x - 0.2, model.belt - 0.135), (x - 0.12, model.belt - 0.14)]
            canvas.stroke(curve(car.side(handle)), 0.04, lighten(car.paint, -0.45))
    if rng.uniform() < 0.2:
        stripe = [(x, model.belt - 0.25) for x in (-1.6, 0.0, 1.5)]
        canvas.stroke(curve(car.side(stripe)), 0.07, random_color(rng), 0.9)


def _windows(canvas, rng, car):
    model = car.model
    tone = mix((0.1, 0.13, 0.16), (0.45, 0.55, 0.62), rng.uniform() ** 1.5)
    if rng.uniform() < 0.12:
        tone = lighten(car.paint, -0.3)
    low, high = model.belt + 0.02, model.roof - 0.07
    bottom = np.array([model.rear[0] + 0.16, model.front[0] - 0.17])
    top = np.array([model.rear[1] + 0.08, model.front[1] - 0.06])
    cuts = [0.0, *model.pillars, 1.0]
    blind = model.roof > 1.8 and rng.uniform() < 0.6  # a delivery van has side windows beside the driver only
    for k in range(len(cuts) - 1):
        if blind and k < len(cuts) - 2:
            continue
        t = np.array([cuts[k] + 0.02 * (k > 0), cuts[k + 1] - 0.02 * (k < len(cuts) - 2)])
        b, u = bottom[0] + t * (bottom[1] - bottom[0]), top[0] + t * (top[1] - top[0])
        shape = np.array([(b[0], low), (u[0], high), (u[1], high), (b[1], low)])
        _window(canvas, car, car.side(shape), tone)
    for base, tip in ((model.front, 1), (model.rear, 0)):
        _end_window(canvas, car, base, bool(tip), tone)
    x = model.front[0] - 0.3
    mirror = car.side([(x, low), (x + 0.05, low + 0.15), (x + 0.16, low + 0.14), (x + 0.16, low)], out=0.14)
    canvas.fill(closed_curve(mirror), solid(lighten(car.paint, -0.2)), BODY)


def _end_window(canvas, car, base, front, tone):
    """Draws the windshield or the rear window when it faces the viewer."""
    low, high = car.model.belt + 0.03, car.model.roof - 0.05
    t = np.array([0.06, 0.9])
    x = base[0] + t * (base[1] - base[0])
    y = low + t * (high - low)
    w = car.width(x, y) * 0.88
    corners = [(x[0], y[0], w[0]), (x[1], y[1], w[1]), (x[1], y[1], -w[1]), (x[0], y[0], -w[0])]
    quad = car.view.project(np.array(corners))
    if (facing(quad[None])[0] > 0) == front:
        _window(canvas, car, quad, lighten(tone, 0.08))


def _window(canvas, car, quad, tone):
    path = polygon(quad)
    middle = quad.mean(0)
    canvas.fill(path, linear_gradient(quad.min(0), quad.max(0), lighten(tone, 0.35), lighten(tone, -0.25)), WINDOW)
    with canvas.clipped(path):
        streak = np.array([(-0.3, 0.4), (-0.05, -0.4), (0.12, -0.4), (-0.13, 0.4)]) + middle
        canvas.fill(polygon(streak), solid((1.0, 1.0, 1.0), 0.22))
    canvas.stroke(path, 0.02, (0.03, 0.03, 0.04), 0.8)


def _ends(canvas, rng, car):
    """Draws grille or tailgate, bumper and plate of the visible end."""
    if abs(car.view.yaw) < 0.06:
        return
    front = car.view.yaw > 0
    low, waist = car.model.profile[0][1], car.model.belt

    def panel(bottom, top, half):
        return car.end([bottom, top, top, bottom], [-half, -half, half, half], front)

    canvas.fill(polygon(panel(low, low + 0.2, 0.97)), solid(car.trim))
    if front:
        top = low + (waist - low) * 0.62
        canvas.fill(polygon(panel(top - 0.14, top, 0.45)), solid((0.06, 0.06, 0.07)))
        for h in (top - 0.11, top - 0.07, top - 0.03):
            canvas.stroke(curve(car.end([h, h, h], [-0.44, 0, 0.44], True)), 0.018, (0.6, 0.6, 0.62), 0.8)
    else:
        seam = low + (waist - low) * 0.45
        canvas.stroke(curve(car.end([seam] * 3, [-0.85, 0, 0.85], False)), 0.025, lighten(car.paint, -0.6), 0.8)
    height = low + (0.12 if front else rng.uniform(0.1, 0.32))
    board = panel(height, height + 0.19, 0.36)
    ground = ((0.95, 0.95, 0.93), (0.95, 0.95, 0.93), (0.96, 0.8, 0.25), (0.85, 0.9, 0.97))[rng.integers(4)]
    canvas.fill(polygon(board), solid(ground), PLATE)
    middle = height + 0.095
    for z in np.linspace(-0.26, 0.26, 6):
        stroke = car.end([middle - 0.045, middle + 0.045], [z, z + rng.uniform(-0.03, 0.03)], front)
        canvas.stroke(curve(stroke), 0.025, (0.1, 0.1, 0.15), 0.85)


def _lights(canvas, rng, car):
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
        _light(canvas, car.side(wrap, out=0.005), color, False)
        if (car.view.yaw > 0) != front or abs(car.view.yaw) < 0.06:
            continue
        for side in (-1, 1):
            if round_ones and front:
                angle = np.linspace(0, 2 * np.pi, 13)[:-1]
                z = side * 0.74 + 0.19 * np.cos(angle)
                _light(canvas, car.end(middle + 0.13 * np.sin(angle), z, front), color, True)
            else:
                z = side * np.array([0.52, 0.56, 0.99, 0.99])
                _light(canvas, car.end([y[0] + 0.02, y[1], y[1], y[0]], z, front), color, False)


def _light(canvas, points, color, smooth):
    path = closed_curve(points) if smooth else polygon(points)
    canvas.fill(path, linear_gradient(points.min(0), points.max(0), lighten(color, 0.4), lighten(color, -0.2)), LIGHT)
    canvas.stroke(path, 0.018, (0.1, 0.1, 0.1), 0.6)
    x, y = points.mean(0)
    canvas.fill(oval(x, y, 0.035, 0.035), solid(lighten(color, 0.8), 0.8))
