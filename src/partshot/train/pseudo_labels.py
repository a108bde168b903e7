"""Which pseudo-labels a student learns from: aligned class distribution, thresholds per class, agreement of two models.

Each is a module with buffers, so that checkpoints hold its state.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import nn

from partshot.parts import IGNORE
from partshot.train.distill_recipe import Consistency


class DistributionAlignment(nn.Module):
    """Keeps the class distribution of the pseudo-labels near that of the shots' pixels.

    Source: distribution alignment (ReMixMatch, Berthelot et al. 2020), over pixels here. Without it, a class that the
    EMA underestimates is predicted less and less until it disappears, which is the rule with one labeled image. Classes
    that no shot shows are not changed.
    """

    MOMENTUM, EPSILON = 0.98, 1e-5

    def __init__(self, labels: Int[torch.Tensor, "n h w"], classes: int):
        super().__init__()
        counts = torch.bincount(labels[labels != IGNORE], minlength=classes).float()
        self.register_buffer("target", counts / counts.sum())
        self.register_buffer("predicted", self.target.clone())

    def forward(self, probabilities: Float[torch.Tensor, "b k h w"]) -> Float[torch.Tensor, "b k h w"]:
        """Aligned probabilities; updates the EMA of the predicted distribution with the given ones."""
        self.predicted.lerp_(probabilities.mean((0, 2, 3)), 1 - self.MOMENTUM)
        ratio = torch.where(self.target > 0, (self.target + self.EPSILON) / (self.predicted + self.EPSILON), 1)
        aligned = probabilities * ratio[:, None, None]
        return aligned / aligned.sum(1, keepdim=True)


class ClassThresholds(nn.Module):
    """Confidence thresholds for pseudo-labels, one per class: lower for classes with a lower mean confidence.

    Source: FlexMatch (Zhang et al. 2021), with an EMA of each class's mean confidence in place of its count, as in
    FreeMatch (Wang et al. 2023).
    """

    MOMENTUM = 0.95

    def __init__(self, classes: int, consistency: Consistency):
        super().__init__()
        self.highest, self.power = consistency.confidence, consistency.flexmatch
        self.register_buffer("mean_confidence", torch.ones(classes))

    def forward(
        self, confidence: Float[torch.Tensor, "b h w"], ids: Int[torch.Tensor, "b h w"]
    ) -> Float[torch.Tensor, "b h w"]:
        """The threshold of each pixel's class, 0..1; updates the mean confidences."""
        mean, classes = self.mean_confidence, len(self.mean_confidence)
        flat, counts = ids.flatten(), torch.bincount(ids.flatten(), minlength=classes)
        batch_mean = torch.bincount(flat, confidence.flatten().float(), classes) / counts.clamp(min=1)
        mean.copy_(torch.where(counts > 0, mean.lerp(batch_mean.to(mean), 1 - self.MOMENTUM), mean))
        return (self.highest * (mean / mean.max()) ** self.power)[ids]


class Agreement(nn.Module):
    """Mean IoU (0..1) of two models' masks of unlabeled images: measured once, then kept in checkpoints."""

    def __init__(self):
        super().__init__()
        self.register_buffer("overlap", torch.tensor(-1.0))

    def measure(self, overlap: Callable[[], float]) -> None:
        """Measures it, unless that was done before."""
        if float(self.overlap) < 0:
            self.overlap.fill_(overlap())
