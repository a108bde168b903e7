"""Letterboxing: images of any aspect ratio in square arrays, and the input size of networks that accept any aspect.

For training, images of all shapes are stacked in one array of squares. Each image is centered, its long side is as long
as the square's, and the rest is padded symmetrically (reflected), with labels 255. At inference an image is not padded:
it is resized to about the same scale, with sides that the network accepts. Works on arrays only and needs no torch.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from partshot.parts import IGNORE

# Divides the sides of every student's input. Equal to nets.student.STRIDE, which cannot be imported without torch.
_STEP = 32


@dataclass(frozen=True)
class Box:
    """Position of an image in a square of `size` px: rows top .. top + height, columns left .. left + width."""

    size: int
    top: int
    left: int
    height: int
    width: int

    @classmethod
    def of(cls, height: int, width: int, size: int) -> "Box":
        """The box of an image of this height and width.

        The padding is equal on both sides, so letterboxing commutes with flipping.
        """
        longest = max(height, width)
        # The padding leaves at least one pixel of the image, however elongated it is.
        across, down = (min((size - 1) // 2, round((size - size * side / longest) / 2)) for side in (width, height))
        return cls(size, down, across, size - 2 * down, size - 2 * across)

    @property
    def whole(self) -> bool:
        """Whether the image fills the square."""
        return self.height == self.width == self.size

    def cut(self, maps):
        """The part of an array or tensor [..., size, size] that holds the image: [..., height, width]."""
        return maps[..., self.top : self.top + self.height, self.left : self.left + self.width]

    def pad(self, array: np.ndarray, mode: str, **values: int) -> np.ndarray:
        """An array [height, width, ...] padded to its square by `numpy.pad` in this mode."""
        margins = [(self.top, self.top), (self.left, self.left)] + [(0, 0)] * (array.ndim - 2)
        return np.pad(array, margins, mode, **values)


def letterbox(image: np.ndarray | Image.Image, size: int) -> np.ndarray:
    """Letterboxes an image, uint8 [h, w, 3], to uint8 [size, size, 3]: centered, aspect kept, padding reflected.

    Resized as by `data.images.resize_image`; a square image gives exactly the same bits.
    """
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    box = Box.of(image.height, image.width, size)
    small = np.array(image.resize((box.width, box.height), Image.Resampling.BILINEAR))
    return small if box.whole else box.pad(small, "symmetric")


def letterbox_labels(labels: np.ndarray, size: int) -> np.ndarray:
    """Letterboxes labels, uint8 [h, w], in the same way as their image: uint8 [size, size], padded with 255.

    Nearest-neighbor resizing: each pixel takes the id at its center.
    """
    box = Box.of(*labels.shape, size)
    small = np.array(Image.fromarray(labels).resize((box.width, box.height), Image.Resampling.NEAREST))
    return small if box.whole else box.pad(small, "constant", constant_values=IGNORE)


def input_size(height: int, width: int, longest: int) -> tuple[int, int]:
    """Network input size (height, width) for an image of this height and width; multiples of 32, at least 32.

    longest: the longer of the two, also a multiple of 32. The aspect ratio is kept within a rounding of 16 px; a square
    stays square.
    """
    long = max(height, width)
    rows, columns = (max(1, (2 * side * longest + _STEP * long) // (2 * _STEP * long)) for side in (height, width))
    return rows * _STEP, columns * _STEP
