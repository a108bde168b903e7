"""StyleGAN generator: mapping and AdaIN synthesis (Karras et al. 2019, "A style-based generator architecture").

Layers, shapes and weight names are those of the widely used PyTorch conversion of the official checkpoints, which
DatasetGAN also uses. Its state dict loads after renaming `g_mapping` to `mapping` and `g_synthesis` to `synthesis`, and
after dropping entries that are not weights (`*.intermediate.kernel`, `truncation.*`). The conversion has no mean
latent; set `mapping.w_avg` to the mean w of some thousand z. The discriminator is in nets/stylegan2.py.

The synthesis returns the image and the feature maps of all layers. For progressive growing (Karras et al. 2018) it can
generate images at lower resolutions, for which it then has ToRGB layers ("exits").
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import nn

from partshot.nets.stylegan import GAIN, SLOPE, Linear, MappingNetwork, Shape
from partshot.ops.fir import smooth, upsample

# Filter after every upsampling.
_BLUR = (1.0, 2.0, 1.0)
# Added to the variance in AdaIN. The conversion uses 1e-5; the official 1e-8 amplifies nearly constant maps more.
_EPS = 1e-5
# From this resolution on, the official code upsamples and convolves in one transposed convolution. Kernels of its
# checkpoints are rotated by 180 degrees there.
_ROTATED_FROM = 128


class Generator(nn.Module):
    """Mapping and synthesis. exits: lower resolutions at which images can be generated, for progressive growing."""

    def __init__(self, shape: Shape, exits: tuple[int, ...] = ()):
        super().__init__()
        self.layers = tuple(side for side in shape.resolutions for _ in range(2))
        """Resolutions of the synthesis layers, coarsest first: 4, 4, 8, 8, ..."""
        self.num_ws = len(self.layers)
        """Number of latents w per image, one per layer."""
        # Here the gain of the activation is applied before the bias; in Linear it is applied after the bias.
        self.shape, self.mapping = shape, MappingNetwork(shape, self.num_ws, "dense", bias_rate=0.01 / GAIN)
        self.synthesis = SynthesisNetwork(shape, exits)


class SynthesisNetwork(nn.Module):
    """Synthesis network: w -> image and feature maps."""

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
        """Images, about in [-1, 1], and the AdaIN outputs of all layers, coarsest first.

        ws: num_ws latents per image. noise: standard normal [b or 1, 1, r, r] for each of `Generator.layers`; None adds
        no noise. resolution: of the images; None means full. fade: weight of the last block while it is faded in
        (progressive growing). raw: also return the outputs of the convolutions, with bias, before noise, LeakyReLU and
        AdaIN, in the same order after the AdaIN outputs; the first of them is the learned constant.
        """
        x, maps, raw_maps = None, [], []
        for i, side in enumerate(self.shape.resolutions):
            pair = slice(2 * i, 2 * i + 2)
            pair_noise = (None, None) if noise is None else noise[pair]
            styled, before = self.blocks[f"{side}x{side}"](x, ws[:, pair], pair_noise)
            maps += styled
            raw_maps += before
            x = styled[-1]
            if side == resolution:
                break
        image = (self.torgb if side == self.shape.resolution else self.exits[str(side)])(x).float()
        if fade < 1:
            # Blended with the image of the block before.
            coarse = self.exits[str(side // 2)](maps[-3]).float()
            with torch.autocast(x.device.type, enabled=False):
                image = upsample(coarse).lerp(image, fade)
        return image, [*maps, *raw_maps] if raw else maps

    def noise_strengths(self) -> list[float]:
        """Largest absolute noise weight of each of `Generator.layers`; 0 where noise is not used."""
        layers = [layer for block in self.blocks.values() for layer in (block.epi1, block.epi2)]
        return [float(layer.top_epi["noise"].weight.detach().abs().max()) for layer in layers]


class _Block(nn.Module):
    """Two layers of one resolution: an upsampling convolution (at 4 px the learned constant) and a convolution."""

    def __init__(self, shape: Shape, side: int):
        super().__init__()
        outputs = shape.channels(side)
        if side == 4:
            self.const = nn.Parameter(torch.ones(1, outputs, 4, 4))
            self.bias = nn.Parameter(torch.zeros(outputs))
        else:
            self.conv0_up = _Conv(shape.channels(side // 2), outputs, up=side)
        # Names of the conversion.
        self.second = "conv" if side == 4 else "conv1"
        self.add_module(self.second, _Conv(outputs, outputs))
        self.epi1, self.epi2 = _Epilogue(shape, outputs), _Epilogue(shape, outputs)

    def forward(self, x: torch.Tensor | None, ws: torch.Tensor, noise) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        # AdaIN outputs of both layers, and the outputs of their convolutions.
        if x is None:
            first = (self.const + self.bias[:, None, None]).expand(len(ws), -1, -1, -1)
        else:
            first = self.conv0_up(x)
        x = self.epi1(first, ws[:, 0], noise[0])
        second = getattr(self, self.second)(x)
        return [x, self.epi2(second, ws[:, 1], noise[1])], [first, second]


class _Epilogue(nn.Module):
    """Noise, LeakyReLU and AdaIN after a convolution; submodules have the names of the conversion."""

    def __init__(self, shape: Shape, channels: int):
        super().__init__()
        self.top_epi = nn.ModuleDict({"noise": _Noise(channels)})
        self.style_mod = nn.ModuleDict({"lin": Linear(shape.w_dim, 2 * channels)})

    def forward(self, x: torch.Tensor, w: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
        x = x if noise is None else self.top_epi["noise"](x, noise)
        scale, shift = self.style_mod["lin"](w).chunk(2, dim=1)
        return adain(F.leaky_relu(x, SLOPE), scale + 1, shift)


class _Noise(nn.Module):
    """Adds a noise map, shared by all channels, with a learned weight per channel."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return x + (self.weight[:, None, None] * noise).to(x.dtype)


def adain(
    x: Float[torch.Tensor, "b c h w"], scale: Float[torch.Tensor, "b c"], shift: Float[torch.Tensor, "b c"]
) -> Float[torch.Tensor, "b c h w"]:
    """AdaIN: normalizes each map of each image to the mean `shift` and the standard deviation `scale` (equation 1)."""
    # One batch normalization whose channels are all maps of all images. Maps are flattened, because torch's 2D
    # gradients for a single image are wrong on CPUs when memory formats are mixed.
    lines = x.reshape(1, -1, x.shape[2] * x.shape[3])
    return F.batch_norm(lines, None, None, scale.flatten(), shift.flatten(), training=True, eps=_EPS).reshape(x.shape)


class _Conv(nn.Module):
    """A convolution with equalized learning rate. up: resolution to which its input is upsampled, if any."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, gain: float = GAIN, up: int | None = None):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.scale, self.up = gain / math.sqrt(inputs * kernel * kernel), up

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight * self.scale
        if self.up is None:
            return F.conv2d(x, weight, self.bias, padding=weight.shape[2] // 2)
        x = conv_of_doubled(x, weight if self.up < _ROTATED_FROM else weight.flip(2, 3))
        return smooth(x, 1, taps=_BLUR) + self.bias[:, None, None].to(x.dtype)


def conv_of_doubled(
    x: Float[torch.Tensor, "b i h w"], weight: Float[torch.Tensor, "o i 3 3"]
) -> Float[torch.Tensor, "b o 2*h 2*w"]:
    """Nearest-neighbor upsampling by 2 followed by a 3 x 3 convolution, as one transposed convolution."""
    # Each pixel contributes to 4 x 4 outputs. The kernel is flipped because a transposed convolution scatters.
    kernel = F.avg_pool2d(weight.flip(2, 3), 2, stride=1, padding=1, divisor_override=1)
    return F.conv_transpose2d(x, kernel.transpose(0, 1), stride=2, padding=1)
