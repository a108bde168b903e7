"""What every representation promises: pictures in, Pyramid out, frozen, the same in any batch.

Knows the words that heads, laws and saved models need about a representation. Refuses to know any network.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float

from partshot.errors import BadImage
from partshot.pyramid import Pyramid


@dataclass(frozen=True)
class Spec:
    """name: for reports. channels: of each map, finest first. strides: pixels of the picture per pixel of each map.

    fingerprint: 12 hex digits that change with the weights and with the way they are read.
    """

    name: str
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    fingerprint: str


@runtime_checkable
class Representation(Protocol):
    """A frozen `torch.nn.Module` that reads pictures; deterministic, without gradients, normalizing for itself."""

    spec: Spec

    def features(self, images: Float[torch.Tensor, "b 3 h w"]) -> Pyramid:
        """The Pyramid of pictures in [-1, 1]; its image size is theirs. Raises BadImage when they are too small."""

    def card(self) -> dict:
        """Plain JSON values from which, with the module's tensors, `choose.rebuild` makes it again."""


def fingerprint(card: dict, tensors: Mapping[str, torch.Tensor]) -> str:
    """12 hex digits of a representation's card and all of its weights."""
    digest = hashlib.sha256(json.dumps(card, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


def refuse_small(images: torch.Tensor, stride: int, name: str) -> None:
    """BadImage when pictures are smaller than one pixel of a representation's coarsest map."""
    height, width = images.shape[2:]
    if min(height, width) < stride:
        raise BadImage(
            f"pictures of {width}x{height} px are smaller than one pixel of '{name}' ({stride} px); "
            f"use a size of {2 * stride} or more, or the representation 'pixels'"
        )


def to_multiple(images: torch.Tensor, stride: int) -> torch.Tensor:
    """Pictures at the nearest size that `stride` divides, so that every map covers exactly the whole picture."""
    size = tuple(max(1, round(side / stride)) * stride for side in images.shape[2:])
    if size == tuple(images.shape[2:]):
        return images
    return torch.nn.functional.interpolate(images, size=size, mode="bilinear", align_corners=False)
