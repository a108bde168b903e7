"""What the two StyleGANs share: their sizes, layers of equalized learning rate, and the mapping.

Knows numbers and names of channels and layers. What is synthesized from a latent stands in nets/stylegan1.py (AdaIN)
and nets/stylegan2.py (modulated convolutions), which also has the discriminator of both.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, field_validator
from torch import nn

from partshot.errors import BadRecipe, nearest
from partshot.recipe import Recipe

# Slope below zero; the gain keeps the variance (section 4.1 of the StyleGAN2 code's layers; He et al. 2015).
SLOPE, GAIN = 0.2, math.sqrt(2)


class Shape(Recipe):
    """resolution: side of the images, a power of two. z_dim, w_dim: of latents before and after the mapping.

    mapping_layers: 8 as published, 2 in ADA's "auto". channel_base, channel_max: a block of r px has
    min(channel_base / r, channel_max) channels; 32768 and 512 are config F. clamp: activations of StyleGAN2 and of the
    discriminator stay within +-clamp (256 in ADA's checkpoints); None leaves them.
    """

    resolution: int = Field(ge=8)
    z_dim: int = Field(default=512, ge=1)
    w_dim: int = Field(default=512, ge=1)
    mapping_layers: int = Field(default=8, ge=1)
    channel_base: int = Field(default=32768, ge=1)
    channel_max: int = Field(default=512, ge=1)
    clamp: float | None = None

    @field_validator("resolution")
    @classmethod
    def _power_of_two(cls, side: int) -> int:
        if side & (side - 1):
            low = 1 << side.bit_length() - 1
            near = low if side * side < low * low * 2 else 2 * low
            raise ValueError(f"{side} px is no power of two; the nearest is {near}")
        return side

    @property
    def resolutions(self) -> tuple[int, ...]:
        """4, 8, ... up to the full one: the sides of the blocks' maps."""
        return tuple(1 << i for i in range(2, self.resolution.bit_length()))

    def channels(self, resolution: int) -> int:
        """Of the block at that resolution."""
        return min(self.channel_base // resolution, self.channel_max)


# Two cores: 1.2 M parameters at 64 px.
_SMALL = {"z_dim": 128, "w_dim": 128, "mapping_layers": 2, "channel_base": 2048, "channel_max": 128}
NETS = {
    "config-f": {},
    # The official "paper256" and "auto": half the channels.
    "half": {"channel_base": 16384},
    "small": _SMALL,
    # StyleGAN, whose channels were half of config F's.
    "adain": {"channel_base": 16384},
    "adain-small": _SMALL,
}
"""Name -> sizes. Those that begin with "adain" are of nets/stylegan1.py, the others of nets/stylegan2.py."""


def shape_of(net: str, resolution: int) -> Shape:
    """The Shape of a name of NETS; BadRecipe for another one, or a resolution that is no power of two."""
    if net not in NETS:
        raise BadRecipe(f"unknown StyleGAN net '{net}'; {nearest(net, NETS)}")
    return Shape.parse({"resolution": resolution, **NETS[net]})


class Mapping(nn.Module):
    """z -> w: what is drawn to what is mixed. Buffer w_avg: the mean latent, towards which truncation goes.

    num_ws: latents of one image. name: of the layers, before their number. bias_rate: see Linear.
    """

    def __init__(self, shape: Shape, num_ws: int, name: str, bias_rate: float | None = None):
        super().__init__()
        self.shape, self.num_ws = shape, num_ws
        for i in range(shape.mapping_layers):
            inputs = shape.z_dim if i == 0 else shape.w_dim
            self.add_module(f"{name}{i}", Linear(inputs, shape.w_dim, rate=0.01, activate=True, bias_rate=bias_rate))
        self.register_buffer("w_avg", torch.zeros(shape.w_dim))

    def forward(self, z: Float[torch.Tensor, "b z"]) -> Float[torch.Tensor, "b w"]:
        """Latents of standard normal z, which are brought to unit mean square first."""
        x = z.float()
        x = x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()
        for layer in self.children():
            x = layer(x)
        return x

    def spread(self, w: Float[torch.Tensor, "b w"], psi: float = 1.0, cutoff: int | None = None) -> torch.Tensor:
        """One latent for each layer, [b, num_ws, w], the first `cutoff` (None: all) at psi times their distance from
        the mean latent (truncation; Karras et al. 2019, appendix B)."""
        ws = w[:, None].repeat(1, self.num_ws, 1)
        if psi == 1:
            return ws
        near = self.w_avg.lerp(ws[:, :cutoff], psi)
        return near if cutoff is None else torch.cat([near, ws[:, cutoff:]], 1)


class Linear(nn.Module):
    """A fully connected layer with equalized learning rate (Karras et al. 2018, section 4.1); computes in float32.

    rate: multiplies the learning rate. bias: its initial value, after scaling. activate: LeakyReLU and its gain behind
    it. bias_rate: multiplies the bias; None takes rate.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        bias: float = 0.0,
        rate: float = 1.0,
        activate: bool = False,
        bias_rate: float | None = None,
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / rate)
        self.bias = nn.Parameter(torch.full((outputs,), bias / rate))
        self.scale, self.activate = rate / math.sqrt(inputs), activate
        self.bias_rate = rate if bias_rate is None else bias_rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            x = F.linear(x.float(), self.weight * self.scale, self.bias * self.bias_rate)
        return F.leaky_relu(x, SLOPE) * GAIN if self.activate else x
