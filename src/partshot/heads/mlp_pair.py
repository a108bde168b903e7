"""An ensemble of two small MLPs: one uses all maps, the other all but the coarsest.

The best maps depend on the data: with five labels, the coarsest map (stride 32) is necessary for cars and harmful for
ants. A few labels are not enough to choose, and the mean of both predictions is close to the better one (LOG.md).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import nn

from partshot.heads.mlp import mlp_s
from partshot.pyramid import Pyramid


class Pair(nn.Module):
    """Pyramid -> logits [b, classes, h, w]: the mean of both MLPs' log-probabilities, pixelwise.

    channels: of each map, finest first; with a single map, both MLPs use it.
    """

    reach = 0

    def __init__(self, channels: Sequence[int], classes: int):
        super().__init__()
        self.whole, self.fine = mlp_s(channels, classes), mlp_s(channels[:-1] or channels, classes)

    def forward(self, pyramid: Pyramid) -> Float[torch.Tensor, "b k h w"]:
        """Logits at image size."""
        return sum(logits.float().log_softmax(1) for logits in self.member_logits(pyramid)) / 2

    def member_logits(self, pyramid: Pyramid) -> list[Float[torch.Tensor, "b k h w"]]:
        """The logits of each MLP at image size. Fitting sums their separate losses, so that each is trained alone."""
        fine = Pyramid(pyramid.maps[:-1] or pyramid.maps, pyramid.image_size)
        return [self.whole(pyramid), self.fine(fine)]
