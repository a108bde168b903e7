"""The image itself as a Pyramid: its colors, and its colors averaged over larger and larger blocks.

The lowest floor: what a head can do with color and blurred surroundings alone. Nothing is trained and nothing is
stored; there are no edges, textures or positions in it.
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
        """There is nothing to train."""
        return super().train(False)

    @torch.no_grad()
    def features(self, images: Float[torch.Tensor, "b 3 h w"]) -> Pyramid:
        """The blocks' mean colors, finest first; any image size."""
        height, width = images.shape[2:]
        maps = [images.detach()] + [
            F.adaptive_avg_pool2d(images, (-(-height // stride), -(-width // stride))) for stride in STRIDES[1:]
        ]
        return Pyramid(tuple(maps), (height, width))

    def card(self) -> dict:
        """Says that it is this."""
        return {"kind": "pixels"}

    @classmethod
    def rebuild(cls, _card: dict, _tensors: Mapping[str, torch.Tensor]) -> "Pixels":
        """There is only one."""
        return cls()
