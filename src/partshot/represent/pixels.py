"""The image as a Pyramid: its RGB values, and their averages over blocks of increasing size.

This is the lowest baseline: it measures what a head can learn from color and blurred context alone, without features
for edges, texture or position. It has no weights.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import nn

from partshot.pyramid import Pyramid
from partshot.represent.spec import Spec, fingerprint

STRIDES = (1, 2, 4, 8, 16)


class Pixels(nn.Module):
    """A Representation: RGB in [-1, 1], averaged over blocks of 1, 2, 4, 8 and 16 px; 3 channels each."""

    def __init__(self):
        super().__init__()
        self.spec = Spec("pixels", (3,) * len(STRIDES), STRIDES, fingerprint(self.card(), {}))

    def train(self, mode: bool = True) -> "Pixels":
        """Does nothing: there are no weights."""
        return super().train(False)

    @torch.no_grad()
    def features(self, images: Float[torch.Tensor, "b 3 h w"]) -> Pyramid:
        """The blocks' mean colors, finest first, for any image size."""
        height, width = images.shape[2:]
        maps = [images.detach()] + [
            F.adaptive_avg_pool2d(images, (-(-height // stride), -(-width // stride))) for stride in STRIDES[1:]
        ]
        return Pyramid(tuple(maps), (height, width))

    def card(self) -> dict:
        """The card: only its kind."""
        return {"kind": "pixels"}

    @classmethod
    def rebuild(cls, _card: dict, _tensors: Mapping[str, torch.Tensor]) -> "Pixels":
        """A new instance; there is no state to restore."""
        return cls()
