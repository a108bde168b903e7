"""The linear head: a 1x1 convolution over the lazy hypercolumn, which is also every other head's first layer.

Knows one weight matrix per map and how each map's channels are brought to one scale before it. Refuses to know what
comes after.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import nn

from partshot.ops.hypercolumn import project
from partshot.ops.standardize import MIN_RELATIVE_STD, floor_std
from partshot.pyramid import Pyramid


class Linear(nn.Module):
    """Pyramid -> [b, classes, h, w] at image size, each pixel by itself.

    channels: of each map, finest first. classes: number of outputs. bias: whether there is one.
    shift and scale (one pair of buffers per map, [channels]) are applied to the maps first, (map - shift) * scale, by
    folding them into the weights; they start as 0 and 1.
    """

    reach = 0

    def __init__(self, channels: Sequence[int], classes: int, bias: bool = True):
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(torch.empty(classes, c)) for c in channels)
        self.bias = nn.Parameter(torch.empty(classes)) if bias else None
        for i, c in enumerate(channels):
            self.register_buffer(f"shift_{i}", torch.zeros(c))
            self.register_buffer(f"scale_{i}", torch.ones(c))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights as torch gives a 1x1 convolution over all channels at once: uniform in +-1/sqrt(fan in)."""
        bound = 1 / math.sqrt(sum(weight.shape[1] for weight in self.weights))
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)
        for i in range(len(self.weights)):
            getattr(self, f"shift_{i}").zero_()
            getattr(self, f"scale_{i}").fill_(1)

    def forward(self, pyramid: Pyramid) -> Float[torch.Tensor, "b k h w"]:
        """Logits, or a hidden layer's values before its activation."""
        weights, bias = self.folded()
        return project(pyramid, weights, bias)

    def folded(self) -> tuple[list[torch.Tensor], torch.Tensor | None]:
        """Weights and bias that do to the maps as they are what this layer does to the rescaled ones."""
        shifts = [getattr(self, f"shift_{i}") for i in range(len(self.weights))]
        weights = [w * getattr(self, f"scale_{i}") for i, w in enumerate(self.weights)]
        if not any(bool(shift.any()) for shift in shifts):
            return weights, self.bias
        offset = sum(weight @ shift for weight, shift in zip(weights, shifts, strict=True))
        return weights, -offset if self.bias is None else self.bias - offset

    @torch.no_grad()
    def standardize(self, pyramid: Pyramid, proportional: Sequence[bool] = ()) -> None:
        """Sets shift and scale so that every channel of this pyramid has mean 0 and deviation 1.

        Channels that hardly vary are not blown up: deviations count as at least a hundredth of their map's largest.
        proportional: of each map, whether its channels keep their proportions and the largest alone comes to 1, as
        `Spec` has it; empty for none.
        """
        # A part of a head may read the first maps alone.
        for i, level in enumerate(pyramid.maps[: len(self.weights)]):
            deviation, mean = torch.std_mean(level.float(), dim=(0, 2, 3), correction=0)
            least = 1.0 if proportional and proportional[i] else MIN_RELATIVE_STD
            getattr(self, f"shift_{i}").copy_(mean)
            getattr(self, f"scale_{i}").copy_(1 / floor_std(deviation, least))
