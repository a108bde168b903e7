"""Lower bound for standard deviations before dividing by them, so that nearly constant channels are not amplified.

Used wherever channels are standardized.
"""

import torch
from jaxtyping import Float

# Lower bound of a channel's standard deviation, as a fraction of the largest one in its map.
MIN_RELATIVE_STD = 1 / 100


def floor_std(std: Float[torch.Tensor, " c"], min_relative: float = MIN_RELATIVE_STD) -> Float[torch.Tensor, " c"]:
    """Standard deviations, raised to at least `min_relative` (0..1) times the largest one, and always above 0.

    min_relative = 1 sets all of them to the largest one.
    """
    return std.clamp(min=max(float(std.max()) * min_relative, 1e-6))
