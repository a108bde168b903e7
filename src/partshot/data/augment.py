"""Joint augmentation of images and their labels, as batched tensor operations.

Geometric augmentation warps image and mask by the same sampling grid: flip (which also swaps the ids of left and right
parts), scale, rotation, shift and a smooth elastic warp. Labels are sampled by nearest neighbor; pixels from outside
the image become 255. Photometric augmentation changes only the image. All operations run on whole batches in memory,
because per-image pipelines are slower than the network on two cores. Random numbers come from a CPU generator; the
operations run on the images' device. Images are in [-1, 1]; normalization is left to the representation.
"""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field

from partshot.parts import IGNORE
from partshot.recipe import Recipe


class Augment(Recipe):
    """Strengths of the augmentations. Zero disables one (scale: 1).

    scale: maximum zoom factor, sampled log-uniformly in [1/scale, scale]. rotation: maximum angle in degrees, +-.
    shift: maximum translation as a fraction of the image side, +-. warp: standard deviation of a smooth (elastic)
    displacement, as a fraction of the side. flip: flip horizontally with probability 0.5 (left and right parts swap
    ids). color: strength of brightness, contrast, saturation, hue and gamma jitter; 1 is strong, 0 also disables
    gray. gray: probability of a grayscale image. blur: maximum Gaussian sigma in pixels. noise: maximum standard
    deviation of pixel noise, in the image's [-1, 1] range. cutout: maximum side of a patch of one color, as a fraction
    of the image side (labels are unchanged).
    """

    scale: float = Field(default=1.4, ge=1)
    rotation: float = Field(default=20.0, ge=0, le=180)
    shift: float = Field(default=0.15, ge=0, le=1)
    warp: float = Field(default=0.0, ge=0, le=1)
    flip: bool = True
    color: float = Field(default=0.5, ge=0)
    gray: float = Field(default=0.1, ge=0, le=1)
    blur: float = Field(default=1.0, ge=0)
    noise: float = Field(default=0.05, ge=0)
    cutout: float = Field(default=0.0, ge=0, le=1)


PRESETS = {
    # ReGAN's auto-shot augmentation (supplement and released code): rotation +-10 degrees, scale 0.5-2, shift up to
    # 50 %, flips.
    "regan-autoshot": Augment(scale=2.0, rotation=10, shift=0.5, color=0, gray=0, blur=0, noise=0),
    # color: of 1, 0.5 and 0.25, 0.5 is best for five ants and close to the best for five blood cells, see LOG.md.
    "strong": Augment(rotation=15, warp=0.04, color=0.5, gray=0.05, cutout=0.35),
    "weak": Augment(scale=1.1, rotation=5, shift=0.05, color=0.1, gray=0, blur=0, noise=0),
    "none": Augment(scale=1, rotation=0, shift=0, flip=False, color=0, gray=0, blur=0, noise=0),
}


def augment(
    images: Float[torch.Tensor, "b 3 h w"],
    labels: Int[torch.Tensor, "b h w"] | None,
    recipe: Augment,
    rng: torch.Generator,
    mirrored_ids: list[int],
) -> tuple[Float[torch.Tensor, "b 3 h w"], Int[torch.Tensor, "b h w"] | None]:
    """Augmented copies of images in [-1, 1] and of their label ids (255 = ignore).

    mirrored_ids: for each id, its id after a horizontal flip (`PartSet.mirrored_ids`). rng: a CPU generator, the only
    source of randomness.
    """
    grid, flipped = warp_grid(images.shape[0], images.shape[2:], recipe, rng, images.device)
    images = F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    if labels is not None:
        labels = warp_labels(labels, grid, flipped, mirrored_ids)
    return photometric(images, recipe, rng), labels


def transfer_colors(
    images: Float[torch.Tensor, "b 3 h w"], others: Float[torch.Tensor, "b 3 h w"], share: float, rng: torch.Generator
) -> Float[torch.Tensor, "b 3 h w"]:
    """Color transfer (Reinhard et al. 2001, in RGB): each channel takes mean and standard deviation of another image.

    It shows the few labeled images in the colors of the whole folder. share: probability that an image is changed;
    the result is interpolated with the image by a uniformly sampled weight and stays in [-1, 1].
    """
    (mean, deviation), (other_mean, other_deviation) = _statistics(images), _statistics(others)
    gain = other_deviation / (deviation + 1e-3)
    transferred = (images * gain + (other_mean - mean * gain)).clamp(-1, 1)
    chosen = (torch.rand(len(images), 1, 1, 1, generator=rng) < share).float()
    return torch.lerp(images, transferred, (chosen * torch.rand(len(images), 1, 1, 1, generator=rng)).to(images.device))


def _statistics(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each channel of each image, [b, 3, 1, 1] each."""
    flat = images.flatten(2)
    mean, square = flat.mean(2), torch.linalg.vector_norm(flat, dim=2).square() / flat.shape[2]
    return mean[..., None, None], (square - mean.square()).clamp(min=0).sqrt()[..., None, None]


# Probability of a horizontal flip, where a recipe flips at all.
FLIP_PROBABILITY = 0.5


def warp_grid(
    batch: int, size: tuple[int, int], recipe: Augment, rng: torch.Generator, device: torch.device | str = "cpu"
) -> tuple[Float[torch.Tensor, "b h w 2"], torch.Tensor]:
    """A random sampling grid for `torch.nn.functional.grid_sample` (x, y in [-1, 1]) and which images are flipped, [b].

    device: of the result.
    """
    height, width = size
    angle = _uniform(rng, batch, math.radians(recipe.rotation))
    zoom = torch.exp(_uniform(rng, batch, math.log(recipe.scale)))
    shift = _uniform(rng, batch, 2 * recipe.shift, 2)
    flipped = (torch.rand(batch, generator=rng) < FLIP_PROBABILITY) & recipe.flip
    sign = torch.where(flipped, -1.0, 1.0)
    cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    # Rows map output coordinates to input coordinates; the aspect ratio keeps rotations rigid in non-square images.
    aspect = height / width
    theta = torch.stack(
        [
            torch.stack([cos * sign, -sin * aspect, shift[:, 0]], 1),
            torch.stack([sin * sign / aspect, cos, shift[:, 1]], 1),
        ],
        1,
    )
    grid = F.affine_grid(theta.to(device), [batch, 1, height, width], align_corners=False)
    if recipe.warp:
        # Random displacements on a coarse grid, upsampled bicubically; times 2 because coordinates span [-1, 1].
        coarse = torch.randn(batch, 2, _COARSE, _COARSE, generator=rng) * (2 * recipe.warp)
        field = _bicubic(height).to(device) @ coarse.to(device) @ _bicubic(width).T.to(device)
        grid = grid + field.permute(0, 2, 3, 1)
    return grid, flipped.to(device)


_COARSE = 5


@lru_cache
def _bicubic(size: int) -> torch.Tensor:
    """Bicubic upsampling of five values to `size` as a matrix [size, 5]; ten times faster than F.interpolate."""
    unit = torch.eye(_COARSE)[None, :, :, None]
    return F.interpolate(unit, size=(size, 1), mode="bicubic", align_corners=True)[0, :, :, 0].T.contiguous()


def warp_labels(
    labels: Int[torch.Tensor, "b h w"],
    grid: Float[torch.Tensor, "b h w 2"],
    flipped: torch.Tensor,
    mirrored_ids: list[int],
) -> Int[torch.Tensor, "b h w"]:
    """Warps label ids by nearest neighbor, 255 outside the image; swaps left and right ids in flipped images."""
    # Ids are shifted by one because grid_sample pads with 0, which is the background.
    warped = F.grid_sample(labels[:, None].float() + 1, grid, mode="nearest", align_corners=False)[:, 0]
    warped = torch.where(warped < 0.5, IGNORE, warped.round().long() - 1)
    if any(i != j for i, j in enumerate(mirrored_ids)):
        table = torch.arange(IGNORE + 1, device=labels.device)
        table[: len(mirrored_ids)] = torch.tensor(mirrored_ids, device=labels.device)
        warped = torch.where(flipped[:, None, None], table[warped], warped)
    return warped


def warp_soft_labels(
    soft_labels: Float[torch.Tensor, "b k h w"],
    grid: Float[torch.Tensor, "b h w 2"],
    flipped: torch.Tensor,
    mirrored_ids: list[int],
) -> Float[torch.Tensor, "b k h w"]:
    """Warps soft labels as `warp_labels` does ids, but bilinearly; all-zero outside the image, for callers to mask."""
    warped = F.grid_sample(soft_labels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    if any(i != j for i, j in enumerate(mirrored_ids)):
        warped = torch.where(flipped[:, None, None, None], warped[:, mirrored_ids], warped)
    return warped


def photometric(
    images: Float[torch.Tensor, "b 3 h w"], recipe: Augment, rng: torch.Generator
) -> Float[torch.Tensor, "b 3 h w"]:
    """Photometric augmentation: color jitter, blur, noise and cutout; the result stays in [-1, 1]."""
    b, device = images.shape[0], images.device
    x = images
    if recipe.color:
        c = recipe.color
        x = (x + 1) / 2
        x = x.clamp(1e-3, 1) ** torch.exp(_uniform(rng, b, 0.6 * c, 1, 1, 1)).to(device)
        matrix = _color_matrix(b, c, recipe.gray, rng).to(device)
        mean = x.mean(dim=(2, 3), keepdim=True)
        x = torch.einsum("bij,bjhw->bihw", matrix, x - mean) + torch.einsum("bij,bjhw->bihw", matrix, mean)
        contrast = torch.exp(_uniform(rng, b, 0.6 * c, 1, 1, 1)).to(device)
        level = x.mean(dim=(1, 2, 3), keepdim=True)
        x = (x - level) * contrast + level + _uniform(rng, b, 0.3 * c, 1, 1, 1).to(device)
        x = x.clamp(0, 1) * 2 - 1
    if recipe.blur:
        x = _blur_half(x, recipe.blur, rng)
    if recipe.noise:
        strength = torch.rand(b, 1, 1, 1, generator=rng) * recipe.noise
        x = (x + _noise(x.shape, rng, device) * strength.to(device)).clamp(-1, 1)
    if recipe.cutout:
        x = _cutout(x, recipe.cutout, rng)
    return x


def _noise(shape: torch.Size, rng: torch.Generator, device: torch.device) -> torch.Tensor:
    """Standard normal noise. On a GPU it comes from a GPU generator seeded by rng, since the CPU would be too slow."""
    if device.type == "cpu":
        return torch.randn(shape, generator=rng)
    seed = int(torch.randint(1 << 62, (), generator=rng))
    return torch.randn(shape, generator=torch.Generator(device).manual_seed(seed), device=device)


def _uniform(rng: torch.Generator, batch: int, limit: float, *shape: int) -> torch.Tensor:
    """Uniform in [-limit, limit], [batch, *shape]."""
    return (torch.rand(batch, *shape, generator=rng) * 2 - 1) * limit


# Luma weights of Rec. 601, as in the grayscale conversion of Pillow and torchvision.
_LUMA = (0.299, 0.587, 0.114)


def _color_matrix(batch: int, strength: float, gray: float, rng: torch.Generator) -> torch.Tensor:
    """[b, 3, 3] matrices of random saturation and hue; saturation 0 (gray) with probability `gray`."""
    luma = torch.tensor(_LUMA).expand(3, 3)
    saturation = torch.exp(_uniform(rng, batch, 1.2 * strength))
    saturation = torch.where(torch.rand(batch, generator=rng) < gray, 0.0, saturation)[:, None, None]
    hue = _uniform(rng, batch, 0.25 * math.pi * strength)
    # Rodrigues' rotation about the gray axis.
    k = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    cos, sin = torch.cos(hue)[:, None, None], torch.sin(hue)[:, None, None]
    rotation = torch.eye(3) + sin * k + (1 - cos) * (k @ k)
    return rotation @ (saturation * torch.eye(3) + (1 - saturation) * luma)


def _blur_half(x: torch.Tensor, max_sigma: float, rng: torch.Generator) -> torch.Tensor:
    """Blurs half of the images with one random sigma for the batch (a kernel per image costs 3x as much)."""
    sigma = 0.1 + float(torch.rand(1, generator=rng)) * max_sigma
    chosen = torch.randperm(x.shape[0], generator=rng)[: (x.shape[0] + 1) // 2].to(x.device)
    # The reflection of the border must be smaller than the image.
    radius = min(max(1, int(3 * sigma + 0.5)), min(x.shape[2:]) - 1)
    kernel = torch.exp(-(torch.arange(-radius, radius + 1) ** 2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).view(1, 1, -1, 1).expand(3, 1, -1, 1).to(x)
    padded = F.pad(x[chosen], [radius] * 4, mode="reflect")
    blurred = F.conv2d(F.conv2d(padded, kernel, groups=3), kernel.transpose(2, 3), groups=3)
    return x.index_copy(0, chosen, blurred)


def _cutout(x: torch.Tensor, max_side: float, rng: torch.Generator) -> torch.Tensor:
    """Fills a random rectangle of each image with a random color; max_side: as a fraction of the image side."""
    b, _, h, w = x.shape
    side = (torch.rand(b, 2, generator=rng) * max_side).to(x.device)
    center = torch.rand(b, 2, generator=rng).to(x.device)
    rows, cols = (torch.linspace(0, 1, n, device=x.device) for n in (h, w))
    rows, cols = rows[None, :, None], cols[None, None, :]
    inside = ((rows - center[:, 0, None, None]).abs() < side[:, 0, None, None] / 2) & (
        (cols - center[:, 1, None, None]).abs() < side[:, 1, None, None] / 2
    )
    fill = (torch.rand(b, 3, 1, 1, generator=rng) * 2 - 1).to(x.device)
    return torch.where(inside[:, None], fill, x)
