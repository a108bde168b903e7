"""Fits an ensemble to single labeled pixels, all members in one pass: DatasetGAN's training without its memory.

The story: read the shots' features once and keep them at their own sizes; hand every member the labeled pixels in an
order of its own, 64 a step; interpolate features at those pixels alone; and let a member stop when its loss does not
fall any more. Published code holds the hypercolumn of all shots instead, 160 GB for sixteen images of 512 px, and
trains the members one after the other. Knows an Ensemble's tensors; refuses to know what the features come from.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

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
from partshot.pyramid import Pyramid
from partshot.recipe import Recipe
from partshot.represent.spec import Representation
from partshot.train.fit_head import PATIENCE, device_of, known_pixels, read_features, restart
from partshot.train.progress import Ticker

# Bytes of features that are read at a time, for several steps: reading for one alone costs more per pixel.
_ROOM = 1 << 23
# Steps between looks at whether all are still numbers.
_LOOKS = 50


class FitEnsemble(Recipe):
    """How an ensemble is fitted. What it counts, it counts for each member by itself.

    epochs, pixels: how often each labeled pixel, and how many pixels in all, are seen at most; None leaves it to
    epochs. batch: pixels per step. lr: Adam's. settled, patience: once that many epochs are over, a member stops after
    more than so many steps in a row without a new lowest loss since then; None never stops it.
    precision: "auto" computes in bf16 where the device does so natively, else in fp32.
    """

    epochs: int = Field(default=100, ge=1)
    pixels: int | None = Field(default=None, ge=1)
    batch: int = Field(default=64, ge=2)
    lr: float = Field(default=1e-3, gt=0)
    settled: int = Field(default=4, ge=0)
    patience: int | None = Field(default=50, ge=0)
    precision: Precision = "auto"
    seed: int = 0

    def horizon(self, labeled: int) -> int:
        """Pixels that a member sees at most, with that many labeled ones."""
        return min(self.epochs * labeled, self.pixels or math.inf)


PRESETS = {
    # Seconds on two cores.
    "fast": FitEnsemble(pixels=64_000),
    # DatasetGAN's released code, which both its paper and DDPM-segmentation's settings follow. Hours at 512 px.
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
    """Fits an ensemble anew, whatever it was before, and returns it in evaluation mode.

    head: made for `representation.spec.channels` and `len(shots.parts)` classes; parts that no shot shows keep their
    outputs. size: side of the square that images and masks are resized to. quiet: no progress.
    read: the shots' features where they are known already; what is of 16 bits is kept as it is.
    Ignored pixels (255) count nowhere. On a CPU the same arguments give the same weights.

    Raises BadLabels when no pixel is labeled, BadImage when `size` is too small for the representation, BadRecipe
    when the loss stops being a number.
    """
    images, ids = shots.stack(size)
    labels = torch.from_numpy(ids)
    known = known_pixels(labels).flatten().nonzero()[:, 0]
    device = device_of(representation)
    dtype = torch.bfloat16 if is_bf16(recipe.precision, device) else torch.float32
    if read is None:
        read = read_features(representation, as_tensors(images), device, dtype)
    elif read.maps[0].dtype == torch.float32:
        read = read.to(dtype)

    restart(head.to(device), recipe.seed)
    training = _Training(head.train(), recipe.lr, dtype)
    orders = [Order(known, seed) for seed in member_seeds(recipe.seed, head.count)]
    watch = Watch(head.count, recipe.patience)
    horizon, settled, seen = recipe.horizon(len(known)), recipe.settled * len(known), 0
    began, ticker = time.monotonic(), None
    with ExitStack() as stack:
        steps = math.ceil(horizon / recipe.batch)
        for features, truth in _batches(read.to(device), labels, orders, steps, recipe.batch, dtype):
            losses = training.step(features, truth)
            if seen >= settled:
                training.keep(watch(losses.tolist()))
            seen += recipe.batch

            if ticker is None and time.monotonic() - began > PATIENCE:
                ticker = stack.enter_context(Ticker("fit the ensemble", horizon, seen, quiet))
            over = watch.all_stopped or seen >= horizon
            if seen // recipe.batch % _LOOKS == 0 or over:
                training.refuse_nonfinite(losses, seen)
                if ticker:
                    ticker.tick(horizon if over else seen, {"loss": float(losses.mean())})
            if over:
                break
    training.finish()
    return head.eval()


class Watch:
    """DatasetGAN's early stop, for each member by itself; called with each step's losses, [members].

    A member stops when its loss has not been lower than ever before for more than `patience` steps in a row; None waits
    for ever.
    """

    def __init__(self, members: int, patience: int | None):
        self.patience = math.inf if patience is None else patience
        self.best, self.waited = [math.inf] * members, [0] * members
        self.running = set(range(members))

    @property
    def all_stopped(self) -> bool:
        """Whether no member is left."""
        return not self.running

    def __call__(self, losses: Sequence[float]) -> list[int]:
        """The members that stop now."""
        for i, loss in enumerate(losses):
            self.waited[i] = 0 if loss < self.best[i] else self.waited[i] + 1
            self.best[i] = min(self.best[i], loss)
        stopping = [i for i in self.running if self.waited[i] > self.patience]
        self.running -= set(stopping)
        return stopping


class Order:
    """A member's own order of the labeled pixels, another in each epoch. pixels: their places. seed: decides it."""

    def __init__(self, pixels: Int64[torch.Tensor, " n"], seed: int):
        self.pixels, self.rng = pixels, torch.Generator().manual_seed(seed)
        # 32 bits: ten members' orders of sixteen images of 512 px are 170 MB.
        self.queue = torch.empty(0, dtype=torch.int32)

    def take(self, count: int) -> Int64[torch.Tensor, " count"]:
        """The next pixels; no epoch's last ones are left out, they share a batch with the next one's first."""
        while len(self.queue) < count:
            epoch = torch.randperm(len(self.pixels), generator=self.rng, dtype=torch.int32)
            self.queue = torch.cat([self.queue, epoch])
        taken, self.queue = self.queue[:count], self.queue[count:]
        return self.pixels[taken.long()]


def member_seeds(seed: int, members: int) -> list[int]:
    """A seed for each member's order, all decided by one."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(1 << 62, (members,), generator=rng).tolist()


def _batches(
    pyramid: Pyramid, labels: torch.Tensor, orders: Sequence[Order], steps: int, batch: int, dtype: torch.dtype
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """For each step: features [members, batch, channels] of each member's next pixels, and their ids [members, batch].

    They are read for several steps at once, which costs less per pixel.
    """
    pyramid = pyramid.to(memory_format=torch.channels_last)
    (height, width), device = labels.shape[1:], pyramid.maps[0].device
    ids = labels.flatten().to(device)
    per_step = len(orders) * batch * sum(pyramid.channels) * pyramid.maps[0].element_size()
    several = max(1, _ROOM // per_step)
    for first in range(0, steps, several):
        count = min(several, steps - first)
        chosen = torch.stack([order.take(count * batch) for order in orders])
        # Step by step, so that products find a step's features in one piece.
        where = chosen.unflatten(1, (count, batch)).transpose(0, 1).flatten().to(device)
        image, pixel = where // (height * width), where % (height * width)
        read = at_pixels(pyramid, image, pixel // width, pixel % width).to(dtype)
        shape = (count, len(orders), batch)
        yield from zip(read.unflatten(0, shape), ids[where].long().unflatten(0, shape), strict=True)


class _Training:
    """The members' weights while they are trained.

    The first layer holds nearly all of them. It is one tensor here, [members, units, channels], and its gradient is
    written by hand into memory that stays: autograd would make and forget such a tensor three times a step. Where the
    products are in bf16, the weights themselves stay in float32.
    """

    def __init__(self, head: Ensemble, lr: float, dtype: torch.dtype):
        self.head = head
        joined = torch.cat([w.detach() for w in head.first.weights], dim=1)
        self.first = nn.Parameter(joined.unflatten(0, (head.count, -1)))
        self.first.grad = torch.zeros_like(self.first)
        # What is multiplied and what comes out, where that is in fewer bits.
        self.low = None if dtype == torch.float32 else [torch.empty_like(self.first, dtype=dtype) for _ in "wg"]
        self.others = [head.first.bias, *head.weights, *head.biases, *head.norms.parameters()]
        self.optimizer = torch.optim.Adam([self.first, *self.others], lr, fused=True)
        self.kept: dict[int, list[torch.Tensor]] = {}

    def step(self, features: torch.Tensor, truth: torch.Tensor) -> Float[torch.Tensor, " m"]:
        """One of Adam's, down the mean cross-entropy of each member's own batch; returns these losses."""
        with torch.no_grad():
            weight, grad = self.low or (self.first.data, self.first.grad)
            if self.low:
                weight.copy_(self.first)
            hidden = torch.bmm(weight, features.transpose(1, 2)).float()
            hidden += self.head.first.bias.view(len(hidden), -1, 1)
        logits = self.head.later_layers(hidden.requires_grad_())
        losses = F.cross_entropy(logits, truth, reduction="none").mean(1)
        for parameter in self.others:
            parameter.grad = None
        # A sum, so that no member's loss knows of the others.
        losses.sum().backward()
        with torch.no_grad():
            self.head.first.bias.grad = hidden.grad.sum(2).flatten()
            torch.bmm(hidden.grad.to(features.dtype), features, out=grad)
            if self.low:
                self.first.grad.copy_(grad)
        self.optimizer.step()
        return losses.detach()

    def keep(self, members: Sequence[int]) -> None:
        """Members that stop: what they are now is what they will be, although the others' steps still move them."""
        for member in members:
            self.kept[member] = [tensor.clone() for tensor in self._own(member)]

    def finish(self) -> None:
        """Gives the head its weights."""
        for member, tensors in self.kept.items():
            for now, then in zip(self._own(member), tensors, strict=True):
                now.copy_(then)
        weights = self.head.first.weights
        parts = self.first.detach().flatten(0, 1).split([weight.shape[1] for weight in weights], dim=1)
        for weight, part in zip(weights, parts, strict=True):
            weight.data.copy_(part)

    def refuse_nonfinite(self, losses: torch.Tensor, seen: int) -> None:
        """BadRecipe when a loss or a weight is no number."""
        if not all(bool(torch.isfinite(t).all()) for t in (losses, self.first, *self.others)):
            raise BadRecipe(f"fitting the ensemble: the loss stopped being a number after {seen} pixels; lower lr")

    def _own(self, member: int) -> list[torch.Tensor]:
        """Views of a member's weights and statistics; the first axis of each tensor is the members'."""
        statistics = [s for norm in self.head.norms for s in (norm.running_mean, norm.running_var)]
        whole = [self.first, *self.others, *statistics]
        return [t.detach().unflatten(0, (self.head.count, -1))[member] for t in whole]
