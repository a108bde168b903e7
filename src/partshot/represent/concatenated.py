"""Concatenates several representations into one Pyramid with the maps of all of them.

Different encoders can complement each other. Heads standardize the channels, so that different scales do not matter.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import nn

from partshot.errors import BadRecipe
from partshot.pyramid import Pyramid
from partshot.represent.cache import Cached
from partshot.represent.levels import Levels
from partshot.represent.position import Positioned
from partshot.represent.reduced import Reduced
from partshot.represent.spec import Representation, Spec, fingerprint


class Several(nn.Module):
    """A Representation: the members' maps, finest first; at equal strides in the order of the members.

    Raises BadRecipe for fewer than two members, and for a member that is a wrapper (Positioned, Levels, Cached,
    Reduced, Several): wrap the combination instead.
    """

    def __init__(self, members: Sequence[Representation]):
        super().__init__()
        if len(members) < 2:
            raise BadRecipe(f"{len(members)} representations to concatenate; must be two or more, as in A,B")
        if any(isinstance(member, Positioned | Levels | Cached | Reduced | Several) for member in members):
            raise BadRecipe(
                "members of several must not be wrapped; write A,B[4-16]+position, and cache the combination"
            )
        self.members = nn.ModuleList(members)
        strides = [stride for member in members for stride in member.spec.strides]
        channels = [count for member in members for count in member.spec.channels]
        shared_scale = [one for member in members for one in member.spec.shared_scale]
        self._order = sorted(range(len(strides)), key=strides.__getitem__)
        self.spec = Spec(
            name=", ".join(member.spec.name for member in members),
            channels=tuple(channels[i] for i in self._order),
            strides=tuple(strides[i] for i in self._order),
            fingerprint=fingerprint({"several": [member.spec.fingerprint for member in members]}, {}),
            shared_scale=tuple(shared_scale[i] for i in self._order),
        )

    def train(self, mode: bool = True) -> "Several":
        """Does nothing: the module stays in evaluation mode."""
        return super().train(False)

    def features(self, images: Float[torch.Tensor, "b 3 h w"]) -> Pyramid:
        """The maps of all members for images in [-1, 1]; raises what any member raises."""
        maps = [level for member in self.members for level in member.features(images).maps]
        return Pyramid(tuple(maps[i] for i in self._order), tuple(images.shape[2:]))

    def card(self) -> dict:
        """The kind, and the members' cards in order."""
        return {"kind": "several", "members": [member.card() for member in self.members]}
