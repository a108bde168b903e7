"""Where in the image a pixel lies, as feature maps.

Aligned kinds of things (faces, museum ants, cells in the middle) keep their parts in place; contrastive crops wash
that out of a representation, and convolutions alone cannot see it.
"""

import torch
from jaxtyping import Float

CHANNELS = 5


def position_map(height: int | torch.SymInt, width: int | torch.SymInt) -> Float[torch.Tensor, "1 5 h w"]:
    """x, y, x^2, y^2, xy at the pixels' centers, from -1 to 1 along the long side.

    The short side spans less, by its share of the long one, so that a pixel of an oblong image is where it would be if
    the image stood in the middle of a square.
    """
    longest = torch.sym_max(height, width)
    y = (((torch.arange(height) + 0.5) / height * 2 - 1) * (height / longest))[:, None].expand(height, width)
    x = (((torch.arange(width) + 0.5) / width * 2 - 1) * (width / longest))[None, :].expand(height, width)
    return torch.stack([x, y, x * x, y * y, x * y])[None]
