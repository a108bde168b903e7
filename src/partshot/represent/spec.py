"""Interfaces of representations and generators, with their Spec and Latents.

A representation maps images to a Pyramid. It is frozen and deterministic, and its features do not depend on the batch
(checked by laws.py). This file is independent of any network.
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
    """Description of a representation's output.

    name: for reports. channels: of each map, finest first. strides: image pixels per pixel of each map. fingerprint: 12
    hex digits that change with the weights and the preprocessing. shared_scale: for each map, whether its channels are
    divided by one common scale, so that their relative variances are kept, as for principal components; otherwise each
    channel is standardized. Empty means False for all maps.
    """

    name: str
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    fingerprint: str
    shared_scale: tuple[bool, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "shared_scale", self.shared_scale or (False,) * len(self.channels))


@runtime_checkable
class Representation(Protocol):
    """A frozen, deterministic `torch.nn.Module` that computes features; it includes the input normalization."""

    spec: Spec

    def features(self, images: Float[torch.Tensor, "b 3 h w"]) -> Pyramid:
        """The Pyramid of images in [-1, 1], without gradients. Raises BadImage if the images are too small."""

    def card(self) -> dict:
        """Plain JSON values that `choose.rebuild` needs besides the module's tensors."""


@dataclass(frozen=True)
class Latents:
    """Inputs of a generator's synthesis network, noise maps included.

    ws: [b, layers, d], one latent per layer. noise: standard normal [b, 1, side, side] per convolution, coarsest first.
    generator: fingerprint of the generator's weights.
    """

    ws: torch.Tensor
    noise: tuple[torch.Tensor, ...]
    generator: str

    def __len__(self) -> int:
        return len(self.ws)

    def __getitem__(self, index: slice | torch.Tensor) -> "Latents":
        """The latents of some of the images."""
        return Latents(self.ws[index], tuple(n[index] for n in self.noise), self.generator)

    def to(self, device: torch.device | str) -> "Latents":
        """The latents on another device."""
        return Latents(self.ws.to(device), tuple(n.to(device) for n in self.noise), self.generator)

    def save(self, folder: Path | str, card: dict | None = None) -> Path:
        """Saves the latents as an artifact of kind "latents". card: additional JSON values."""
        here = self.to("cpu")
        tensors = {"ws": here.ws.numpy()} | {f"noise.{i}": n.numpy() for i, n in enumerate(here.noise)}
        return Artifact("latents", {**(card or {}), "generator": self.generator}, tensors).save(folder)

    @classmethod
    def load(cls, folder: Path | str) -> "Latents":
        """Loads latents written by `save`; raises BadArtifact for anything else."""
        stored = Artifact.load(folder, kind="latents")
        noise = [stored.tensors[f"noise.{i}"] for i in range(len(stored.tensors) - 1)]
        ws, *noise = (torch.from_numpy(np.array(t)) for t in (stored.tensors["ws"], *noise))
        return cls(ws, tuple(noise), stored.card["generator"])

    @classmethod
    def join(cls, several: Sequence["Latents"]) -> "Latents":
        """Concatenates the latents of several batches."""
        noise = tuple(torch.cat(maps) for maps in zip(*(s.noise for s in several), strict=True))
        return cls(torch.cat([s.ws for s in several]), noise, several[0].generator)


@runtime_checkable
class Generator(Protocol):
    """A frozen network that generates images together with the Pyramid of their features."""

    spec: Spec

    def sample(self, seeds: Sequence[int], psi: float | None = None) -> Latents:
        """One latent per seed, which alone determines it. psi: truncation; None uses the generator's own."""

    def mix_styles(self, latents: Latents, seeds: Sequence[int]) -> Latents:
        """Style mixing: the same layout, with colors and texture from other seeds, one per image."""

    def synthesize(self, latents: Latents) -> tuple[torch.Tensor, Pyramid]:
        """Images [b, 3, s, s], approximately in [-1, 1], and their Pyramid; deterministic for given latents."""


def fingerprint(card: dict, tensors: Mapping[str, torch.Tensor]) -> str:
    """12 hex digits of the SHA-256 of a representation's card and weights."""
    digest = hashlib.sha256(json.dumps(card, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


def check_min_size(images: torch.Tensor, stride: int, name: str) -> None:
    """Raises BadImage if images are smaller than one pixel of a representation's coarsest map."""
    height, width = images.shape[2:]
    if min(height, width) < stride:
        raise BadImage(
            f"images of {width}x{height} px are smaller than one pixel of '{name}' ({stride} px); "
            f"use a size of {2 * stride} or more, or the representation 'pixels'"
        )


def resize_to_multiple(images: torch.Tensor, stride: int) -> torch.Tensor:
    """Resizes images to the nearest multiple of `stride`, so that every map covers the whole image exactly."""
    size = tuple(max(1, round(side / stride)) * stride for side in images.shape[2:])
    if size == tuple(images.shape[2:]):
        return images
    return torch.nn.functional.interpolate(images, size=size, mode="bilinear", align_corners=False)
