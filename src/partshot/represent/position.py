"""Adds position channels to a representation, as an additional map.

Encoders trained on random crops encode little about absolute position. In images of aligned objects (a face, a car from
the side), a pixel's position is informative about its part.
"""

import torch
from jaxtyping import Float
from torch import nn

from partshot.ops.position import CHANNELS, position_map
from partshot.pyramid import Pyramid
from partshot.represent.spec import Representation, Spec, fingerprint


class Positioned(nn.Module):
    """A Representation with an additional first map of 5 channels: x, y, x^2, y^2 and xy, with x and y in [-1, 1].

    The map has the size of the finest map, so that positions at the image border are not blurred.
    """

    def __init__(self, representation: Representation):
        super().__init__()
        self.representation = representation

    @property
    def spec(self) -> Spec:
        """The spec of the wrapped representation, with the position map first."""
        inner = self.representation.spec
        return Spec(
            name=f"{inner.name} + position",
            channels=(CHANNELS, *inner.channels),
            strides=(inner.strides[0], *inner.strides),
            fingerprint=fingerprint({"position": inner.fingerprint}, {}),
            shared_scale=(False, *inner.shared_scale),
        )

    def train(self, mode: bool = True) -> "Positioned":
        """Does nothing: the module stays in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def features(self, images: Float[torch.Tensor, "b 3 h w"]) -> Pyramid:
        """The position map, then the maps of the wrapped representation."""
        inner = self.representation.features(images)
        finest = inner.maps[0]
        positions = position_map(finest.shape[2], finest.shape[3]).to(finest)
        return Pyramid((positions.expand(inner.batch, -1, -1, -1), *inner.maps), inner.image_size)

    def card(self) -> dict:
        """The card of the wrapped representation, with the key "position"."""
        return {**self.representation.card(), "position": True}
