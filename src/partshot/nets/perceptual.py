"""How far apart two images look: distances between what a network makes of them, not between their pixels.

LPIPS where its weights are at hand (Zhang et al. 2018); else the same formula without learned weights, on the features
of any network that returns its levels: the discriminator that a generator was trained against, or an encoder of the
user's. Knows networks only by images in [-1, 1] in, maps out; downloads nothing.
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
from partshot.ops.precision import best_device

Levels = Callable[[torch.Tensor], Sequence[torch.Tensor]]
Distance = Callable[[torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]
"""Images [b, 3, h, w] in [-1, 1] -> a measure: others -> [b], how far apart each pair is; differentiable in these.

What the first look like to the network is worked out once, however often others are measured against them.
"""

# LPIPS compares images at this side at most, as projectors do.
LARGEST = 256
# Keeps the length of a vector of zeros from being zero.
_TINY = 1e-10
# Of torchvision's vgg16.features: behind which layers LPIPS taps, and ImageNet's statistics as it applies them.
_TAPS = (3, 8, 15, 22, 29)
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


def feature_distance(levels: Levels, pixels: float = 0.0, weights: Sequence[torch.Tensor] | None = None) -> Distance:
    """Mean squared difference of unit feature vectors, summed over levels (LPIPS' formula, equation 1).

    pixels: weight of the pixels' own mean squared difference beside it. weights: of each level's channels; None: all 1.
    """

    def distance(target: Float[torch.Tensor, "b 3 h w"]) -> Callable[[torch.Tensor], torch.Tensor]:
        with torch.no_grad():
            goals = [_unit(maps) for maps in levels(target)]
        scales = [None] * len(goals) if weights is None else [w[:, None, None] for w in weights]
        told = [
            (goal if w is None else goal * w, _sum(goal.square(), w)) for goal, w in zip(goals, scales, strict=True)
        ]

        def apart(images: Float[torch.Tensor, "b 3 h w"]) -> Float[torch.Tensor, " b"]:
            found = zip(levels(images), told, scales, strict=True)
            total = sum(_apart(maps, *goal, w).mean((1, 2)) for maps, goal, w in found)
            return total + pixels * (images - target).float().square().mean((1, 2, 3))

        return apart

    return distance


class Lpips(nn.Module):
    """What LPIPS looks at: levels of VGG-16, and weights of their channels.

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

    def forward(self, images: Float[torch.Tensor, "b 3 h w"]) -> list[torch.Tensor]:
        """The levels, finest first."""
        images = _small(images)
        x, found = (images - self.shift) / self.scale, []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in _TAPS:
                found.append(x)
        return found


def load_lpips(path: Path | str) -> Distance:
    """LPIPS from a safetensors file with the names of `Lpips`, where this machine computes best.

    Raises BadArtifact when the file cannot be read or lacks one.
    """
    try:
        lpips = Lpips(load_file(path)).to(best_device())
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise BadArtifact(f"{path}: cannot be read as LPIPS weights ({str(error).splitlines()[0]})") from error
    except KeyError as error:
        raise BadArtifact(f"{path}: lacks {error}; LPIPS needs vgg16's features and its five linear layers") from error
    return feature_distance(lpips, weights=list(lpips.lins))


def _small(images: torch.Tensor) -> torch.Tensor:
    while images.shape[2] > LARGEST:
        images = F.avg_pool2d(images, 2)
    return images


def _unit(maps: torch.Tensor) -> torch.Tensor:
    maps = maps.float()
    return maps * (maps.square().sum(1, keepdim=True) + _TINY).rsqrt()


def _apart(maps: torch.Tensor, goal: torch.Tensor, square: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """Weighed squared distances [b, h, w] of the maps' unit vectors u from v, as u^2 - 2 u v + v^2.

    maps: [b, c, h, w]. goal: weighed v, alike. square: weighed v^2, [b, h, w]. weights: [c, 1, 1]. Half as many passes
    over the maps as by way of the differences, and passes are what a batch costs.
    """
    maps = maps.float()
    squares = maps.square()
    scale = (squares.sum(1) + _TINY).rsqrt()
    return _sum(squares, weights) * scale.square() - 2 * (maps * goal).sum(1) * scale + square


def _sum(squares: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    return (squares if weights is None else squares * weights).sum(1)
