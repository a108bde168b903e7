"""Geometry of the toy cars: models as side profiles, and the projection of the solids made from them.

Units are meters; x points forward, y up from the ground, z toward the viewer.
"""

import math
from dataclasses import dataclass

import numpy as np

from partshot.toy.canvas import Color


@dataclass(frozen=True)
class Model:
    """Side profile and dimensions of a car model, in meters.

    profile: (x, y) points from the rear sill over the roof to the front sill; the ground is at y = 0.
    rear, front: the lower and the upper x of the rear window and of the windshield. belt, roof: the lower and the upper
    y of the windows. wheels: radius. pillars: where the side windows are divided, as fractions of their length.
    """

    profile: tuple[tuple[float, float], ...]
    rear: tuple[float, float]
    front: tuple[float, float]
    belt: float
    roof: float
    wheels: float
    pillars: tuple[float, ...]


MODELS = (
    Model(  # sedan
        profile=(
            (-2.1, 0.32), (-2.14, 0.62), (-2.05, 0.92), (-1.45, 0.98), (-0.85, 1.4), (0.3, 1.44),
            (1.05, 0.98), (1.95, 0.82), (2.12, 0.6), (2.1, 0.32),
        ),
        rear=(-1.42, -0.84), front=(1.02, 0.3), belt=0.97, roof=1.42, wheels=0.33, pillars=(0.5,),
    ),
    Model(  # hatchback
        profile=(
            (-1.78, 0.32), (-1.84, 0.65), (-1.72, 1.02), (-1.35, 1.45), (0.3, 1.5), (1.0, 1.02),
            (1.7, 0.86), (1.85, 0.6), (1.83, 0.32),
        ),
        rear=(-1.7, -1.33), front=(0.97, 0.3), belt=1.02, roof=1.47, wheels=0.31, pillars=(0.52,),
    ),
    Model(  # off-roader
        profile=(
            (-2.0, 0.42), (-2.05, 0.8), (-2.0, 1.15), (-1.78, 1.66), (0.4, 1.72), (0.95, 1.16),
            (1.9, 1.06), (2.06, 0.78), (2.03, 0.42),
        ),
        rear=(-1.96, -1.76), front=(0.93, 0.4), belt=1.16, roof=1.69, wheels=0.41, pillars=(0.36, 0.68),
    ),
    Model(  # van
        profile=(
            (-2.15, 0.36), (-2.18, 0.9), (-2.14, 1.7), (-2.0, 1.92), (0.9, 1.92), (1.6, 1.2),
            (2.1, 0.98), (2.22, 0.66), (2.2, 0.36),
        ),
        rear=(-2.14, -2.06), front=(1.57, 0.94), belt=1.18, roof=1.86, wheels=0.34, pillars=(0.36, 0.72),
    ),
    Model(  # pick-up
        profile=(
            (-2.45, 0.46), (-2.48, 0.75), (-2.45, 0.98), (-0.55, 1.02), (-0.42, 1.6), (0.45, 1.64),
            (0.98, 1.1), (2.0, 1.0), (2.16, 0.75), (2.13, 0.46),
        ),
        rear=(-0.53, -0.43), front=(0.95, 0.45), belt=1.08, roof=1.61, wheels=0.4, pillars=(0.5,),
    ),
    Model(  # beetle
        profile=(
            (-1.9, 0.34), (-1.96, 0.52), (-1.72, 0.92), (-1.05, 1.33), (-0.25, 1.5), (0.38, 1.42),
            (0.85, 1.03), (1.5, 0.92), (1.9, 0.62), (1.88, 0.34),
        ),
        rear=(-1.4, -0.7), front=(0.83, 0.4), belt=1.02, roof=1.41, wheels=0.34, pillars=(0.5,),
    ),
    Model(  # coupe
        profile=(
            (-2.05, 0.29), (-2.1, 0.62), (-1.95, 0.88), (-1.4, 0.95), (-0.5, 1.24), (0.15, 1.25),
            (1.0, 0.87), (1.95, 0.7), (2.12, 0.5), (2.1, 0.28),
        ),
        rear=(-1.35, -0.5), front=(0.97, 0.16), belt=0.88, roof=1.23, wheels=0.33, pillars=(0.42,),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class View:
    """The camera: yaw 0 is the side view, positive yaw shows the front, negative the rear (radians).

    pitch: radians. distance: meters.
    """

    yaw: float
    pitch: float
    distance: float

    def project(self, points: np.ndarray) -> np.ndarray:
        """Projects points [n, 3] (forward, up, toward the viewer) to [n, 2], y pointing down."""
        x, y, z = points.T
        c, s = math.cos(self.yaw), math.sin(self.yaw)
        across, toward = x * c - z * s, x * s + z * c
        near = self.distance / (self.distance - toward * math.cos(self.pitch) - y * math.sin(self.pitch))
        return np.array([across * near, (toward * math.sin(self.pitch) - y * math.cos(self.pitch)) * near]).T


@dataclass(frozen=True)
class Car:
    """A model with its colors, in a view; half: half its width at the belt, in meters."""

    model: Model
    view: View
    paint: Color
    trim: Color
    half: float

    def width(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Half the car's width at (x, y): it decreases toward the roof and toward both ends."""
        upper = np.minimum(np.maximum((y - self.model.belt) / (self.model.roof - self.model.belt), 0), 1)
        outward = np.minimum((x / self.model.profile[-2][0]) ** 2, 1)
        return self.half * (1 - 0.2 * upper) * (1 - 0.1 * outward**3)

    def side(self, points, side: float = 1.0, out: float = 0.0) -> np.ndarray:
        """Projects points (x, y) on the near (1) or far (-1) side; out: their distance from the surface."""
        x, y = np.asarray(points, float).T
        return self.view.project(np.array([x, y, side * (self.width(x, y) + out)]).T)

    def end(self, y, z, front: bool) -> np.ndarray:
        """Projects points on the front or the rear, .01 before the surface; z: as a fraction of half the width."""
        y, z = np.asarray(y, float), np.asarray(z, float)
        x = self.reach(y, front)
        return self.view.project(np.array([x + (0.01 if front else -0.01), y, z * self.width(x, y)]).T)

    def reach(self, y, front: bool) -> np.ndarray:
        """The x of the front or the rear at height y."""
        profile = np.array(self.model.profile)
        end = profile[-3:][::-1] if front else profile[:3]
        return np.interp(y, end[:, 1], end[:, 0])


def facing(quads: np.ndarray) -> np.ndarray:
    """Twice the signed area of each projected quad [n, 4, 2]: positive when its corners are clockwise in the image."""
    a, b = quads[:, 2] - quads[:, 0], quads[:, 3] - quads[:, 1]
    return a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]


def rounded(points) -> np.ndarray:
    """A profile smoothed by two steps of Chaikin's corner cutting; its first and last point stay: [n, 2]."""
    profile = np.array(points)
    for _ in range(2):
        a, b = profile[:-1], profile[1:]
        cut = np.stack([0.75 * a + 0.25 * b, 0.25 * a + 0.75 * b], 1).reshape(-1, 2)
        profile = np.vstack([profile[:1], cut, profile[-1:]])
    return profile
