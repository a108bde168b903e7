"""What all pretexts with two views of an image share.

Sampling of batches, normalization of images, features at points of feature maps, and a measure of collapse. Losses and
heads are in the pretexts.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from lightly.transforms.utils import IMAGENET_NORMALIZE

from partshot.pretext.views import Views, two_views

# Dense losses compare GRID x GRID points of each pair of views: more points than the last feature map has cells.
GRID = 6


def sample_pairs(
    images: UInt8[torch.Tensor, "n s s 3"],
    batch: int,
    side: int,
    min_scale: float,
    color: float,
    rng: torch.Generator,
    device: torch.device,
    flip: bool = True,
) -> Views:
    """Two views of each of `batch` random images; images are repeated only if there are fewer than `batch`.

    side: of the views in pixels. min_scale, color, flip: as in `two_views`. rng: a CPU generator, the only source of
    randomness. device: where the views are computed.
    """
    count = len(images)
    rounds = [torch.randperm(count, generator=rng) for _ in range(math.ceil(batch / count))]
    chosen = images[torch.cat(rounds)[:batch]].to(device)
    return two_views(chosen, side, min_scale, color, GRID, rng, flip)


def normalize(images: Float[torch.Tensor, "b 3 h w"]) -> Float[torch.Tensor, "b 3 h w"]:
    """Normalizes images in [0, 1] by ImageNet's mean and standard deviation, which pretrained ResNets expect."""
    mean, std = (
        torch.tensor(IMAGENET_NORMALIZE[key], device=images.device).view(1, 3, 1, 1) for key in ("mean", "std")
    )
    return ((images - mean) / std).contiguous(memory_format=torch.channels_last)


def point_features(
    maps: tuple[Float[torch.Tensor, "b _ _ _"], ...], points: Float[torch.Tensor, "b n 2"]
) -> Float[torch.Tensor, "b*n c"]:
    """Features of all maps, concatenated, at points (x, y) in [-1, 1]; the points of one image are consecutive rows."""
    grid = points[:, :, None]
    # Border padding: points near the edge are beyond the center of the last cell, where zero padding would mix in
    # zeros.
    sampled = [F.grid_sample(m.float(), grid, padding_mode="border", align_corners=False)[..., 0] for m in maps]
    return torch.cat(sampled, dim=1).transpose(1, 2).flatten(0, 1)


def embedding_std(embeddings: Float[torch.Tensor, "b d"]) -> Float[torch.Tensor, ""]:
    """Measure of collapse: 0 if all embeddings have the same direction, about 1 if directions are isotropic.

    Standard deviation of the normalized embeddings over the batch, times sqrt(d) (Chen & He 2021, section 4.1). The
    journal calls it `spread`.
    """
    unit = F.normalize(embeddings, dim=1)
    return unit.std(dim=0).mean() * math.sqrt(embeddings.shape[1])
