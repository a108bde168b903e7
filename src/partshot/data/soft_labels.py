"""Soft labels of many images, stored compactly: the top-k classes of each pixel as bytes.

5,000 images of 512 px with 10 classes take 52 GB as float32 logits. The two most probable classes at half size, with
one byte for the id and one for the probability, take 1.3 GB, and 0.08 GB for images of 128 px.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8

# Classes that are kept of each pixel.
_KEPT = 2


@dataclass(frozen=True)
class SoftLabels:
    """Top-k class probabilities of n images.

    ids: uint8 [n, t, h, w], most probable first. probabilities: uint8 [n, t, h, w], probability * 255.
    classes: number of classes.
    """

    ids: UInt8[torch.Tensor, "n t h w"]
    probabilities: UInt8[torch.Tensor, "n t h w"]
    classes: int

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def of(cls, probabilities: Float[torch.Tensor, "n k h w"]) -> "SoftLabels":
        """From probabilities of all classes; keeps the two most probable ones of each pixel."""
        top, ids = probabilities.float().topk(min(_KEPT, probabilities.shape[1]), dim=1)
        return cls(ids.byte(), (top * 255).round().clamp(0, 255).byte(), probabilities.shape[1])

    @classmethod
    def join(cls, several: list["SoftLabels"]) -> "SoftLabels":
        """Concatenates several along the image dimension."""
        ids, top = torch.cat([s.ids for s in several]), torch.cat([s.probabilities for s in several])
        return cls(ids, top, several[0].classes)

    def read(self, index: Int[torch.Tensor, " b"], size: int) -> Float[torch.Tensor, "b k {size} {size}"]:
        """Probabilities of the images at `index`, resized bilinearly.

        The kept classes are renormalized to sum to 1; all others are 0.
        """
        top = self.probabilities[index].float()
        top = top / top.sum(1, keepdim=True).clamp(min=1)
        dense = torch.zeros(len(index), self.classes, *self.ids.shape[2:])
        dense.scatter_(1, self.ids[index].long(), top)
        return F.interpolate(dense, size=(size, size), mode="bilinear", align_corners=False)
