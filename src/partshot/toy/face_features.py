"""Facial features of the toy faces: skin, ears, eyes, eyebrows, nose, mouth, beard and glasses.

Features are curves on the head's ellipsoid (head_shape.py), so they foreshorten and shift with the pose. Beard,
moustache, freckles and glasses keep the label of what they cover. Ids are those of "faces-lr" (left and right
separate).
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
    solid,
)
from partshot.toy.head_shape import Head

FACE, HAIR, EYE, EYEBROW, NOSE, MOUTH, EAR, NECK, CLOTHES = 1, 2, (3, 4), (5, 6), 7, 8, (9, 10), 11, 12

# Index into a (left, right) pair of ids, and sign of x: the person's left is at positive x.
SIDES = ((0, 1.0), (1, -1.0))


@dataclass(frozen=True)
class Person:
    """Appearance of a person: the head, the colors, and the side the light comes from (sign of x)."""

    head: Head
    skin: Color
    hair: Color
    clothes: Color
    lips: Color
    light_side: float


def shading(person: Person, color: Color, depth: float = 0.3):
    """A linear gradient that is brighter on the light side and darker on the other; depth: how much darker."""
    side = person.light_side
    return linear_gradient((0.75 * side, -0.3), (-0.85 * side, 0.35), lighten(color, 0.06), lighten(color, -depth))


def paint_face(canvas: Canvas, rng: np.random.Generator, person: Person) -> None:
    """Draws the far ear, the head and the features on it, in head coordinates."""
    head, skin = person.head, person.skin
    far = 1.0 if head.yaw > 0 else -1.0
    for i, side in SIDES:
        if side == far or abs(head.yaw) < 0.12:
            _ear(canvas, person, i, side)
    outline = closed_curve(head.outline())
    canvas.fill(outline, shading(person, skin, 0.34), FACE)
    with canvas.clipped(outline):
        _complexion(canvas, rng, person)
        for _, side in SIDES:
            socket = head.project(np.array([(0.33 * side, -0.12)]))[0]
            canvas.fill(oval(*socket, 0.24, 0.16), solid(lighten(skin, -0.5), 0.3, 0.06))
        if rng.uniform() < 0.22:
            _beard(canvas, rng, person)
        _mouth(canvas, rng, person)
        _nose(canvas, rng, person)
        _eyes(canvas, rng, person)
        _brows(canvas, rng, person)


def _complexion(canvas, rng, person):
    head, skin = person.head, person.skin
    side = person.light_side
    canvas.draw_paint(radial_gradient(side * 0.3, -0.45, 0.6, lighten(skin, 0.5), 0.35))
    blush = mix(skin, (0.9, 0.25, 0.25), 0.55)
    strength = rng.uniform(0.05, 0.45)
    for _, s in SIDES:
        x, y = head.project(np.array([(0.42 * s, 0.32)]))[0]
        canvas.draw_paint(radial_gradient(x, y, 0.3, blush, strength))
    if rng.uniform() < 0.12:
        for u, v in rng.normal((0, 0.18), (0.3, 0.09), (14, 2)):
            x, y = head.project(np.array([(u, v)]))[0]
            canvas.fill(oval(x, y, 0.014, 0.014), solid(lighten(skin, -0.45), 0.6))


def _ear(canvas, person, i, side):
    head, skin = person.head, person.skin
    points, (x, y) = head.ear(side)
    path = closed_curve(points)
    canvas.fill(path, shading(person, mix(skin, (0.85, 0.35, 0.3), 0.1), 0.36), EAR[i])
    with canvas.clipped(path):
        inner = points * 0.58 + np.array((x, y)) * 0.42
        canvas.fill(closed_curve(inner), solid(lighten(skin, -0.4), 0.55, 0.02))
    canvas.stroke(path, 0.018, lighten(skin, -0.5), 0.5)


def paint_near_ear(canvas: Canvas, rng: np.random.Generator, person: Person) -> None:
    """Draws the ear that faces the viewer when the head is turned, over the hair."""
    yaw = person.head.yaw
    for i, side in SIDES:
        if side * yaw < 0 and abs(yaw) >= 0.12:
            _ear(canvas, person, i, side)
            if rng.uniform() < 0.3:  # an ear stud, labeled as ear
                _, (x, y) = person.head.ear(side)
                canvas.fill(oval(x, y + 0.15, 0.025, 0.025), solid(hsv(rng.uniform(), 0.4, 0.95)))


def _eyes(canvas, rng, person):
    head, skin = person.head, person.skin
    half, openness, tilt = rng.uniform(0.165, 0.2), rng.uniform(0.075, 0.12), rng.uniform(-0.03, 0.035)
    gaze = rng.uniform(-0.055, 0.055), rng.uniform(-0.015, 0.015)
    spread, height = rng.uniform(0.31, 0.36), rng.uniform(-0.1, -0.02)
    iris = [hsv(0.07, 0.7, 0.3), hsv(0.58, 0.55, 0.7), hsv(0.3, 0.4, 0.5), hsv(0.08, 0.5, 0.5), (0.3, 0.33, 0.38)]
    iris = lighten(iris[rng.integers(len(iris))], rng.uniform(-0.3, 0.1))
    for i, side in SIDES:
        upper = [(-1, 0.15), (-0.6, -0.62), (0, -1), (0.62, -0.66), (1, -0.05)]
        lower = [(0.6, 0.55), (0, 0.75), (-0.6, 0.6)]
        shape = np.array(upper + lower) * (half * side, openness)
        shape[:, 1] -= tilt * side * shape[:, 0] / half
        points = head.project(shape + (spread * side, height))
        path = closed_curve(points)
        canvas.fill(path, solid(lighten((0.96, 0.95, 0.93), rng.uniform(-0.15, 0))), EYE[i])
        with canvas.clipped(path):
            x, y = head.project(np.array([(spread * side + gaze[0], height + gaze[1] - 0.01)]))[0]
            canvas.fill(oval(x, y, 0.088 * math.cos(head.yaw), 0.088), solid(lighten(iris, -0.35)))
            canvas.fill(oval(x, y + 0.008, 0.068 * math.cos(head.yaw), 0.068), solid(lighten(iris, 0.1)))
            canvas.fill(oval(x, y, 0.04, 0.04), solid((0.03, 0.03, 0.04)))
            canvas.fill(oval(x + 0.03 * person.light_side, y - 0.035, 0.02, 0.02), solid((1.0, 1.0, 1.0), 0.9))
            canvas.stroke(curve(points[:5]), 0.07, (0.1, 0.08, 0.1), 0.3, 0.02)
        canvas.stroke(curve(points[:5]), 0.032, lighten(skin, -0.82))
        crease = points[:5] + (0, -0.055)
        canvas.stroke(curve(crease[1:]), 0.016, lighten(skin, -0.5), 0.6)
        canvas.stroke(curve(points[[4, 5, 6, 7]]), 0.014, lighten(skin, -0.5), 0.6)


def _brows(canvas, rng, person):
    thick, arch, lift, slant = (
        rng.uniform(0.07, 0.115),
        rng.uniform(0.03, 0.1),
        rng.uniform(0.2, 0.29),
        rng.uniform(-0.05, 0.06),
    )
    color = mix(lighten(person.hair, -0.3), lighten(person.skin, -0.5), rng.uniform(0, 0.4))
    for i, side in SIDES:
        x = np.linspace(0.12, 0.55, 5)
        t = (x - 0.12) / 0.43
        y = -0.07 - lift - arch * np.sin(np.pi * t * 0.85 + 0.3) - slant * (0.5 - t)
        width = thick * np.array([0.85, 1.0, 0.95, 0.75, 0.35])
        band = np.vstack([np.stack([x, y - width / 2], 1), np.stack([x, y + width / 2], 1)[::-1]])
        canvas.fill(closed_curve(person.head.project(band * (side, 1))), solid(color, rng.uniform(0.85, 1)), EYEBROW[i])


def _nose(canvas, rng, person):
    head, skin = person.head, person.skin
    wing, length = rng.uniform(0.125, 0.18), rng.uniform(0.3, 0.39)
    half = np.array(
        [(0.045, -0.1), (0.05, 0.05), (0.075, length * 0.55), (wing, length - 0.05), (wing * 0.85, length + 0.03)]
    )
    raised = np.array([0.04, 0.09, 0.15, 0.08, 0.05])
    bottom = np.array([(0.0, length + 0.055)])
    outline = np.vstack([half, bottom, (half * (-1, 1))[::-1]])
    lift = np.concatenate([raised, [0.13], raised[::-1]])
    points = head.project(outline, lift)
    path = closed_curve(points)
    side = person.light_side
    tip = head.project(np.array([(0, length - 0.06)]), 0.22)[0]
    warm = mix(skin, (0.85, 0.4, 0.35), rng.uniform(0.08, 0.2))
    start, end = (tip[0] + wing * side, 0), (tip[0] - wing * side, 0)
    canvas.fill(path, linear_gradient(start, end, lighten(warm, 0.12), lighten(warm, -0.3)), NOSE)
    shadow = points[6:] if side > 0 else points[:5]
    canvas.stroke(curve(shadow), 0.03, lighten(skin, -0.55), 0.55, 0.012)
    canvas.stroke(curve(points[3:8]), 0.026, lighten(skin, -0.55), 0.75)
    for s in (-1, 1):
        x, y = head.project(np.array([(s * wing * 0.45, length + 0.015)]), 0.1)[0]
        canvas.fill(oval(x, y, 0.038, 0.02), solid(lighten(skin, -0.75), 0.85))
    canvas.fill(oval(tip[0] + 0.02 * side, tip[1] - 0.01, 0.045, 0.045), solid((1.0, 1.0, 1.0), 0.35, 0.018))


def _mouth(canvas, rng, person):
    head, skin, lips = person.head, person.skin, person.lips
    half, smile, height = rng.uniform(0.2, 0.29), rng.uniform(-0.03, 0.09), rng.uniform(0.56, 0.63)
    gap = rng.uniform(0.03, 0.12) if rng.uniform() < 0.35 else 0.0
    top, bottom = rng.uniform(0.045, 0.075), rng.uniform(0.06, 0.095)
    x = np.array([-1, -0.6, -0.22, 0, 0.22, 0.6, 1])
    bend = -smile * x**2
    upper = bend - top * np.array([0, 0.55, 1.05, 0.85, 1.05, 0.55, 0])
    lower = bend + (bottom + gap) * np.array([0, 0.62, 0.97, 1.05, 0.97, 0.62, 0])

    def at(y):
        return head.project(np.stack([x * half, height + y], 1), 0.04)

    path = closed_curve(np.vstack([at(upper), at(lower)[-2:0:-1]]))
    canvas.fill(
        path,
        linear_gradient((0, height - top), (0, height + bottom + gap), lighten(lips, -0.15), lighten(lips, 0.08)),
        MOUTH,
    )
    with canvas.clipped(path):
        if gap:
            inside = closed_curve(
                np.vstack([at(upper * 0.2 + bend * 0.8), at(bend + (lower - bend) * gap / (bottom + gap))[-2:0:-1]])
            )
            canvas.fill(inside, solid((0.25, 0.05, 0.07)))
            with canvas.clipped(inside):
                teeth = at(bend + gap * 0.45)
                canvas.fill(closed_curve(np.vstack([at(bend - top), teeth[::-1]])), solid((0.95, 0.94, 0.9)))
        else:
            canvas.stroke(curve(at(bend + 0.005)), 0.022, lighten(lips, -0.65))
        x0, y0 = at(bend + gap + bottom * 0.5)[3]
        canvas.fill(oval(x0, y0, half * 0.35, 0.018), solid((1.0, 1.0, 1.0), 0.3, 0.012))
    ends = at(bend)
    for end in (ends[0], ends[-1]):
        canvas.fill(oval(*end, 0.03, 0.022), solid(lighten(skin, -0.6), 0.6, 0.01))


def _beard(canvas, rng, person):
    head = person.head
    color, alpha = lighten(person.hair, -0.15), (0.28, 0.85, 0.95)[rng.integers(3)]
    kind = rng.integers(3)
    if kind < 2:  # full
        rim = head.outline()
        low = rim[rim[:, 1] > 0.1]
        low = low[np.argsort(np.arctan2(low[:, 0], low[:, 1]))]
        top = head.project(
            np.array([(0.62, 0.2), (0.5, 0.42), (0.2, 0.45), (0, 0.45), (-0.2, 0.45), (-0.5, 0.42), (-0.62, 0.2)])
        )
        canvas.fill(closed_curve(np.vstack([low * 1.05, top])), solid(color, alpha, 0.03))
    else:
        goatee = np.array([(0.22, 0.72), (0.2, 0.95), (0, 1.05), (-0.2, 0.95), (-0.22, 0.72)])
        canvas.fill(closed_curve(head.project(goatee)), solid(color, alpha, 0.025))
    if kind != 1:
        moustache = np.array([(-0.3, 0.56), (-0.16, 0.44), (0, 0.45), (0.16, 0.44), (0.3, 0.56), (0, 0.53)])
        canvas.fill(closed_curve(head.project(moustache, 0.05)), solid(color, alpha, 0.012))


def paint_glasses(canvas: Canvas, rng: np.random.Generator, head: Head) -> None:
    """Draws glasses (frame and tinted lenses), which keep the label of what they cover."""
    frame = lighten(random_color(rng), -0.4)
    width, ry = rng.uniform(0.025, 0.05), rng.uniform(0.14, 0.2)
    angle = np.linspace(0, 2 * np.pi, 13)[:-1]
    square = rng.uniform(1.0, 2.2)
    ring = np.stack([np.cos(angle), np.sin(angle)], 1)
    ring /= (np.abs(ring) ** (2 * square)).sum(1, keepdims=True) ** (0.5 / square)
    tint = rng.uniform(0.0, 0.22)
    for _, side in SIDES:
        lens = closed_curve(head.project(ring * (0.24, ry) + (0.34 * side, -0.05), 0.08))
        canvas.fill(lens, solid(frame, tint))
        canvas.stroke(lens, width, frame)
        temple = head.project(np.array([(0.57 * side, -0.09), (0.66 * side, -0.1), (0.74 * side, -0.1)]), 0.02)
        canvas.stroke(curve(temple), width, frame)
    canvas.stroke(curve(head.project(np.array([(-0.11, -0.07), (0, -0.1), (0.11, -0.07)]), 0.12)), width, frame)
