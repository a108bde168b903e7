"""Position as one more map of any Pyramid.

Encoders trained on random crops do not tell left from right or top from bottom; in images of aligned things (a face,
a car from the side) where a pixel lies says much about its part. Knows the wrapped representation by its protocol only.
"""

import torch
from jaxtyping import Float
from torch import nn

from partshot.ops.position import CHANNELS, position_map
from partshot.pyramid import Pyramid
from partshot.represent.spec import Representation, Spec, fingerprint


class Positioned(nn.Module):
    """A Representation with a first map of 5 channels, x, y, x^2, y^2 and xy with x and y in [-1, 1].

    The map has the size of the finest map, so that the images' borders are not blurred away.
    """

    def __init__(self, representation: Representation):
        super().__init__()
        self.representation = representation

    @property
    def spec(self) -> Spec:
        """The wrapped one's, with the map of positions in front."""
        inner = self.representation.spec
        return Spec(
            name=f"{inner.name} + position",
            channels=(CHANNELS, *inner.channels),
            strides=(inner.strides[0], *inner.strides),
            fingerprint=fingerprint({"position": inner.fingerprint}, {}),
            proportional=(False, *inner.proportional),
        )

    def train(self, mode: bool = True) -> "Positioned":
        """Stays in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def features(self, images: Float[torch.Tensor, "b 3 h w"]) -> Pyramid:
        """The wrapped one's maps behind the map of positions."""
        inner = self.representation.features(images)
        finest = inner.maps[0]
        positions = position_map(finest.shape[2], finest.shape[3]).to(finest)
        return Pyramid((positions.expand(inner.batch, -1, -1, -1), *inner.maps), inner.image_size)

    def card(self) -> dict:
        """The wrapped one's, marked."""
        return {**self.representation.card(), "position": True}
