"""Fits an ensemble to single labeled pixels, all members in one pass: DatasetGAN's training in less memory.

Features of the shots are computed once and kept at their original resolutions. Every member gets the labeled pixels in
its own random order, 64 per step, and features are interpolated at those pixels alone. A member stops when its loss
stops falling. Published code instead holds the hypercolumn of all shots, 160 GB for sixteen images of 512 px, and
trains one member after the other. Works with any representation.
"""

import math
from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import Field
from torch import nn

from partshot.data.shots import Shots
from partshot.errors import BadRecipe
from partshot.heads.ensemble import Ensemble
from partshot.ops.hypercolumn import at_pixels
from partshot.ops.images import as_tensors
from partshot.ops.precision import Precision, is_bf16
from partshot.progress import SHOW_AFTER, Ticker
from partshot.pyramid import Pyramid
from partshot.recipe import Recipe
from partshot.represent.spec import Representation
from partshot.train.fit_head import device_of, extract_features, known_pixels, reset_parameters

# Bytes of features that are interpolated at a time, for several steps: one step alone costs more per pixel.
_CHUNK_BYTES = 1 << 23
# Steps between checks that losses and weights are finite.
_CHECK_EVERY = 50


class FitEnsemble(Recipe):
    """How an ensemble is fitted. All numbers are per member.

    epochs: maximum number of times that each labeled pixel is seen. pixels: maximum number of pixels in all; None has
    no such limit. batch: pixels per step. lr: Adam's. min_epochs, patience: after min_epochs, a member stops once more
    than `patience` consecutive steps had no new lowest loss; None never stops early.
    precision: "auto" computes in bf16 where the device does so natively, else in fp32.
    """

    renamed: ClassVar = {"settled": "min_epochs"}

    epochs: int = Field(default=100, ge=1)
    pixels: int | None = Field(default=None, ge=1)
    batch: int = Field(default=64, ge=2)
    lr: float = Field(default=1e-3, gt=0)
    min_epochs: int = Field(default=4, ge=0)
    patience: int | None = Field(default=50, ge=0)
    precision: Precision = "auto"
    seed: int = 0

    def horizon(self, labeled: int) -> int:
        """Maximum number of pixels that a member sees, with that many labeled ones."""
        return min(self.epochs * labeled, self.pixels or math.inf)


PRESETS = {
    # Takes seconds on two cores.
    "fast": FitEnsemble(pixels=64_000),
    # DatasetGAN's released code; its paper and DDPM-segmentation have the same settings. Takes hours at 512 px.
    "datasetgan": FitEnsemble(),
}


def fit_ensemble(
    head: Ensemble,
    representation: Representation,
    shots: Shots,
    recipe: FitEnsemble,
    size: int,
    quiet: bool = False,
    read: Pyramid | None = None,
) -> Ensemble:
    """Fits an ensemble from its initialization, discarding earlier weights; returns it in evaluation mode.

    head: made for `representation.spec.channels` and `len(shots.parts)` classes, also those that no shot shows. size:
    side of the square that images and masks are resized to. quiet: no progress. read: the shots' features, if they are
    already computed; 16-bit features keep their dtype. Ignored pixels (255) have no effect. On a CPU the same arguments
    give the same weights.

    Raises BadLabels when no pixel is labeled, BadImage when `size` is too small for the representation, BadRecipe
    when the loss becomes NaN or infinite.
    """
    images, ids = shots.stack(size)
    labels = torch.from_numpy(ids)
    known = known_pixels(labels).flatten().nonzero()[:, 0]
    device = device_of(representation)
    dtype = torch.bfloat16 if is_bf16(recipe.precision, device) else torch.float32
    if read is None:
        read = extract_features(representation, as_tensors(images), device, dtype)
    elif read.maps[0].dtype == torch.float32:
        read = read.to(dtype)

    reset_parameters(head.to(device), recipe.seed)
    training = _Training(head.train(), recipe.lr, dtype)
    samplers = [PixelSampler(known, seed) for seed in member_seeds(recipe.seed, head.count)]
    stopping = EarlyStopping(head.count, recipe.patience)
    total, min_pixels, seen = recipe.horizon(len(known)), recipe.min_epochs * len(known), 0
    with Ticker("fit the ensemble", total, 0, quiet, SHOW_AFTER) as ticker:
        steps = math.ceil(total / recipe.batch)
        for features, target in _batches(read.to(device), labels, samplers, steps, recipe.batch, dtype):
            losses = training.step(features, target)
            if seen >= min_pixels:
                training.keep(stopping(losses.tolist()))
            seen += recipe.batch

            last = stopping.all_stopped or seen >= total
            if seen // recipe.batch % _CHECK_EVERY == 0 or last:
                training.check_finite(losses, seen)
                ticker.tick(total if last else seen, {"loss": float(losses.mean())})
            if last:
                break
    training.finish()
    return head.eval()


class EarlyStopping:
    """DatasetGAN's early stopping, separate for each member; called with each step's losses, [members].

    A member stops when more than `patience` consecutive steps had no new lowest loss; None never stops.
    """

    def __init__(self, members: int, patience: int | None):
        self.patience = math.inf if patience is None else patience
        self.best, self.waited = [math.inf] * members, [0] * members
        self.running = set(range(members))

    @property
    def all_stopped(self) -> bool:
        """Whether every member has stopped."""
        return not self.running

    def __call__(self, losses: Sequence[float]) -> list[int]:
        """The indices of the members that stop at this step."""
        for i, loss in enumerate(losses):
            self.waited[i] = 0 if loss < self.best[i] else self.waited[i] + 1
            self.best[i] = min(self.best[i], loss)
        stopping = [i for i in self.running if self.waited[i] > self.patience]
        self.running -= set(stopping)
        return stopping


class PixelSampler:
    """A member's random order of the labeled pixels, shuffled anew in each epoch. pixels: their indices."""

    def __init__(self, pixels: Int64[torch.Tensor, " n"], seed: int):
        self.pixels, self.rng = pixels, torch.Generator().manual_seed(seed)
        # int32: for ten members and sixteen images of 512 px the queues take 170 MB.
        self.queue = torch.empty(0, dtype=torch.int32)

    def take(self, count: int) -> Int64[torch.Tensor, " count"]:
        """The next pixels. The last batch of an epoch is filled up with the first pixels of the next one."""
        while len(self.queue) < count:
            epoch = torch.randperm(len(self.pixels), generator=self.rng, dtype=torch.int32)
            self.queue = torch.cat([self.queue, epoch])
        taken, self.queue = self.queue[:count], self.queue[count:]
        return self.pixels[taken.long()]


def member_seeds(seed: int, members: int) -> list[int]:
    """A seed for each member's sampler, derived from one seed."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(1 << 62, (members,), generator=rng).tolist()


def _batches(
    pyramid: Pyramid,
    labels: torch.Tensor,
    samplers: Sequence[PixelSampler],
    steps: int,
    batch: int,
    dtype: torch.dtype,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """For each step: features [members, batch, channels] of each member's next pixels, and their ids [members, batch].

    Features are interpolated for several steps at once, which costs less per pixel.
    """
    pyramid = pyramid.to(memory_format=torch.channels_last)
    (height, width), device = labels.shape[1:], pyramid.maps[0].device
    ids = labels.flatten().to(device)
    per_step = len(samplers) * batch * sum(pyramid.channels) * pyramid.maps[0].element_size()
    several = max(1, _CHUNK_BYTES // per_step)
    for first in range(0, steps, several):
        count = min(several, steps - first)
        chosen = torch.stack([sampler.take(count * batch) for sampler in samplers])
        # Ordered by step, so that the features of a step are contiguous.
        where = chosen.unflatten(1, (count, batch)).transpose(0, 1).flatten().to(device)
        image, pixel = where // (height * width), where % (height * width)
        features = at_pixels(pyramid, image, pixel // width, pixel % width).to(dtype)
        shape = (count, len(samplers), batch)
        yield from zip(features.unflatten(0, shape), ids[where].long().unflatten(0, shape), strict=True)


class _Training:
    """The members' weights during training, and their optimizer.

    The first layer has nearly all weights. It is one tensor here, [members, units, channels], and its gradient is
    computed by hand into a fixed buffer: autograd would allocate and free such a tensor three times per step. Where the
    matrix products are in bf16, the weights stay in float32.
    """

    def __init__(self, head: Ensemble, lr: float, dtype: torch.dtype):
        self.head = head
        joined = torch.cat([w.detach() for w in head.first.weights], dim=1)
        self.first = nn.Parameter(joined.unflatten(0, (head.count, -1)))
        self.first.grad = torch.zeros_like(self.first)
        # In bf16: buffers for the weight and the gradient.
        self.low = None if dtype == torch.float32 else [torch.empty_like(self.first, dtype=dtype) for _ in "wg"]
        self.others = [head.first.bias, *head.weights, *head.biases, *head.norms.parameters()]
        self.optimizer = torch.optim.Adam([self.first, *self.others], lr, fused=True)
        self.kept: dict[int, list[torch.Tensor]] = {}

    def step(self, features: torch.Tensor, target: torch.Tensor) -> Float[torch.Tensor, " m"]:
        """One step of Adam on each member's mean cross-entropy over its batch; returns these losses."""
        with torch.no_grad():
            weight, grad = self.low or (self.first.data, self.first.grad)
            if self.low:
                weight.copy_(self.first)
            hidden = torch.bmm(weight, features.transpose(1, 2)).float()
            hidden += self.head.first.bias.view(len(hidden), -1, 1)
        logits = self.head.later_layers(hidden.requires_grad_())
        losses = F.cross_entropy(logits, target, reduction="none").mean(1)
        for parameter in self.others:
            parameter.grad = None
        # A sum, so that each member's gradient is that of its own loss.
        losses.sum().backward()
        with torch.no_grad():
            self.head.first.bias.grad = hidden.grad.sum(2).flatten()
            torch.bmm(hidden.grad.to(features.dtype), features, out=grad)
            if self.low:
                self.first.grad.copy_(grad)
        self.optimizer.step()
        return losses.detach()

    def keep(self, members: Sequence[int]) -> None:
        """Saves the current weights of members that stop, since further optimizer steps still change them."""
        for member in members:
            self.kept[member] = [tensor.clone() for tensor in self._own(member)]

    def finish(self) -> None:
        """Writes the trained weights to the head."""
        for member, tensors in self.kept.items():
            for current, saved in zip(self._own(member), tensors, strict=True):
                current.copy_(saved)
        weights = self.head.first.weights
        parts = self.first.detach().flatten(0, 1).split([weight.shape[1] for weight in weights], dim=1)
        for weight, part in zip(weights, parts, strict=True):
            weight.data.copy_(part)

    def check_finite(self, losses: torch.Tensor, seen: int) -> None:
        """Raises BadRecipe when a loss or a weight is NaN or infinite."""
        if not all(bool(torch.isfinite(t).all()) for t in (losses, self.first, *self.others)):
            raise BadRecipe(f"fitting the ensemble: the loss became NaN or infinite after {seen} pixels; lower lr")

    def _own(self, member: int) -> list[torch.Tensor]:
        """Views of a member's weights and BatchNorm statistics."""
        statistics = [s for norm in self.head.norms for s in (norm.running_mean, norm.running_var)]
        tensors = [self.first, *self.others, *statistics]
        return [t.detach().unflatten(0, (self.head.count, -1))[member] for t in tensors]
