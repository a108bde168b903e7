"""StyleGAN2: mapping, synthesis and discriminator, from Karras et al. 2020 ("Analyzing and
improving the image quality of StyleGAN").

Skip generator and residual discriminator. Layers, shapes and names of weights are those of the official PyTorch release
(stylegan2-ada-pytorch), so that its checkpoints load name by name. Modulation is computed on activations, not on
weights, which is the same and lets a batch share one convolution. Nothing is compiled; everything differentiates twice.

Images may be made, and judged, at a lower resolution than the full one, by the coarser blocks alone: that is how a
small training budget starts (progressive growing, Karras et al. 2018). The synthesis returns the activations of every
convolution beside the image.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import nn

from partshot.nets.stylegan import GAIN, SLOPE, Linear, Mapping, Shape
from partshot.ops.fir import downsample, smooth, upsample


class Generator(nn.Module):
    """Mapping and synthesis under the official names: mapping.fc0.weight, synthesis.b4.const, ..."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.layers = (4, *(side for side in shape.resolutions[1:] for _ in range(2)))
        """Sides of the synthesis' convolutions, coarsest first: 4, 8, 8, 16, 16, ..."""
        self.num_ws = len(self.layers) + 1
        """Latents of one image: one per convolution, and one more for the last ToRGB."""
        self.shape, self.mapping, self.synthesis = shape, Mapping(shape, self.num_ws, "fc"), Synthesis(shape)


class Synthesis(nn.Module):
    """w -> image and activations."""

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
        """Images, about [-1, 1], and every convolution's activations after noise, bias and LeakyReLU, coarsest first.

        ws: num_ws latents each. noise: standard normal [b or 1, 1, r, r] for each of `Generator.layers`; None takes the
        checkpoint's own constant noise. resolution: of the images, None the full one. fade: share of its say that
        the last block has, for growing. raw: behind all activations come the convolutions' own results, before noise,
        bias and LeakyReLU, in the same order.
        """
        x, image, maps, plain = None, None, [], []
        for i, r in enumerate(self.shape.resolutions):
            block = getattr(self, f"b{r}")
            for name in ("conv0", "conv1") if i else ("conv1",):
                layer = len(maps)
                x = block.const.expand(len(ws), -1, -1, -1) if x is None else x
                layer_noise = None if noise is None else noise[layer]
                x, before = getattr(block, name)(x, ws[:, layer], layer_noise, raw)
                maps.append(x)
                plain.append(before)
            colors = block.torgb(x, ws[:, len(maps)]).float()
            last = r == (resolution or self.shape.resolution)
            # In float32 throughout: rounding at every level would add up.
            with torch.autocast(x.device.type, enabled=False):
                image = colors if image is None else upsample(image) + (colors * fade if last else colors)
            if last:
                break
        return image, [*maps, *plain] if raw else maps

    def noise_strengths(self) -> list[float]:
        """By how much each of `Generator.layers` multiplies its noise; 0 hears none."""
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
    """3 x 3, modulated by w and demodulated, then noise, bias and LeakyReLU (section 2.2, equations 1 to 3)."""

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
        # Activations and, if `raw`, the convolution's own result. The gain of the activation is carried by what comes
        # before it, and two of three passes write in place.
        x = modulated_conv(x, self.weight, self.affine(w), up=self.up, bias=self.bias, gain=GAIN)
        plain = (x / GAIN - self.bias[:, None, None]).to(x.dtype) if raw else None
        noise = self.noise_const if noise is None else noise
        return _activate_in_place(x.add_((noise * (self.noise_strength * GAIN)).to(x.dtype)), self.clamp), plain


class _ToRGB(nn.Module):
    """1 x 1 to three colors, modulated but not demodulated."""

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
    """A convolution whose input channels are scaled by each image's own styles (section 2.2).

    demodulate: outputs are scaled back to the variance they would have for independent inputs. up: to twice the size,
    by a transposed convolution and the FIR filter. bias: added to the outputs. gain: multiplies all, bias included.
    """
    x = x * styles[:, :, None, None].to(x.dtype)
    if up:
        x = smooth(F.conv_transpose2d(x, weight.to(x.dtype).transpose(0, 1), stride=2), 1, gain=4.0)
    else:
        x = F.conv2d(x, weight.to(x.dtype), padding=weight.shape[2] // 2)
    scale = torch.full((1, 1), gain, device=x.device)
    if demodulate:
        # sum over inputs and taps of (weight * style)^2, for all images in one product; in float32, being squared.
        with torch.autocast(x.device.type, enabled=False):
            variance = styles.float().square() @ weight.float().square().sum((2, 3)).T
            scale = (variance + 1e-8).rsqrt() * gain
    scale = scale[:, :, None, None].to(x.dtype)
    return x * scale if bias is None else torch.addcmul((bias * gain)[:, None, None].to(x.dtype), x, scale)


class Discriminator(nn.Module):
    """Images -> verdicts; above 0 says real.

    entries: resolutions at which images may come in, for growing; the official discriminator has the full one alone.
    """

    def __init__(self, shape: Shape, entries: tuple[int, ...] = ()):
        super().__init__()
        self.shape, self.entries = shape, {*entries, shape.resolution}
        for resolution in shape.resolutions[:0:-1]:
            self.add_module(f"b{resolution}", _DiscriminatorBlock(shape, resolution, resolution in self.entries))
        self.b4 = _DiscriminatorEpilogue(shape, 4 in self.entries)

    def forward(self, images: Float[torch.Tensor, "b 3 r r"], fade: float = 1.0) -> Float[torch.Tensor, " b"]:
        """Verdicts on images of one of the resolutions of `entries`; fade: the share of the first block's say."""
        resolution = images.shape[2]
        x = getattr(self, f"b{resolution}").fromrgb(images)
        while resolution > 4:
            x = getattr(self, f"b{resolution}")(x)
            resolution //= 2
            if fade < 1 and 2 * resolution == images.shape[2]:
                x = torch.lerp(getattr(self, f"b{resolution}").fromrgb(downsample(images)).to(x.dtype), x, fade)
        return self.b4(x)

    def levels(self, images: Float[torch.Tensor, "b 3 r r"]) -> list[torch.Tensor]:
        """What the blocks make of images, finest first: features that a distance between images can be taken in."""
        resolution, found = images.shape[2], []
        x = getattr(self, f"b{resolution}").fromrgb(images)
        while resolution > 4:
            x = getattr(self, f"b{resolution}")(x)
            found.append(x)
            resolution //= 2
        return found


class _DiscriminatorBlock(nn.Module):
    """Two convolutions to half the size beside a 1 x 1 shortcut; both halves of the sum keep the variance."""

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
    """How much images of a group differ, as one more map: it betrays a generator that makes always the same (Karras
    et al. 2018, section 3). Groups of 4, or of the largest divisor of the batch below that."""
    b, _, h, w = x.shape
    size = max(n for n in range(1, group + 1) if b % n == 0)
    # Images of a group lie b / size apart, as in the official code.
    groups = x.float().reshape(size, b // size, *x.shape[1:])
    deviation = ((groups - groups.mean(0)).square().mean(0) + 1e-8).sqrt().mean((1, 2, 3))
    return deviation.repeat(size)[:, None, None, None].expand(b, 1, h, w).to(x.dtype)


class _Conv(nn.Module):
    """A convolution with equalized learning rate (Karras et al. 2018, section 4.1); those with a bias activate."""

    def __init__(self, inputs: int, outputs: int, kernel: int, clamp: float | None, down: bool = False, bias=True):
        super().__init__()
        self.down, self.clamp = down, clamp
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.scale = 1 / math.sqrt(inputs * kernel * kernel)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # As in synthesis, weight and bias carry the activation's gain.
        gain, reach = 1.0 if self.bias is None else GAIN, self.weight.shape[2] // 2
        weight = (self.weight * (self.scale * gain)).to(x.dtype)
        bias = None if self.bias is None else (self.bias * gain).to(x.dtype)
        if self.down:
            x = F.conv2d(smooth(x, reach + 1), weight, bias, stride=2)
        else:
            x = F.conv2d(x, weight, bias, padding=reach)
        return x if self.bias is None else _activate_in_place(x, self.clamp)


def _activate_in_place(x: torch.Tensor, clamp: float | None) -> torch.Tensor:
    x = F.leaky_relu(x, SLOPE, inplace=True)
    return x if clamp is None else x.clamp(-clamp, clamp)
