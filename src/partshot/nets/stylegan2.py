"""StyleGAN2: mapping, synthesis and discriminator (Karras et al. 2020, "Analyzing and improving the image quality of
StyleGAN").

Skip generator and residual discriminator. Layers, shapes and weight names are those of the official PyTorch release
(stylegan2-ada-pytorch), so its checkpoints load by name. Modulation scales activations instead of weights; this is
equivalent, and a batch shares one convolution. No custom kernels are compiled; everything is differentiable twice.

For progressive growing (Karras et al. 2018), with which small training budgets start, generator and discriminator can
run at a lower resolution, with the coarser blocks only. The synthesis returns the image and the activations of all
convolutions.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import nn

from partshot.nets.stylegan import GAIN, SLOPE, Linear, MappingNetwork, Shape
from partshot.ops.fir import downsample, smooth, upsample


class Generator(nn.Module):
    """Mapping and synthesis with the official weight names: mapping.fc0.weight, synthesis.b4.const, ..."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.layers = (4, *(side for side in shape.resolutions[1:] for _ in range(2)))
        """Resolutions of the convolutions of the synthesis, coarsest first: 4, 8, 8, 16, 16, ..."""
        self.num_ws = len(self.layers) + 1
        """Number of latents w per image: one per convolution, and one for the last ToRGB."""
        self.shape = shape
        self.mapping, self.synthesis = MappingNetwork(shape, self.num_ws, "fc"), SynthesisNetwork(shape)


class SynthesisNetwork(nn.Module):
    """Synthesis network: w -> image and activations."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        for resolution in shape.resolutions:
            self.add_module(f"b{resolution}", _SynthesisBlock(shape, resolution))

    def forward(
        self,
        ws: Float[torch.Tensor, "b n w"],
        noise: tuple[torch.Tensor, ...] | None = None,
        resolution: int | None = None,
        fade: float = 1.0,
        raw: bool = False,
    ) -> tuple[Float[torch.Tensor, "b 3 r r"], list[torch.Tensor]]:
        """Images, about in [-1, 1], and the activations of all convolutions, coarsest first.

        Activations are taken after noise, bias and LeakyReLU. ws: num_ws latents per image. noise: standard normal
        [b or 1, 1, r, r] for each of `Generator.layers`; None uses the constant noise of the checkpoint. resolution: of
        the images; None means full. fade: weight of the last block while it is faded in (progressive growing). raw:
        also return the outputs of the convolutions before noise, bias and LeakyReLU, in the same order after the
        activations.
        """
        x, image, maps, raw_maps = None, None, [], []
        for i, r in enumerate(self.shape.resolutions):
            block = getattr(self, f"b{r}")
            for name in ("conv0", "conv1") if i else ("conv1",):
                layer = len(maps)
                x = block.const.expand(len(ws), -1, -1, -1) if x is None else x
                layer_noise = None if noise is None else noise[layer]
                x, before = getattr(block, name)(x, ws[:, layer], layer_noise, raw)
                maps.append(x)
                raw_maps.append(before)
            rgb = block.torgb(x, ws[:, len(maps)]).float()
            last = r == (resolution or self.shape.resolution)
            # In float32, because rounding errors of all levels would add up.
            with torch.autocast(x.device.type, enabled=False):
                image = rgb if image is None else upsample(image) + (rgb * fade if last else rgb)
            if last:
                break
        return image, [*maps, *raw_maps] if raw else maps

    def noise_strengths(self) -> list[float]:
        """Noise strength of each of `Generator.layers`; 0 where noise is not used."""
        blocks = [getattr(self, f"b{r}") for r in self.shape.resolutions]
        layers = [layer for block in blocks for name, layer in block.named_children() if name != "torgb"]
        return [float(layer.noise_strength.detach()) for layer in layers]


class _SynthesisBlock(nn.Module):
    def __init__(self, shape: Shape, resolution: int):
        super().__init__()
        outputs = shape.channels(resolution)
        if resolution == 4:
            self.const = nn.Parameter(torch.randn(outputs, 4, 4))
        else:
            self.conv0 = _StyledConv(shape, shape.channels(resolution // 2), outputs, resolution, up=True)
        self.conv1 = _StyledConv(shape, outputs, outputs, resolution)
        self.torgb = _ToRGB(shape, outputs)


class _StyledConv(nn.Module):
    """3 x 3 convolution, modulated and demodulated, then noise, bias and LeakyReLU (section 2.2, equations 1 to 3)."""

    def __init__(self, shape: Shape, inputs: int, outputs: int, resolution: int, up: bool = False):
        super().__init__()
        self.up, self.clamp = up, shape.clamp
        self.affine = Linear(shape.w_dim, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
        self.register_buffer("noise_const", torch.randn(resolution, resolution))
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(
        self, x: torch.Tensor, w: torch.Tensor, noise: torch.Tensor | None, raw: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        # Returns activations and, if `raw`, the output of the convolution. The activation's gain is applied to weight,
        # bias and noise beforehand, so that two of three passes can be in place.
        x = modulated_conv(x, self.weight, self.affine(w), up=self.up, bias=self.bias, gain=GAIN)
        before = (x / GAIN - self.bias[:, None, None]).to(x.dtype) if raw else None
        noise = self.noise_const if noise is None else noise
        return _activate_in_place(x.add_((noise * (self.noise_strength * GAIN)).to(x.dtype)), self.clamp), before


class _ToRGB(nn.Module):
    """1 x 1 convolution to RGB with modulation and without demodulation."""

    def __init__(self, shape: Shape, inputs: int):
        super().__init__()
        self.clamp = shape.clamp
        self.affine = Linear(shape.w_dim, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.randn(3, inputs, 1, 1))
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        styles = self.affine(w) / math.sqrt(self.weight.shape[1])
        x = modulated_conv(x, self.weight, styles, demodulate=False, bias=self.bias)
        return x if self.clamp is None else x.clamp(-self.clamp, self.clamp)


def modulated_conv(
    x: Float[torch.Tensor, "b i h w"],
    weight: Float[torch.Tensor, "o i k k"],
    styles: Float[torch.Tensor, "b i"],
    demodulate: bool = True,
    up: bool = False,
    bias: Float[torch.Tensor, " o"] | None = None,
    gain: float = 1.0,
) -> torch.Tensor:
    """Modulated convolution: input channels are scaled by the styles of each image (section 2.2).

    demodulate: divide outputs by their expected standard deviation, assuming independent inputs of unit variance. up:
    upsample by 2, with a transposed convolution and the FIR filter. bias: added to the outputs. gain: factor of the
    result, bias included.
    """
    x = x * styles[:, :, None, None].to(x.dtype)
    if up:
        x = smooth(F.conv_transpose2d(x, weight.to(x.dtype).transpose(0, 1), stride=2), 1, gain=4.0)
    else:
        x = F.conv2d(x, weight.to(x.dtype), padding=weight.shape[2] // 2)
    scale = torch.full((1, 1), gain, device=x.device)
    if demodulate:
        # Sum of (weight * style)^2 over inputs and kernel positions, for all images in one product. In float32, because
        # values are squared.
        with torch.autocast(x.device.type, enabled=False):
            variance = styles.float().square() @ weight.float().square().sum((2, 3)).T
            scale = (variance + 1e-8).rsqrt() * gain
    scale = scale[:, :, None, None].to(x.dtype)
    return x * scale if bias is None else torch.addcmul((bias * gain)[:, None, None].to(x.dtype), x, scale)


class Discriminator(nn.Module):
    """Images -> logits; above 0 means real.

    entries: further resolutions at which images can enter, for progressive growing; the official discriminator has only
    the full resolution.
    """

    def __init__(self, shape: Shape, entries: tuple[int, ...] = ()):
        super().__init__()
        self.shape, self.entries = shape, {*entries, shape.resolution}
        for resolution in shape.resolutions[:0:-1]:
            self.add_module(f"b{resolution}", _DiscriminatorBlock(shape, resolution, resolution in self.entries))
        self.b4 = _DiscriminatorEpilogue(shape, 4 in self.entries)

    def forward(self, images: Float[torch.Tensor, "b 3 r r"], fade: float = 1.0) -> Float[torch.Tensor, " b"]:
        """Logits of images at a resolution of `entries`. fade: weight of the first block while it is faded in."""
        resolution = images.shape[2]
        x = getattr(self, f"b{resolution}").fromrgb(images)
        while resolution > 4:
            x = getattr(self, f"b{resolution}")(x)
            resolution //= 2
            if fade < 1 and 2 * resolution == images.shape[2]:
                x = torch.lerp(getattr(self, f"b{resolution}").fromrgb(downsample(images)).to(x.dtype), x, fade)
        return self.b4(x)

    def levels(self, images: Float[torch.Tensor, "b 3 r r"]) -> list[torch.Tensor]:
        """Outputs of the blocks, finest first; features for perceptual distances."""
        resolution, features = images.shape[2], []
        x = getattr(self, f"b{resolution}").fromrgb(images)
        while resolution > 4:
            x = getattr(self, f"b{resolution}")(x)
            features.append(x)
            resolution //= 2
        return features


class _DiscriminatorBlock(nn.Module):
    """Residual block that downsamples by 2: two convolutions and a 1 x 1 shortcut; the sum is scaled by sqrt(1/2)."""

    def __init__(self, shape: Shape, resolution: int, entry: bool):
        super().__init__()
        inputs, outputs = shape.channels(resolution), shape.channels(resolution // 2)
        if entry:
            self.fromrgb = _Conv(3, inputs, 1, shape.clamp)
        self.conv0 = _Conv(inputs, inputs, 3, shape.clamp)
        self.conv1 = _Conv(inputs, outputs, 3, shape.clamp, down=True)
        self.skip = _Conv(inputs, outputs, 1, None, down=True, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.skip(x) + self.conv1(self.conv0(x))) * math.sqrt(0.5)


class _DiscriminatorEpilogue(nn.Module):
    def __init__(self, shape: Shape, entry: bool):
        super().__init__()
        width = shape.channels(4)
        if entry:
            self.fromrgb = _Conv(3, width, 1, shape.clamp)
        self.conv = _Conv(width + 1, width, 3, shape.clamp)
        self.fc = Linear(width * 16, width, activate=True)
        self.out = Linear(width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(torch.cat([x, minibatch_stddev(x)], 1))
        return self.out(self.fc(x.float().flatten(1)))[:, 0]


def minibatch_stddev(x: Float[torch.Tensor, "b c h w"], group: int = 4) -> Float[torch.Tensor, "b 1 h w"]:
    """Minibatch standard deviation as an additional map, against mode collapse (Karras et al. 2018, section 3).

    Computed in groups of `group` images, or of the largest smaller divisor of the batch size.
    """
    b, _, h, w = x.shape
    size = max(n for n in range(1, group + 1) if b % n == 0)
    # Images of a group are b / size apart in the batch, as in the official code.
    groups = x.float().reshape(size, b // size, *x.shape[1:])
    std = ((groups - groups.mean(0)).square().mean(0) + 1e-8).sqrt().mean((1, 2, 3))
    return std.repeat(size)[:, None, None, None].expand(b, 1, h, w).to(x.dtype)


class _Conv(nn.Module):
    """A convolution with equalized learning rate (Karras et al. 2018, section 4.1).

    Convolutions with a bias are followed by LeakyReLU.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, clamp: float | None, down: bool = False, bias=True):
        super().__init__()
        self.down, self.clamp = down, clamp
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.scale = 1 / math.sqrt(inputs * kernel * kernel)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # As in the synthesis, the activation's gain is applied to weight and bias.
        gain, pad = 1.0 if self.bias is None else GAIN, self.weight.shape[2] // 2
        weight = (self.weight * (self.scale * gain)).to(x.dtype)
        bias = None if self.bias is None else (self.bias * gain).to(x.dtype)
        if self.down:
            x = F.conv2d(smooth(x, pad + 1), weight, bias, stride=2)
        else:
            x = F.conv2d(x, weight, bias, padding=pad)
        return x if self.bias is None else _activate_in_place(x, self.clamp)


def _activate_in_place(x: torch.Tensor, clamp: float | None) -> torch.Tensor:
    x = F.leaky_relu(x, SLOPE, inplace=True)
    return x if clamp is None else x.clamp(-clamp, clamp)
