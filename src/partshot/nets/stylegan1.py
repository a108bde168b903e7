"""StyleGAN: mapping and AdaIN synthesis, from Karras et al. 2019 ("A style-based generator architecture").

Layers, shapes and names of weights are those of the widely used PyTorch conversion of the official checkpoints (that
DatasetGAN reads, too): its state loads name by name once `g_mapping` is called `mapping`, `g_synthesis` is called
`synthesis`, and what has no weights of its own (`*.intermediate.kernel`, `truncation.*`) is left out. It holds no mean
latent; `mapping.w_avg` is the mean w of some thousand z. The discriminator is nets/stylegan2.py's.

The synthesis returns every layer's map beside the image. An image may be made at a lower resolution than the full
one where an exit was built: that is how it grows in training (Karras et al. 2018).
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import nn

from partshot.nets.stylegan import GAIN, SLOPE, Linear, Mapping, Shape
from partshot.ops.fir import smooth, upsample

# The filter behind every enlargement.
_BLUR = (1.0, 2.0, 1.0)
# Beside the variance. The conversion is read with this; the official code has 1e-8, which makes more of flat maps.
_EPS = 1e-5
# From this side on the official code enlarges and convolves in one, by a transposed convolution; the kernels of its
# checkpoints stand turned by half a circle there.
_TURNED_FROM = 128


class Generator(nn.Module):
    """Mapping and synthesis. exits: resolutions besides the full one at which images may be made, for growing."""

    def __init__(self, shape: Shape, exits: tuple[int, ...] = ()):
        super().__init__()
        self.layers = tuple(side for side in shape.resolutions for _ in range(2))
        """Sides of the synthesis' maps, coarsest first: 4, 4, 8, 8, ..."""
        self.num_ws = len(self.layers)
        """Latents of one image, one per layer."""
        # The gain of the activation stands before the bias here, behind it in Linear.
        self.shape, self.mapping = shape, Mapping(shape, self.num_ws, "dense", bias_rate=0.01 / GAIN)
        self.synthesis = Synthesis(shape, exits)


class Synthesis(nn.Module):
    """w -> image and maps."""

    def __init__(self, shape: Shape, exits: tuple[int, ...] = ()):
        super().__init__()
        self.shape = shape
        self.blocks = nn.ModuleDict({f"{side}x{side}": _Block(shape, side) for side in shape.resolutions})
        self.torgb = _Conv(shape.channels(shape.resolution), 3, kernel=1, gain=1.0)
        self.exits = nn.ModuleDict({str(side): _Conv(shape.channels(side), 3, kernel=1, gain=1.0) for side in exits})

    def forward(
        self,
        ws: Float[torch.Tensor, "b n w"],
        noise: tuple[torch.Tensor, ...] | None = None,
        resolution: int | None = None,
        fade: float = 1.0,
        raw: bool = False,
    ) -> tuple[Float[torch.Tensor, "b 3 r r"], list[torch.Tensor]]:
        """Images, about [-1, 1], and every layer's AdaIN output, coarsest first.

        ws: num_ws latents each. noise: standard normal [b or 1, 1, r, r] for each of `Generator.layers`; None adds
        none. resolution: of the images, None the full one. fade: share of its say that the last block has, for
        growing. raw: behind all AdaIN outputs come the convolutions' own results, bias included, before noise,
        LeakyReLU and AdaIN, in the same order; the first of them is the learned constant.
        """
        x, maps, plain = None, [], []
        for i, side in enumerate(self.shape.resolutions):
            pair = slice(2 * i, 2 * i + 2)
            pair_noise = (None, None) if noise is None else noise[pair]
            styled, before = self.blocks[f"{side}x{side}"](x, ws[:, pair], pair_noise)
            maps += styled
            plain += before
            x = styled[-1]
            if side == resolution:
                break
        image = (self.torgb if side == self.shape.resolution else self.exits[str(side)])(x).float()
        if fade < 1:
            # Beside what the block before makes alone.
            coarse = self.exits[str(side // 2)](maps[-3]).float()
            with torch.autocast(x.device.type, enabled=False):
                image = upsample(coarse).lerp(image, fade)
        return image, [*maps, *plain] if raw else maps

    def noise_strengths(self) -> list[float]:
        """By how much, at most, each of `Generator.layers` multiplies its noise; 0 hears none."""
        layers = [layer for block in self.blocks.values() for layer in (block.epi1, block.epi2)]
        return [float(layer.top_epi["noise"].weight.detach().abs().max()) for layer in layers]


class _Block(nn.Module):
    """Two layers of one size: an enlarging convolution (at 4 px the learned constant), and another."""

    def __init__(self, shape: Shape, side: int):
        super().__init__()
        outputs = shape.channels(side)
        if side == 4:
            self.const = nn.Parameter(torch.ones(1, outputs, 4, 4))
            self.bias = nn.Parameter(torch.zeros(outputs))
        else:
            self.conv0_up = _Conv(shape.channels(side // 2), outputs, up=side)
        # Called so in the conversion.
        self.second = "conv" if side == 4 else "conv1"
        self.add_module(self.second, _Conv(outputs, outputs))
        self.epi1, self.epi2 = _Epilogue(shape, outputs), _Epilogue(shape, outputs)

    def forward(self, x: torch.Tensor | None, ws: torch.Tensor, noise) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        # AdaIN outputs of both layers, and what their convolutions gave.
        if x is None:
            first = (self.const + self.bias[:, None, None]).expand(len(ws), -1, -1, -1)
        else:
            first = self.conv0_up(x)
        x = self.epi1(first, ws[:, 0], noise[0])
        second = getattr(self, self.second)(x)
        return [x, self.epi2(second, ws[:, 1], noise[1])], [first, second]


class _Epilogue(nn.Module):
    """What follows a convolution: noise, LeakyReLU and AdaIN. Its parts are called as in the conversion."""

    def __init__(self, shape: Shape, channels: int):
        super().__init__()
        self.top_epi = nn.ModuleDict({"noise": _Noise(channels)})
        self.style_mod = nn.ModuleDict({"lin": Linear(shape.w_dim, 2 * channels)})

    def forward(self, x: torch.Tensor, w: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
        x = x if noise is None else self.top_epi["noise"](x, noise)
        scale, shift = self.style_mod["lin"](w).chunk(2, dim=1)
        return adain(F.leaky_relu(x, SLOPE), scale + 1, shift)


class _Noise(nn.Module):
    """One noise map for all channels, each of which hears it by its own weight."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return x + (self.weight[:, None, None] * noise).to(x.dtype)


def adain(
    x: Float[torch.Tensor, "b c h w"], scale: Float[torch.Tensor, "b c"], shift: Float[torch.Tensor, "b c"]
) -> Float[torch.Tensor, "b c h w"]:
    """Every map of every image brought to the mean `shift` and the deviation `scale` (equation 1)."""
    # One batch normalization whose channels are all maps of all images. As lines of pixels: in two dimensions torch's
    # gradients for a single image are wrong on CPUs where layouts are mixed.
    lines = x.reshape(1, -1, x.shape[2] * x.shape[3])
    return F.batch_norm(lines, None, None, scale.flatten(), shift.flatten(), training=True, eps=_EPS).reshape(x.shape)


class _Conv(nn.Module):
    """A convolution with equalized learning rate. up: side that its maps are enlarged to; None leaves their size."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, gain: float = GAIN, up: int | None = None):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.scale, self.up = gain / math.sqrt(inputs * kernel * kernel), up

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight * self.scale
        if self.up is None:
            return F.conv2d(x, weight, self.bias, padding=weight.shape[2] // 2)
        x = conv_of_doubled(x, weight if self.up < _TURNED_FROM else weight.flip(2, 3))
        return smooth(x, 1, taps=_BLUR) + self.bias[:, None, None].to(x.dtype)


def conv_of_doubled(
    x: Float[torch.Tensor, "b i h w"], weight: Float[torch.Tensor, "o i 3 3"]
) -> Float[torch.Tensor, "b o 2*h 2*w"]:
    """The convolution of maps whose every pixel was doubled in height and width, without making them."""
    # A pixel reaches 4 x 4 others. Turned, because a transposed convolution scatters what a convolution gathers.
    kernel = F.avg_pool2d(weight.flip(2, 3), 2, stride=1, padding=1, divisor_override=1)
    return F.conv_transpose2d(x, kernel.transpose(0, 1), stride=2, padding=1)
