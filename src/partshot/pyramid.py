"""Pyramid: feature maps of one batch at their own sizes; a lazy hypercolumn.

A 1x1 convolution commutes with bilinear resizing. Heads therefore apply their first layer to each map before resizing
and sum the results (ops/hypercolumn.py). The hypercolumn itself, all maps resized to image size and stacked, takes
100-260 GB in published code and is never materialized here.
"""

from dataclasses import dataclass

import torch

from partshot.errors import BadRecipe


@dataclass(frozen=True)
class Pyramid:
    """Feature maps of one batch of images.

    maps: finest first; each [b, c, h, w], any float type, all with the same b and on the same device.
    image_size: (height, width) of the images in pixels, which is also the size of a head's logits.

    Raises BadRecipe if there are no maps, or if they are not 4-D, differ in batch size, or are not ordered from finest
    to coarsest.
    """

    maps: tuple[torch.Tensor, ...]
    image_size: tuple[int, int]

    def __post_init__(self):
        if not self.maps:
            raise BadRecipe("a Pyramid needs at least one feature map")
        if any(m.ndim != 4 for m in self.maps):
            raise BadRecipe(f"a Pyramid's maps are [b, c, h, w]; given {[tuple(m.shape) for m in self.maps]}")
        if len({m.shape[0] for m in self.maps}) != 1:
            raise BadRecipe(f"a Pyramid's maps need the same batch size; given {[m.shape[0] for m in self.maps]}")
        areas = [m.shape[2] * m.shape[3] for m in self.maps]
        if areas != sorted(areas, reverse=True):
            raise BadRecipe(f"a Pyramid's maps are ordered from finest to coarsest; given areas {areas}")

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each map, finest first."""
        return tuple(m.shape[1] for m in self.maps)

    @property
    def batch(self) -> int:
        """Number of images."""
        return self.maps[0].shape[0]

    def __getitem__(self, index: slice | torch.Tensor) -> "Pyramid":
        """The Pyramid of some of the images. A slice is a view, a tensor of indices makes a copy."""
        return Pyramid(tuple(m[index] for m in self.maps), self.image_size)

    def to(self, *args, **kwargs) -> "Pyramid":
        """Moves or casts every map, like `torch.Tensor.to`."""
        return Pyramid(tuple(m.to(*args, **kwargs) for m in self.maps), self.image_size)
