"""What a network says of a letterboxed image, back at the image's own size."""

import torch
import torch.nn.functional as F
from jaxtyping import Float

from partshot.ops.letterbox import Box


def uncropped(
    maps: Float[torch.Tensor, "b k s t"], size: tuple[int, int], square: int | None
) -> Float[torch.Tensor, "b k h w"]:
    """Maps of an image in a square, bilinearly at size = (h, w), that of the image, without what was filled up.

    square: side of the square that the image was put into; None for an image that fills its maps.
    """
    box = None if square is None else Box.of(*size, square)
    if box is not None and not box.whole:
        if maps.shape[2:] != (square, square):
            maps = F.interpolate(maps, size=(square, square), mode="bilinear", align_corners=False)
        maps = box.cut(maps)
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)
