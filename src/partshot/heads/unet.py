"""GANORCON's CONV head: a U-Net on the hypercolumn, whose first 3x3 convolution is computed lazily.

A 3x3 convolution is a sum of nine shifted 1x1 convolutions, which commute with resizing. The hypercolumn (4 GB at 512
px with 3,840 channels) is therefore not materialized, only the output of the first convolution: 1,024 channels at image
size, 1 GB at 512 px. Source: GANORCON's released code.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import nn

from partshot.errors import BadImage
from partshot.heads.linear import Linear
from partshot.nets.unet import GanorconBody, kaiming
from partshot.pyramid import Pyramid

WIDTH = 1024

# Smallest image side for five downsampling steps.
SMALLEST = 32


class ConvHead(nn.Module):
    """Pyramid -> 3x3 convolution to 1024, BatchNorm, ReLU -> GANORCON's U-Net -> logits [b, classes, h, w].

    reach is None: with five downsampling steps, the receptive field exceeds any tile. Raises BadImage under 32 px.
    """

    reach = None

    def __init__(self, channels: Sequence[int], classes: int):
        super().__init__()
        self.taps = nn.ModuleList(Linear(channels, WIDTH, bias=False) for _ in range(9))
        self.norm = nn.BatchNorm2d(WIDTH)
        self.body = GanorconBody(classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """He initialization (fan-in) of all layers; call it after that of the submodules."""
        fan_in = sum(weight.shape[1] for tap in self.taps for weight in tap.weights)
        for tap in self.taps:
            for weight in tap.weights:
                nn.init.normal_(weight, std=math.sqrt(2 / fan_in))
        self.body.apply(kaiming)

    def forward(self, pyramid: Pyramid) -> Float[torch.Tensor, "b k h w"]:
        """Logits at image size."""
        if min(pyramid.image_size) < SMALLEST:
            raise BadImage(f"head 'conv' downsamples five times; given {pyramid.image_size}, use {SMALLEST} or more")
        x = 0
        for place, tap in enumerate(self.taps):
            x = x + _shifted(tap(pyramid), place // 3 - 1, place % 3 - 1)
        return self.body(F.relu(self.norm(x), inplace=True))


def conv_head(channels: Sequence[int], classes: int) -> ConvHead:
    """GANORCON's CONV head."""
    return ConvHead(channels, classes)


def _shifted(x: torch.Tensor, down: int, right: int) -> torch.Tensor:
    """x[..., i + down, j + right] at (i, j), zero outside: the input of one tap of a padded 3x3 kernel."""
    return F.pad(x, (-right, right, -down, down))
