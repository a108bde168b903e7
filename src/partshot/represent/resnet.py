"""A ResNet read as a Pyramid of its four stages, whatever pretext trained it; or with random weights, as a floor.

Knows how the stages are read: frozen, BatchNorm on its stored statistics, ImageNet's normalization, and the first
convolution's stride set to 1, so that the maps are twice as fine as in training (GANORCON, released code); whole, or
condensed to the principal components of each stage, which a head of a few labeled images learns better from.
Refuses to know how the weights were trained.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import nn

from partshot.artifact import Artifact
from partshot.errors import BadArtifact
from partshot.nets.resnet import CHANNELS, ResNetTrunk
from partshot.nets.weights import load_exactly
from partshot.pyramid import Pyramid
from partshot.represent.reduced import PrincipalComponents, some_points
from partshot.represent.spec import Spec, fingerprint, refuse_small, to_multiple

# Of ImageNet's images in [0, 1]; what nearly every published encoder was trained with.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# Where an artifact keeps principal components, beside the trunk under torchvision's names.
_COMPONENTS = "condensed."

# The first convolution at stride 1, then max-pooling and three stages that halve.
STRIDES = (2, 4, 8, 16)


class ResNet(nn.Module):
    """A Representation: layer1 to layer4 of a trunk, at 1/2 to 1/16 of the image's size.

    Takes the trunk over: freezes it and sets its first stride to 1. title: the name in reports. components: how many
    principal components are read of each stage, all zero until `condense`; 0 reads every channel.
    """

    def __init__(self, trunk: ResNetTrunk, title: str, components: int = 0):
        super().__init__()
        self.trunk, self.title = trunk.requires_grad_(False), title
        self.trunk.conv1.stride = (1, 1)
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)
        self.condensed = nn.ModuleList(PrincipalComponents(c, components) for c in trunk.channels if components)
        self.to(memory_format=torch.channels_last).eval()
        self.spec = self._spec()

    def train(self, mode: bool = True) -> "ResNet":
        """Stays in evaluation mode, also as a part of something that trains."""
        return super().train(False)

    @torch.no_grad()
    def features(self, images: Float[torch.Tensor, "b 3 h w"]) -> Pyramid:
        """The four stages, finest first, for images in [-1, 1]; BadImage for images under 16 px."""
        refuse_small(images, STRIDES[-1], self.title)
        maps = self.trunk(self._prepared(images))
        if self.condensed:
            maps = tuple(condensed(level) for condensed, level in zip(self.condensed, maps, strict=True))
        return Pyramid(maps, tuple(images.shape[2:]))

    @torch.no_grad()
    def calibrate(self, images: Float[torch.Tensor, "b 3 h w"]) -> "ResNet":
        """Takes BatchNorm's statistics anew from images in [-1, 1]; the weights stay and the fingerprint changes."""
        norms = [m for m in self.trunk.modules() if isinstance(m, nn.BatchNorm2d)]
        kept = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            # None averages all batches alike, so that few batches are enough.
            norm.momentum = None
            norm.train()
        for chunk in images.split(16):
            self.trunk(self._prepared(chunk))
        for norm, momentum in zip(norms, kept, strict=True):
            norm.momentum = momentum
            norm.eval()
        self.spec = self._spec()
        return self

    @torch.no_grad()
    def condense(self, images: Float[torch.Tensor, "b 3 h w"]) -> "ResNet":
        """Takes the principal components, if any, from images in [-1, 1]; the fingerprint changes."""
        if not self.condensed:
            return self
        seen = [[some_points(level) for level in self.trunk(self._prepared(chunk))] for chunk in images.split(16)]
        for condensed, points in zip(self.condensed, zip(*seen, strict=True), strict=True):
            condensed.take(torch.cat(points))
        self.spec = self._spec()
        return self

    def card(self) -> dict:
        """What `rebuild` needs besides the tensors."""
        card = {"kind": "resnet", "net": self.trunk.name, "title": self.title}
        return card | ({"components": self.condensed[0].basis.shape[0]} if self.condensed else {})

    @classmethod
    def rebuild(cls, card: dict, tensors: Mapping[str, torch.Tensor], source: str = "") -> "ResNet":
        """The representation that `card` and `state_dict` were taken from; BadArtifact when they do not fit.

        source: for messages, the title where it is empty.
        """
        found = cls(ResNetTrunk(card["net"]), card["title"], card.get("components", 0))
        load_exactly(found, tensors, source or f"'{card['title']}'")
        found.spec = found._spec()
        return found

    def _prepared(self, images: torch.Tensor) -> torch.Tensor:
        normal = ((images + 1) / 2 - self.mean) / self.std
        return to_multiple(normal, STRIDES[-1]).contiguous(memory_format=torch.channels_last)

    def _spec(self) -> Spec:
        tensors = self.trunk.state_dict() | self.condensed.state_dict(prefix=_COMPONENTS)
        channels = tuple(one.basis.shape[0] for one in self.condensed) or self.trunk.channels
        proportional = (bool(self.condensed),) * len(channels)
        return Spec(self.title, channels, STRIDES, fingerprint(self.card(), tensors), proportional)


def random_resnet(net: str = "resnet18", seed: int = 0) -> ResNet:
    """A ResNet that was never trained: the floor that every trained representation must be measured against.

    Weights are He-initialized by `seed`. BatchNorm's statistics come from noise with a natural spectrum, so that the
    result does not depend on what is read next; `calibrate` takes them from real images.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        representation = ResNet(ResNetTrunk(net), f"random {net}")
        # Octaves of noise at equal strength: the 1/f spectrum of natural images.
        octaves = [torch.randn(8, 3, side, side) for side in (2, 4, 8, 16, 32, 64)]
    images = sum(F.interpolate(o, size=64, mode="bilinear", align_corners=False) for o in octaves)
    return representation.calibrate((images / 4).clamp(-1, 1))


def load_resnet(folder: Path | str) -> ResNet:
    """A trained ResNet from an artifact of kind "representation".

    Its card has "net" (a key of `nets.resnet.CHANNELS`), its tensors have torchvision's names; a classifier ("fc.")
    is left out, principal components stand under "condensed." Raises BadArtifact when the folder holds something else.
    """
    artifact = Artifact.load(folder, kind="representation")
    net = artifact.card.get("net")
    if net not in CHANNELS:
        raise BadArtifact(f"{folder}: its card names the net '{net}'; this version reads {', '.join(CHANNELS)}")
    tensors = {k: torch.from_numpy(v.copy()) for k, v in artifact.tensors.items() if not k.startswith("fc.")}
    named = {k if k.startswith(_COMPONENTS) else f"trunk.{k}": v for k, v in tensors.items()}
    card = {"net": net, "title": artifact.card.get("title", f"trained {net}")}
    return ResNet.rebuild(card | {"components": artifact.card.get("components", 0)}, named, str(folder))
