"""Where in the picture a pixel lies, as feature maps.

Aligned kinds of things (faces, museum ants, cells in the middle) keep their parts in place; contrastive crops wash
that out of a representation, and convolutions alone cannot see it.
"""

import torch
from jaxtyping import Float

CHANNELS = 5


def position_map(height: int, width: int) -> Float[torch.Tensor, "1 5 {height} {width}"]:
    """x, y, x^2, y^2, xy at the pixels' centers, from -1 at the left and top edge to 1 at the right and bottom."""
    y = ((torch.arange(height) + 0.5) / height * 2 - 1)[:, None].expand(height, width)
    x = ((torch.arange(width) + 0.5) / width * 2 - 1)[None, :].expand(height, width)
    return torch.stack([x, y, x * x, y * y, x * y])[None]
