"""Perceptual distances between images: distances of a network's feature maps instead of pixels.

LPIPS (Zhang et al. 2018) if its weights are available. Otherwise the same formula without learned weights, on the
feature maps of any network that takes images in [-1, 1]: the discriminator that a generator was trained with, or a
user's encoder. Nothing is downloaded.
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
"""Target images [b, 3, h, w] in [-1, 1] -> a function: images -> [b], the distance of each image to its target.

Differentiable by the images. The features of the targets are computed once.
"""

# LPIPS compares images of at most this side, as StyleGAN's projectors do.
LARGEST = 256
# Avoids division by zero for zero vectors.
_EPS = 1e-10
# Layers of torchvision's vgg16.features whose outputs LPIPS uses, and its normalization of images (ImageNet).
_TAPS = (3, 8, 15, 22, 29)
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


def feature_distance(levels: Levels, pixels: float = 0.0, weights: Sequence[torch.Tensor] | None = None) -> Distance:
    """Mean squared difference of unit-normalized feature vectors, summed over levels (LPIPS, equation 1).

    pixels: weight of the mean squared pixel difference, which is added. weights: channel weights of each level; None
    means all 1.
    """

    def distance(target: Float[torch.Tensor, "b 3 h w"]) -> Callable[[torch.Tensor], torch.Tensor]:
        with torch.no_grad():
            unit = [_unit(maps) for maps in levels(target)]
        scales = [None] * len(unit) if weights is None else [w[:, None, None] for w in weights]
        targets = [(v if w is None else v * w, _sum(v.square(), w)) for v, w in zip(unit, scales, strict=True)]

        def distance_to_target(images: Float[torch.Tensor, "b 3 h w"]) -> Float[torch.Tensor, " b"]:
            pairs = zip(levels(images), targets, scales, strict=True)
            total = sum(_squared_distance(maps, *features, w).mean((1, 2)) for maps, features, w in pairs)
            return total + pixels * (images - target).float().square().mean((1, 2, 3))

        return distance_to_target

    return distance


class Lpips(nn.Module):
    """The VGG-16 feature maps of LPIPS and their channel weights.

    tensors: torchvision's vgg16 ("features.0.weight", ...) and the five linear layers under the lpips package's names
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
        """Feature maps, finest first."""
        images = _downscale(images)
        x, maps = (images - self.shift) / self.scale, []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in _TAPS:
                maps.append(x)
        return maps


def load_lpips(path: Path | str) -> Distance:
    """LPIPS from a safetensors file with the tensor names of `Lpips`, on the best device of this machine.

    Raises BadArtifact when the file cannot be read or a tensor is missing.
    """
    try:
        lpips = Lpips(load_file(path)).to(best_device())
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise BadArtifact(f"{path}: cannot be read as LPIPS weights ({str(error).splitlines()[0]})") from error
    except KeyError as error:
        raise BadArtifact(f"{path}: lacks {error}; LPIPS needs vgg16's features and its five linear layers") from error
    return feature_distance(lpips, weights=list(lpips.lins))


def _downscale(images: torch.Tensor) -> torch.Tensor:
    while images.shape[2] > LARGEST:
        images = F.avg_pool2d(images, 2)
    return images


def _unit(maps: torch.Tensor) -> torch.Tensor:
    maps = maps.float()
    return maps * (maps.square().sum(1, keepdim=True) + _EPS).rsqrt()


def _squared_distance(
    maps: torch.Tensor, target: torch.Tensor, square: torch.Tensor, weights: torch.Tensor | None
) -> torch.Tensor:
    """Weighted squared distances [b, h, w] of unit vectors u (of maps) and v (of the target), as u^2 - 2 u v + v^2.

    maps: [b, c, h, w]. target: weighted v, [b, c, h, w]. square: weighted v^2, [b, h, w]. weights: [c, 1, 1]. Needs
    half as many passes over the maps as computing u - v, and the passes dominate the time of a batch.
    """
    maps = maps.float()
    squares = maps.square()
    scale = (squares.sum(1) + _EPS).rsqrt()
    return _sum(squares, weights) * scale.square() - 2 * (maps * target).sum(1) * scale + square


def _sum(squares: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    return (squares if weights is None else squares * weights).sum(1)
