"""Some of a representation's maps: the fine ones that see edges, the coarse ones that see things, or those between.

Which maps know the parts is different for every kind of image (ReGAN, table 7, finds it of a generator). Knows the
wrapped representation by its protocol only; what is left out is still computed.
"""

import torch
from jaxtyping import Float
from torch import nn

from partshot.errors import BadRecipe
from partshot.pyramid import Pyramid
from partshot.represent.reduced import Reduced
from partshot.represent.spec import Representation, Spec, fingerprint


class Levels(nn.Module):
    """A Representation: the maps of another whose stride lies in low..high, in pixels of the image.

    Raises BadRecipe when there is none, and around principal components.
    """

    def __init__(self, representation: Representation, low: int, high: int):
        super().__init__()
        if isinstance(representation, Reduced):
            raise BadRecipe(
                f"'{representation.spec.name}': choose levels before they are reduced, Reduced(Levels(...))"
            )
        self.representation, self.low, self.high = representation, low, high
        inner = representation.spec
        self._kept = [i for i, stride in enumerate(inner.strides) if low <= stride <= high]
        if not self._kept:
            raise BadRecipe(f"'{inner.name}' has no maps of strides {low}-{high}; its strides are {inner.strides}")
        self.spec = Spec(
            name=f"{inner.name} [{low}-{high}]",
            channels=tuple(inner.channels[i] for i in self._kept),
            strides=tuple(inner.strides[i] for i in self._kept),
            fingerprint=fingerprint({"of": inner.fingerprint, "levels": [low, high]}, {}),
            proportional=tuple(inner.proportional[i] for i in self._kept),
        )

    def train(self, mode: bool = True) -> "Levels":
        """Stays in evaluation mode."""
        return super().train(False)

    def features(self, images: Float[torch.Tensor, "b 3 h w"]) -> Pyramid:
        """The kept maps; raises what the wrapped one raises."""
        inner = self.representation.features(images)
        return Pyramid(tuple(inner.maps[i] for i in self._kept), inner.image_size)

    def card(self) -> dict:
        """The wrapped one's, marked."""
        return {**self.representation.card(), "levels": [self.low, self.high]}
