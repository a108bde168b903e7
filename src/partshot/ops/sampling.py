"""Bilinear grid sampling that is differentiable twice.

`torch.nn.functional.grid_sample` is linear in the images, but in older versions (torch 2.11) its gradient has no
gradient. Gradient penalties (R1 with ADA) need one.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float

# Enum values of grid_sample's operator.
_BILINEAR, _REFLECTION = 0, 2


def grid_sample(images: Float[torch.Tensor, "b c h w"], grid: Float[torch.Tensor, "b u v 2"]) -> torch.Tensor:
    """[b, c, u, v]: images sampled bilinearly at points (x, y) in [-1, 1], reflected beyond the border.

    The grid gets no gradient.
    """
    return _GridSample.apply(images, grid)


class _GridSample(torch.autograd.Function):
    @staticmethod
    def forward(ctx, images, grid):
        ctx.save_for_backward(images, grid)
        return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)

    @staticmethod
    def backward(ctx, gradient):
        return _GridSampleBackward.apply(gradient, *ctx.saved_tensors), None


class _GridSampleBackward(torch.autograd.Function):
    """Transpose of grid sampling: scatters the gradient of the samples to the pixels of the images."""

    @staticmethod
    def forward(ctx, gradient, images, grid):
        ctx.save_for_backward(grid)
        arguments = (gradient, images, grid, _BILINEAR, _REFLECTION, False, [True, False])
        return torch.ops.aten.grid_sampler_2d_backward(*arguments)[0]

    @staticmethod
    def backward(ctx, gradient):
        return _GridSample.apply(gradient, *ctx.saved_tensors), None, None
