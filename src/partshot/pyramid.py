"""Pyramid: the hypercolumn that is never built.

Feature maps at their own sizes, all of one batch. A 1x1 convolution commutes with bilinear resizing, so heads apply
their first layer to each map before it is resized and sum the results (ops/hypercolumn.py); the stack of all maps at
image size, which published code holds in 100-260 GB, never exists.
"""

from dataclasses import dataclass

import torch

from partshot.errors import BadRecipe


@dataclass(frozen=True)
class Pyramid:
    """Feature maps of one batch of images.

    maps: finest first; each [b, c, h, w], any float type, all with the same b, on the same device.
    image_size: (height, width) in pixels of the images, the size at which heads answer.

    Raises BadRecipe when the maps are none, are not 4-D, differ in batch, or grow from one to the next.
    """

    maps: tuple[torch.Tensor, ...]
    image_size: tuple[int, int]

    def __post_init__(self):
        if not self.maps:
            raise BadRecipe("a Pyramid needs at least one feature map")
        if any(m.ndim != 4 for m in self.maps):
            raise BadRecipe(f"a Pyramid's maps are [b, c, h, w]; given {[tuple(m.shape) for m in self.maps]}")
        if len({m.shape[0] for m in self.maps}) != 1:
            raise BadRecipe(f"a Pyramid's maps share one batch; given batches {[m.shape[0] for m in self.maps]}")
        areas = [m.shape[2] * m.shape[3] for m in self.maps]
        if areas != sorted(areas, reverse=True):
            raise BadRecipe(f"a Pyramid's maps go from the finest to the coarsest; given areas {areas}")

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each map, finest first."""
        return tuple(m.shape[1] for m in self.maps)

    @property
    def batch(self) -> int:
        """Number of images."""
        return self.maps[0].shape[0]

    def __getitem__(self, index: slice | torch.Tensor) -> "Pyramid":
        """The Pyramid of some of the images: a slice shares their memory, a tensor of indices copies them."""
        return Pyramid(tuple(m[index] for m in self.maps), self.image_size)

    def to(self, *args, **kwargs) -> "Pyramid":
        """Every map moved or cast as `torch.Tensor.to` does."""
        return Pyramid(tuple(m.to(*args, **kwargs) for m in self.maps), self.image_size)
