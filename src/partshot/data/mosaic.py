"""Mosaics: labeled images pasted, turned and at other scales, onto backgrounds, for students that read windows.

A window of a large image shows things at any place, scale and rotation, cut off or several, on ground that no labeled
image shows whole. So do these canvases: each begins as the background of some image, its parts painted over by what
surrounds them, and gets copies of labeled images as squares of their own, labels alike. A thing lies anywhere in them,
so that where in the image a pixel lies tells nothing, and a student with a map of positions learns to do without.
Knows batches of tensors; refuses to know what else augmentation changes.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator

from partshot.data.augment import move_labels
from partshot.recipe import Recipe

# Below this share of its size, an image is averaged over two by two pixels first, as antialiased resizing would.
_FINE = 0.6


class Mosaic(Recipe):
    """How labeled images are pasted.

    share: of the batch that becomes mosaics; the others stay images of one thing. most: images pasted on a canvas, one
    to that many. smallest, largest: their side as a share of the canvas's, drawn log-uniformly. rotation: degrees, +-.
    """

    share: float = Field(default=0.8, ge=0, le=1)
    most: int = Field(default=3, ge=1)
    smallest: float = Field(default=0.35, gt=0)
    largest: float = Field(default=1.6, gt=0)
    rotation: float = Field(default=45.0, ge=0, le=180)

    @model_validator(mode="after")
    def _in_order(self):
        if self.smallest > self.largest:
            raise ValueError(f"the smallest, {self.smallest:g}, is above the largest, {self.largest:g}")
        return self


def mosaic(
    images: Float[torch.Tensor, "b 3 s s"], labels: Int[torch.Tensor, "b s s"], recipe: Mosaic, rng: torch.Generator
) -> tuple[Float[torch.Tensor, "b 3 s s"], Int[torch.Tensor, "b s s"]]:
    """A batch, of which the recipe's share are mosaics of the images in it.

    images: in [-1, 1]. labels: ids, 0 = background, 255 = ignore; outside what is pasted they are 0. rng: a CPU
    generator, the only source of chance.
    """
    batch, device = len(images), images.device
    canvas = backgrounds(images, labels)[torch.randperm(batch, generator=rng).to(device)]
    ids = torch.zeros_like(labels)
    for pasted in range(recipe.most):
        chosen = torch.randperm(batch, generator=rng).to(device)
        grid, small = _places(batch, images.shape[2], recipe, rng, device)
        # The first is always pasted, each further one in half of the canvases.
        wanted = (torch.rand(batch, generator=rng) < (1 if pasted == 0 else 0.5)).to(device)
        inside = (grid.abs().amax(3) <= 1) & wanted[:, None, None]
        canvas = torch.where(inside[:, None], _resampled(images[chosen], grid, small), canvas)
        moved = move_labels(labels[chosen], grid, torch.zeros_like(wanted), [])
        ids = torch.where(inside, moved.to(ids), ids)
    plain = (torch.rand(batch, generator=rng) >= recipe.share).to(device)
    return torch.where(plain[:, None, None, None], images, canvas), torch.where(plain[:, None, None], labels, ids)


def backgrounds(
    images: Float[torch.Tensor, "b 3 s s"], labels: Int[torch.Tensor, "b s s"]
) -> Float[torch.Tensor, "b 3 s s"]:
    """The images with everything but background painted over by the colors around it (push-pull).

    An image without background pixels becomes gray.
    """
    weight = (labels == 0)[:, None].to(images)
    return _filled(images * weight, weight)


def _filled(colors: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """colors / weight where the weight is 1, and from a coarser copy of it where it is less."""
    mean = colors / weight.clamp(min=1e-6)
    if min(colors.shape[2:]) < 2:
        return mean
    coarse = _filled(*(F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False) for x in (colors, weight)))
    around = F.interpolate(coarse, size=colors.shape[2:], mode="bilinear", align_corners=False)
    return torch.lerp(around, mean, weight.clamp(max=1))


def _places(
    batch: int, size: int, recipe: Mosaic, rng: torch.Generator, device: torch.device
) -> tuple[Float[torch.Tensor, "b s s 2"], Bool[torch.Tensor, " b"]]:
    """Sampling grids, beyond [-1, 1] outside the pasted image, and which images are pasted at well below their size."""
    low, high = math.log(recipe.smallest), math.log(recipe.largest)
    zoom = torch.exp(low + torch.rand(batch, generator=rng) * (high - low))
    angle = (torch.rand(batch, generator=rng) * 2 - 1) * math.radians(recipe.rotation)
    # The middle of what is pasted lies on the canvas.
    middle = torch.rand(batch, 2, 1, generator=rng) * 2 - 1
    cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    turn = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
    theta = torch.cat([turn, -turn @ middle], 2).to(device)
    return F.affine_grid(theta, [batch, 1, size, size], align_corners=False), (zoom < _FINE).to(device)


def _resampled(images: torch.Tensor, grid: torch.Tensor, small: torch.Tensor) -> torch.Tensor:
    fine, coarse = (
        F.grid_sample(level, grid, mode="bilinear", padding_mode="border", align_corners=False)
        for level in (images, F.avg_pool2d(images, 2))
    )
    return torch.where(small[:, None, None, None], coarse, fine)
