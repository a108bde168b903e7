"""Pixelwise multilayer perceptrons on the hypercolumn.

ReGAN's (hidden layers 2000 and 200, ReLU; supplement) and GANORCON's (1024 and 256, BatchNorm before ReLU, no biases;
released code). ReGAN's first hidden layer is computed in slices, since its 2,000 channels at image size take 2 GB at
512 px.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import nn
from torch.utils.checkpoint import checkpoint

from partshot.heads.linear import Linear
from partshot.ops.hypercolumn import project
from partshot.pyramid import Pyramid

# Number of hidden units of the first layer that are computed at a time.
SLICE = 250
# Up to this size in bytes, training keeps the hidden units for the backward pass; above it, they are recomputed
# (gradient checkpointing), which takes a third longer.
KEPT = 1 << 30


class Mlp(nn.Module):
    """Pyramid -> hidden layers with ReLU -> logits [b, classes, h, w], pixelwise.

    hidden: units of each hidden layer; at least one layer. In training, gradient checkpointing is used for the first
    layer if its activations take more than KEPT. Source: ReGAN, supplement.
    """

    reach = 0

    def __init__(self, channels: Sequence[int], classes: int, hidden: Sequence[int]):
        super().__init__()
        self.first = Linear(channels, hidden[0])
        widths = [*hidden, classes]
        self.rest = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in zip(widths, widths[1:], strict=False))

    def forward(self, pyramid: Pyramid) -> Float[torch.Tensor, "b k h w"]:
        """Logits at image size."""
        weights, bias = self.first.folded()
        second = self.rest[0]
        apply = _checkpointed_slice if torch.is_grad_enabled() and self._bytes(pyramid) > KEPT else _slice
        x = second.bias.view(1, -1, 1, 1)
        for start in range(0, weights[0].shape[0], SLICE):
            part = slice(start, start + SLICE)
            arguments = (pyramid, [w[part] for w in weights], bias[part], second.weight[:, part])
            x = x + apply(*arguments)
        for layer in self.rest[1:]:
            x = layer(F.relu(x))
        return x

    def _bytes(self, pyramid: Pyramid) -> int:
        """Bytes of the first layer's activations at image size, before and after ReLU."""
        level, (height, width) = pyramid.maps[0], pyramid.image_size
        kind = level.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else level.dtype
        return 2 * len(level) * height * width * self.first.weights[0].shape[0] * dtype.itemsize


def _slice(pyramid: Pyramid, weights: list[torch.Tensor], bias: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return F.conv2d(F.relu(project(pyramid, weights, bias)), second)


def _checkpointed_slice(*arguments) -> torch.Tensor:
    # Activations are recomputed in the backward pass.
    return checkpoint(_slice, *arguments, use_reentrant=False, preserve_rng_state=False)


class NormedMlp(nn.Module):
    """Pyramid -> 1024 -> 256 -> logits, with BatchNorm and ReLU in between, no biases.

    Source: GANORCON's released code ("fcn"). The first layer is not sliced and takes 1 GB per image at 512 px.
    """

    reach = 0

    def __init__(self, channels: Sequence[int], classes: int):
        super().__init__()
        self.first = Linear(channels, 1024, bias=False)
        self.rest = nn.Sequential(
            nn.BatchNorm2d(1024),
            nn.ReLU(inplace=True),
            nn.Conv2d(1024, 256, 1, bias=False),
            nn.BatchNorm2d(256),
            nn.ReLU(inplace=True),
            nn.Conv2d(256, classes, 1, bias=False),
        )

    def forward(self, pyramid: Pyramid) -> Float[torch.Tensor, "b k h w"]:
        """Logits at image size."""
        return self.rest(self.first(pyramid))


def mlp_s(channels: Sequence[int], classes: int) -> Mlp:
    """A small MLP with 128 hidden units: enough for a few labels, and fast enough for a preview."""
    return Mlp(channels, classes, (128,))


def mlp_1(channels: Sequence[int], classes: int) -> Mlp:
    """ReGAN's MLP with one hidden layer."""
    return Mlp(channels, classes, (2000,))


def mlp_2(channels: Sequence[int], classes: int) -> Mlp:
    """ReGAN's MLP as published, with two hidden layers."""
    return Mlp(channels, classes, (2000, 200))
