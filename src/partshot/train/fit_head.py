"""Fits a head to the few labeled images: seconds on two cores, the same result for the same seed.

The story: start the head anew from the seed, read the shots' features (once if images stay as they are, again in
every step if they are augmented), and follow the cross-entropy of the labeled pixels downhill. `leave_one_out` does
it once per shot left out, for an honest estimate from the shots alone. Knows heads, representations and shots by what
they promise; refuses to know which they are.
"""

import hashlib
import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Literal

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
from partshot.ops.hypercolumn import resize
from partshot.ops.images import as_tensors
from partshot.ops.letterbox import Box
from partshot.ops.overlap import confusion
from partshot.ops.precision import Precision, is_bf16
from partshot.parts import IGNORE
from partshot.pyramid import Pyramid
from partshot.recipe import Recipe
from partshot.represent.spec import Representation
from partshot.train.progress import Ticker

# Epoch and share of the horizon that is done -> what the learning rate is multiplied with.
SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "constant": lambda epoch, done: 1.0,
    "cosine": lambda epoch, done: 0.5 * (1 + math.cos(math.pi * done)),
    # GANORCON's floor is lr * 0.2^3 * 0.1.
    "cosine-ganorcon": lambda epoch, done: 0.0008 + 0.9992 * 0.5 * (1 + math.cos(math.pi * done)),
    "tenth-every-50-epochs": lambda epoch, done: 0.1 ** (epoch // 50),
    "0.9-every-50-epochs": lambda epoch, done: 0.9 ** (epoch // 50),
}

# A fit of this many seconds shows its progress; a shorter one is over before it could be read.
PATIENCE = 2.0

# Changed copies of a shot that are drawn at a time: half of them are blurred, with one sigma.
_VIEWS = 4


class FitHead(Recipe):
    """How a head is fitted. Exactly one of images and epochs is the horizon.

    images: images seen, however many shots there are. epochs: times that each shot is seen.
    batch: images per step; at most one of each shot when nothing is augmented.
    lr, beta1, weight_decay: Adam's, the last as a gradient of the weights' squares. schedule: a key of SCHEDULES.
    class_power: a class's pixels weigh (their number)^-class_power; 0 weighs all pixels alike.
    standardize: bring all channels of the features to mean 0 and deviation 1 over the shots first, the
    largest of a map with a shared scale (`Spec`).
    augment: changes to the images, after which their features are read anew; None reads each shot once.
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
            raise ValueError("give either images or epochs as the horizon, and set the other to None")
        return self

    def horizon(self, shots: int) -> int:
        """Images seen in all, with that many shots."""
        return self.images if self.images is not None else self.epochs * shots


# GANORCON crops 0.6-1 of the area to the image's size, jitters colors by 0.2 and mirrors half of the images.
_GANORCON = Augment(scale=1.2, rotation=0, shift=0.1, color=0.2, gray=0, blur=0, noise=0)

PRESETS = {
    # What works in seconds on real images: all of it was chosen by held-out images, see LOG.md.
    "fast": FitHead(
        images=1200,
        batch=4,
        lr=3e-3,
        schedule="cosine",
        class_power=0.4,
        standardize=True,
        augment=AUGMENTS["strong"],
    ),
    # ReGAN, supplement: Adam 1e-3, weight decay 1e-3, 1000 epochs of whole images, "/10 every 50 epochs". The rate
    # is dead after 200-300 of them; what was released does otherwise (next row).
    "regan-paper": FitHead(epochs=1000, schedule="tenth-every-50-epochs"),
    # ReGAN, released code.
    "regan-code": FitHead(epochs=1000, schedule="0.9-every-50-epochs"),
    # GANORCON, section 4 and released code; its augmentation in the terms of this project's.
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
    """Fits a head anew, whatever it was before, and returns it in evaluation mode.

    head: made for `representation.spec.channels` and `len(shots.parts)` classes; parts that no shot shows keep their
    outputs. size: side of the square that images and masks are resized to. quiet: no progress.
    read: the shots' features where they are known already, as a generator's of what it drew; then nothing is augmented.
    Ignored pixels (255) count nowhere. On a CPU the same arguments give the same weights.

    Raises BadLabels when no pixel is labeled, BadImage when `size` is too small for the representation, BadRecipe
    when the loss stops being a number.
    """
    images, labels = shots.stack(size)
    pixels, labels = as_tensors(images), torch.from_numpy(labels).long()
    weights = class_weights(labels, len(shots.parts), recipe.class_power)
    if read is not None:
        recipe = recipe.changed(augment=None)
    draw = _Feed(representation, pixels, labels, shots.parts.mirrored_ids(), recipe, read)

    restart(head.to(draw.device), recipe.seed)
    if recipe.standardize:
        for module in head.modules():
            if isinstance(module, Linear):
                module.standardize(draw.plain, representation.spec.shared_scale)
    head.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(head.parameters(), recipe.lr, (recipe.beta1, 0.999), weight_decay=recipe.weight_decay)

    horizon, seen, step = recipe.horizon(len(shots)), 0, 0
    began, ticker, loss = time.monotonic(), None, None
    with torch.random.fork_rng(devices=[]), ExitStack() as stack:
        torch.manual_seed(recipe.seed)
        while seen < horizon:
            rate = recipe.lr * SCHEDULES[recipe.schedule](seen // len(shots), seen / horizon)
            for group in optimizer.param_groups:
                group["lr"] = rate
            pyramid, truth = draw()
            with draw.autocast():
                logits = head(pyramid)
            loss = pixel_loss(logits, truth, weights)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            seen, step = seen + len(truth), step + 1

            if ticker is None and time.monotonic() - began > PATIENCE:
                ticker = stack.enter_context(Ticker("fit", horizon, seen, quiet))
            if step % 20 == 0 or seen >= horizon:
                cure = f"lower lr (now {recipe.lr:g}) or set standardize to true"
                refuse_nonfinite(loss, head, f"{seen} images", cure)
                if ticker:
                    ticker.tick(min(seen, horizon), {"loss": float(loss.detach())})
    return head.eval()


def leave_one_out(
    make_head: Callable[[], nn.Module],
    representation: Representation,
    shots: Shots,
    recipe: Recipe,
    size: int,
    folds: int | None = None,
    quiet: bool = True,
    fit: Callable[..., nn.Module] = fit_head,
) -> np.ndarray:
    """Fits on all shots but some, predicts those, and pools: int64 [classes, classes], rows true, columns predicted.

    make_head: makes a head, fitted or not. folds: groups of shots that are left out together; None leaves out one at a
    time. quiet: no progress. fit: called as `fit_head` is. Predictions are compared at the masks' own sizes. Raises
    BadLabels with fewer than two shots.
    """
    if len(shots) < 2:
        raise BadLabels("leaving one out needs at least 2 labeled images, there is 1; label another one")
    folds = min(folds or len(shots), len(shots))
    total = np.zeros((len(shots.parts),) * 2, np.int64)
    with Ticker("leave one out", folds, 0, quiet) as ticker:
        for fold in range(folds):
            left_out = [i for i in range(len(shots)) if i % folds == fold]
            kept = shots.subset([i for i in range(len(shots)) if i % folds != fold])
            head = fit(make_head(), representation, kept, recipe, size, quiet=True)
            held = shots.subset(left_out)
            device = next(head.parameters()).device
            for image, truth in zip(as_tensors(held.stack(size)[0]), held.labels, strict=True):
                with torch.no_grad():
                    logits = head(representation.features(image[None].to(device)))
                box = Box.of(*truth.shape, size)
                logits = resize(logits if box.whole else box.cut(resize(logits, (size, size))), truth.shape)
                total += confusion(truth, logits[0].argmax(0).byte().cpu().numpy(), len(shots.parts))
            ticker.tick(fold + 1)
    return total


def class_weights(
    labels: Int64[torch.Tensor, "n h w"], classes: int, power: float
) -> Float[torch.Tensor, " {classes}"]:
    """(pixels of a class)^-power, scaled so that the mean labeled pixel weighs 1; 0 for classes without pixels.

    Raises BadLabels when no pixel is labeled.
    """
    counts = torch.bincount(labels[known_pixels(labels)], minlength=classes).float()
    weights = torch.where(counts > 0, counts.clamp(min=1) ** -power, 0)
    return weights * counts.sum() / (weights * counts).sum()


def known_pixels(labels: Integer[torch.Tensor, "n h w"]) -> Bool[torch.Tensor, "n h w"]:
    """Where labels are not 255; raises BadLabels when that is nowhere."""
    known = labels != IGNORE
    if not known.any():
        raise BadLabels("no pixel of the shots is labeled: all are 255 (ignore); label some parts")
    return known


def pixel_loss(
    logits: Float[torch.Tensor, "b k h w"], labels: Int64[torch.Tensor, "b h w"], weights: Float[torch.Tensor, " k"]
) -> Float[torch.Tensor, ""]:
    """Cross-entropy over the pixels that are not 255, each weighed by its class; 0 when there is none."""
    losses = F.cross_entropy(logits.float(), labels, weights.to(logits.device), ignore_index=IGNORE, reduction="sum")
    table = F.pad(weights, (0, IGNORE + 1 - len(weights))).to(labels.device)
    return losses / table[labels].sum().clamp(min=1)


class _Feed:
    """Splits batches of features with their labels: from memory when images stay as they are, else read anew.

    How an image is changed, the first time and every other, is decided by the seed and the image alone: neither
    labels nor the other shots have a say, so that what was read of it for one fit (represent/cache.py) serves others.
    """

    def __init__(
        self, representation, images, labels, mirrored_ids: list[int], recipe: FitHead, read: Pyramid | None = None
    ):
        self.representation, self.recipe, self.mirrored_ids = representation, recipe, mirrored_ids
        self.images, self.labels = images, labels
        self.device = device_of(representation)
        self.rng = torch.Generator().manual_seed(recipe.seed)
        self.chances = [chance_of(image, recipe.seed) for image in images]
        # Of each shot: changed copies and their labels, drawn and not yet shown.
        self.views: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in images]
        self.dtype = torch.bfloat16 if is_bf16(recipe.precision, self.device) else torch.float32
        self.queue: list[int] = []
        self.plain = None if read is None else read.to(self.device, self.dtype)
        if self.plain is None and (recipe.standardize or recipe.augment is None):
            self.plain = self._read(images)

    def __call__(self) -> tuple[Pyramid, torch.Tensor]:
        chosen = self._next(self.recipe.batch)
        if self.recipe.augment is None:
            # A run of neighbors is read where it lies; anything else is copied.
            together = chosen == list(range(chosen[0], chosen[0] + len(chosen)))
            index = slice(chosen[0], chosen[0] + len(chosen)) if together else torch.tensor(chosen)
            return self.plain[index], self.labels[index].to(self.device)
        images, labels = map(torch.stack, zip(*map(self._view, chosen), strict=True))
        return self._read(images), labels.to(self.device)

    def autocast(self):
        """The precision that the head computes in."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    def _next(self, batch: int) -> list[int]:
        """Indices of the next shots: each once before any comes again."""
        count = len(self.images)
        if self.recipe.augment is None:
            batch = min(batch, count)
        while len(self.queue) < batch:
            self.queue += torch.randperm(count, generator=self.rng).tolist()
        chosen, self.queue = self.queue[:batch], self.queue[batch:]
        return sorted(chosen)

    def _view(self, shot: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The next changed copy of a shot, with its labels."""
        waiting = self.views[shot]
        if not waiting:
            same, chance = [shot] * _VIEWS, self.chances[shot]
            drawn = augment(self.images[same], self.labels[same], self.recipe.augment, chance, self.mirrored_ids)
            waiting += zip(*drawn, strict=True)
        return waiting.pop(0)

    def _read(self, images: torch.Tensor) -> Pyramid:
        return read_features(self.representation, images, self.device, self.dtype)


def read_features(
    representation: Representation, images: Float[torch.Tensor, "n 3 h w"], device: torch.device, dtype: torch.dtype
) -> Pyramid:
    """The features of images on that device, in that type; in bf16 they are computed in it, too."""
    with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        # A few at a time keep what the network holds meanwhile small; larger batches gain nothing.
        read = [representation.features(few.to(device)) for few in images.split(4)]
    maps = [torch.cat(level).to(dtype) for level in zip(*(p.maps for p in read), strict=True)]
    return Pyramid(tuple(maps), read[0].image_size)


def device_of(representation: Representation) -> torch.device:
    """Where a representation computes; one without a tensor of its own does so on the CPU."""
    return next((t.device for t in representation.state_dict().values()), torch.device("cpu"))


def chance_of(image: torch.Tensor, seed: int) -> torch.Generator:
    """Random numbers that an image and a seed alone decide."""
    digest = hashlib.sha256(f"{seed}/{tuple(image.shape)}".encode() + image.contiguous().numpy().tobytes())
    return torch.Generator().manual_seed(int(digest.hexdigest()[:12], 16))


def restart(head: nn.Module, seed: int) -> None:
    """Initial weights that the seed alone decides; parts first, so that a whole may overrule them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in reversed(list(head.modules())):
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()


def refuse_nonfinite(loss: torch.Tensor, head: nn.Module, when: str, cure: str) -> None:
    """BadRecipe when a loss or a weight is no number. when: what has been seen until now. cure: what to change."""
    if not math.isfinite(float(loss.detach())) or not all(bool(torch.isfinite(p).all()) for p in head.parameters()):
        raise BadRecipe(f"fitting the head: the loss stopped being a number after {when}; {cure}")
