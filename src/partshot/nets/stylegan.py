"""What StyleGAN and StyleGAN2 share: network sizes, linear layers with equalized learning rate, the mapping network.

The synthesis networks are in nets/stylegan1.py (AdaIN) and nets/stylegan2.py (modulated convolutions). The latter also
has the discriminator that both use.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, field_validator
from torch import nn

from partshot.errors import BadRecipe, nearest
from partshot.recipe import Recipe

# Negative slope of LeakyReLU, and the gain that preserves the variance (official StyleGAN2 code; He et al. 2015).
SLOPE, GAIN = 0.2, math.sqrt(2)


class Shape(Recipe):
    """resolution: side of the images, a power of two. z_dim, w_dim: dimensions of latents before and after the mapping.

    mapping_layers: 8 as published, 2 in ADA's "auto". channel_base, channel_max: the block of resolution r has
    min(channel_base / r, channel_max) channels; 32768 and 512 in config F. clamp: activations of StyleGAN2 and of the
    discriminator are clamped to +-clamp (256 in ADA's checkpoints); None does not clamp.
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
            raise ValueError(f"{side} px is not a power of two; the nearest is {near}")
        return side

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Resolutions of the blocks: 4, 8, ... up to the full one."""
        return tuple(1 << i for i in range(2, self.resolution.bit_length()))

    def channels(self, resolution: int) -> int:
        """Number of channels of the block of this resolution."""
        return min(self.channel_base // resolution, self.channel_max)


# For training on two CPU cores: 1.2 M parameters at 64 px.
_SMALL = {"z_dim": 128, "w_dim": 128, "mapping_layers": 2, "channel_base": 2048, "channel_max": 128}
NETS = {
    "config-f": {},
    # The official "paper256" and "auto": half the channels of config F.
    "half": {"channel_base": 16384},
    "small": _SMALL,
    # StyleGAN, which had half the channels of config F.
    "adain": {"channel_base": 16384},
    "adain-small": _SMALL,
}
"""Name -> sizes. Names that begin with "adain" belong to nets/stylegan1.py, the others to nets/stylegan2.py."""


def shape_of(net: str, resolution: int) -> Shape:
    """The Shape of a key of NETS; BadRecipe for an unknown name or a resolution that is not a power of two."""
    if net not in NETS:
        raise BadRecipe(f"unknown StyleGAN net '{net}'; {nearest(net, NETS)}")
    return Shape.parse({"resolution": resolution, **NETS[net]})


class MappingNetwork(nn.Module):
    """Mapping network, z -> w. Buffer w_avg: the mean latent, towards which truncation moves latents.

    num_ws: number of latents w per image. name: attribute name of the layers, before their number. bias_rate: see
    Linear.
    """

    def __init__(self, shape: Shape, num_ws: int, name: str, bias_rate: float | None = None):
        super().__init__()
        self.shape, self.num_ws = shape, num_ws
        for i in range(shape.mapping_layers):
            inputs = shape.z_dim if i == 0 else shape.w_dim
            self.add_module(f"{name}{i}", Linear(inputs, shape.w_dim, rate=0.01, activate=True, bias_rate=bias_rate))
        self.register_buffer("w_avg", torch.zeros(shape.w_dim))

    def forward(self, z: Float[torch.Tensor, "b z"]) -> Float[torch.Tensor, "b w"]:
        """Latents w for standard normal z; z is first normalized to unit mean square."""
        x = z.float()
        x = x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()
        for layer in self.children():
            x = layer(x)
        return x

    def broadcast(self, w: Float[torch.Tensor, "b w"], psi: float = 1.0, cutoff: int | None = None) -> torch.Tensor:
        """One latent per layer, [b, num_ws, w], with truncation by `psi` in the first `cutoff` layers (None: all).

        Truncation scales the distance from the mean latent by psi (Karras et al. 2019, appendix B).
        """
        ws = w[:, None].repeat(1, self.num_ws, 1)
        if psi == 1:
            return ws
        truncated = self.w_avg.lerp(ws[:, :cutoff], psi)
        return truncated if cutoff is None else torch.cat([truncated, ws[:, cutoff:]], 1)


class Linear(nn.Module):
    """A fully connected layer with equalized learning rate (Karras et al. 2018, section 4.1); computes in float32.

    rate: learning-rate multiplier. bias: initial value of the bias, after scaling. activate: apply LeakyReLU and its
    gain. bias_rate: factor of the bias; None means `rate`.
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
