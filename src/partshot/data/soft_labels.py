"""Soft labels of many images, stored compactly: the most likely parts of each pixel as bytes, never float logits.

5,000 images of 512 px with 10 classes take 52 GB as float32 logits; the two likeliest parts at half size, one byte
for the id and one for the probability, take 1.3 GB, and 0.08 GB at 128 px.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8


@dataclass(frozen=True)
class SoftLabels:
    """ids: uint8 [n, t, h, w], likeliest first. shares: uint8 [n, t, h, w], probability * 255."""

    ids: UInt8[torch.Tensor, "n t h w"]
    shares: UInt8[torch.Tensor, "n t h w"]
    classes: int

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def of(cls, probabilities: Float[torch.Tensor, "n k h w"], keep: int = 2) -> "SoftLabels":
        """The `keep` likeliest parts of each pixel of some images."""
        shares, ids = probabilities.float().topk(min(keep, probabilities.shape[1]), dim=1)
        return cls(ids.byte(), (shares * 255).round().clamp(0, 255).byte(), probabilities.shape[1])

    @classmethod
    def join(cls, several: list["SoftLabels"]) -> "SoftLabels":
        """Those of several batches as one."""
        ids, shares = torch.cat([s.ids for s in several]), torch.cat([s.shares for s in several])
        return cls(ids, shares, several[0].classes)

    def read(self, index: Int[torch.Tensor, " b"], size: int) -> Float[torch.Tensor, "b k {size} {size}"]:
        """Probabilities of some images at another size; what was dropped is shared out, so that they sum to 1."""
        chosen = self.shares[index].float()
        chosen = chosen / chosen.sum(1, keepdim=True).clamp(min=1)
        dense = torch.zeros(len(index), self.classes, *self.ids.shape[2:])
        dense.scatter_(1, self.ids[index].long(), chosen)
        return F.interpolate(dense, size=(size, size), mode="bilinear", align_corners=False)
