"""What every representation promises: images in, Pyramid out, frozen, the same in any batch.

Knows the words that heads, laws and saved models need about a representation. Refuses to know any network.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float

from partshot.artifact import Artifact
from partshot.errors import BadImage
from partshot.pyramid import Pyramid


@dataclass(frozen=True)
class Spec:
    """name: for reports. channels: of each map, finest first. strides: pixels of the image per pixel of each map.

    fingerprint: 12 hex digits that change with the weights and with the way they are read. proportional: of each
    map, whether the deviations of its channels say how much they matter, as principal components' do; given empty, none
    do.
    """

    name: str
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    fingerprint: str
    proportional: tuple[bool, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "proportional", self.proportional or (False,) * len(self.channels))


@runtime_checkable
class Representation(Protocol):
    """A frozen `torch.nn.Module` that reads images; deterministic, without gradients, normalizing for itself."""

    spec: Spec

    def features(self, images: Float[torch.Tensor, "b 3 h w"]) -> Pyramid:
        """The Pyramid of images in [-1, 1]; its image size is theirs. Raises BadImage when they are too small."""

    def card(self) -> dict:
        """Plain JSON values from which, with the module's tensors, `choose.rebuild` makes it again."""


@dataclass(frozen=True)
class Latents:
    """What images are drawn from, noise included.

    ws: [b, layers, d], one latent per layer. noise: standard normal [b, 1, side, side] per convolution, coarsest first.
    generator: the fingerprint of the weights that they belong to.
    """

    ws: torch.Tensor
    noise: tuple[torch.Tensor, ...]
    generator: str

    def __len__(self) -> int:
        return len(self.ws)

    def __getitem__(self, index: slice | torch.Tensor) -> "Latents":
        """Those of some of the images."""
        return Latents(self.ws[index], tuple(n[index] for n in self.noise), self.generator)

    def to(self, device: torch.device | str) -> "Latents":
        """The same there."""
        return Latents(self.ws.to(device), tuple(n.to(device) for n in self.noise), self.generator)

    def save(self, folder: Path | str, card: dict | None = None) -> Path:
        """Writes them as an artifact of kind "latents"; card: further JSON values."""
        here = self.to("cpu")
        tensors = {"ws": here.ws.numpy()} | {f"noise.{i}": n.numpy() for i, n in enumerate(here.noise)}
        return Artifact("latents", {**(card or {}), "generator": self.generator}, tensors).save(folder)

    @classmethod
    def load(cls, folder: Path | str) -> "Latents":
        """Reads what `save` wrote; BadArtifact when it is something else."""
        stored = Artifact.load(folder, kind="latents")
        noise = [stored.tensors[f"noise.{i}"] for i in range(len(stored.tensors) - 1)]
        ws, *noise = (torch.from_numpy(np.array(t)) for t in (stored.tensors["ws"], *noise))
        return cls(ws, tuple(noise), stored.card["generator"])

    @classmethod
    def join(cls, several: Sequence["Latents"]) -> "Latents":
        """Those of several batches as one."""
        noise = tuple(torch.cat(maps) for maps in zip(*(s.noise for s in several), strict=True))
        return cls(torch.cat([s.ws for s in several]), noise, several[0].generator)


@runtime_checkable
class Generator(Protocol):
    """A frozen network that draws images and shows the Pyramid that each was drawn from."""

    spec: Spec

    def sample(self, seeds: Sequence[int], psi: float | None = None) -> Latents:
        """One latent per seed, which alone decides it, truncated by psi; None takes the generator's own."""

    def restyled(self, latents: Latents, seeds: Sequence[int]) -> Latents:
        """What lies where these latents put it, in the colors of other seeds."""

    def synthesize(self, latents: Latents) -> tuple[torch.Tensor, Pyramid]:
        """Images [b, 3, s, s], about [-1, 1], and their Pyramid: the same for the same latents, always."""


def fingerprint(card: dict, tensors: Mapping[str, torch.Tensor]) -> str:
    """12 hex digits of a representation's card and all of its weights."""
    digest = hashlib.sha256(json.dumps(card, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


def refuse_small(images: torch.Tensor, stride: int, name: str) -> None:
    """BadImage when images are smaller than one pixel of a representation's coarsest map."""
    height, width = images.shape[2:]
    if min(height, width) < stride:
        raise BadImage(
            f"images of {width}x{height} px are smaller than one pixel of '{name}' ({stride} px); "
            f"use a size of {2 * stride} or more, or the representation 'pixels'"
        )


def to_multiple(images: torch.Tensor, stride: int) -> torch.Tensor:
    """Images at the nearest size that `stride` divides, so that every map covers exactly the whole image."""
    size = tuple(max(1, round(side / stride)) * stride for side in images.shape[2:])
    if size == tuple(images.shape[2:]):
        return images
    return torch.nn.functional.interpolate(images, size=size, mode="bilinear", align_corners=False)
