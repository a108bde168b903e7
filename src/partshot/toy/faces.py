"""Toy faces: a head in up to three-quarter view with hair, neck and clothes, before a background.

Left and right are the person's own: the left eye is on the right of the image. Bare shoulders are labeled as neck,
a hat as clothes. This module samples the person and draws the layers in order; face_features.py and hair.py draw the
face and the hair.
"""

import math

import numpy as np

from partshot.toy import hair
from partshot.toy.canvas import (
    Canvas,
    closed_curve,
    curve,
    hsv,
    lighten,
    linear_gradient,
    mix,
    oval,
    random_color,
    rotated,
    solid,
)
from partshot.toy.face_features import CLOTHES, HAIR, NECK, Person, paint_face, paint_glasses, paint_near_ear, shading
from partshot.toy.head_shape import Head
from partshot.toy.scenery import backdrop, fabric, illumination

# From fair to dark; the skin color is interpolated between two adjacent ones, then multiplied by the illumination.
SKINS = (
    (0.98, 0.86, 0.77),
    (0.95, 0.78, 0.66),
    (0.87, 0.67, 0.52),
    (0.75, 0.54, 0.39),
    (0.56, 0.38, 0.27),
    (0.36, 0.24, 0.18),
)
HAIRS = (
    (0.09, 0.07, 0.07), (0.20, 0.13, 0.09), (0.34, 0.21, 0.13), (0.50, 0.32, 0.17), (0.80, 0.62, 0.34),
    (0.92, 0.80, 0.56), (0.62, 0.27, 0.12), (0.62, 0.61, 0.60), (0.90, 0.89, 0.87),
)  # fmt: skip
# Id in "faces-lr" -> id in "faces".
_MERGED = np.array([0, 1, 2, 3, 3, 4, 4, 5, 6, 7, 7, 8, 9], np.uint8)


def draw_face(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """One face: image uint8 [size, size, 3] and ids of "faces" uint8 [size, size], determined by rng."""
    image, ids = draw_face_lr(rng, size)
    return image, _MERGED[ids]


def draw_face_lr(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The same face with ids of "faces-lr", where left and right are separate classes."""
    canvas = Canvas(size)
    person = _person(rng)
    head = person.head
    backdrop(canvas, rng, [person.skin, person.hair, person.clothes])
    scale = rng.uniform(0.235, 0.335)
    x, y = 0.5 + rng.uniform(-0.09, 0.09), rng.uniform(0.42, 0.5)
    cut = hair.choose(rng, head, person.hair)
    with canvas.transformed(x, y, scale):
        with canvas.transformed(0, 0, angle=head.roll):
            hair.paint_back(canvas, rng, cut, HAIR)
        _neck(canvas, rng, person)
        _clothes(canvas, rng, person)
        with canvas.transformed(0, 0, angle=head.roll):
            hair.paint_locks(canvas, rng, cut, HAIR)
            paint_face(canvas, rng, person)
            hair.paint_front(canvas, rng, cut, HAIR)
            if not cut.hides_ears:
                paint_near_ear(canvas, rng, person)
            if rng.uniform() < 0.2:
                paint_glasses(canvas, rng, head)
            if rng.uniform() < 0.07:
                _hat(canvas, rng, person)
    return canvas.render(rng, illumination(rng, size), blur=rng.uniform(0, 0.007), noise=rng.uniform(0.5, 7))


def _person(rng) -> Person:
    i = rng.uniform(0, len(SKINS) - 1.001)
    skin = mix(SKINS[int(i)], SKINS[int(i) + 1], i % 1)
    tint = HAIRS[rng.integers(len(HAIRS))] if rng.uniform() < 0.93 else hsv(rng.uniform(), 0.6, 0.7)
    if skin[0] < 0.7 and rng.uniform() < 0.6:
        tint = HAIRS[rng.integers(2)]
    tint = lighten(tint, rng.uniform(-0.15, 0.1))
    clothes = random_color(rng)
    if rng.uniform() < 0.25:
        clothes = lighten((skin, tint)[rng.integers(2)], rng.uniform(-0.1, 0.15))
    lips = mix(skin, (0.72, 0.22, 0.25), rng.uniform(0.25, 0.8))
    head = Head.random(rng)
    return Person(head, skin, tint, clothes, lips, -1.0 if rng.uniform() < 0.5 else 1.0)


def _neck(canvas, rng, person):
    head = person.head
    half = rng.uniform(0.36, 0.47) * head.width / 0.76
    top = rotated(np.array([(-half, 0.35), (half, 0.35)]), head.roll)
    base = np.array(
        [(half * 1.08, 1.25), (half * 1.9, 1.6), (0.4, 2.6), (-0.4, 2.6), (-half * 1.9, 1.6), (-half * 1.08, 1.25)]
    )
    path = closed_curve(np.vstack([top, base]))
    canvas.fill(path, shading(person, lighten(person.skin, -0.1)), NECK)
    with canvas.clipped(path):  # the chin's shadow
        chin = rotated(np.array([(0.15 * math.sin(head.yaw), 0.86)]), head.roll)[0]
        canvas.fill(oval(*chin, 0.62, 0.34), solid(lighten(person.skin, -0.6), 0.75, 0.08))


def _clothes(canvas, rng, person):
    color = person.clothes
    wide, slope = rng.uniform(1.2, 1.6), rng.uniform(0.25, 0.5)
    shift = -0.2 * math.sin(person.head.yaw)
    collar = rng.uniform(0.46, 0.56) * person.head.width / 0.76
    depth, high = [(1.5, 1.2), (1.75, 1.24), (2.3, 1.22), (1.12, 1.02), (1.45, 1.15)][kind := rng.integers(5)]
    mid = (depth + high) / 2 + 0.06
    left = [
        (-wide * 1.35, 4.5),
        (-wide * 1.25, 2.6),
        (-wide, high + slope + 0.1),
        (-0.85, high + slope * 0.55),
        (-collar, high),
    ]
    dip = [(-collar * 0.62, mid), (0, depth), (collar * 0.62, mid)]
    if kind == 2:  # V neck
        dip = [(-collar * 0.5, mid - 0.06), (-0.02, depth), (0.02, depth), (collar * 0.5, mid - 0.06)]
    points = np.array(left + dip + [(-x, y) for x, y in left[::-1]])
    points[:, 0] += shift * np.clip(points[:, 1] - 0.9, 0, 1)
    path = closed_curve(points)
    second = random_color(rng) if rng.uniform() < 0.6 else lighten(color, 0.4)
    canvas.fill(path, fabric(rng, color, second, rng.uniform(0.2, 0.6)), CLOTHES)
    with canvas.clipped(path):
        side = person.light_side
        canvas.draw_paint(
            linear_gradient((side * 1.2, 1.2), (-side * 1.3, 2.2), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (0.12, 0.5))
        )
        sleeve = np.array([(0.9, 2.6), (0.98, 2.1), (0.86, 1.85)])
        canvas.stroke(curve(np.stack([sleeve, sleeve * (-1, 1)])), 0.05, (0.0, 0.0, 0.0), 0.25, 0.03)
    n = len(left)
    edge = curve(points[n - 1 : n + len(dip) + 1])
    canvas.stroke(edge, rng.uniform(0.05, 0.11), lighten(second if kind < 2 else color, -0.25))
    if kind == 4:
        _lapels(canvas, points[n - 1], points[n + len(dip)], depth, color, person)


def _lapels(canvas, left, right, depth, color, person):
    for end in (left, right):
        out = np.sign(end[0])
        lapel = closed_curve([end, end + (0.12 * out, 0.12), (0.3 * out, depth + 0.32), (0.02 * out, depth + 0.02)])
        canvas.fill(lapel, shading(person, lighten(color, 0.25)), CLOTHES)
        canvas.stroke(lapel, 0.02, lighten(color, -0.5), 0.6)


def _hat(canvas, rng, person):
    head = person.head
    color = random_color(rng)
    brim = head.project(np.array([(0.82, -0.42), (0.45, -0.52), (0, -0.56), (-0.45, -0.52), (-0.82, -0.42)]))
    w = head.width * 1.13
    crown = np.array(
        [(-w, -0.62), (-w * 0.86, -1.0), (-w * 0.4, -1.27), (0, -1.32), (w * 0.4, -1.27), (w * 0.86, -1.0), (w, -0.62)]
    )
    path = closed_curve(np.vstack([crown, brim]))
    canvas.fill(path, fabric(rng, color, random_color(rng), 0.3), CLOTHES)
    with canvas.clipped(path):
        canvas.draw_paint(
            linear_gradient(
                (person.light_side, 0), (-person.light_side, 0), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (0.1, 0.5)
            )
        )
        canvas.stroke(curve(brim + (0, -0.07)), 0.2, lighten(color, -0.25), 0.85)
