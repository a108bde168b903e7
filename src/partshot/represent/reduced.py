"""Reduces the maps of a representation to principal components, fitted to unlabeled images.

A few labeled images are not enough to select among a thousand channels, but unlabeled images show which channels are
correlated. The components of a map keep their relative scale (`Spec.shared_scale`), so that a head with weight decay
relies mainly on the components of large variance. Results are in LOG.md.
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
"""Principal components per map. Held-out mIoU with five labels is .03 (ants) and .02 (cars) above 32 (LOG.md)."""

# With fewer than 3 labeled images, 32 components. One label: cells .736 with 32 and .680 with 64, ants .354 and .358
# (mIoU on held-out images, five splits, LOG.md).
_OF_FEW, _FEW = 32, 3

# Principal components are fitted to about this many points of each image's map.
_POINTS = 1000


def components_for(shots: int) -> int:
    """Number of principal components per map for a head fitted to that many labeled images."""
    return _OF_FEW if shots < _FEW else COMPONENTS


class PrincipalComponents(nn.Module):
    """The first principal components of a map's channels.

    center: [channels], the mean. basis: [components, channels], scaled so that the first component has standard
    deviation 1. Both are zero until `fit`.
    """

    def __init__(self, channels: int, components: int):
        super().__init__()
        self.register_buffer("center", torch.zeros(channels))
        self.register_buffer("basis", torch.zeros(components, channels))

    def forward(self, level: Float[torch.Tensor, "b c h w"]) -> Float[torch.Tensor, "b n h w"]:
        # In float32: the deviation from the mean may be small compared to the mean.
        with torch.autocast(level.device.type, enabled=False):
            return F.conv2d(level.float() - self.center[:, None, None], self.basis[:, :, None, None])

    def fit(self, points: Float[torch.Tensor, "p c"], standardized: bool = True) -> None:
        """Sets center and basis from sampled points of a map.

        standardized: PCA of the correlation matrix, with each channel scaled to standard deviation 1; else of the
        covariance matrix, in which channels with larger variance have more weight.
        """
        points = points.double()
        deviation, mean = torch.std_mean(points, dim=0, correction=0)
        deviation = floor_std(deviation) if standardized else torch.ones_like(deviation)
        points = (points - mean) / deviation
        values, vectors = torch.linalg.eigh(points.T @ points / len(points))
        # eigh sorts eigenvalues in ascending order. The sign of a component is arbitrary: make its largest entry
        # positive.
        first = vectors[:, -len(self.basis) :].flip(1)
        first = first * first.gather(0, first.abs().argmax(0, keepdim=True)).sign()
        self.center.copy_(mean)
        # The clamp avoids a division by zero for a constant map.
        self.basis.copy_((first / deviation[:, None] / values[-1].clamp(min=1e-12).sqrt()).T)


class Reduced(nn.Module):
    """A Representation: the principal components (of the covariance) of another one's maps, at the same strides.

    components: per map, at most its number of channels; zero until `fit` or `fit_generated`. Around a Generator, this
    is a Generator, too. Raises BadRecipe for a representation with position channels, or one that is already reduced.
    """

    def __init__(self, representation: Representation, components: int = COMPONENTS):
        super().__init__()
        if isinstance(representation, Positioned | Reduced):
            raise BadRecipe(
                f"'{representation.spec.name}' cannot be reduced: reduce the wrapped representation, then add positions"
            )
        self.representation, self.components = representation, components
        self.maps = nn.ModuleList(PrincipalComponents(c, min(c, components)) for c in representation.spec.channels)
        # On the device of the representation; without tensors, on the CPU.
        self.maps.to(next((t.device for t in representation.state_dict().values()), torch.device("cpu")))
        self.spec = self._spec()

    def train(self, mode: bool = True) -> "Reduced":
        """Does nothing: the module stays in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def features(self, images: Float[torch.Tensor, "b 3 h w"]) -> Pyramid:
        """The principal components of the maps, float32; raises what the wrapped representation raises."""
        return self._reduced(self.representation.features(images))

    def fit(self, images: Float[torch.Tensor, "n 3 h w"]) -> "Reduced":
        """Fits the components to images in [-1, 1], usually about a hundred; the fingerprint changes.

        Features are computed in bf16 where the device supports it natively, as when heads are fitted.
        """
        device = self.maps[0].center.device
        return self._fit(self.representation.features(few.to(device)) for few in images.split(4))

    def fit_generated(self, seeds: Sequence[int]) -> "Reduced":
        """Fits the components to images that the wrapped Generator samples; the fingerprint changes."""
        return self._fit(self.representation.synthesize(self.representation.sample([seed]))[1] for seed in seeds)

    def sample(self, seeds: Sequence[int], psi: float | None = None) -> Latents:
        """As in the wrapped Generator."""
        return self.representation.sample(seeds, psi)

    def mix_styles(self, latents: Latents, seeds: Sequence[int]) -> Latents:
        """As in the wrapped Generator."""
        return self.representation.mix_styles(latents, seeds)

    def synthesize(self, latents: Latents) -> tuple[torch.Tensor, Pyramid]:
        """The images of the wrapped Generator, and the principal components of their maps."""
        images, pyramid = self.representation.synthesize(latents)
        return images, self._reduced(pyramid)

    def card(self) -> dict:
        """The card of the wrapped representation, with the key "reduced"."""
        return {**self.representation.card(), "reduced": self.components}

    def load_components(self, tensors: dict[str, torch.Tensor]) -> "Reduced":
        """Loads fitted components from a `maps.state_dict()`."""
        self.maps.load_state_dict(tensors)
        self.spec = self._spec()
        return self

    @torch.no_grad()
    def _fit(self, pyramids: Iterable[Pyramid]) -> "Reduced":
        device = self.maps[0].center.device
        with torch.autocast(device.type, torch.bfloat16, enabled=native_bf16(device)):
            samples = [[sample_points(level.float()) for level in pyramid.maps] for pyramid in pyramids]
        for components, points in zip(self.maps, zip(*samples, strict=True), strict=True):
            components.fit(torch.cat(points), standardized=False)
        self.spec = self._spec()
        return self

    def _reduced(self, pyramid: Pyramid) -> Pyramid:
        maps = tuple(components(level) for components, level in zip(self.maps, pyramid.maps, strict=True))
        return Pyramid(maps, pyramid.image_size)

    def _spec(self) -> Spec:
        inner = self.representation.spec
        return Spec(
            name=f"{inner.name}, {self.components} components",
            channels=tuple(len(components.basis) for components in self.maps),
            strides=inner.strides,
            fingerprint=fingerprint({"reduced": inner.fingerprint}, self.maps.state_dict()),
            shared_scale=(True,) * len(inner.channels),
        )


def sample_points(level: Float[torch.Tensor, "b c h w"]) -> Float[torch.Tensor, "p c"]:
    """A regular sample of about a thousand feature vectors per image, from all rows and columns of the map."""
    height, width = level.shape[2:]
    step = max(1, height * width // _POINTS)
    # A step that is coprime to the width visits all columns.
    while math.gcd(step, width) > 1:
        step += 1
    return level.permute(0, 2, 3, 1).flatten(0, 2)[::step].clone()
