"""DatasetGAN's head: an ensemble of ten small pixelwise MLPs, initialized and fitted independently.

Disagreement of the members indicates that an image differs from the labeled ones (ops/disagreement.py). All members are
computed together: their first layers in one lazy projection of the Pyramid, each later layer in one batched matrix
product. train/fit_ensemble.py fits them.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import nn

from partshot.heads.linear import Linear
from partshot.ops.hypercolumn import project
from partshot.pyramid import Pyramid

# Hidden units of a member for fewer than 32 classes, and for 32 or more (DatasetGAN; DDPM-segmentation switches at 30).
_FEW, _MANY = (128, 32), (256, 128)

# Maximum size in bytes of first-layer activations at image size: all ten members for eight images of 64 px, or one
# member for one image of 512 px.
_ROOM = 1 << 28


class Ensemble(nn.Module):
    """Pyramid -> logits [b, classes, h, w] whose softmax is the mean of the members' probabilities.

    Each member is Linear, ReLU, BatchNorm, Linear, ReLU, BatchNorm, Linear on the features of one pixel. `forward`
    always uses BatchNorm's running statistics; only `later_layers` in training mode uses batch statistics. Initial
    weights are normal with standard deviation 0.02, biases 0. The first axis of every tensor indexes the members.
    Source: DatasetGAN's released code.
    """

    reach = 0

    def __init__(self, channels: Sequence[int], classes: int, members: int = 10):
        super().__init__()
        units = _FEW if classes < 32 else _MANY
        self.count = members
        self.first = Linear(channels, members * units[0])
        self.norms = nn.ModuleList(nn.BatchNorm1d(members * width) for width in units)
        widths = [*units, classes]
        pairs = list(zip(widths, widths[1:], strict=False))
        self.weights = nn.ParameterList(nn.Parameter(torch.empty(members, b, a)) for a, b in pairs)
        self.biases = nn.ParameterList(nn.Parameter(torch.empty(members, b, 1)) for _, b in pairs)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """DatasetGAN's initialization; call it after that of the submodules."""
        for weight in [*self.first.weights, *self.weights]:
            nn.init.normal_(weight, std=0.02)
        for bias in [self.first.bias, *self.biases]:
            nn.init.zeros_(bias)

    def forward(self, pyramid: Pyramid) -> Float[torch.Tensor, "b k h w"]:
        """Logits at image size: the logarithm of the members' mean probability."""
        total = 0.0
        for probabilities in self._slices(pyramid):
            total = total + probabilities.sum(0)
        return (total / self.count).clamp(min=torch.finfo(torch.float32).tiny).log()

    def members(self, pyramid: Pyramid) -> Float[torch.Tensor, "m b k h w"]:
        """Each member's probabilities at image size."""
        return torch.cat(list(self._slices(pyramid)))

    def later_layers(self, hidden: Float[torch.Tensor, "m units n"]) -> Float[torch.Tensor, "m k n"]:
        """Logits from first-layer outputs, for n pixels per member (other pixels for each member).

        In training mode, BatchNorm uses the statistics of these pixels and updates the running ones, for each member
        separately.
        """
        for norm, weight, bias in zip(self.norms, self.weights, self.biases, strict=True):
            hidden = norm(F.relu(hidden).flatten(0, 1)[None]).view_as(hidden)
            hidden = torch.baddbmm(bias, weight, hidden)
        return hidden

    def _slices(self, pyramid: Pyramid) -> Iterator[torch.Tensor]:
        """Probabilities [m, b, k, h, w] of as many members at a time as fit in memory."""
        weights, bias = self.first.folded()
        units, (height, width) = len(bias) // self.count, pyramid.image_size
        at_once = max(1, _ROOM // (4 * units * pyramid.batch * height * width))
        layers = self._folded()
        for start in range(0, self.count, at_once):
            some = slice(start, start + at_once)
            part = slice(start * units, (start + at_once) * units)
            x = project(pyramid, [w[part] for w in weights], bias[part])
            # [members, units, pixels of all images], as a view.
            x = x.permute(1, 0, 2, 3).unflatten(0, (-1, units)).flatten(2)
            for weight, offset in layers:
                x = torch.baddbmm(offset[some], weight[some], F.relu(x, inplace=True))
            yield x.unflatten(2, (pyramid.batch, height, width)).transpose(1, 2).float().softmax(2)

    def _folded(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Weights and biases of the later layers, with the preceding BatchNorm (running statistics) folded in."""
        layers = []
        for norm, weight, bias in zip(self.norms, self.weights, self.biases, strict=True):
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            shift = norm.bias - norm.running_mean * scale
            scale, shift = scale.view(self.count, 1, -1), shift.view(self.count, -1, 1)
            layers.append((weight * scale, torch.baddbmm(bias, weight, shift)))
        return layers
