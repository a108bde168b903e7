"""Several representations side by side: one Pyramid of all their maps, for one head.

What one encoder does not see another may; heads bring every channel to one scale themselves. Knows its members by their
protocol only.
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
    """A Representation: the members' maps, finest first; of equal strides the earlier member's come first.

    Raises BadRecipe for fewer than two members, and for one that wraps others itself: a map of positions, a choice of
    levels or a cache belongs around the whole.
    """

    def __init__(self, members: Sequence[Representation]):
        super().__init__()
        if len(members) < 2:
            raise BadRecipe(f"several representations are two or more, {len(members)} given; name them A,B")
        if any(isinstance(member, Positioned | Levels | Cached | Reduced | Several) for member in members):
            raise BadRecipe(
                "members of several are plain ones; write A,B[4-16]+position, and keep the whole in a cache"
            )
        self.members = nn.ModuleList(members)
        strides = [stride for member in members for stride in member.spec.strides]
        channels = [count for member in members for count in member.spec.channels]
        proportional = [one for member in members for one in member.spec.proportional]
        self._order = sorted(range(len(strides)), key=strides.__getitem__)
        self.spec = Spec(
            name=", ".join(member.spec.name for member in members),
            channels=tuple(channels[i] for i in self._order),
            strides=tuple(strides[i] for i in self._order),
            fingerprint=fingerprint({"several": [member.spec.fingerprint for member in members]}, {}),
            proportional=tuple(proportional[i] for i in self._order),
        )

    def train(self, mode: bool = True) -> "Several":
        """Stays in evaluation mode."""
        return super().train(False)

    def features(self, images: Float[torch.Tensor, "b 3 h w"]) -> Pyramid:
        """All members' maps of images in [-1, 1]; raises what any of them raises."""
        maps = [level for member in self.members for level in member.features(images).maps]
        return Pyramid(tuple(maps[i] for i in self._order), tuple(images.shape[2:]))

    def card(self) -> dict:
        """The members' cards, in their order."""
        return {"kind": "several", "members": [member.card() for member in self.members]}
