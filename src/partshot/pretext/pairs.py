"""Pairs: what every pretext that compares two views of an image needs, whatever it asks of them.

Which images make a batch, how a view is shown to a trunk, what the trunk sees at single spots, and the figure that
betrays a collapse. Knows no loss and no head.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from lightly.transforms.utils import IMAGENET_NORMALIZE

from partshot.pretext.views import Views, two_views

# Dense terms compare SPOTS x SPOTS points of each pair of views: more than there are cells in the last map.
SPOTS = 6


def draw_pairs(
    images: UInt8[torch.Tensor, "n s s 3"],
    batch: int,
    side: int,
    smallest: float,
    color: float,
    rng: torch.Generator,
    device: torch.device,
    mirror: bool = True,
) -> Views:
    """Two views of that many images; none comes twice while there are enough of them.

    side: of the views in pixels. smallest, color, mirror: as in `two_views`. rng: a CPU generator, the only source of
    chance. device: where the views are made.
    """
    count = len(images)
    rounds = [torch.randperm(count, generator=rng) for _ in range(math.ceil(batch / count))]
    chosen = images[torch.cat(rounds)[:batch]].to(device)
    return two_views(chosen, side, smallest, color, SPOTS, rng, mirror)


def normalized(images: Float[torch.Tensor, "b 3 h w"]) -> Float[torch.Tensor, "b 3 h w"]:
    """Images in [0, 1] by ImageNet's mean and deviation, as trained ResNets are read."""
    mean, std = (
        torch.tensor(IMAGENET_NORMALIZE[key], device=images.device).view(1, 3, 1, 1) for key in ("mean", "std")
    )
    return ((images - mean) / std).contiguous(memory_format=torch.channels_last)


def at_spots(
    maps: tuple[Float[torch.Tensor, "b _ _ _"], ...], spots: Float[torch.Tensor, "b n 2"]
) -> Float[torch.Tensor, "b*n c"]:
    """Feature vectors of all maps at points (x, y) in [-1, 1], side by side, image after image."""
    grid = spots[:, :, None]
    # Border padding: a spot near the edge lies beyond the last cell's middle, and zeros would be mixed in.
    read = [F.grid_sample(m.float(), grid, padding_mode="border", align_corners=False)[..., 0] for m in maps]
    return torch.cat(read, dim=1).transpose(1, 2).flatten(0, 1)


def spread(embeddings: Float[torch.Tensor, "b d"]) -> Float[torch.Tensor, ""]:
    """How far normalized embeddings are from collapse: 0 when all are one point, about 1 when they fill the sphere.

    Their standard deviation over the batch, times sqrt(d) (Chen & He 2021, section 4.1).
    """
    unit = F.normalize(embeddings, dim=1)
    return unit.std(dim=0).mean() * math.sqrt(embeddings.shape[1])
