"""The principal components of any Pyramid's maps: what varies over a folder, in a few channels a map.

A few labeled images cannot tell which of a thousand channels matter; the unlabeled ones can tell which vary together.
Components keep their proportions (`Spec.proportional`), so that a head with weight decay leans on the strong ones
first. Measured in LOG.md.

Knows the wrapped representation by its protocol only. Refuses to know what the maps mean.
"""

import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import nn

from partshot.errors import BadRecipe
from partshot.ops.precision import native_bf16
from partshot.ops.standardize import floor_std
from partshot.pyramid import Pyramid
from partshot.represent.position import Positioned
from partshot.represent.spec import Latents, Representation, Spec, fingerprint

COMPONENTS = 64
# Of one or two labeled images a head learns better from fewer: cells, one label, .736 with 32 and .680 with 64, ants
# .354 and .358 (held-out images, five splits, see LOG.md).
_OF_FEW, _FEW = 32, 3
"""Principal components of each map: ahead of 32 by .03 and .02 on held-out ants and cars of five labels, see LOG.md."""

# Principal components are taken from about this many points of each image's map.
_POINTS = 1000


def components_for(shots: int) -> int:
    """How many principal components of each map a head reads that is fitted to so many labeled images."""
    return _OF_FEW if shots < _FEW else COMPONENTS


class PrincipalComponents(nn.Module):
    """The first principal components of a map's channels.

    basis: [components, channels], in units of the first component's own deviation; all zero until `take`.
    """

    def __init__(self, channels: int, components: int):
        super().__init__()
        self.register_buffer("center", torch.zeros(channels))
        self.register_buffer("basis", torch.zeros(components, channels))

    def forward(self, level: Float[torch.Tensor, "b c h w"]) -> Float[torch.Tensor, "b n h w"]:
        # In float32: what is left when the mean is gone may be small beside it.
        with torch.autocast(level.device.type, enabled=False):
            return F.conv2d(level.float() - self.center[:, None, None], self.basis[:, :, None, None])

    def take(self, points: Float[torch.Tensor, "p c"], standardized: bool = True) -> None:
        """Sets center and basis from a map's points.

        standardized: bring each channel to deviation 1 first, so that components are those of the correlations; else
        they are those of the covariances, and channels that vary more count for more.
        """
        points = points.double()
        deviation, mean = torch.std_mean(points, dim=0, correction=0)
        deviation = floor_std(deviation) if standardized else torch.ones_like(deviation)
        points = (points - mean) / deviation
        values, vectors = torch.linalg.eigh(points.T @ points / len(points))
        # The last have the largest values. A component's sign means nothing: its largest part is positive.
        first = vectors[:, -len(self.basis) :].flip(1)
        first = first * first.gather(0, first.abs().argmax(0, keepdim=True)).sign()
        self.center.copy_(mean)
        # A map that never varies has no component to be in units of.
        self.basis.copy_((first / deviation[:, None] / values[-1].clamp(min=1e-12).sqrt()).T)


class Reduced(nn.Module):
    """A Representation: the principal components of another's maps, covariances, at the same strides.

    components: of each map, at most its channels; all zero until `take` or `take_generated`. A Generator stays one: its
    latents are drawn and read here, too. Raises BadRecipe around a map of positions, or around what is reduced already.
    """

    def __init__(self, representation: Representation, components: int = COMPONENTS):
        super().__init__()
        if isinstance(representation, Positioned | Reduced):
            raise BadRecipe(
                f"'{representation.spec.name}' cannot be reduced: reduce what it wraps, and add positions around that"
            )
        self.representation, self.components = representation, components
        self.maps = nn.ModuleList(PrincipalComponents(c, min(c, components)) for c in representation.spec.channels)
        # Where the representation is; one without tensors is on the CPU.
        self.maps.to(next((t.device for t in representation.state_dict().values()), torch.device("cpu")))
        self.spec = self._spec()

    def train(self, mode: bool = True) -> "Reduced":
        """Stays in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def features(self, images: Float[torch.Tensor, "b 3 h w"]) -> Pyramid:
        """The components of the wrapped one's maps, float32; raises what it raises."""
        return self._reduced(self.representation.features(images))

    def take(self, images: Float[torch.Tensor, "n 3 h w"]) -> "Reduced":
        """Takes the components from images in [-1, 1], about a hundred of the folder; the fingerprint changes.

        Read in bf16 where the device has it, as heads are fitted.
        """
        device = self.maps[0].center.device
        return self._take(self.representation.features(few.to(device)) for few in images.split(4))

    def take_generated(self, seeds: Sequence[int]) -> "Reduced":
        """Takes them from what the wrapped one, a Generator, draws of these seeds; the fingerprint changes."""
        return self._take(self.representation.synthesize(self.representation.sample([seed]))[1] for seed in seeds)

    def sample(self, seeds: Sequence[int], psi: float | None = None) -> Latents:
        """The wrapped Generator's."""
        return self.representation.sample(seeds, psi)

    def restyled(self, latents: Latents, seeds: Sequence[int]) -> Latents:
        """The wrapped Generator's."""
        return self.representation.restyled(latents, seeds)

    def synthesize(self, latents: Latents) -> tuple[torch.Tensor, Pyramid]:
        """The wrapped Generator's images, and the components of their maps."""
        images, pyramid = self.representation.synthesize(latents)
        return images, self._reduced(pyramid)

    def card(self) -> dict:
        """The wrapped one's, marked."""
        return {**self.representation.card(), "reduced": self.components}

    def load_bases(self, tensors: dict[str, torch.Tensor]) -> "Reduced":
        """Components that were taken before, as `maps.state_dict()` gave them."""
        self.maps.load_state_dict(tensors)
        self.spec = self._spec()
        return self

    @torch.no_grad()
    def _take(self, pyramids: Iterable[Pyramid]) -> "Reduced":
        device = self.maps[0].center.device
        with torch.autocast(device.type, torch.bfloat16, enabled=native_bf16(device)):
            seen = [[some_points(level.float()) for level in pyramid.maps] for pyramid in pyramids]
        for condensed, points in zip(self.maps, zip(*seen, strict=True), strict=True):
            condensed.take(torch.cat(points), standardized=False)
        self.spec = self._spec()
        return self

    def _reduced(self, pyramid: Pyramid) -> Pyramid:
        maps = tuple(condensed(level) for condensed, level in zip(self.maps, pyramid.maps, strict=True))
        return Pyramid(maps, pyramid.image_size)

    def _spec(self) -> Spec:
        inner = self.representation.spec
        return Spec(
            name=f"{inner.name}, {self.components} components",
            channels=tuple(len(condensed.basis) for condensed in self.maps),
            strides=inner.strides,
            fingerprint=fingerprint({"reduced": inner.fingerprint}, self.maps.state_dict()),
            proportional=(True,) * len(inner.channels),
        )


def some_points(level: Float[torch.Tensor, "b c h w"]) -> Float[torch.Tensor, "p c"]:
    """Points of a map that stand for all of them, some thousand an image, from all over it."""
    height, width = level.shape[2:]
    step = max(1, height * width // _POINTS)
    # A step that has no divisor in common with the width passes through all columns.
    while math.gcd(step, width) > 1:
        step += 1
    return level.permute(0, 2, 3, 1).flatten(0, 2)[::step].clone()
