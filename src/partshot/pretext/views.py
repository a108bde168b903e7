"""Two views of a batch: each image cropped, mirrored, recolored and blurred twice, and where the two agree.

The changes and their numbers are MoCo-v2's and SimSiam's (lightly's SimSiamTransform), drawn for a whole batch at once
and carried out as matrix products: cropping, resizing, mirroring and blurring are all separable, so a view is
rows @ image @ columns. Chance comes from a CPU generator, the work is done where the images are. Knows the geometry
of its crops, so that a pretext can compare the same spot of an image in both views; knows no network.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8

# Luma weights of Rec. 601, the ones Pillow and torchvision use for gray images.
_LUMA = (0.299, 0.587, 0.114)
# Largest share of an image's brightness, contrast and saturation that is changed, and turns of hue; each by chance .8.
_JITTER, _HUE, _JITTER_CHANCE, _GRAY_CHANCE = 0.4, 0.1, 0.8, 0.2
# Sigma of the blur in pixels of a 224 px view, for which the numbers were published; smaller views blur less.
_BLUR, _BLUR_AT, _BLUR_CHANCE = (0.1, 2.0), 224, 0.5
# Width over height of a crop, drawn log-uniformly between this and its inverse.
_ASPECT = 3 / 4


class Crops(NamedTuple):
    """Where each view lies in its image; x, y in [-1, 1] over the image, as `grid_sample` counts without corners.

    center, half: middle and half of the crop's sides, [b, 2] as (x, y). sign: -1 where mirrored, else 1, [b].
    """

    center: torch.Tensor
    half: torch.Tensor
    sign: torch.Tensor


class Views(NamedTuple):
    """first, second: [b, 3, t, t] in [0, 1].

    first_spots, second_spots: [b, n, 2], the same points of the image as (x, y) in [-1, 1] of each view.
    """

    first: torch.Tensor
    second: torch.Tensor
    first_spots: torch.Tensor
    second_spots: torch.Tensor


def two_views(
    images: UInt8[torch.Tensor, "b s s 3"],
    size: int,
    smallest: float,
    color: float,
    spots: int,
    rng: torch.Generator,
    mirror: bool = True,
) -> Views:
    """Two views of each image, and spots x spots points that both of them see.

    size: side of the views in pixels. smallest: share of the image's area that the smallest crop has. color: strength
    of the color changes, 1 as published. rng: a CPU generator, the only source of chance. mirror: whether half of the
    views are mirrored.
    """
    batch = images.shape[0]
    planes = images.permute(0, 3, 1, 2).float() / 255
    crops = overlapping(*(random_crops(batch, smallest, rng, mirror) for _ in range(2)))
    first, second = (_view(planes, crop, size, color, rng) for crop in crops)
    return Views(first, second, *(at.to(planes.device) for at in shared_spots(*crops, spots, rng)))


def random_crops(batch: int, smallest: float, rng: torch.Generator, mirror: bool = True) -> Crops:
    """Crops as torchvision's RandomResizedCrop draws them, half of them mirrored if any.

    One that would reach over the image's edge is made as long as the image there, instead of being drawn again.
    """
    area = smallest + (1 - smallest) * torch.rand(batch, generator=rng)
    aspect = torch.exp(_symmetric(rng, batch) * math.log(1 / _ASPECT))
    half = torch.stack([(area * aspect).sqrt(), (area / aspect).sqrt()], 1).clamp(max=1)
    center = (torch.rand(batch, 2, generator=rng) * 2 - 1) * (1 - half)
    sign = torch.where(torch.rand(batch, generator=rng) < 0.5 * mirror, -1.0, 1.0)
    return Crops(center, half, sign)


def overlapping(first: Crops, second: Crops) -> tuple[Crops, Crops]:
    """The two crops; where they have nothing in common, the second is moved onto the first (1 in 1000 as published)."""
    apart = ((first.center - second.center).abs() >= first.half + second.half).any(dim=1, keepdim=True)
    moved = first.center.clamp(min=second.half - 1, max=1 - second.half)
    return first, second._replace(center=torch.where(apart, moved, second.center))


def shared_spots(
    first: Crops, second: Crops, side: int, rng: torch.Generator
) -> tuple[Float[torch.Tensor, "b n 2"], Float[torch.Tensor, "b n 2"]]:
    """side x side points spread over what two crops have in common, in the coordinates of each.

    Each point is drawn anywhere in its cell of a regular lattice.
    """
    low = torch.maximum(first.center - first.half, second.center - second.half)
    high = torch.minimum(first.center + first.half, second.center + second.half)
    cell = torch.arange(side).float()
    lattice = torch.stack(torch.meshgrid(cell, cell, indexing="xy"), -1).view(1, -1, 2)
    within = (lattice + torch.rand(low.shape[0], side * side, 2, generator=rng)) / side
    points = low[:, None] + (high - low)[:, None] * within
    return _seen_from(first, points), _seen_from(second, points)


def crop_matrix(
    center: Float[torch.Tensor, " b"], half: Float[torch.Tensor, " b"], source: int, target: int
) -> Float[torch.Tensor, "b t s"]:
    """Rows that resample `source` pixels to `target` within [center - half, center + half], antialiased.

    A negative half mirrors. Bilinear weights with half-pixel centers, widened by the factor of shrinking: along one
    axis what Pillow's and torchvision's antialiased bilinear resizing do.
    """
    out = (torch.arange(target, device=center.device) * 2 + 1) / target - 1
    at = ((center[:, None] + half[:, None] * out + 1) * source - 1) / 2
    reach = (half.abs() * source / target).clamp(min=1)[:, None, None]
    weights = (1 - (at[:, :, None] - torch.arange(source, device=center.device)).abs() / reach).clamp(min=0)
    return weights / weights.sum(dim=2, keepdim=True)


def blur_matrix(sigma: Float[torch.Tensor, " b"], size: int) -> Float[torch.Tensor, "b t t"]:
    """Gaussian blur along one axis, sigma in pixels; next to a border the weights inside it sum to 1."""
    index = torch.arange(size, device=sigma.device)
    squares = (index[:, None] - index[None, :]).square()
    weights = torch.exp(-squares / (2 * sigma.square()[:, None, None]))
    return weights / weights.sum(dim=2, keepdim=True)


def color_matrix(
    brightness: Float[torch.Tensor, " b"], saturation: Float[torch.Tensor, " b"], hue: Float[torch.Tensor, " b"]
) -> Float[torch.Tensor, "b 3 3"]:
    """Brightness and saturation as factors (saturation 0 is gray), hue in turns: a rotation about the gray axis."""
    angle = 2 * math.pi * hue[:, None, None]
    # Rodrigues' formula.
    k = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]], device=hue.device) / math.sqrt(3)
    eye = torch.eye(3, device=hue.device)
    turn = eye + torch.sin(angle) * k + (1 - torch.cos(angle)) * (k @ k)
    gray = torch.tensor(_LUMA, device=hue.device).expand(3, 3)
    s = saturation[:, None, None]
    return brightness[:, None, None] * ((s * eye + (1 - s) * gray) @ turn)


def _view(planes: torch.Tensor, crop: Crops, size: int, color: float, rng: torch.Generator) -> torch.Tensor:
    batch, source = planes.shape[0], planes.shape[-1]
    # Drawn on the CPU, worked out where the images are.
    blur = blur_matrix(_draw_blur(batch, size, rng).to(planes.device), size)
    center, half, sign = (drawn.to(planes.device) for drawn in crop)
    (x, y), (across, down) = center.unbind(1), half.unbind(1)
    rows = blur @ crop_matrix(y, down, source, size)
    columns = blur @ crop_matrix(x, across * sign, source, size)
    view = rows[:, None] @ planes @ columns[:, None].transpose(2, 3)
    return _recolor(view, color, rng)


def _recolor(view: torch.Tensor, strength: float, rng: torch.Generator) -> torch.Tensor:
    """ColorJitter and RandomGrayscale; unlike there in one order, and clamped once at the end."""
    batch = view.shape[0]
    reach = (torch.rand(batch, generator=rng) < _JITTER_CHANCE) * strength
    brightness, contrast, saturation = (1 + _symmetric(rng, batch) * _JITTER * reach for _ in range(3))
    hue = _symmetric(rng, batch) * _HUE * reach
    saturation = torch.where(torch.rand(batch, generator=rng) < _GRAY_CHANCE, 0.0, saturation)
    matrix = color_matrix(brightness, saturation, hue).to(view.device)
    view = torch.einsum("bij,bjhw->bihw", matrix, view)
    # Contrast is about the image's mean gray, as in Pillow.
    luma = torch.tensor(_LUMA, device=view.device).view(1, 3, 1, 1)
    middle = (view * luma).sum(dim=1, keepdim=True).mean(dim=(2, 3), keepdim=True)
    contrast = contrast.to(view.device)[:, None, None, None]
    return ((view - middle) * contrast + middle).clamp(0, 1)


def _draw_blur(batch: int, size: int, rng: torch.Generator) -> torch.Tensor:
    low, high = _BLUR
    sigma = (low + (high - low) * torch.rand(batch, generator=rng)) * size / _BLUR_AT
    # A sigma of .01 px leaves every pixel as it is.
    return torch.where(torch.rand(batch, generator=rng) < _BLUR_CHANCE, sigma.clamp(min=0.01), 0.01)


def _seen_from(crop: Crops, points: torch.Tensor) -> torch.Tensor:
    inside = (points - crop.center[:, None]) / crop.half[:, None]
    return inside * torch.stack([crop.sign, torch.ones_like(crop.sign)], 1)[:, None]


def _symmetric(rng: torch.Generator, batch: int) -> torch.Tensor:
    return torch.rand(batch, generator=rng) * 2 - 1
