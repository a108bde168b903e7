"""Inverse of letterboxing for predictions: removes the padding and resizes to the image's size."""

import torch
import torch.nn.functional as F
from jaxtyping import Float

from partshot.ops.letterbox import Box


def remove_letterbox(
    maps: Float[torch.Tensor, "b k s t"], size: tuple[int, int], square: int | None
) -> Float[torch.Tensor, "b k h w"]:
    """Maps of a letterboxed image without its padding, resized bilinearly to size = (h, w) of the image.

    square: side of the square that the image was letterboxed to; None for maps without padding.
    """
    box = None if square is None else Box.of(*size, square)
    if box is not None and not box.whole:
        if maps.shape[2:] != (square, square):
            maps = F.interpolate(maps, size=(square, square), mode="bilinear", align_corners=False)
        maps = box.cut(maps)
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)
