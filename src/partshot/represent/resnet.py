"""A ResNet as a representation: the Pyramid of its four stages, trained or with random initialization as a baseline.

The net is frozen, BatchNorm uses its running statistics, and images are normalized as for ImageNet. The stride of the
first convolution is set to 1, so that the maps have twice the resolution of training (GANORCON, released code). The
stages can be reduced to principal components, which improves heads fitted to a few labeled images.
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
from partshot.represent.reduced import PrincipalComponents, sample_points
from partshot.represent.spec import Spec, check_min_size, fingerprint, resize_to_multiple

# ImageNet statistics for images in [0, 1], which nearly every published encoder uses.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# Name of the principal components' module, and so of their tensors in artifacts and fingerprints.
_COMPONENTS = "condensed"

# First convolution with stride 1, then max pooling and three stages with stride 2.
STRIDES = (2, 4, 8, 16)


class ResNet(nn.Module):
    """A Representation: layer1 to layer4 of a trunk, at strides 2 to 16.

    The trunk is modified: it is frozen and its first stride set to 1. title: name in reports. components: number of
    principal components per stage, zero until `fit_components`; 0 keeps all channels.
    """

    def __init__(self, trunk: ResNetTrunk, title: str, components: int = 0):
        super().__init__()
        self.trunk, self.title = trunk.requires_grad_(False), title
        self.trunk.conv1.stride = (1, 1)
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)
        reduced = nn.ModuleList(PrincipalComponents(c, components) for c in trunk.channels if components)
        self.add_module(_COMPONENTS, reduced)
        self.to(memory_format=torch.channels_last).eval()
        self.spec = self._spec()

    @property
    def principal_components(self) -> nn.ModuleList:
        """One PrincipalComponents per stage; empty if all channels are kept."""
        return self.get_submodule(_COMPONENTS)

    def train(self, mode: bool = True) -> "ResNet":
        """Does nothing: the module stays in evaluation mode, also inside of a model that is trained."""
        return super().train(False)

    @torch.no_grad()
    def features(self, images: Float[torch.Tensor, "b 3 h w"]) -> Pyramid:
        """The four stages, finest first, for images in [-1, 1]; raises BadImage for images under 16 px."""
        check_min_size(images, STRIDES[-1], self.title)
        maps = self.trunk(self._prepared(images))
        if self.principal_components:
            maps = tuple(reduce(level) for reduce, level in zip(self.principal_components, maps, strict=True))
        return Pyramid(maps, tuple(images.shape[2:]))

    @torch.no_grad()
    def calibrate(self, images: Float[torch.Tensor, "b 3 h w"]) -> "ResNet":
        """Recomputes BatchNorm statistics on images in [-1, 1]; weights stay unchanged, the fingerprint changes."""
        norms = [m for m in self.trunk.modules() if isinstance(m, nn.BatchNorm2d)]
        kept = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            # None: a cumulative average over all batches instead of an EMA, so that a few batches suffice.
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
    def fit_components(self, images: Float[torch.Tensor, "b 3 h w"]) -> "ResNet":
        """Fits the principal components, if any, to images in [-1, 1]; the fingerprint changes."""
        if not self.principal_components:
            return self
        samples = [[sample_points(level) for level in self.trunk(self._prepared(chunk))] for chunk in images.split(16)]
        for components, points in zip(self.principal_components, zip(*samples, strict=True), strict=True):
            components.fit(torch.cat(points))
        self.spec = self._spec()
        return self

    def card(self) -> dict:
        """The JSON values that `rebuild` needs besides the tensors."""
        card, reduced = {"kind": "resnet", "net": self.trunk.name, "title": self.title}, self.principal_components
        return card | ({"components": reduced[0].basis.shape[0]} if reduced else {})

    @classmethod
    def rebuild(cls, card: dict, tensors: Mapping[str, torch.Tensor], source: str = "") -> "ResNet":
        """Rebuilds a representation from its `card` and `state_dict`; raises BadArtifact if they do not match.

        source: for error messages; if empty, the title.
        """
        found = cls(ResNetTrunk(card["net"]), card["title"], card.get("components", 0))
        load_exactly(found, tensors, source or f"'{card['title']}'")
        found.spec = found._spec()
        return found

    def _prepared(self, images: torch.Tensor) -> torch.Tensor:
        normal = ((images + 1) / 2 - self.mean) / self.std
        return resize_to_multiple(normal, STRIDES[-1]).contiguous(memory_format=torch.channels_last)

    def _spec(self) -> Spec:
        reduced = self.principal_components
        tensors = self.trunk.state_dict() | reduced.state_dict(prefix=f"{_COMPONENTS}.")
        channels = tuple(one.basis.shape[0] for one in reduced) or self.trunk.channels
        shared_scale = (bool(reduced),) * len(channels)
        return Spec(self.title, channels, STRIDES, fingerprint(self.card(), tensors), shared_scale)


def random_resnet(net: str = "resnet18", seed: int = 0) -> ResNet:
    """A ResNet with random initialization: the baseline for every trained representation.

    seed: of the He initialization. BatchNorm statistics are computed from noise with a natural spectrum, so that the
    result does not depend on the images; `calibrate` recomputes them on real images.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        representation = ResNet(ResNetTrunk(net), f"random {net}")
        # Octaves of noise with equal variance approximate the 1/f spectrum of natural images.
        octaves = [torch.randn(8, 3, side, side) for side in (2, 4, 8, 16, 32, 64)]
    images = sum(F.interpolate(o, size=64, mode="bilinear", align_corners=False) for o in octaves)
    return representation.calibrate((images / 4).clamp(-1, 1))


def load_resnet(folder: Path | str) -> ResNet:
    """A trained ResNet from an artifact of kind "representation".

    The card's "net" is a key of `nets.resnet.CHANNELS`. Tensors have torchvision's names; a classifier ("fc.") is
    dropped, and principal components have the prefix "condensed." Raises BadArtifact if the folder holds something
    else.
    """
    artifact = Artifact.load(folder, kind="representation")
    net = artifact.card.get("net")
    if net not in CHANNELS:
        raise BadArtifact(f"{folder}: its card has the net '{net}'; this version supports {', '.join(CHANNELS)}")
    tensors = {k: torch.from_numpy(v.copy()) for k, v in artifact.tensors.items() if not k.startswith("fc.")}
    named = {k if k.startswith(f"{_COMPONENTS}.") else f"trunk.{k}": v for k, v in tensors.items()}
    card = {"net": net, "title": artifact.card.get("title", f"trained {net}")}
    return ResNet.rebuild(card | {"components": artifact.card.get("components", 0)}, named, str(folder))
