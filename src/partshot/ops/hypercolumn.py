"""1x1 convolutions and pixel lookups on the hypercolumn, without building the hypercolumn in memory.

The hypercolumn is the concatenation of all feature maps, resized to the image's size. Resizing is linear and acts on
each channel separately, so it commutes with a 1x1 convolution. Every map is projected at its own size, results of equal
size are added, and only the few projected channels are resized and added. The result equals that of the full stack.

Each axis is resized separately: bilinearly with align_corners=False if it grows, by area averaging (as in adaptive
average pooling) if it shrinks.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64

from partshot.errors import BadRecipe
from partshot.pyramid import Pyramid

# Maps that are upsampled by at least this factor share one matrix product, which writes the large result only once.
# Below it the matrix is mostly zeros, and plain interpolation is faster. Measured at 256 and 512 px.
SHARED_FROM = 4


def project(
    pyramid: Pyramid,
    weights: Sequence[Float[torch.Tensor, "o _"]],
    bias: Float[torch.Tensor, " o"] | None = None,
) -> Float[torch.Tensor, "b o h w"]:
    """A 1x1 convolution of the hypercolumn, computed lazily; equals the convolution of `stack` up to rounding.

    weights: one [outputs, channels of the map] per map. bias: [outputs]. The result has the pyramid's image size, is
    channels_last in memory, and has the weights' dtype, or autocast's if autocast is enabled. Differentiable by the
    weights, the bias and the maps.

    Raises BadRecipe when the weights do not fit the maps.
    """
    if tuple(w.shape[1] for w in weights) != pyramid.channels:
        shapes = [tuple(w.shape) for w in weights]
        raise BadRecipe(
            f"weights {shapes} do not fit maps of {list(pyramid.channels)} channels; fit a head to this representation"
        )
    height, width = pyramid.image_size
    kind = weights[0].device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weights[0].dtype
    with torch.autocast(kind, enabled=False):
        sums = _sum_by_size(pyramid, weights, dtype)
        total = sums.pop((height, width), None)
        if total is None:
            total = _zeros(sums, height, width)
        if bias is not None:
            total = _added(total, bias.to(dtype))
        shared = []
        for (h, w), part in sums.items():
            if h * SHARED_FROM <= height and w * SHARED_FROM <= width:
                shared.append(part)
            else:
                total = _added(total, resize(part.permute(0, 3, 1, 2), (height, width)).permute(0, 2, 3, 1))
        if shared:
            total = _add_enlarged(total, shared)
    return total.permute(0, 3, 1, 2)


def stack(pyramid: Pyramid) -> Float[torch.Tensor, "b c h w"]:
    """The hypercolumn: all maps resized to the image size and concatenated, finest first.

    Reference for `project` and `at_pixels`. It takes channels x height x width x 4 bytes per image: 5 GB at 512 px and
    5,000 channels.
    """
    return torch.cat([resize(m, pyramid.image_size) for m in pyramid.maps], dim=1)


def at_pixels(
    pyramid: Pyramid,
    batch_index: Int64[torch.Tensor, " n"],
    rows: Int64[torch.Tensor, " n"],
    columns: Int64[torch.Tensor, " n"],
) -> Float[torch.Tensor, "n c"]:
    """The hypercolumn at single pixels: `stack(pyramid)[batch_index, :, rows, columns]`, interpolated only there.

    rows, columns: pixels of the image, in 0..height-1 and 0..width-1. Maps that are not channels_last in memory are
    copied first. The result has the maps' dtype; the interpolation weights are rounded to it as well.
    """
    features, corners_by_size = [], {}
    for level in pyramid.maps:
        # A map that is finer than the image is first averaged to the image's size.
        level = _shrink(level, pyramid.image_size)
        size = tuple(level.shape[2:])
        if size not in corners_by_size:
            corners_by_size[size] = _corners(batch_index, rows, columns, pyramid.image_size, size)
        corners, weights = corners_by_size[size]
        # The weighted sum of four rows per pixel, in one pass.
        pixels = level.permute(0, 2, 3, 1).reshape(-1, level.shape[1])
        features.append(F.embedding_bag(corners, pixels, per_sample_weights=weights.to(level.dtype), mode="sum"))
    return torch.cat(features, dim=1)


def resize(level: Float[torch.Tensor, "b c _ _"], size: tuple[int, int]) -> Float[torch.Tensor, "b c h w"]:
    """One map resized to (height, width): area averaging along axes that shrink, bilinear along axes that grow."""
    level = _shrink(level, size)
    if tuple(level.shape[2:]) == tuple(size):
        return level
    return F.interpolate(level, size=tuple(size), mode="bilinear", align_corners=False)


def _shrink(level: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    smaller = (min(level.shape[2], size[0]), min(level.shape[3], size[1]))
    return level if smaller == tuple(level.shape[2:]) else F.interpolate(level, size=smaller, mode="area")


def _sum_by_size(pyramid: Pyramid, weights: Sequence[torch.Tensor], dtype: torch.dtype) -> dict:
    """(h, w) -> [b, h, w, outputs], the sum of the projected maps of that size; coarsest first."""
    sums = {}
    for level, weight in reversed(list(zip(pyramid.maps, weights, strict=True))):
        b, c, h, w = level.shape
        level = level.to(dtype)
        # No copy for either memory format: a matrix product accepts transposed operands at no cost.
        if level.is_contiguous(memory_format=torch.channels_last) and not level.is_contiguous():
            pixels = level.permute(0, 2, 3, 1).reshape(b, h * w, c)
        else:
            pixels = level.reshape(b, c, h * w).transpose(1, 2)
        columns = weight.to(dtype).t().expand(b, -1, -1)
        before = sums.get((h, w))
        sums[h, w] = torch.bmm(pixels, columns) if before is None else before.baddbmm_(pixels, columns)
    return {(h, w): part.unflatten(1, (h, w)) for (h, w), part in sums.items()}


def _zeros(sums: dict, height: int, width: int) -> torch.Tensor:
    like = next(iter(sums.values()))
    return like.new_zeros(like.shape[0], height, width, like.shape[3])


def _added(total: torch.Tensor, more: torch.Tensor) -> torch.Tensor:
    # In place, so that the large result is in memory once. With autograd this would cost copies of the gradient.
    return total + more if torch.is_grad_enabled() else total.add_(more)


def _add_enlarged(total: torch.Tensor, parts: list[torch.Tensor]) -> torch.Tensor:
    """total [b, h, w, o] plus all parts [b, h_i, w_i, o], upsampled to its size in one product over all their rows."""
    b, height, width, outputs = total.shape
    vertical = torch.cat([_upsampling_matrix(p.shape[1], height, p) for p in parts], dim=1)
    wide = torch.cat([torch.matmul(_upsampling_matrix(p.shape[2], width, p), p) for p in parts], dim=1)
    rows = total.reshape(b, height, width * outputs)
    add = torch.Tensor.baddbmm if torch.is_grad_enabled() else torch.Tensor.baddbmm_
    rows = add(rows, vertical.expand(b, -1, -1), wide.flatten(2))
    return rows.view(b, height, width, outputs)


def _upsampling_matrix(source: int, target: int, like: torch.Tensor) -> torch.Tensor:
    """[target, source]: the matrix of bilinear upsampling along one axis, obtained by interpolating the identity."""
    eye = torch.eye(source, device=like.device)[None]
    return F.interpolate(eye, size=target, mode="linear", align_corners=False)[0].t().to(like.dtype)


def _neighbors(at: torch.Tensor, target: int, source: int):
    """For positions in 0..target-1: the two nearest rows of a map with `source` rows, and the weight of the second."""
    exact = ((at + 0.5) * (source / target) - 0.5).clamp(min=0)
    first = exact.floor().long()
    return first, (first + 1).clamp(max=source - 1), exact - first


def _corners(batch_index, rows, columns, target, source) -> tuple[torch.Tensor, torch.Tensor]:
    """For pixels of images of size `target`: the four nearest pixels in maps of size `source`, and their weights.

    Both are [n, 4]. Pixels are given by their indices in the flattened batch of maps.
    """
    top, bottom, down = _neighbors(rows, target[0], source[0])
    left, right, across = _neighbors(columns, target[1], source[1])
    above, below = ((batch_index * source[0] + row) * source[1] for row in (top, bottom))
    up, back = 1 - down, 1 - across
    indices = torch.stack([above + left, above + right, below + left, below + right], dim=1)
    return indices, torch.stack([up * back, up * across, down * back, down * across], dim=1)
