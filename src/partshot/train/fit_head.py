"""Fits a head to the few labeled images: seconds on two cores, the same result for the same seed.

The head is initialized from the seed and minimizes the cross-entropy of the labeled pixels. Features of the shots are
computed once, or anew in every step if images are augmented. `leave_one_out` fits once per left-out shot, for an
unbiased estimate from the shots alone. Works with any head, representation and shots.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, Integer
from pydantic import Field, model_validator
from torch import nn

from partshot.data.augment import PRESETS as AUGMENTS
from partshot.data.augment import Augment, augment
from partshot.data.shots import Shots
from partshot.errors import BadLabels, BadRecipe
from partshot.heads.linear import Linear
from partshot.ops.images import as_tensors
from partshot.ops.overlap import confusion
from partshot.ops.precision import Precision, is_bf16
from partshot.parts import IGNORE
from partshot.progress import SHOW_AFTER, Ticker
from partshot.pyramid import Pyramid
from partshot.recipe import Recipe
from partshot.represent.spec import Representation

# Epoch and finished fraction of the fit -> factor on the learning rate.
SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "constant": lambda epoch, done: 1.0,
    "cosine": lambda epoch, done: 0.5 * (1 + math.cos(math.pi * done)),
    # GANORCON's minimum is lr * 0.2^3 * 0.1.
    "cosine-ganorcon": lambda epoch, done: 0.0008 + 0.9992 * 0.5 * (1 + math.cos(math.pi * done)),
    "tenth-every-50-epochs": lambda epoch, done: 0.1 ** (epoch // 50),
    "0.9-every-50-epochs": lambda epoch, done: 0.9 ** (epoch // 50),
}

# Augmented views of a shot that are computed at a time: half of them are blurred, with the same sigma.
_VIEWS = 4


class FitHead(Recipe):
    """How a head is fitted. Exactly one of images and epochs sets the length.

    images: images seen in all, for any number of shots. epochs: times that each shot is seen.
    batch: images per step; without augmentation, at most one of each shot.
    lr, beta1, weight_decay: Adam's; weight decay is L2 regularization. schedule: a key of SCHEDULES.
    class_power: the loss weight of a class is (its number of pixels)^-class_power; 0 weights all pixels equally.
    standardize: first scale all channels of the features to mean 0 and standard deviation 1 over the shots. Maps with
    a shared scale (`Spec`) are scaled by the largest deviation of their channels.
    augment: augmentation of the images, whose features are then computed in every step; None computes them once.
    precision: "auto" computes in bf16 where the device does so natively, else in fp32.
    """

    images: int | None = Field(default=None, ge=1)
    epochs: int | None = Field(default=None, ge=1)
    batch: int = Field(default=1, ge=1)
    lr: float = Field(default=1e-3, gt=0)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=1e-3, ge=0)
    schedule: Literal["constant", "cosine", "cosine-ganorcon", "tenth-every-50-epochs", "0.9-every-50-epochs"] = (
        "constant"
    )
    class_power: float = Field(default=0.0, ge=0, le=1)
    standardize: bool = False
    augment: Augment | None = None
    precision: Precision = "auto"
    seed: int = 0

    @model_validator(mode="after")
    def _one_horizon(self):
        if (self.images is None) == (self.epochs is None):
            raise ValueError("give either images or epochs, and set the other to None")
        return self

    def horizon(self, shots: int) -> int:
        """Images seen in all with that many shots."""
        return self.images if self.images is not None else self.epochs * shots


# GANORCON: random resized crops of 0.6-1 of the area, color jitter 0.2, horizontal flips.
_GANORCON = Augment(scale=1.2, rotation=0, shift=0.1, color=0.2, gray=0, blur=0, noise=0)

PRESETS = {
    # Seconds; the best settings on held-out real images, see LOG.md.
    "fast": FitHead(
        images=1200,
        batch=4,
        lr=3e-3,
        schedule="cosine",
        class_power=0.4,
        standardize=True,
        augment=AUGMENTS["strong"],
    ),
    # ReGAN, supplement: Adam 1e-3, weight decay 1e-3, 1000 epochs of whole images, "/10 every 50 epochs". The rate is
    # practically 0 after 200-300 epochs; the released code has another schedule (next row).
    "regan-paper": FitHead(epochs=1000, schedule="tenth-every-50-epochs"),
    # ReGAN, released code.
    "regan-code": FitHead(epochs=1000, schedule="0.9-every-50-epochs"),
    # GANORCON, section 4 and released code; its augmentation approximated by this project's.
    "ganorcon-mlp": FitHead(epochs=800, beta1=0.5, weight_decay=5e-4, schedule="cosine-ganorcon", augment=_GANORCON),
    "ganorcon-conv": FitHead(
        epochs=200, lr=5e-4, beta1=0.5, weight_decay=5e-4, schedule="cosine-ganorcon", augment=_GANORCON
    ),
}


def fit_head(
    head: nn.Module,
    representation: Representation,
    shots: Shots,
    recipe: FitHead,
    size: int,
    quiet: bool = False,
    read: Pyramid | None = None,
) -> nn.Module:
    """Fits a head from its initialization, discarding earlier weights, and returns it in evaluation mode.

    head: made for `representation.spec.channels` and `len(shots.parts)` classes, also those that no shot shows. size:
    side of the square that images and masks are resized to. quiet: no progress. read: the shots' features, if they are
    already computed, as for generated images; then nothing is augmented. Ignored pixels (255) have no effect. On a CPU
    the same arguments give the same weights.

    Raises BadLabels when no pixel is labeled, BadImage when `size` is too small for the representation, BadRecipe
    when the loss becomes NaN or infinite.
    """
    images, labels = shots.stack(size)
    pixels, labels = as_tensors(images), torch.from_numpy(labels).long()
    weights = class_weights(labels, len(shots.parts), recipe.class_power)
    if read is not None:
        recipe = recipe.changed(augment=None)
    batches = _Batches(representation, pixels, labels, shots.parts.mirrored_ids(), recipe, read)

    reset_parameters(head.to(batches.device), recipe.seed)
    if recipe.standardize:
        for module in head.modules():
            if isinstance(module, Linear):
                module.standardize(batches.features, representation.spec.shared_scale)
    head.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(head.parameters(), recipe.lr, (recipe.beta1, 0.999), weight_decay=recipe.weight_decay)

    total, seen, step = recipe.horizon(len(shots)), 0, 0
    with torch.random.fork_rng(devices=[]), Ticker("fit", total, 0, quiet, SHOW_AFTER) as ticker:
        torch.manual_seed(recipe.seed)
        while seen < total:
            rate = recipe.lr * SCHEDULES[recipe.schedule](seen // len(shots), seen / total)
            for group in optimizer.param_groups:
                group["lr"] = rate
            pyramid, target = batches()
            with batches.autocast():
                logits = head(pyramid)
            loss = pixel_loss(logits, target, weights)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            seen, step = seen + len(target), step + 1

            if step % 20 == 0 or seen >= total:
                hint = f"lower lr (now {recipe.lr:g}) or set standardize to true"
                check_finite(loss, head, f"{seen} images", hint)
                ticker.tick(min(seen, total), {"loss": float(loss.detach())})
    return head.eval()


class Fitted(Protocol):
    """A fitted model, such as a Segmenter."""

    def predict(self, images: Sequence[np.ndarray]) -> Sequence[Any]:
        """For each image, uint8 [h, w, 3], an object with `labels`, uint8 [h, w]."""


def cross_validate(
    fit: Callable[[Shots], Fitted], shots: Shots, folds: int | None = None, quiet: bool = True
) -> np.ndarray:
    """Cross-validation: the confusion matrix of all shots, each predicted by a model fitted without it.

    Returns int64 [classes, classes], rows true, columns predicted, at the masks' original sizes. fit: fits a model to
    shots. folds: number of folds; None leaves out one shot at a time. quiet: no progress. Raises BadLabels with fewer
    than two shots.
    """
    if len(shots) < 2:
        raise BadLabels("cross-validation needs at least 2 labeled images, there is 1; label another one")
    left_out = shots.folds(folds or len(shots))
    total = np.zeros((len(shots.parts),) * 2, np.int64)
    with Ticker("cross-validate", len(left_out), 0, quiet) as ticker:
        for fold, held in enumerate(left_out):
            model, test = fit(shots.without(held)), shots.subset(held)
            for image, truth in zip(test.images, test.labels, strict=True):
                total += confusion(truth, model.predict([image])[0].labels, len(shots.parts))
            ticker.tick(fold + 1)
    return total


def class_weights(
    labels: Int64[torch.Tensor, "n h w"], classes: int, power: float
) -> Float[torch.Tensor, " {classes}"]:
    """(pixels of a class)^-power, scaled to a mean of 1 over the labeled pixels; 0 for classes without pixels.

    Raises BadLabels when no pixel is labeled.
    """
    counts = torch.bincount(labels[known_pixels(labels)], minlength=classes).float()
    weights = torch.where(counts > 0, counts.clamp(min=1) ** -power, 0)
    return weights * counts.sum() / (weights * counts).sum()


def known_pixels(labels: Integer[torch.Tensor, "n h w"]) -> Bool[torch.Tensor, "n h w"]:
    """True where labels are not 255. Raises BadLabels when that is nowhere."""
    known = labels != IGNORE
    if not known.any():
        raise BadLabels("no pixel of the shots is labeled: all are 255 (ignore); label some parts")
    return known


def pixel_loss(
    logits: Float[torch.Tensor, "b k h w"], labels: Int64[torch.Tensor, "b h w"], weights: Float[torch.Tensor, " k"]
) -> Float[torch.Tensor, ""]:
    """Class-weighted mean cross-entropy over the pixels that are not 255; 0 when there are none."""
    losses = F.cross_entropy(logits.float(), labels, weights.to(logits.device), ignore_index=IGNORE, reduction="sum")
    by_id = F.pad(weights, (0, IGNORE + 1 - len(weights))).to(labels.device)
    return losses / by_id[labels].sum().clamp(min=1)


class _Batches:
    """Batches of features and labels: from precomputed features, or computed anew from augmented images.

    The augmentation of an image depends on the seed and the image alone, not on labels or the other shots. Features
    cached for one fit (represent/cache.py) are thus valid for others.
    """

    def __init__(
        self, representation, images, labels, mirrored_ids: list[int], recipe: FitHead, read: Pyramid | None = None
    ):
        self.representation, self.recipe, self.mirrored_ids = representation, recipe, mirrored_ids
        self.images, self.labels = images, labels
        self.device = device_of(representation)
        self.rng = torch.Generator().manual_seed(recipe.seed)
        self.image_rngs = [image_rng(image, recipe.seed) for image in images]
        # For each shot: augmented views and their labels that were not used yet.
        self.views: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in images]
        self.dtype = torch.bfloat16 if is_bf16(recipe.precision, self.device) else torch.float32
        self.queue: list[int] = []
        # Of the images without augmentation.
        self.features = None if read is None else read.to(self.device, self.dtype)
        if self.features is None and (recipe.standardize or recipe.augment is None):
            self.features = self._extract(images)

    def __call__(self) -> tuple[Pyramid, torch.Tensor]:
        chosen = self._next(self.recipe.batch)
        if self.recipe.augment is None:
            # A slice of consecutive images is a view, other indices copy.
            consecutive = chosen == list(range(chosen[0], chosen[0] + len(chosen)))
            index = slice(chosen[0], chosen[0] + len(chosen)) if consecutive else torch.tensor(chosen)
            return self.features[index], self.labels[index].to(self.device)
        images, labels = map(torch.stack, zip(*map(self._view, chosen), strict=True))
        return self._extract(images), labels.to(self.device)

    def autocast(self):
        """Context for the head's precision."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    def _next(self, batch: int) -> list[int]:
        """Indices of the next shots; every epoch has each shot once."""
        count = len(self.images)
        if self.recipe.augment is None:
            batch = min(batch, count)
        while len(self.queue) < batch:
            self.queue += torch.randperm(count, generator=self.rng).tolist()
        chosen, self.queue = self.queue[:batch], self.queue[batch:]
        return sorted(chosen)

    def _view(self, shot: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The next augmented view of a shot, with its labels."""
        views = self.views[shot]
        if not views:
            same, rng = [shot] * _VIEWS, self.image_rngs[shot]
            augmented = augment(self.images[same], self.labels[same], self.recipe.augment, rng, self.mirrored_ids)
            views += zip(*augmented, strict=True)
        return views.pop(0)

    def _extract(self, images: torch.Tensor) -> Pyramid:
        return extract_features(self.representation, images, self.device, self.dtype)


def extract_features(
    representation: Representation, images: Float[torch.Tensor, "n 3 h w"], device: torch.device, dtype: torch.dtype
) -> Pyramid:
    """The features of images on that device, in that dtype; bf16 features are also computed in bf16."""
    with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        # Batches of 4 limit the memory for activations; larger ones are not faster.
        pyramids = [representation.features(few.to(device)) for few in images.split(4)]
    maps = [torch.cat(level).to(dtype) for level in zip(*(p.maps for p in pyramids), strict=True)]
    return Pyramid(tuple(maps), pyramids[0].image_size)


def device_of(representation: Representation) -> torch.device:
    """The device of a representation's tensors; the CPU for one without tensors."""
    return next((t.device for t in representation.state_dict().values()), torch.device("cpu"))


def image_rng(image: torch.Tensor, seed: int) -> torch.Generator:
    """A random generator that is seeded by an image and a seed alone."""
    digest = hashlib.sha256(f"{seed}/{tuple(image.shape)}".encode() + image.contiguous().numpy().tobytes())
    return torch.Generator().manual_seed(int(digest.hexdigest()[:12], 16))


def reset_parameters(head: nn.Module, seed: int) -> None:
    """Initializes all parameters from the seed; inner modules first, so that outer ones may override them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in reversed(list(head.modules())):
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()


def check_finite(loss: torch.Tensor, head: nn.Module, when: str, hint: str) -> None:
    """Raises BadRecipe when a loss or a weight is NaN or infinite. when: images or steps until now. hint: the fix."""
    if not math.isfinite(float(loss.detach())) or not all(bool(torch.isfinite(p).all()) for p in head.parameters()):
        raise BadRecipe(f"fitting the head: the loss became NaN or infinite after {when}; {hint}")
