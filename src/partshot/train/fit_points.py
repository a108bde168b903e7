"""Fits a per-pixel head to points: features of labeled pixels of the shots and of augmented views.

Features of each shot and view are computed once, and those of some labeled pixels are kept. The head is then trained on
them for hundreds of steps. Most of the benefit comes from the views: on ants with five labels, a head fitted to points
of the shots alone had a mIoU of .49, one with 8 views of each .56 (held-out images, LOG.md).

Works with any head of reach 0 (one pixel alone), and any representation and shots.
"""

from collections.abc import Iterator
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
from partshot.progress import SHOW_AFTER, Ticker
from partshot.pyramid import Pyramid
from partshot.recipe import Recipe
from partshot.represent.spec import Representation
from partshot.train.fit_head import (
    SCHEDULES,
    check_finite,
    class_weights,
    device_of,
    extract_features,
    image_rng,
    known_pixels,
    reset_parameters,
)

# Largest size in bytes of the features of all points: 24 views of ten shots with 133 channels take a quarter of it.
_MAX_BYTES = 1 << 30
# Views that are computed at a time.
_VIEWS = 4
# Steps between checks that the loss is finite.
_CHECK_EVERY = 50


class FitPoints(Recipe):
    """How a per-pixel head is fitted to points.

    views: augmented views of each shot; 0 takes the shots alone. augment: their augmentation. points: number of random
    labeled pixels that are kept of each image or view. steps: of AdamW. batch: points per step. lr: initial learning
    rate, with cosine decay to 0. weight_decay: AdamW's. class_power: the loss weight of a class is (its number of
    points)^-class_power. precision: "auto" computes features in bf16 where the device does so natively, else in fp32;
    the head is trained in fp32.
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
    # Seconds on one core; the best settings on held-out images, see LOG.md.
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
    """Fits a head of reach 0 from its initialization, discarding earlier weights; returns it in evaluation mode.

    Arguments as of `fit_head`. read: the shots' features, if they are already computed; then there are no views.
    Ignored pixels (255) are not sampled. On a CPU the same arguments give the same weights.

    Raises BadLabels when no pixel is labeled, BadImage when `size` is too small for the representation, BadRecipe for a
    head that is not per-pixel, and when the loss becomes NaN or infinite.
    """
    if getattr(head, "reach", None) != 0:
        raise BadRecipe(f"{type(head).__name__} is not a per-pixel head; fit points to a head such as linear or mlp-s")
    features, ids, unaugmented = sample_points(representation, shots, recipe, size, read)
    weights = class_weights(ids.cpu().view(-1, 1, 1), len(shots.parts), recipe.class_power).to(ids.device)

    channels = representation.spec.channels
    reset_parameters(head.to(ids.device), recipe.seed)
    for module in head.modules():
        if isinstance(module, Linear):
            module.standardize(_as_pyramid(features[:unaugmented].float(), channels), representation.spec.shared_scale)
    optimizer = torch.optim.AdamW(head.train().parameters(), recipe.lr, weight_decay=recipe.weight_decay)
    rng = torch.Generator().manual_seed(recipe.seed)
    with Ticker("fit", recipe.steps, 0, quiet, SHOW_AFTER) as ticker:
        for step in range(recipe.steps):
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr * SCHEDULES["cosine"](0, step / recipe.steps)
            chosen = torch.randint(len(ids), (recipe.batch,), generator=rng).to(ids.device)
            outputs = _member_logits(head, _as_pyramid(features[chosen].float(), channels))
            loss = sum(F.cross_entropy(logits[0, :, :, 0].T, ids[chosen], weights) for logits in outputs)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

            if (step + 1) % _CHECK_EVERY == 0 or step + 1 == recipe.steps:
                check_finite(loss, head, f"{step + 1} steps", f"lower lr (now {recipe.lr:g})")
                ticker.tick(step + 1, {"loss": float(loss.detach())})
    return head.eval()


class Points(NamedTuple):
    """features: [p, channels]. ids: int64 [p]. unaugmented: how many, at the beginning, are of unaugmented shots."""

    features: torch.Tensor
    ids: torch.Tensor
    unaugmented: int


def sample_points(
    representation: Representation, shots: Shots, recipe: FitPoints, size: int, read: Pyramid | None = None
) -> Points:
    """Features and ids of labeled pixels of the shots and their views, on the representation's device.

    Arguments and errors as of `fit_points`.
    """
    images, labels = shots.stack(size)
    images, labels = as_tensors(images), torch.from_numpy(labels).long()
    known_pixels(labels)
    device = device_of(representation)
    dtype = torch.bfloat16 if is_bf16(recipe.precision, device) else torch.float32
    views = 0 if read is not None else recipe.views
    row = sum(representation.spec.channels) * dtype.itemsize
    count = max(1, min(recipe.points, _MAX_BYTES // (row * len(images) * (1 + views))))
    rng = torch.Generator().manual_seed(recipe.seed)
    pyramid = extract_features(representation, images, device, dtype) if read is None else read.to(device, dtype)
    kept = [_sample(pyramid, labels, count, rng)]
    for image, mask in zip(images.split(1), labels.split(1), strict=True):
        for augmented, ids in _views(image, mask, views, shots, recipe):
            kept.append(_sample(extract_features(representation, augmented, device, dtype), ids, count, rng))
    return Points(torch.cat([one for one, _ in kept]), torch.cat([ids for _, ids in kept]), len(kept[0][1]))


def _views(
    image: Float[torch.Tensor, "1 3 h w"],
    labels: Int64[torch.Tensor, "1 h w"],
    count: int,
    shots: Shots,
    recipe: FitPoints,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Augmented views of one shot with their labels, _VIEWS at a time.

    The augmentation depends on the seed and the image alone, so that cached features are valid for other fits.
    """
    rng = image_rng(image[0], recipe.seed)
    for first in range(0, count, _VIEWS):
        same = [0] * min(_VIEWS, count - first)
        yield augment(image[same], labels[same], recipe.augment, rng, shots.parts.mirrored_ids())


def _sample(
    pyramid: Pyramid, labels: Int64[torch.Tensor, "n h w"], count: int, rng: torch.Generator
) -> tuple[Float[torch.Tensor, "p c"], Int64[torch.Tensor, " p"]]:
    """Features and ids of at most `count` random labeled pixels of each image."""
    chosen = []
    for index, mask in enumerate(labels):
        known = (mask != IGNORE).flatten().nonzero()[:, 0]
        pixel = known[torch.randperm(len(known), generator=rng)[:count]]
        chosen.append(torch.stack([torch.full_like(pixel, index), pixel // mask.shape[1], pixel % mask.shape[1]]))
    # Image, row and column of every point.
    indices = torch.cat(chosen, 1)
    device = pyramid.maps[0].device
    features = at_pixels(pyramid.to(memory_format=torch.channels_last), *indices.to(device))
    return features, labels[tuple(indices)].to(device)


def _member_logits(head: nn.Module, pyramid: Pyramid) -> list[Float[torch.Tensor, "b k h w"]]:
    """The logits that each get a loss: those of every member, or the head's own if it is no ensemble."""
    return head.member_logits(pyramid) if hasattr(head, "member_logits") else [head(pyramid)]


def _as_pyramid(features: Float[torch.Tensor, "p c"], channels: tuple[int, ...]) -> Pyramid:
    """Points as a Pyramid of one image of width 1: maps [1, c, p, 1]."""
    maps = tuple(part.T[None, :, :, None] for part in features.split(channels, dim=1))
    return Pyramid(maps, (len(features), 1))
