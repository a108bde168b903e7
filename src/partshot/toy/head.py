"""The head that faces and hair are drawn on: an ellipsoid, turned and projected.

Knows where a point of the front view lands when the head turns, and the outline it shows. The unit is half the head's
height, the origin its middle; u, x grow to the right of the image and v, y downward. Refuses to know colors.
"""

import math
from dataclasses import dataclass

import numpy as np

# Right half of the front view's outline, from the crown to the chin.
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
    """yaw, pitch, roll: radians; a positive yaw turns the face to the right of the image, a positive pitch down.

    width: half the width at the temples. jaw: 0 for a pointed chin, 1 for a square one.
    """

    yaw: float
    pitch: float
    roll: float
    width: float
    jaw: float

    @classmethod
    def random(cls, rng: np.random.Generator) -> "Head":
        """A head in an everyday pose: mostly frontal, up to 28 degrees turned and 20 degrees tilted."""
        yaw = float(np.clip(rng.normal(0, 0.24), -0.49, 0.49))
        roll = float(np.clip(rng.normal(0, 0.12), -0.35, 0.35))
        return cls(yaw, rng.uniform(-0.16, 0.16), roll, rng.uniform(0.68, 0.82), rng.uniform())

    def place(self, points: np.ndarray, lift: float | np.ndarray = 0.0) -> np.ndarray:
        """Where points [n, 2] of the front view are seen; lift: how far they stand out of the ellipsoid (the nose)."""
        u, v = points[:, 0], points[:, 1]
        depth = 0.62 * np.sqrt(np.maximum(0.02, 1 - (u / 0.88) ** 2 - (v / 1.3) ** 2)) + lift
        x = u * math.cos(self.yaw) + depth * math.sin(self.yaw)
        y = v * math.cos(self.pitch) + depth * math.sin(self.pitch)
        return np.array([x * (self.width / 0.76), y]).T

    def outline(self) -> np.ndarray:
        """The outline [16, 2], from the crown down the right side and up the left one."""
        half = _HALF * (self.width / 0.76, 1.0)
        half[5:8, 0] *= 0.92 + 0.16 * self.jaw
        points = np.vstack([half, (half * (-1, 1))[-2:0:-1]])
        low = np.clip((points[:, 1] + 0.2) / 1.2, 0, 1)
        high = np.clip(-points[:, 1], 0, 1)
        points[:, 0] += math.sin(self.yaw) * (0.3 * low - 0.1 * high)
        points[:, 1] += math.sin(self.pitch) * 0.3 * low
        return points

    def ear(self, side: float) -> tuple[np.ndarray, tuple[float, float]]:
        """The outline [8, 2] and the middle of the ear at the sign of x `side`."""
        near = -side * math.sin(self.yaw)  # positive when the head shows this side
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
