"""FIR filtering, and upsampling and downsampling by 2 with a FIR filter against aliasing (StyleGAN2's upfirdn2d).

The default filter is StyleGAN2's binomial [1, 3, 3, 1] (after Zhang 2019), applied separably in both directions with
zero padding. It is implemented with depthwise convolutions: no custom kernel has to be compiled, and all functions are
differentiable twice.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float

TAPS = (1.0, 3.0, 3.0, 1.0)


def smooth(
    x: Float[torch.Tensor, "b c h w"], pad: int, gain: float = 1.0, taps: tuple[float, ...] = TAPS
) -> torch.Tensor:
    """The filtered maps; height and width change by 2 * pad + 1 - len(taps).

    gain: factor by which a constant input is multiplied. taps: coefficients of the filter, symmetric.
    """
    return _Smooth.apply(x, pad, gain, taps)


def upsample(x: Float[torch.Tensor, "b c h w"]) -> Float[torch.Tensor, "b c 2*h 2*w"]:
    """Upsamples by 2: inserts zeros between the pixels, then filters. Keeps constants except at the border."""
    return F.conv_transpose2d(x, _kernel(x, 4.0, TAPS), stride=2, padding=1, groups=x.shape[1])


def downsample(x: Float[torch.Tensor, "b c h w"]) -> torch.Tensor:
    """Downsamples by 2 to [b, c, h/2, w/2]: filters, then keeps every other pixel. h and w must be even."""
    # Without stride=2: on a CPU in bf16, a strided convolution is slower than filtering at full size.
    return smooth(x, 1)[:, :, ::2, ::2]


class _Smooth(torch.autograd.Function):
    """The gradient is the same filter with the complementary padding; torch's own gradient is several times slower on
    CPUs."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, pad: int, gain: float, taps: tuple[float, ...]) -> torch.Tensor:
        ctx.pad, ctx.gain, ctx.taps = pad, gain, taps
        return F.conv2d(x, _kernel(x, gain, taps), padding=pad, groups=x.shape[1])

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        return _Smooth.apply(gradient, len(ctx.taps) - 1 - ctx.pad, ctx.gain, ctx.taps), None, None, None


def _kernel(x: torch.Tensor, gain: float, taps: tuple[float, ...]) -> torch.Tensor:
    # [c, 1, taps, taps]; symmetric, so convolution and cross-correlation are the same.
    line = torch.tensor(taps, dtype=x.dtype, device=x.device)
    return (torch.outer(line, line) * (gain / sum(taps) ** 2)).expand(x.shape[1], 1, -1, -1)
