"""Images read at other places, differentiable twice.

`torch.nn.functional.grid_sample` is linear in the images, yet in older versions (torch 2.11) its gradient has no
gradient of its own, which penalties on gradients (R1 with ADA) need.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float

# How grid_sample's own operator names them.
_BILINEAR, _REFLECTION = 0, 2


def sampled(images: Float[torch.Tensor, "b c h w"], grid: Float[torch.Tensor, "b u v 2"]) -> torch.Tensor:
    """[b, c, u, v]: images bilinearly at places (x, y) in [-1, 1] of the image, reflected beyond its border.

    No gradients flow to the places.
    """
    return _Sampled.apply(images, grid)


class _Sampled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, images, grid):
        ctx.save_for_backward(images, grid)
        return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)

    @staticmethod
    def backward(ctx, gradient):
        return _Spread.apply(gradient, *ctx.saved_tensors), None


class _Spread(torch.autograd.Function):
    """The transposed map: what each pixel of an image with that shape gave, back to it."""

    @staticmethod
    def forward(ctx, gradient, images, grid):
        ctx.save_for_backward(grid)
        given = (gradient, images, grid, _BILINEAR, _REFLECTION, False, [True, False])
        return torch.ops.aten.grid_sampler_2d_backward(*given)[0]

    @staticmethod
    def backward(ctx, gradient):
        return _Sampled.apply(gradient, *ctx.saved_tensors), None, None
