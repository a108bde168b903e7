"""Two small MLPs, one of all maps and one that does not see the coarsest, asked together.

Which maps know the parts differs: cars need the coarsest (stride 32), on ants it misleads a head of five labels. A
handful of labels cannot tell which is so, and the mean of both opinions is near the better one (LOG.md).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import nn

from partshot.heads.mlp import mlp_s
from partshot.pyramid import Pyramid


class Pair(nn.Module):
    """Pyramid -> logits [b, classes, h, w]: the mean of both MLPs' logarithms of probabilities, each pixel by itself.

    channels: of each map, finest first; of a single map both see all.
    """

    reach = 0

    def __init__(self, channels: Sequence[int], classes: int):
        super().__init__()
        self.whole, self.fine = mlp_s(channels, classes), mlp_s(channels[:-1] or channels, classes)

    def forward(self, pyramid: Pyramid) -> Float[torch.Tensor, "b k h w"]:
        """Logits at image size."""
        return sum(logits.float().log_softmax(1) for logits in self.opinions(pyramid)) / 2

    def opinions(self, pyramid: Pyramid) -> list[Float[torch.Tensor, "b k h w"]]:
        """Each MLP's own logits at image size; fitting takes the loss of each, so that neither leans on the other."""
        fine = Pyramid(pyramid.maps[:-1] or pyramid.maps, pyramid.image_size)
        return [self.whole(pyramid), self.fine(fine)]
