"""Fits a per-pixel head to points of the shots and of changed copies of them, each read once.

The story: read every shot and a number of augmented views of it, keep the features of some labeled pixels of each, and
let a small head see them thousands of times; nothing is read anew between steps. Views are worth most of it: on ants,
five labels, a head of points of the shots alone had .49 and one that saw 8 views of each .56 (held-out images, LOG.md).

Knows heads that look at one pixel alone (reach 0), representations and shots by what they promise.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import Field
from torch import nn

from partshot.data.augment import PRESETS as AUGMENTS
from partshot.data.augment import Augment, augment
from partshot.data.shots import Shots
from partshot.errors import BadRecipe
from partshot.heads.linear import Linear
from partshot.ops.hypercolumn import at_pixels
from partshot.ops.images import as_tensors
from partshot.ops.precision import Precision, is_bf16
from partshot.parts import IGNORE
from partshot.pyramid import Pyramid
from partshot.recipe import Recipe
from partshot.represent.spec import Representation
from partshot.train.fit_head import (
    PATIENCE,
    SCHEDULES,
    chance_of,
    class_weights,
    device_of,
    known_pixels,
    read_features,
    refuse_nonfinite,
    restart,
)
from partshot.train.progress import Ticker

# Bytes of features that all points may take together: 24 views of ten shots with 133 channels are a quarter of it.
_ROOM = 1 << 30
# Views that are drawn and read at a time.
_VIEWS = 4
# Steps between looks at whether the loss is still a number.
_LOOKS = 50


class FitPoints(Recipe):
    """How a per-pixel head is fitted to points.

    views: augmented copies of each shot; 0 takes the shots alone. augment: how they are changed. points: labeled pixels
    that are kept of each image, drawn at random. steps, batch: of AdamW, and points in each. lr: at the start, it falls
    to 0 by a cosine. weight_decay: AdamW's. class_power: a class's points weigh (their number)^-class_power.
    precision: "auto" reads in bf16 where the device does so natively, else in fp32; the head learns in fp32.
    """

    views: int = Field(default=24, ge=0)
    augment: Augment = AUGMENTS["strong"]
    points: int = Field(default=4096, ge=1)
    steps: int = Field(default=600, ge=1)
    batch: int = Field(default=4096, ge=1)
    lr: float = Field(default=3e-3, gt=0)
    weight_decay: float = Field(default=1e-2, ge=0)
    class_power: float = Field(default=0.4, ge=0, le=1)
    precision: Precision = "auto"
    seed: int = 0


PRESETS = {
    # The best of what was measured on held-out images in seconds on one core, see LOG.md.
    "fast": FitPoints(),
}


def fit_points(
    head: nn.Module,
    representation: Representation,
    shots: Shots,
    recipe: FitPoints,
    size: int,
    quiet: bool = False,
    read: Pyramid | None = None,
) -> nn.Module:
    """Fits a head of reach 0 anew, whatever it was before, and returns it in evaluation mode.

    Arguments as of `fit_head`. read: the shots' features where they are known already; then there are no views. Ignored
    pixels (255) are no points. On a CPU the same arguments give the same weights.

    Raises BadLabels when no pixel is labeled, BadImage when `size` is too small for the representation, BadRecipe for a
    head that looks at more than one pixel, and when the loss stops being a number.
    """
    if getattr(head, "reach", None) != 0:
        raise BadRecipe(f"{type(head).__name__} looks beyond a pixel; points fit heads such as linear and mlp-s alone")
    features, ids, plain = read_points(representation, shots, recipe, size, read)
    weights = class_weights(ids.cpu().view(-1, 1, 1), len(shots.parts), recipe.class_power).to(ids.device)

    channels = representation.spec.channels
    restart(head.to(ids.device), recipe.seed)
    for module in head.modules():
        if isinstance(module, Linear):
            module.standardize(_as_pyramid(features[:plain].float(), channels), representation.spec.shared_scale)
    optimizer = torch.optim.AdamW(head.train().parameters(), recipe.lr, weight_decay=recipe.weight_decay)
    rng, began, ticker = torch.Generator().manual_seed(recipe.seed), time.monotonic(), None
    with ExitStack() as stack:
        for step in range(recipe.steps):
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr * SCHEDULES["cosine"](0, step / recipe.steps)
            chosen = torch.randint(len(ids), (recipe.batch,), generator=rng).to(ids.device)
            opinions = _opinions(head, _as_pyramid(features[chosen].float(), channels))
            loss = sum(F.cross_entropy(logits[0, :, :, 0].T, ids[chosen], weights) for logits in opinions)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

            if ticker is None and time.monotonic() - began > PATIENCE:
                ticker = stack.enter_context(Ticker("fit", recipe.steps, step, quiet))
            if (step + 1) % _LOOKS == 0 or step + 1 == recipe.steps:
                refuse_nonfinite(loss, head, f"{step + 1} steps", f"lower lr (now {recipe.lr:g})")
                if ticker:
                    ticker.tick(step + 1, {"loss": float(loss.detach())})
    return head.eval()


class Points(NamedTuple):
    """features: [p, channels]. ids: int64 [p]. plain: how many, the first ones, are of the shots as they are."""

    features: torch.Tensor
    ids: torch.Tensor
    plain: int


def read_points(
    representation: Representation, shots: Shots, recipe: FitPoints, size: int, read: Pyramid | None = None
) -> Points:
    """Features and ids of labeled pixels of the shots and of their views, where the representation computes.

    Arguments and errors as of `fit_points`.
    """
    images, labels = shots.stack(size)
    images, labels = as_tensors(images), torch.from_numpy(labels).long()
    known_pixels(labels)
    device = device_of(representation)
    dtype = torch.bfloat16 if is_bf16(recipe.precision, device) else torch.float32
    views = 0 if read is not None else recipe.views
    row = sum(representation.spec.channels) * dtype.itemsize
    count = max(1, min(recipe.points, _ROOM // (row * len(images) * (1 + views))))
    rng = torch.Generator().manual_seed(recipe.seed)
    pyramid = read_features(representation, images, device, dtype) if read is None else read.to(device, dtype)
    kept = [_some(pyramid, labels, count, rng)]
    for image, own in zip(images.split(1), labels.split(1), strict=True):
        for changed, ids in _views(image, own, views, shots, recipe):
            kept.append(_some(read_features(representation, changed, device, dtype), ids, count, rng))
    return Points(torch.cat([one for one, _ in kept]), torch.cat([ids for _, ids in kept]), len(kept[0][1]))


def _views(
    image: Float[torch.Tensor, "1 3 h w"],
    labels: Int64[torch.Tensor, "1 h w"],
    count: int,
    shots: Shots,
    recipe: FitPoints,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Changed copies of one shot with their labels, a few at a time.

    The seed and the image alone decide how it is changed, so that a cache of features serves other fits.
    """
    chance = chance_of(image[0], recipe.seed)
    for first in range(0, count, _VIEWS):
        same = [0] * min(_VIEWS, count - first)
        yield augment(image[same], labels[same], recipe.augment, chance, shots.parts.mirrored_ids())


def _some(
    pyramid: Pyramid, labels: Int64[torch.Tensor, "n h w"], count: int, rng: torch.Generator
) -> tuple[Float[torch.Tensor, "p c"], Int64[torch.Tensor, " p"]]:
    """Features and ids of at most `count` labeled pixels of each image."""
    places = []
    for index, one in enumerate(labels):
        known = (one != IGNORE).flatten().nonzero()[:, 0]
        drawn = known[torch.randperm(len(known), generator=rng)[:count]]
        places.append(torch.stack([torch.full_like(drawn, index), drawn // one.shape[1], drawn % one.shape[1]]))
    where = torch.cat(places, 1)
    device = pyramid.maps[0].device
    features = at_pixels(pyramid.to(memory_format=torch.channels_last), *where.to(device))
    return features, labels[tuple(where)].to(device)


def _opinions(head: nn.Module, pyramid: Pyramid) -> list[Float[torch.Tensor, "b k h w"]]:
    """The logits that are each right or wrong by themselves: of a head of several opinions every one."""
    return head.member_logits(pyramid) if hasattr(head, "member_logits") else [head(pyramid)]


def _as_pyramid(features: Float[torch.Tensor, "p c"], channels: tuple[int, ...]) -> Pyramid:
    """Points as a Pyramid of one image, a pixel wide: maps [1, c, p, 1]."""
    maps = tuple(part.T[None, :, :, None] for part in features.split(channels, dim=1))
    return Pyramid(maps, (len(features), 1))
