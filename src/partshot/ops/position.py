"""Pixel coordinates as feature maps (CoordConv).

Parts of aligned objects (faces, museum ants, centered cells) are always at about the same place. Contrastive training
with random crops removes this information from a representation, and convolutions alone cannot compute it.
"""

import torch
from jaxtyping import Float

CHANNELS = 5


def position_map(height: int | torch.SymInt, width: int | torch.SymInt) -> Float[torch.Tensor, "1 5 h w"]:
    """x, y, x^2, y^2, xy at pixel centers, from -1 to 1 along the long side.

    The short side spans less, in proportion to its length. A pixel of a non-square image therefore has the coordinates
    that it would have in the centered letterbox of the image.
    """
    longest = torch.sym_max(height, width)
    y = (((torch.arange(height) + 0.5) / height * 2 - 1) * (height / longest))[:, None].expand(height, width)
    x = (((torch.arange(width) + 0.5) / width * 2 - 1) * (width / longest))[None, :].expand(height, width)
    return torch.stack([x, y, x * x, y * y, x * y])[None]
