"""Position as one more map of any Pyramid.

Encoders trained on random crops do not tell left from right or top from bottom; in pictures of aligned things (a face,
a car from the side) where a pixel lies says much about its part. Knows the wrapped representation by its protocol only.
"""

import torch
from jaxtyping import Float
from torch import nn

from partshot.pyramid import Pyramid
from partshot.represent.spec import Representation, Spec, fingerprint

CHANNELS = 5


class Positioned(nn.Module):
    """A Representation with a first map of 5 channels, x, y, x^2, y^2 and xy with x and y in [-1, 1].

    The map has the size of the finest map, so that the pictures' borders are not blurred away.
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


def position_map(height: int, width: int) -> Float[torch.Tensor, "1 5 {height} {width}"]:
    """x, y, x^2, y^2, xy at the pixels' centers, from -1 at the left and top edge to 1 at the right and bottom."""
    y = ((torch.arange(height) + 0.5) / height * 2 - 1)[:, None].expand(height, width)
    x = ((torch.arange(width) + 0.5) / width * 2 - 1)[None, :].expand(height, width)
    return torch.stack([x, y, x * x, y * y, x * y])[None]
