"""Two augmented views of each image of a batch, and corresponding points in both views.

The augmentations and their parameters are those of MoCo-v2 and SimSiam (lightly's SimSiamTransform): random resized
crop, horizontal flip, color jitter, grayscale and blur. Parameters are sampled for a whole batch at once. Cropping,
resizing, flipping and blurring are separable, so a view is computed as rows @ image @ columns. Random numbers come from
a CPU generator; views are computed on the images' device. The known geometry of the crops gives points at which both
views show the same place of the image, for dense losses.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8

# Luma weights of Rec. 601, the ones Pillow and torchvision use for gray images.
_LUMA = (0.299, 0.587, 0.114)
# Color jitter: strength for brightness, contrast and saturation; for hue, in full rotations; its probability. Then the
# probability of grayscale.
_JITTER, _HUE, _JITTER_P, _GRAY_P = 0.4, 0.1, 0.8, 0.2
# Blur: range of sigma in pixels for views of 224 px, as published (proportionally less for smaller views); probability.
_BLUR, _BLUR_AT, _BLUR_P = (0.1, 2.0), 224, 0.5
# Aspect ratio of a crop, sampled log-uniformly between this and its inverse.
_ASPECT = 3 / 4


class Crops(NamedTuple):
    """Crop boxes; coordinates x, y in [-1, 1] over the image, as in `grid_sample` with align_corners=False.

    center, half: center and half of the side lengths of the crops, [b, 2] as (x, y). sign: -1 where flipped, else 1,
    [b].
    """

    center: torch.Tensor
    half: torch.Tensor
    sign: torch.Tensor


class Views(NamedTuple):
    """first, second: [b, 3, t, t] in [0, 1].

    first_points, second_points: [b, n, 2], the same n points of the image, in coordinates (x, y) in [-1, 1] of each
    view.
    """

    first: torch.Tensor
    second: torch.Tensor
    first_points: torch.Tensor
    second_points: torch.Tensor


def two_views(
    images: UInt8[torch.Tensor, "b s s 3"],
    size: int,
    min_scale: float,
    color: float,
    grid: int,
    rng: torch.Generator,
    flip: bool = True,
) -> Views:
    """Two views of each image, and grid x grid points that are inside both.

    size: side of the views in pixels. min_scale: area of the smallest crop as a fraction of the image. color: strength
    of the color jitter, 1 as published. rng: a CPU generator, the only source of randomness. flip: whether views are
    flipped horizontally with probability 0.5.
    """
    batch = images.shape[0]
    planes = images.permute(0, 3, 1, 2).float() / 255
    crops = overlapping(*(random_crops(batch, min_scale, rng, flip) for _ in range(2)))
    first, second = (_view(planes, crop, size, color, rng) for crop in crops)
    return Views(first, second, *(points.to(planes.device) for points in shared_points(*crops, grid, rng)))


def random_crops(batch: int, min_scale: float, rng: torch.Generator, flip: bool = True) -> Crops:
    """Crops as in torchvision's RandomResizedCrop; if `flip`, each is flipped with probability 0.5.

    A crop that would be longer than the image is clipped to the image's length instead of being sampled again.
    """
    area = min_scale + (1 - min_scale) * torch.rand(batch, generator=rng)
    aspect = torch.exp(_symmetric(rng, batch) * math.log(1 / _ASPECT))
    half = torch.stack([(area * aspect).sqrt(), (area / aspect).sqrt()], 1).clamp(max=1)
    center = (torch.rand(batch, 2, generator=rng) * 2 - 1) * (1 - half)
    sign = torch.where(torch.rand(batch, generator=rng) < 0.5 * flip, -1.0, 1.0)
    return Crops(center, half, sign)


def overlapping(first: Crops, second: Crops) -> tuple[Crops, Crops]:
    """The two crops; a second crop that does not overlap the first is moved onto it (1 in 1000 as published)."""
    disjoint = ((first.center - second.center).abs() >= first.half + second.half).any(dim=1, keepdim=True)
    moved = first.center.clamp(min=second.half - 1, max=1 - second.half)
    return first, second._replace(center=torch.where(disjoint, moved, second.center))


def shared_points(
    first: Crops, second: Crops, side: int, rng: torch.Generator
) -> tuple[Float[torch.Tensor, "b n 2"], Float[torch.Tensor, "b n 2"]]:
    """side x side points in the intersection of two crops, in the coordinates of each crop.

    Jittered grid: each point is sampled uniformly in its cell of a regular grid.
    """
    low = torch.maximum(first.center - first.half, second.center - second.half)
    high = torch.minimum(first.center + first.half, second.center + second.half)
    cell = torch.arange(side).float()
    lattice = torch.stack(torch.meshgrid(cell, cell, indexing="xy"), -1).view(1, -1, 2)
    within = (lattice + torch.rand(low.shape[0], side * side, 2, generator=rng)) / side
    points = low[:, None] + (high - low)[:, None] * within
    return _to_crop(first, points), _to_crop(second, points)


def crop_matrix(
    center: Float[torch.Tensor, " b"], half: Float[torch.Tensor, " b"], source: int, target: int
) -> Float[torch.Tensor, "b t s"]:
    """Matrices that resample `source` pixels to `target` pixels in [center - half, center + half], antialiased.

    A negative `half` flips. Bilinear weights with half-pixel centers, widened by the downscaling factor, as in Pillow's
    and torchvision's antialiased bilinear resizing along one axis.
    """
    out = (torch.arange(target, device=center.device) * 2 + 1) / target - 1
    position = ((center[:, None] + half[:, None] * out + 1) * source - 1) / 2
    support = (half.abs() * source / target).clamp(min=1)[:, None, None]
    weights = (1 - (position[:, :, None] - torch.arange(source, device=center.device)).abs() / support).clamp(min=0)
    return weights / weights.sum(dim=2, keepdim=True)


def blur_matrix(sigma: Float[torch.Tensor, " b"], size: int) -> Float[torch.Tensor, "b t t"]:
    """Matrices of Gaussian blur along one axis, sigma in pixels; at borders, weights are renormalized to sum 1."""
    index = torch.arange(size, device=sigma.device)
    squares = (index[:, None] - index[None, :]).square()
    weights = torch.exp(-squares / (2 * sigma.square()[:, None, None]))
    return weights / weights.sum(dim=2, keepdim=True)


def color_matrix(
    brightness: Float[torch.Tensor, " b"], saturation: Float[torch.Tensor, " b"], hue: Float[torch.Tensor, " b"]
) -> Float[torch.Tensor, "b 3 3"]:
    """Color matrices on RGB.

    brightness, saturation: factors; saturation 0 gives grayscale. hue: rotation about the gray axis; 1 is a full
    rotation.
    """
    angle = 2 * math.pi * hue[:, None, None]
    # Rodrigues' formula.
    k = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]], device=hue.device) / math.sqrt(3)
    eye = torch.eye(3, device=hue.device)
    rotation = eye + torch.sin(angle) * k + (1 - torch.cos(angle)) * (k @ k)
    gray = torch.tensor(_LUMA, device=hue.device).expand(3, 3)
    s = saturation[:, None, None]
    return brightness[:, None, None] * ((s * eye + (1 - s) * gray) @ rotation)


def _view(planes: torch.Tensor, crop: Crops, size: int, color: float, rng: torch.Generator) -> torch.Tensor:
    batch, source = planes.shape[0], planes.shape[-1]
    # Parameters are sampled on the CPU; the view is computed on the images' device.
    blur = blur_matrix(_random_blur(batch, size, rng).to(planes.device), size)
    center, half, sign = (tensor.to(planes.device) for tensor in crop)
    (x, y), (across, down) = center.unbind(1), half.unbind(1)
    rows = blur @ crop_matrix(y, down, source, size)
    columns = blur @ crop_matrix(x, across * sign, source, size)
    view = rows[:, None] @ planes @ columns[:, None].transpose(2, 3)
    return _color_jitter(view, color, rng)


def _color_jitter(view: torch.Tensor, strength: float, rng: torch.Generator) -> torch.Tensor:
    """ColorJitter and RandomGrayscale; unlike torchvision's in a fixed order, and clamped once at the end."""
    batch = view.shape[0]
    scale = (torch.rand(batch, generator=rng) < _JITTER_P) * strength
    brightness, contrast, saturation = (1 + _symmetric(rng, batch) * _JITTER * scale for _ in range(3))
    hue = _symmetric(rng, batch) * _HUE * scale
    saturation = torch.where(torch.rand(batch, generator=rng) < _GRAY_P, 0.0, saturation)
    matrix = color_matrix(brightness, saturation, hue).to(view.device)
    view = torch.einsum("bij,bjhw->bihw", matrix, view)
    # Contrast is relative to the image's mean gray value, as in Pillow.
    luma = torch.tensor(_LUMA, device=view.device).view(1, 3, 1, 1)
    mean_gray = (view * luma).sum(dim=1, keepdim=True).mean(dim=(2, 3), keepdim=True)
    contrast = contrast.to(view.device)[:, None, None, None]
    return ((view - mean_gray) * contrast + mean_gray).clamp(0, 1)


def _random_blur(batch: int, size: int, rng: torch.Generator) -> torch.Tensor:
    low, high = _BLUR
    sigma = (low + (high - low) * torch.rand(batch, generator=rng)) * size / _BLUR_AT
    # A sigma of 0.01 px changes nothing.
    return torch.where(torch.rand(batch, generator=rng) < _BLUR_P, sigma.clamp(min=0.01), 0.01)


def _to_crop(crop: Crops, points: torch.Tensor) -> torch.Tensor:
    # From coordinates of the image to coordinates of the crop.
    inside = (points - crop.center[:, None]) / crop.half[:, None]
    return inside * torch.stack([crop.sign, torch.ones_like(crop.sign)], 1)[:, None]


def _symmetric(rng: torch.Generator, batch: int) -> torch.Tensor:
    return torch.rand(batch, generator=rng) * 2 - 1
