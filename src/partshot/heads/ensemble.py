"""DatasetGAN's head: ten small MLPs that look at the same pixel, started and fitted apart, in one pass.

Where they differ, the image is unlike what was labeled. All first layers are one lazy projection over the Pyramid,
all later ones one batched product each. Knows the members' shape; how they are fitted stands in train/fit_ensemble.py,
what is made of their disagreement in ops/disagreement.py.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import nn

from partshot.heads.linear import Linear
from partshot.ops.hypercolumn import project
from partshot.pyramid import Pyramid

# Hidden units of a member, by whether there are 32 classes or more (DatasetGAN; DDPM-segmentation changes at 30).
_FEW, _MANY = (128, 32), (256, 128)

# Bytes of the first layer's values, at image size, that may be there at once: those of all ten members for eight
# images of 64 px, of one for one at 512 px.
_ROOM = 1 << 28


class Ensemble(nn.Module):
    """Pyramid -> logits [b, classes, h, w] whose softmax is the mean of the members' probabilities.

    Each member is Linear, ReLU, BatchNorm, Linear, ReLU, BatchNorm, Linear on one pixel's features, BatchNorm after
    ReLU. Whole images are read with the stored statistics, whatever the mode; only `later` in training uses its own
    pixels'. Initial weights are normal with deviation 0.02, biases 0. Every tensor's first axis is the members'.
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
        """The published initial weights; call it after the parts' own."""
        for weight in [*self.first.weights, *self.weights]:
            nn.init.normal_(weight, std=0.02)
        for bias in [self.first.bias, *self.biases]:
            nn.init.zeros_(bias)

    def forward(self, pyramid: Pyramid) -> Float[torch.Tensor, "b k h w"]:
        """Logits at image size: the logarithm of the members' mean probability."""
        total = 0.0
        for some in self._slices(pyramid):
            total = total + some.sum(0)
        return (total / self.count).clamp(min=torch.finfo(torch.float32).tiny).log()

    def members(self, pyramid: Pyramid) -> Float[torch.Tensor, "m b k h w"]:
        """Each member's probabilities at image size."""
        return torch.cat(list(self._slices(pyramid)))

    def later(self, hidden: Float[torch.Tensor, "m units n"]) -> Float[torch.Tensor, "m k n"]:
        """Logits from the first layer's values at n pixels of each member's own.

        In training, BatchNorm takes these pixels' statistics and updates the stored ones, member by member.
        """
        for norm, weight, bias in zip(self.norms, self.weights, self.biases, strict=True):
            hidden = norm(F.relu(hidden).flatten(0, 1)[None]).view_as(hidden)
            hidden = torch.baddbmm(bias, weight, hidden)
        return hidden

    def _slices(self, pyramid: Pyramid) -> Iterator[torch.Tensor]:
        """Probabilities [some, b, k, h, w] of as many members at a time as there is room for."""
        weights, bias = self.first.folded()
        units, (height, width) = len(bias) // self.count, pyramid.image_size
        at_once = max(1, _ROOM // (4 * units * pyramid.batch * height * width))
        layers = self._folded()
        for start in range(0, self.count, at_once):
            some = slice(start, start + at_once)
            part = slice(start * units, (start + at_once) * units)
            x = project(pyramid, [w[part] for w in weights], bias[part])
            # The units of one member as rows, all pixels of all images as columns, where they lie.
            x = x.permute(1, 0, 2, 3).unflatten(0, (-1, units)).flatten(2)
            for weight, offset in layers:
                x = torch.baddbmm(offset[some], weight[some], F.relu(x, inplace=True))
            yield x.unflatten(2, (pyramid.batch, height, width)).transpose(1, 2).float().softmax(2)

    def _folded(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The later layers' weights and biases, each with the stored statistics of the BatchNorm before it inside."""
        layers = []
        for norm, weight, bias in zip(self.norms, self.weights, self.biases, strict=True):
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            shift = norm.bias - norm.running_mean * scale
            scale, shift = scale.view(self.count, 1, -1), shift.view(self.count, -1, 1)
            layers.append((weight * scale, torch.baddbmm(bias, weight, shift)))
        return layers
