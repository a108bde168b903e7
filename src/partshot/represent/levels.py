"""Selects some of a representation's maps by stride: fine maps show edges, coarse maps show objects.

Which maps are best for part segmentation depends on the images (ReGAN, table 7, shows this for a generator). Unselected
maps are still computed.
"""

import torch
from jaxtyping import Float
from torch import nn

from partshot.errors import BadRecipe
from partshot.pyramid import Pyramid
from partshot.represent.reduced import Reduced
from partshot.represent.spec import Representation, Spec, fingerprint


class Levels(nn.Module):
    """A Representation: the maps of another one with strides in low..high, in image pixels.

    Raises BadRecipe if no map has such a stride, and for a representation that is already `Reduced`.
    """

    def __init__(self, representation: Representation, low: int, high: int):
        super().__init__()
        if isinstance(representation, Reduced):
            raise BadRecipe(f"'{representation.spec.name}': select levels before the reduction, Reduced(Levels(...))")
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
            shared_scale=tuple(inner.shared_scale[i] for i in self._kept),
        )

    def train(self, mode: bool = True) -> "Levels":
        """Does nothing: the module stays in evaluation mode."""
        return super().train(False)

    def features(self, images: Float[torch.Tensor, "b 3 h w"]) -> Pyramid:
        """The selected maps; raises what the wrapped representation raises."""
        inner = self.representation.features(images)
        return Pyramid(tuple(inner.maps[i] for i in self._kept), inner.image_size)

    def card(self) -> dict:
        """The card of the wrapped representation, with the key "levels"."""
        return {**self.representation.card(), "levels": [self.low, self.high]}
