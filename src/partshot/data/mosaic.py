"""Mosaic augmentation: labeled images pasted, rotated and rescaled, onto backgrounds.

It trains students for inference in windows (sliding windows over large images). A window shows objects at any position,
scale and rotation, truncated or several at once, on more background than a labeled image shows. A mosaic imitates this:
its canvas is the background of an image, with the parts inpainted, and labeled images are pasted onto it with their
labels. Objects are anywhere on the canvas, so a student with a position input does not learn to depend on it.
Works on batches of tensors; other augmentation is in augment.py.
"""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator

from partshot.data.augment import warp_labels
from partshot.recipe import Recipe

# Below this scale, an image is average-pooled over 2x2 pixels before resampling, to reduce aliasing.
_POOL_BELOW = 0.6


class Mosaic(Recipe):
    """How labeled images are pasted.

    probability: that an image of the batch is replaced by a mosaic. max_images: maximum number of images pasted on a
    canvas; the minimum is 1. min_scale, max_scale: range of their side as a fraction of the canvas's side, sampled
    log-uniformly. rotation: maximum angle in degrees, +-.
    """

    renamed: ClassVar = {
        "share": "probability",
        "most": "max_images",
        "smallest": "min_scale",
        "largest": "max_scale",
    }

    probability: float = Field(default=0.8, ge=0, le=1)
    max_images: int = Field(default=3, ge=1)
    min_scale: float = Field(default=0.35, gt=0)
    max_scale: float = Field(default=1.6, gt=0)
    rotation: float = Field(default=45.0, ge=0, le=180)

    @model_validator(mode="after")
    def _in_order(self):
        if self.min_scale > self.max_scale:
            raise ValueError(f"min_scale {self.min_scale:g} is above max_scale {self.max_scale:g}")
        return self


def mosaic(
    images: Float[torch.Tensor, "b 3 s s"], labels: Int[torch.Tensor, "b s s"], recipe: Mosaic, rng: torch.Generator
) -> tuple[Float[torch.Tensor, "b 3 s s"], Int[torch.Tensor, "b s s"]]:
    """Replaces each image of a batch, with the recipe's probability, by a mosaic of images in the batch.

    images: in [-1, 1]. labels: ids, 0 = background, 255 = ignore; a mosaic's labels are 0 outside the pasted images.
    rng: a CPU generator, the only source of randomness.
    """
    batch, device = len(images), images.device
    canvas = backgrounds(images, labels)[torch.randperm(batch, generator=rng).to(device)]
    ids = torch.zeros_like(labels)
    for pasted in range(recipe.max_images):
        chosen = torch.randperm(batch, generator=rng).to(device)
        grid, pooled = _random_grids(batch, images.shape[2], recipe, rng, device)
        # The first image is always pasted, each further one with probability 0.5.
        paste = (torch.rand(batch, generator=rng) < (1 if pasted == 0 else 0.5)).to(device)
        inside = (grid.abs().amax(3) <= 1) & paste[:, None, None]
        canvas = torch.where(inside[:, None], _resampled(images[chosen], grid, pooled), canvas)
        warped = warp_labels(labels[chosen], grid, torch.zeros_like(paste), [])
        ids = torch.where(inside, warped.to(ids), ids)
    unchanged = (torch.rand(batch, generator=rng) >= recipe.probability).to(device)
    return (
        torch.where(unchanged[:, None, None, None], images, canvas),
        torch.where(unchanged[:, None, None], labels, ids),
    )


def backgrounds(
    images: Float[torch.Tensor, "b 3 s s"], labels: Int[torch.Tensor, "b s s"]
) -> Float[torch.Tensor, "b 3 s s"]:
    """The images with everything but the background inpainted from surrounding colors (push-pull interpolation).

    An image without background pixels becomes gray.
    """
    weight = (labels == 0)[:, None].to(images)
    return _push_pull(images * weight, weight)


def _push_pull(colors: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """colors / weight where the weight is 1, interpolated with a coarser level where it is less."""
    mean = colors / weight.clamp(min=1e-6)
    if min(colors.shape[2:]) < 2:
        return mean
    coarse = _push_pull(*(F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False) for x in (colors, weight)))
    around = F.interpolate(coarse, size=colors.shape[2:], mode="bilinear", align_corners=False)
    return torch.lerp(around, mean, weight.clamp(max=1))


def _random_grids(
    batch: int, size: int, recipe: Mosaic, rng: torch.Generator, device: torch.device
) -> tuple[Float[torch.Tensor, "b s s 2"], Bool[torch.Tensor, " b"]]:
    """Random sampling grids, outside [-1, 1] beyond the pasted image, and which images to pool first."""
    low, high = math.log(recipe.min_scale), math.log(recipe.max_scale)
    zoom = torch.exp(low + torch.rand(batch, generator=rng) * (high - low))
    angle = (torch.rand(batch, generator=rng) * 2 - 1) * math.radians(recipe.rotation)
    # The center of the pasted image is on the canvas.
    center = torch.rand(batch, 2, 1, generator=rng) * 2 - 1
    cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    rotation = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
    theta = torch.cat([rotation, -rotation @ center], 2).to(device)
    return F.affine_grid(theta, [batch, 1, size, size], align_corners=False), (zoom < _POOL_BELOW).to(device)


def _resampled(images: torch.Tensor, grid: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
    fine, coarse = (
        F.grid_sample(level, grid, mode="bilinear", padding_mode="border", align_corners=False)
        for level in (images, F.avg_pool2d(images, 2))
    )
    return torch.where(pooled[:, None, None, None], coarse, fine)
