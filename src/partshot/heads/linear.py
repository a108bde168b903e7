"""The linear head: a 1x1 convolution of the lazy hypercolumn, which is also the first layer of all other heads.

It has one weight matrix per map, and standardizes the maps' channels first.
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
    """Pyramid -> [b, classes, h, w] at image size, pixelwise.

    channels: of each map, finest first. classes: number of outputs. bias: whether to add a bias. The buffers shift and
    scale (one pair per map, [channels]) standardize the maps, (map - shift) * scale. They are folded into the weights
    and are initially 0 and 1.
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
        """Torch's initialization of a 1x1 convolution over all channels: uniform in +-1/sqrt(fan_in)."""
        bound = 1 / math.sqrt(sum(weight.shape[1] for weight in self.weights))
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)
        for i in range(len(self.weights)):
            getattr(self, f"shift_{i}").zero_()
            getattr(self, f"scale_{i}").fill_(1)

    def forward(self, pyramid: Pyramid) -> Float[torch.Tensor, "b k h w"]:
        """Logits, or the pre-activations of a hidden layer."""
        weights, bias = self.folded()
        return project(pyramid, weights, bias)

    def folded(self) -> tuple[list[torch.Tensor], torch.Tensor | None]:
        """Weights and bias for the original maps, with the standardization folded in."""
        shifts = [getattr(self, f"shift_{i}") for i in range(len(self.weights))]
        weights = [w * getattr(self, f"scale_{i}") for i, w in enumerate(self.weights)]
        if not any(bool(shift.any()) for shift in shifts):
            return weights, self.bias
        offset = sum(weight @ shift for weight, shift in zip(weights, shifts, strict=True))
        return weights, -offset if self.bias is None else self.bias - offset

    @torch.no_grad()
    def standardize(self, pyramid: Pyramid, shared_scale: Sequence[bool] = ()) -> None:
        """Sets shift and scale so that every channel of this pyramid has mean 0 and standard deviation 1.

        To avoid amplifying nearly constant channels, standard deviations are clamped from below at a hundredth of the
        map's largest. shared_scale: for each map, whether all channels are divided by the map's largest standard
        deviation instead, as in `Spec`; empty means False for all maps.
        """
        # A submodule of a head may use only the first maps.
        for i, level in enumerate(pyramid.maps[: len(self.weights)]):
            deviation, mean = torch.std_mean(level.float(), dim=(0, 2, 3), correction=0)
            least = 1.0 if shared_scale and shared_scale[i] else MIN_RELATIVE_STD
            getattr(self, f"shift_{i}").copy_(mean)
            getattr(self, f"scale_{i}").copy_(1 / floor_std(deviation, least))
