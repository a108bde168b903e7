"""Distillation with consistency: trains a student from a few labeled images, soft labels and unlabeled images.

The objective combines up to three sources of labels:

* The labeled shots are part of every batch, from the first to the last. Generated images with a teacher's labels may
  replace some or all of them.
* Soft labels of a few-shot teacher on the unlabeled images, at the start of the training (ReGAN's distillation).
* Consistency, later on: the EMA of the student predicts an unaugmented image, and the student is trained to predict the
  same on a strongly augmented view, at the pixels where the EMA is confident (Mean Teacher, Tarvainen & Valpola 2017,
  with the confidence threshold of FixMatch, Sohn et al. 2020). This takes the student beyond the teacher.

With sources left out, the same objective is a supervised training, a plain Mean Teacher or a plain distillation. The
student may be any network from images to logits. Settings are in distill_recipe.py.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import nn

from partshot.data.augment import augment, photometric, transfer_colors, warp_grid, warp_labels, warp_soft_labels
from partshot.data.mosaic import mosaic
from partshot.data.soft_labels import SoftLabels
from partshot.nets.light_unet import LightUNet
from partshot.objective import Phase
from partshot.ops.overlap import confusion, mean_iou
from partshot.parts import IGNORE
from partshot.train.distill_recipe import Distill
from partshot.train.fit_head import class_weights, pixel_loss
from partshot.train.pseudo_labels import Agreement, ClassThresholds, DistributionAlignment

LOW_RESOLUTION_DIVISOR = 64
"""The low-resolution phase needs sizes that this divides: every student takes half of such a size. At 16 px the deepest
maps are one pixel, and oneDNN's bf16 gradients of those are sometimes NaN."""

# Unlabeled images on which the agreement of two models is measured, and how many of them per forward pass.
_AGREEMENT_IMAGES, _AGREEMENT_BATCH = 64, 8


@dataclass(frozen=True)
class LabelSources:
    """All labels that a student learns from, but its own pseudo-labels.

    shots, labels: the labeled images at the recipe's size, and their class ids (255 = ignore). soft: the few-shot
    teacher's labels of all unlabeled images; None trains without a teacher. generated: images of a generator, with a
    teacher's ids for them; they take the recipe's share of the shots' places. frozen: a frozen encoder's labels of
    every `every`-th unlabeled image, which pseudo-labels must agree with.
    """

    shots: UInt8[torch.Tensor, "n s s 3"]
    labels: Int[torch.Tensor, "n s s"]
    soft: SoftLabels | None = None
    generated: tuple[UInt8[torch.Tensor, "g s s 3"], UInt8[torch.Tensor, "g s s"]] | None = None
    frozen: SoftLabels | None = None
    every: int = 1


class Batch(NamedTuple):
    """shots, labels: augmented labeled images, and their ids (255 = ignore). strong: strongly augmented views of
    unlabeled images. soft: the teacher's probabilities for these views, all zero where unknown. Without `soft`,
    consistency needs the following: weak: the same images unaugmented, from which the EMA predicts pseudo-labels; grid,
    flipped: the geometric transform from `weak` to `strong`; frozen: the frozen encoder's ids for `weak`, if used."""

    shots: torch.Tensor
    labels: torch.Tensor
    strong: torch.Tensor | None = None
    soft: torch.Tensor | None = None
    weak: torch.Tensor | None = None
    grid: torch.Tensor | None = None
    flipped: torch.Tensor | None = None
    frozen: torch.Tensor | None = None


class Distillation:
    """The training objective (see partshot.objective).

    student: float [b, 3, s, s] in [-1, 1] -> logits [b, k, s, s]. mirrored_ids: the class id of each class in a
    horizontally flipped image; its length is the number of classes. images: unlabeled, uint8 [m, s, s, 3], at the
    recipe's size; None trains on the labeled images alone.
    """

    def __init__(
        self,
        student: nn.Module,
        sources: LabelSources,
        mirrored_ids: list[int],
        recipe: Distill,
        images: UInt8[torch.Tensor, "m s s 3"] | None = None,
    ):
        if recipe.frozen_stride and isinstance(student, LightUNet):
            student.freeze_up_to(recipe.frozen_stride)
        ema = copy.deepcopy(student).requires_grad_(False)
        self.recipe, self.mirrored_ids, self.sources, self.images = recipe, mirrored_ids, sources, images
        self.labels = sources.labels.long()
        self.weights = class_weights(self.labels, len(mirrored_ids), recipe.class_power)
        # Classes that no shot shows have weight 0; their logits are not adjusted.
        self.logit_adjustment = torch.where(self.weights > 0, self.weights, 1).log()
        self.optimizer = torch.optim.AdamW(
            _param_groups(student, recipe), recipe.lr, weight_decay=recipe.weight_decay, fused=True
        )
        self.schedule = ScheduleState(recipe.lr)
        self.alignment = DistributionAlignment(self.labels, len(mirrored_ids))
        self.modules = {"student": student, "ema": ema, "clock": self.schedule, "alignment": self.alignment}
        if recipe.consistency is not None and recipe.consistency.flexmatch:
            self.modules["thresholds"] = ClassThresholds(len(mirrored_ids), recipe.consistency)
        if sources.frozen is not None:
            self.modules["agreement"] = Agreement()
        self.progress = 0.0
        self.last_loss = torch.zeros(())

    @property
    def device(self) -> torch.device:
        """The student's device, on which images are augmented, too."""
        return next(self.modules["student"].parameters()).device

    def phases(self) -> Sequence[Phase]:
        """A single phase, the student's."""
        return [Phase("loss", self.optimizer, self.loss, clip=5.0)]

    def prepare(self, progress: float) -> None:
        """Sets the learning rates, and measures the frozen encoder's agreement with the EMA when consistency starts."""
        self.progress = progress
        if self.sources.frozen is not None and progress >= self.recipe.consistency.start:
            self.modules["agreement"].measure(self._mean_iou_with_frozen)
        if self.recipe.schedule == "cosine":
            # Warm-up over 5% of the training: BatchNorm's running statistics are noise at first.
            rate = self.recipe.lr * min(1.0, (progress + 1e-3) / 0.05) * 0.5 * (1 + math.cos(math.pi * progress))
        else:
            rate = float(self.schedule.rate)
        for group in self.optimizer.param_groups:
            # Checkpoints of older runs have "share" for it, or nothing.
            group["lr"] = rate * group.get("lr_scale", group.get("share", 1.0))

    def batch(self, rng: torch.Generator, images: int) -> Batch:
        """`images` labeled images, and unlabeled ones while one of their sources is active."""
        low = self.progress < self.recipe.low_resolution and self.recipe.size % LOW_RESOLUTION_DIVISOR == 0
        size = self.recipe.size // 2 if low else self.recipe.size
        shots, labels = self._labeled(rng, images, size)
        if self.images is not None and self.recipe.color_transfer:
            chosen = torch.randint(len(self.images), (images,), generator=rng)
            shots = transfer_colors(shots, self._load(self.images, chosen, size), self.recipe.color_transfer, rng)
        shots, labels = augment(shots, labels, self.recipe.augment, rng, self.mirrored_ids)
        if self.recipe.mosaic is not None:
            shots, labels = mosaic(shots, labels, self.recipe.mosaic, rng)
        if self._unlabeled_source() is None:
            return Batch(shots, labels)
        # The recipe's ratio of unlabeled to labeled images, also when several devices share the batch.
        count = max(1, round(images * self.recipe.unlabeled / self.recipe.batch))
        return Batch(shots, labels, **self._unlabeled(rng, count, size))

    def loss(self, batch: Batch) -> Float[torch.Tensor, ""]:
        """Class-weighted cross-entropy of the labeled images, plus the loss of the unlabeled ones."""
        loss = self._loss(batch)
        self.last_loss = loss.detach()
        return loss

    def _loss(self, batch: Batch) -> torch.Tensor:
        student = self.modules["student"]
        if batch.strong is None:
            return pixel_loss(student(batch.shots), batch.labels, self.weights)
        logits = student(torch.cat([batch.shots, batch.strong]))
        labeled, unlabeled = logits[: len(batch.shots)], logits[len(batch.shots) :].float()
        loss = pixel_loss(labeled, batch.labels, self.weights)
        if batch.soft is not None:
            return loss + self._teacher_weight() * soft_loss(unlabeled, batch.soft)
        target = self._pseudo_labels(batch)
        # The mean is over all pixels, ignored ones included, so that few pseudo-labels have a small weight.
        losses = F.cross_entropy(self._adjusted(unlabeled), target, ignore_index=IGNORE, reduction="sum")
        return loss + self.recipe.consistency.weight * (losses / target.numel())

    def finish(self, progress: float) -> Mapping[str, float]:
        """Updates the EMA, whose decay is smaller in the first steps, and the plateau schedule."""
        self.schedule.steps += 1
        n = int(self.schedule.steps)
        decay = min(self.recipe.ema_decay, (1 + n) / (10 + n))
        with torch.no_grad():
            student, ema = self.modules["student"].state_dict(), self.modules["ema"].state_dict()
            for name, value in ema.items():
                if value.dtype.is_floating_point:
                    value.lerp_(student[name], 1 - decay)
                else:
                    value.copy_(student[name])
        if self.recipe.schedule == "plateau":
            self.schedule.step(self.last_loss)
        return {"lr": self.optimizer.param_groups[0]["lr"]}

    def trained(self) -> dict[str, torch.Tensor]:
        """The EMA's weights, which are better than the student's last ones."""
        return self.modules["ema"].state_dict()

    def _labeled(self, rng: torch.Generator, count: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Random labeled images, of which the recipe's share are generated ones, and their ids; not augmented."""
        chosen = torch.randint(len(self.sources.shots), (count,), generator=rng)
        shots, labels = self._load(self.sources.shots, chosen, size), self.labels[chosen].to(self.device)
        if self.sources.generated is not None:
            images, ids = self.sources.generated
            chosen = torch.randint(len(images), (round(count * self.recipe.generated),), generator=rng)
            shots[: len(chosen)] = self._load(images, chosen, size)
            labels[: len(chosen)] = ids[chosen].long().to(self.device)
        if size != self.recipe.size:
            # A random one of each 2 x 2 pixels: always the same one would shift all labels by a quarter pixel.
            down, right = torch.randint(2, (2,), generator=rng).tolist()
            labels = labels[:, down::2, right::2]
        return shots, labels

    def _unlabeled_source(self) -> Literal["soft", "ema"] | None:
        """Whose labels of the unlabeled images are used at this point of the training."""
        consistency = self.recipe.consistency
        if self.images is None or not self.recipe.unlabeled:
            return None
        if self.sources.soft is not None and (consistency is None or self.progress < consistency.teacher):
            return "soft"
        return "ema" if consistency is not None and self.progress >= consistency.start else None

    def _teacher_weight(self) -> float:
        """Weight of the few-shot teacher's loss: constant in a plain distillation, else it falls linearly to 0."""
        consistency = self.recipe.consistency
        return 1.0 if consistency is None else 1 - self.progress / consistency.teacher

    def _unlabeled(self, rng: torch.Generator, count: int, size: int) -> dict[str, torch.Tensor]:
        """The fields of a batch that hold unlabeled images."""
        frozen = self._agreeing_frozen()
        index = torch.randint(len(self.images if frozen is None else frozen), (count,), generator=rng)
        chosen = index if frozen is None else index * self.sources.every
        weak = self._load(self.images, chosen, size)
        grid, flipped = warp_grid(count, (size, size), self.recipe.views, rng, self.device)
        moved = F.grid_sample(weak, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
        strong = photometric(moved, self.recipe.views, rng)
        if self._unlabeled_source() == "soft":
            soft = warp_soft_labels(
                self.sources.soft.read(chosen, size).to(self.device), grid, flipped, self.mirrored_ids
            )
            return {"strong": strong, "soft": soft}
        views = {"strong": strong, "weak": weak, "grid": grid, "flipped": flipped}
        if frozen is not None:
            views["frozen"] = frozen.read(index, size).argmax(1).to(self.device)
        return views

    def _agreeing_frozen(self) -> SoftLabels | None:
        """The frozen encoder's labels, if they were found to agree with the EMA's predictions."""
        if self.sources.frozen is None:
            return None
        agrees = float(self.modules["agreement"].overlap) >= self.recipe.consistency.min_agreement
        return self.sources.frozen if agrees else None

    def _mean_iou_with_frozen(self) -> float:
        """Mean IoU of the EMA's predictions with the frozen encoder's labels, on some unlabeled images."""
        ema, frozen, counts = self.modules["ema"].eval(), self.sources.frozen, 0
        chosen = torch.arange(0, len(frozen), max(1, len(frozen) // _AGREEMENT_IMAGES))[:_AGREEMENT_IMAGES]
        for some in chosen.split(_AGREEMENT_BATCH):
            with torch.no_grad():
                logits = ema(self._load(self.images, some * self.sources.every, self.recipe.size)).float()
            predicted, labels = self._adjusted(logits).argmax(1).cpu(), frozen.read(some, logits.shape[2]).argmax(1)
            counts = counts + confusion(labels.byte().numpy(), predicted.byte().numpy(), len(self.mirrored_ids))
        return mean_iou(counts, absent="nan")

    def _pseudo_labels(self, batch: Batch) -> torch.Tensor:
        """The EMA's ids for the strong views, 255 where it is not confident.

        The EMA predicts the unaugmented images, where it errs least; its predictions are then transformed like the
        strong views.
        """
        ema = self.modules["ema"].eval()
        with torch.no_grad():
            logits = ema(batch.weak).float()
            probabilities = self.alignment(self._adjusted(logits).softmax(1))
            confidence, ids = probabilities.max(1)
            thresholds = self.modules.get("thresholds")
            threshold = self.recipe.consistency.confidence if thresholds is None else thresholds(confidence, ids)
            used = confidence > threshold
            if batch.frozen is not None:
                used &= batch.frozen == ids
            ids = torch.where(used, ids, IGNORE)
        return warp_labels(ids, batch.grid, batch.flipped, self.mirrored_ids)

    def _adjusted(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits minus the log class weights, so that their softmax is the posterior of the unweighted classes.

        Class weights raise the logits of rare classes (logit adjustment, Menon et al. 2021). Pseudo-labels are
        predicted and learned without that offset: with it, the EMA predicts too many pixels of rare parts, the student
        learns them, and the parts grow throughout the training.
        """
        return logits - self.logit_adjustment.to(logits.device)[:, None, None]

    def _load(self, stack: torch.Tensor, chosen: torch.Tensor, size: int) -> torch.Tensor:
        """The chosen images of a stack as [b, 3, size, size] in [-1, 1]; smaller sizes by average pooling."""
        x = stack[chosen].to(self.device).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
        return x if x.shape[2] == size else F.avg_pool2d(x, x.shape[2] // size)


def _param_groups(student: nn.Module, recipe: Distill) -> list[dict]:
    """AdamW's parameter groups: all trainable parameters, the encoder's with the recipe's learning rate factor."""
    trained = [(name, param) for name, param in student.named_parameters() if param.requires_grad]
    encoder = [param for name, param in trained if name.startswith("encoder.") and recipe.encoder_lr_factor != 1]
    ids = {id(param) for param in encoder}
    rest = [param for _, param in trained if id(param) not in ids]
    groups = [{"params": rest, "lr_scale": 1.0}, {"params": encoder, "lr_scale": recipe.encoder_lr_factor}]
    return [group for group in groups if group["params"]]


def soft_loss(
    logits: Float[torch.Tensor, "b k h w"], target: Float[torch.Tensor, "b k h w"]
) -> Float[torch.Tensor, ""]:
    """Soft-target cross-entropy, averaged over the pixels whose target is known.

    Pixels from outside the image, after a geometric transform, have all-zero targets. They are masked out: a mean over
    all pixels would scale the loss down by their share (as in ReGAN's auto-shot training).
    """
    known = target.sum(1)
    losses = -(target * logits.float().log_softmax(1)).sum(1)
    return losses.sum() / known.sum().clamp(min=1)


class ScheduleState(nn.Module):
    """State of the learning rate schedule, as a module, so that checkpoints hold it.

    steps: optimizer steps done. rate, total, best, waited: of "plateau" alone; the learning rate, the sum of this
    epoch's losses, the lowest mean loss of an epoch, and the epochs since then.
    """

    # ReGAN: patience 20 epochs, factor 0.1, minimum 1e-6. An epoch is 200 steps here.
    PATIENCE, FACTOR, MIN_LR, EPOCH = 20, 0.1, 1e-6, 200

    def __init__(self, rate: float):
        super().__init__()
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("rate", torch.tensor(rate, dtype=torch.float64))
        self.register_buffer("total", torch.zeros((), dtype=torch.float64))
        self.register_buffer("best", torch.tensor(1e9, dtype=torch.float64))
        self.register_buffer("waited", torch.zeros((), dtype=torch.int64))

    def step(self, loss: torch.Tensor) -> None:
        """Adds one step's loss; at the end of an epoch, reduces the rate if the mean loss has stopped falling."""
        self.total += loss.double()
        if int(self.steps) % self.EPOCH:
            return
        mean, self.total = self.total / self.EPOCH, torch.zeros_like(self.total)
        if mean < self.best:
            self.best, self.waited = mean, torch.zeros_like(self.waited)
        elif int(self.waited) + 1 >= self.PATIENCE:
            self.rate, self.waited = (self.rate * self.FACTOR).clamp(min=self.MIN_LR), torch.zeros_like(self.waited)
        else:
            self.waited += 1
