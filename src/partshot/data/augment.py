"""Joint augmentation of images and their labels, as batched tensor operations.

One set of random numbers moves image and mask alike: flip (with left and right parts trading ids), scale, rotation,
shift and a smooth warp; labels are sampled by the nearest pixel and what comes from outside the image is 255. Colors
change on the image alone. Everything works on whole batches in memory, because per-image pipelines are slower
than the network on two cores. Chance comes from a CPU generator, the work is done where the images are. Knows no
files and no networks; normalization is the representation's affair.
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
    """How much an image may change. Zero switches a change off (scale: one).

    scale: the largest zoom factor; drawn log-uniformly in [1/scale, scale]. rotation: degrees, +-.
    shift: share of the image's side, +-. warp: standard deviation of a smooth displacement, share of the side.
    flip: mirror half of the images (left/right parts swap). color: strength of brightness, contrast, saturation,
    hue and gamma changes; 1 is strong, 0 leaves out gray too. gray: probability of a gray image. blur: largest
    Gaussian sigma in pixels. noise: largest standard deviation of pixel noise, in the image's [-1, 1] range.
    cutout: largest share of a side that a patch of one color hides (the labels stay).
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
    # ReGAN's auto-shot augmentation (supplement and released code): +-10 degrees, x0.5-2, up to 50 % shift, flips.
    "regan-autoshot": Augment(scale=2.0, rotation=10, shift=0.5, color=0, gray=0, blur=0, noise=0),
    # Of colors 1, 0.5 and 0.25 the one best for five ants and near the best for five blood cells, see LOG.md.
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
    """Changed copies of images in [-1, 1] and of their label ids (255 = ignore).

    mirrored_ids: for each id, the id it becomes in a mirror (`PartSet.mirrored_ids`). rng: a CPU generator, the only
    source of chance.
    """
    grid, flipped = warp_grid(images.shape[0], images.shape[2:], recipe, rng, images.device)
    images = F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    if labels is not None:
        labels = move_labels(labels, grid, flipped, mirrored_ids)
    return recolor(images, recipe, rng), labels


def transfer_colors(
    images: Float[torch.Tensor, "b 3 h w"], others: Float[torch.Tensor, "b 3 h w"], share: float, rng: torch.Generator
) -> Float[torch.Tensor, "b 3 h w"]:
    """Some images in the colors of others: each channel takes the other image's mean and deviation.

    share: probability that an image borrows; how far it goes is drawn uniformly. So a few labeled images appear in
    the colors of the whole folder (Reinhard et al. 2001, in RGB). The result stays in [-1, 1].
    """
    (mean, deviation), (other_mean, other_deviation) = _statistics(images), _statistics(others)
    gain = other_deviation / (deviation + 1e-3)
    borrowed = (images * gain + (other_mean - mean * gain)).clamp(-1, 1)
    chosen = (torch.rand(len(images), 1, 1, 1, generator=rng) < share).float()
    return torch.lerp(images, borrowed, (chosen * torch.rand(len(images), 1, 1, 1, generator=rng)).to(images.device))


def _statistics(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of every channel of every image, [b, 3, 1, 1] each."""
    flat = images.flatten(2)
    mean, square = flat.mean(2), torch.linalg.vector_norm(flat, dim=2).square() / flat.shape[2]
    return mean[..., None, None], (square - mean.square()).clamp(min=0).sqrt()[..., None, None]


def warp_grid(
    batch: int, size: tuple[int, int], recipe: Augment, rng: torch.Generator, device: torch.device | str = "cpu"
) -> tuple[Float[torch.Tensor, "b h w 2"], torch.Tensor]:
    """A sampling grid for `torch.nn.functional.grid_sample` (x, y in [-1, 1]) and which images are flipped [b].

    device: where the images are that it is for.
    """
    height, width = size
    angle = _uniform(rng, batch, math.radians(recipe.rotation))
    zoom = torch.exp(_uniform(rng, batch, math.log(recipe.scale)))
    shift = _uniform(rng, batch, 2 * recipe.shift, 2)
    flipped = (torch.rand(batch, generator=rng) < 0.5) & recipe.flip
    sign = torch.where(flipped, -1.0, 1.0)
    cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    # Rows map output coordinates to input coordinates; the aspect keeps rotations rigid in oblong images.
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
        # A lattice of displacements, smoothed by bicubic interpolation; 2 because the grid spans [-1, 1].
        lattice = torch.randn(batch, 2, _LATTICE, _LATTICE, generator=rng) * (2 * recipe.warp)
        field = _bicubic(height).to(device) @ lattice.to(device) @ _bicubic(width).T.to(device)
        grid = grid + field.permute(0, 2, 3, 1)
    return grid, flipped.to(device)


_LATTICE = 5


@lru_cache
def _bicubic(size: int) -> torch.Tensor:
    """[size, 5]: bicubic interpolation of five values to `size` as a matrix, ten times as fast as F.interpolate."""
    unit = torch.eye(_LATTICE)[None, :, :, None]
    return F.interpolate(unit, size=(size, 1), mode="bicubic", align_corners=True)[0, :, :, 0].T.contiguous()


def move_labels(
    labels: Int[torch.Tensor, "b h w"],
    grid: Float[torch.Tensor, "b h w 2"],
    flipped: torch.Tensor,
    mirrored_ids: list[int],
) -> Int[torch.Tensor, "b h w"]:
    """Label ids sampled by the nearest pixel; 255 outside; left and right ids trade places where flipped."""
    # Shifted by one so that grid_sample's zero padding can be told from background.
    moved = F.grid_sample(labels[:, None].float() + 1, grid, mode="nearest", align_corners=False)[:, 0]
    moved = torch.where(moved < 0.5, IGNORE, moved.round().long() - 1)
    if any(i != j for i, j in enumerate(mirrored_ids)):
        table = torch.arange(IGNORE + 1, device=labels.device)
        table[: len(mirrored_ids)] = torch.tensor(mirrored_ids, device=labels.device)
        moved = torch.where(flipped[:, None, None], table[moved], moved)
    return moved


def move_scores(
    scores: Float[torch.Tensor, "b k h w"],
    grid: Float[torch.Tensor, "b h w 2"],
    flipped: torch.Tensor,
    mirrored_ids: list[int],
) -> Float[torch.Tensor, "b k h w"]:
    """Soft labels moved as `move_labels` moves ids, bilinearly; all-zero vectors outside (callers mask them out)."""
    moved = F.grid_sample(scores, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    if any(i != j for i, j in enumerate(mirrored_ids)):
        moved = torch.where(flipped[:, None, None, None], moved[:, mirrored_ids], moved)
    return moved


def recolor(
    images: Float[torch.Tensor, "b 3 h w"], recipe: Augment, rng: torch.Generator
) -> Float[torch.Tensor, "b 3 h w"]:
    """Colors, blur, noise and hidden patches changed; shapes untouched; the result stays in [-1, 1]."""
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
    """Standard normal. A GPU draws its own, from a seed of rng: a core does not keep up with millions of numbers."""
    if device.type == "cpu":
        return torch.randn(shape, generator=rng)
    seed = int(torch.randint(1 << 62, (), generator=rng))
    return torch.randn(shape, generator=torch.Generator(device).manual_seed(seed), device=device)


def _uniform(rng: torch.Generator, batch: int, reach: float, *shape: int) -> torch.Tensor:
    return (torch.rand(batch, *shape, generator=rng) * 2 - 1) * reach


# Luma weights of Rec. 601, the ones Pillow and torchvision use for gray images.
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
    turn = torch.eye(3) + sin * k + (1 - cos) * (k @ k)
    return turn @ (saturation * torch.eye(3) + (1 - saturation) * luma)


def _blur_half(x: torch.Tensor, largest: float, rng: torch.Generator) -> torch.Tensor:
    """Half of the images blurred, all with one sigma drawn for the batch (a per-image kernel costs 3x as much)."""
    sigma = 0.1 + float(torch.rand(1, generator=rng)) * largest
    chosen = torch.randperm(x.shape[0], generator=rng)[: (x.shape[0] + 1) // 2].to(x.device)
    reach = max(1, int(3 * sigma + 0.5))
    tap = torch.exp(-(torch.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    tap = (tap / tap.sum()).view(1, 1, -1, 1).expand(3, 1, -1, 1).to(x)
    padded = F.pad(x[chosen], [reach] * 4, mode="reflect")
    soft = F.conv2d(F.conv2d(padded, tap, groups=3), tap.transpose(2, 3), groups=3)
    return x.index_copy(0, chosen, soft)


def _cutout(x: torch.Tensor, largest: float, rng: torch.Generator) -> torch.Tensor:
    b, _, h, w = x.shape
    side = (torch.rand(b, 2, generator=rng) * largest).to(x.device)
    center = torch.rand(b, 2, generator=rng).to(x.device)
    rows, cols = (torch.linspace(0, 1, n, device=x.device) for n in (h, w))
    rows, cols = rows[None, :, None], cols[None, None, :]
    inside = ((rows - center[:, 0, None, None]).abs() < side[:, 0, None, None] / 2) & (
        (cols - center[:, 1, None, None]).abs() < side[:, 1, None, None] / 2
    )
    fill = (torch.rand(b, 3, 1, 1, generator=rng) * 2 - 1).to(x.device)
    return torch.where(inside[:, None], fill, x)
