"""How far apart two pictures look: distances between what a network makes of them, not between their pixels.

LPIPS where its weights are at hand (Zhang et al. 2018); else the same formula without learnt weights, on the features
of any network that returns its levels: the critic that a generator was trained against, or an encoder of the user's.
Knows networks only by pictures in [-1, 1] in, maps out; downloads nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from partshot.errors import BadArtifact

Levels = Callable[[torch.Tensor], Sequence[torch.Tensor]]
Distance = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Pictures [b, 3, h, w] in [-1, 1], twice -> [b], how far apart each pair is; differentiable."""

# LPIPS compares pictures at this side at most, as projectors do.
LARGEST = 256
# Of torchvision's vgg16.features: behind which layers LPIPS taps, and ImageNet's statistics as it applies them.
_TAPS = (3, 8, 15, 22, 29)
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


def feature_distance(levels: Levels, pixels: float = 0.0) -> Distance:
    """Mean squared difference of unit feature vectors, summed over levels (LPIPS' formula, equation 1, all weights 1).

    pixels: weight of the pixels' own mean squared difference beside it.
    """

    def distance(
        first: Float[torch.Tensor, "b 3 h w"], second: Float[torch.Tensor, "b 3 h w"]
    ) -> Float[torch.Tensor, " b"]:
        pairs = zip(levels(first), levels(second), strict=True)
        total = sum((_unit(a) - _unit(b)).square().sum(1).mean((1, 2)) for a, b in pairs)
        return total + pixels * (first - second).float().square().mean((1, 2, 3))

    return distance


class Lpips(nn.Module):
    """LPIPS with VGG-16.

    tensors: torchvision's vgg16 ("features.0.weight", ...) and, as the lpips package names them, the five linear layers
    ("lin0.model.1.weight", ...), in one mapping.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor]):
        super().__init__()
        import torchvision

        self.features = torchvision.models.vgg16(weights=None).features[: _TAPS[-1] + 1]
        self.lins = nn.ParameterList(tensors[f"lin{i}.model.1.weight"].flatten() for i in range(len(_TAPS)))
        self.features.load_state_dict({k: tensors[f"features.{k}"] for k in self.features.state_dict()})
        for name, values in (("shift", _SHIFT), ("scale", _SCALE)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1))
        self.requires_grad_(False).eval()

    def forward(
        self, first: Float[torch.Tensor, "b 3 h w"], second: Float[torch.Tensor, "b 3 h w"]
    ) -> Float[torch.Tensor, " b"]:
        """The distance of each pair of pictures."""
        pairs = zip(self._levels(_small(first)), self._levels(_small(second)), self.lins, strict=True)
        return sum(((_unit(a) - _unit(b)).square() * w[:, None, None]).sum(1).mean((1, 2)) for a, b, w in pairs)

    def _levels(self, images: torch.Tensor) -> list[torch.Tensor]:
        x, found = (images - self.shift) / self.scale, []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in _TAPS:
                found.append(x)
        return found


def load_lpips(path: Path | str) -> Lpips:
    """LPIPS from a safetensors file with the names of `Lpips`; BadArtifact when it cannot be read or lacks one."""
    try:
        return Lpips(load_file(path))
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise BadArtifact(f"{path}: cannot be read as LPIPS weights ({str(error).splitlines()[0]})") from error
    except KeyError as error:
        raise BadArtifact(f"{path}: lacks {error}; LPIPS needs vgg16's features and its five linear layers") from error


def _small(images: torch.Tensor) -> torch.Tensor:
    while images.shape[2] > LARGEST:
        images = F.avg_pool2d(images, 2)
    return images


def _unit(maps: torch.Tensor) -> torch.Tensor:
    maps = maps.float()
    return maps * (maps.square().sum(1, keepdim=True) + 1e-10).rsqrt()
