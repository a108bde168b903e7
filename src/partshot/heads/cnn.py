"""ReGAN's few-shot CNNs: a lazy 1x1 convolution to 128 channels, then dilated 3x3 convolutions at image size.

The three sizes have receptive fields of 6, 14 and 30 pixels to each side. Architectures follow the paper's supplement
and the released code; train/fit_head.py fits them.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import nn

from partshot.heads.linear import Linear
from partshot.pyramid import Pyramid

# Negative slope of LeakyReLU: torch's default, as in the authors' release. The earlier notebook implementation
# (bryandlee/repurpose-gan), the source of sizes S and M, has 0.2.
SLOPE = 0.01

# (dilations, widths): a 1x1 layer to the first width, then one 3x3 convolution per dilation, the last to the classes.
S = ((2, 1, 2, 1), (128, 64, 64, 32))
M = ((2, 4, 1, 2, 4, 1), (128, 64, 64, 64, 64, 32))
L = ((2, 4, 8, 1, 2, 4, 8, 1), (128, 64, 64, 64, 64, 64, 64, 32))


class Cnn(nn.Module):
    """Pyramid -> 1x1 -> dilated 3x3 convolutions -> logits [b, classes, h, w]; LeakyReLU after all but the last.

    dilations: of each 3x3 convolution. widths: input channels of each.
    reach: receptive field in pixels to each side, the sum of the dilations. Borders are zero-padded.
    """

    def __init__(
        self,
        channels: Sequence[int],
        classes: int,
        dilations: Sequence[int],
        widths: Sequence[int],
    ):
        super().__init__()
        self.reach = sum(dilations)
        self.first = Linear(channels, widths[0])
        self.rest = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=d, dilation=d)
            for a, b, d in zip(widths, [*widths[1:], classes], dilations, strict=True)
        )

    def forward(self, pyramid: Pyramid) -> Float[torch.Tensor, "b k h w"]:
        """Logits at image size."""
        x = F.leaky_relu(self.first(pyramid), SLOPE)
        for layer in self.rest[:-1]:
            x = F.leaky_relu(layer(x), SLOPE, inplace=True)
        return self.rest[-1](x)


def cnn_s(channels: Sequence[int], classes: int) -> Cnn:
    """Small: receptive field of 6 pixels to each side."""
    return Cnn(channels, classes, *S)


def cnn_m(channels: Sequence[int], classes: int) -> Cnn:
    """Medium: receptive field of 14 pixels to each side."""
    return Cnn(channels, classes, *M)


def cnn_l(channels: Sequence[int], classes: int) -> Cnn:
    """Large, as in the paper: receptive field of 30 pixels to each side (61 in total)."""
    return Cnn(channels, classes, *L)
