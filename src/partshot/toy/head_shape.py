"""Geometry of the head under faces and hair: an ellipsoid, rotated and projected.

Computes where points of the front view are projected for a head pose, and the outline of the head. The unit is half
the head's height, the origin its center; u and x point to the right of the image, v and y down.
"""

import math
from dataclasses import dataclass

import numpy as np

# Right half of the front view's outline, from crown to chin.
_HALF = np.array(
    [
        (0.0, -1.0),
        (0.37, -0.95),
        (0.64, -0.72),
        (0.75, -0.3),
        (0.74, 0.12),
        (0.67, 0.48),
        (0.48, 0.8),
        (0.23, 0.98),
        (0.0, 1.03),
    ]
)


@dataclass(frozen=True)
class Head:
    """Pose and shape of a head.

    yaw, pitch, roll: radians; positive yaw turns the face to the right of the image, positive pitch turns it down.

    width: half the width at the temples. jaw: from 0 (pointed chin) to 1 (square chin).
    """

    yaw: float
    pitch: float
    roll: float
    width: float
    jaw: float

    @classmethod
    def random(cls, rng: np.random.Generator) -> "Head":
        """A random head: mostly frontal, yaw up to 28 degrees, roll up to 20 degrees, pitch up to 9 degrees."""
        yaw = float(np.clip(rng.normal(0, 0.24), -0.49, 0.49))
        roll = float(np.clip(rng.normal(0, 0.12), -0.35, 0.35))
        return cls(yaw, rng.uniform(-0.16, 0.16), roll, rng.uniform(0.68, 0.82), rng.uniform())

    def project(self, points: np.ndarray, lift: float | np.ndarray = 0.0) -> np.ndarray:
        """Projects points [n, 2] of the front view; lift: their height above the ellipsoid (for the nose)."""
        u, v = points[:, 0], points[:, 1]
        depth = 0.62 * np.sqrt(np.maximum(0.02, 1 - (u / 0.88) ** 2 - (v / 1.3) ** 2)) + lift
        x = u * math.cos(self.yaw) + depth * math.sin(self.yaw)
        y = v * math.cos(self.pitch) + depth * math.sin(self.pitch)
        return np.array([x * (self.width / 0.76), y]).T

    def outline(self) -> np.ndarray:
        """The outline [16, 2], from the crown down the right side of the image and up the left side."""
        half = _HALF * (self.width / 0.76, 1.0)
        half[5:8, 0] *= 0.92 + 0.16 * self.jaw
        points = np.vstack([half, (half * (-1, 1))[-2:0:-1]])
        low = np.clip((points[:, 1] + 0.2) / 1.2, 0, 1)
        high = np.clip(-points[:, 1], 0, 1)
        points[:, 0] += math.sin(self.yaw) * (0.3 * low - 0.1 * high)
        points[:, 1] += math.sin(self.pitch) * 0.3 * low
        return points

    def ear(self, side: float) -> tuple[np.ndarray, tuple[float, float]]:
        """The outline [8, 2] and the center of an ear; side: the sign of its x."""
        near = -side * math.sin(self.yaw)  # positive when this side faces the viewer
        x = side * self.width * (1.05 - 0.32 * max(near, 0.0) - 0.22 * max(-near, 0.0))
        y = 0.03 + 0.1 * math.sin(self.pitch)
        rx, ry = 0.115 * (1 + 0.7 * max(near, 0.0)), 0.23
        shape = np.array(
            [
                (-0.5, -0.75),
                (0.25, -1.0),
                (0.95, -0.7),
                (1.0, -0.1),
                (0.62, 0.5),
                (0.3, 0.95),
                (-0.35, 0.9),
                (-0.75, 0.1),
            ]
        )
        return shape * (rx * side, ry) + (x, y), (x, y)
