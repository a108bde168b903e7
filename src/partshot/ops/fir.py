"""Resampling with a FIR filter: images and feature maps twice or half as large, or smoothed, without aliasing.

The filter is StyleGAN2's binomial [1, 3, 3, 1] unless another is given, the same for both directions (after Zhang
2019); outside the image is zero. Depthwise convolutions only, so that nothing is compiled and everything
differentiates twice.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float

TAPS = (1.0, 3.0, 3.0, 1.0)


def smooth(
    x: Float[torch.Tensor, "b c h w"], pad: int, gain: float = 1.0, taps: tuple[float, ...] = TAPS
) -> torch.Tensor:
    """The maps through the filter; each side grows by 2 * pad + 1 - len(taps). gain: what a constant is multiplied by.
    taps: of the filter, symmetric."""
    return _Smooth.apply(x, pad, gain, taps)


def upsample(x: Float[torch.Tensor, "b c h w"]) -> Float[torch.Tensor, "b c 2*h 2*w"]:
    """Twice the size: zeros between the pixels, then the filter; a constant stays one, but for the border."""
    return F.conv_transpose2d(x, _kernel(x, 4.0, TAPS), stride=2, padding=1, groups=x.shape[1])


def downsample(x: Float[torch.Tensor, "b c h w"]) -> torch.Tensor:
    """Half the size, [b, c, h/2, w/2]: the filter, then every other pixel; h and w are even."""
    # Not with stride 2: on a CPU, in bf16, that is slower than filtering everywhere.
    return smooth(x, 1)[:, :, ::2, ::2]


class _Smooth(torch.autograd.Function):
    """Its gradient is the same filter with the rest of the padding; torch's own takes several times as long on CPUs."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, pad: int, gain: float, taps: tuple[float, ...]) -> torch.Tensor:
        ctx.pad, ctx.gain, ctx.taps = pad, gain, taps
        return F.conv2d(x, _kernel(x, gain, taps), padding=pad, groups=x.shape[1])

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        return _Smooth.apply(gradient, len(ctx.taps) - 1 - ctx.pad, ctx.gain, ctx.taps), None, None, None


def _kernel(x: torch.Tensor, gain: float, taps: tuple[float, ...]) -> torch.Tensor:
    # [c, 1, taps, taps]; symmetric, so that convolution and correlation are one.
    line = torch.tensor(taps, dtype=x.dtype, device=x.device)
    return (torch.outer(line, line) * (gain / sum(taps) ** 2)).expand(x.shape[1], 1, -1, -1)
