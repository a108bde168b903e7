"""Deviations to divide by, so that channels that hardly vary are not blown up.

For everything that brings channels to one scale. Knows numbers only.
"""

import torch
from jaxtyping import Float

# Of a map's largest deviation, what a channel counts as having at least.
LEAST = 1 / 100


def floored(deviation: Float[torch.Tensor, " c"], least: float = LEAST) -> Float[torch.Tensor, " c"]:
    """Each deviation, but at least that share of the largest, 0..1; above 0 in any case. 1 makes all the largest."""
    return deviation.clamp(min=max(float(deviation.max()) * least, 1e-6))
