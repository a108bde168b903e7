"""Letterbox: how an image keeps its aspect where networks work on squares, and at which size it is read where they do
not.

In training, images of all shapes stand in one array of squares: each in the middle of its square, its long side as
long as the square's, the rest filled by its own mirror image, where labels are 255. Read, an image is never filled up:
it is resized to about the same scale, with sides that networks take. Knows geometry and arrays; refuses to know
tensors, files and networks.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from partshot.parts import IGNORE

# What every student's sides are multiples of (nets.student.STRIDE, which cannot be asked without torch).
_STEP = 32


@dataclass(frozen=True)
class Box:
    """Where in a square of `size` px an image stands: rows top .. top + height, columns left .. left + width."""

    size: int
    top: int
    left: int
    height: int
    width: int

    @classmethod
    def of(cls, height: int, width: int, size: int) -> "Box":
        """Of an image of that height and width.

        What is filled up is the same on both sides, so that a mirrored image is filled up like a mirror image.
        """
        longest = max(height, width)
        # Half of the square at most less than two pixels, of however long an image.
        across, down = (min((size - 1) // 2, round((size - size * side / longest) / 2)) for side in (width, height))
        return cls(size, down, across, size - 2 * down, size - 2 * across)

    @property
    def whole(self) -> bool:
        """Whether the image fills the square."""
        return self.height == self.width == self.size

    def cut(self, maps):
        """What an array or tensor [..., size, size] has of the image: [..., height, width]."""
        return maps[..., self.top : self.top + self.height, self.left : self.left + self.width]

    def pad(self, array: np.ndarray, mode: str, **values: int) -> np.ndarray:
        """An array [height, width, ...] in its square, filled up as `numpy.pad` does in that mode."""
        margins = [(self.top, self.top), (self.left, self.left)] + [(0, 0)] * (array.ndim - 2)
        return np.pad(array, margins, mode, **values)


def letterbox(image: np.ndarray | Image.Image, size: int) -> np.ndarray:
    """An image, uint8 [h, w, 3], in the middle of uint8 [size, size, 3], its aspect kept, its mirror image around it.

    Resized as by `data.images.resize_image`; a square image is the same as there to the last bit.
    """
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    box = Box.of(image.height, image.width, size)
    small = np.array(image.resize((box.width, box.height), Image.Resampling.BILINEAR))
    return small if box.whole else box.pad(small, "symmetric")


def letterbox_labels(labels: np.ndarray, size: int) -> np.ndarray:
    """Labels, uint8 [h, w], on top of the image that `letterbox` made: uint8 [size, size], 255 around them.

    Each pixel takes the id at its center.
    """
    box = Box.of(*labels.shape, size)
    small = np.array(Image.fromarray(labels).resize((box.width, box.height), Image.Resampling.NEAREST))
    return small if box.whole else box.pad(small, "constant", constant_values=IGNORE)


def reading_size(height: int, width: int, longest: int) -> tuple[int, int]:
    """Height and width, multiples of 32 and at least that, at which an image of that height and width is read.

    longest: of the two, itself such a multiple. The aspect is kept to within half a multiple; a square stays one.
    """
    over = max(height, width)
    down, across = (max(1, (2 * side * longest + _STEP * over) // (2 * _STEP * over)) for side in (height, width))
    return down * _STEP, across * _STEP
