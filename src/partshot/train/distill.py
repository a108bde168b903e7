"""Distillation with consistency: from a few labels, a teacher's soft labels and many plain images to a student.

One game of three sources. The labeled shots, or in part or whole what a generator drew and a teacher labeled, stand
in every batch, from the first to the last. A few-shot teacher's soft labels on the unlabeled images start the
student off (ReGAN's distillation). From there, consistency carries it further than any teacher: the student's own
running average looks at the plain image, and the student must say the same, moved alike, of a strongly moved and
recolored one wherever the ema is sure (mean teacher, Tarvainen & Valpola 2017, with FixMatch's confidence, Sohn et
al. 2020). Leave sources out and the same game is a supervised network, a plain mean teacher, or a plain distillation.
Knows networks by images in, logits out, and that some have an encoder; its settings are distill_recipe.py's.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
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
from partshot.train.distill_recipe import Consistency, Distill
from partshot.train.fit_head import class_weights, pixel_loss

HALVED_BY = 64
"""Sides that this divides have a coarse start: its half is a side that every student takes. At 16 px the deepest maps
are one pixel, whose bf16 gradients oneDNN gets wrong now and then (NaN)."""

# Unlabeled images on which two models are compared, and how many at a time.
_COMPARED, _TOGETHER = 64, 8


class Batch(NamedTuple):
    """shots, labels: changed copies of labeled images, ids with 255 = ignore. strong: changed views of unlabeled
    ones. For them either `soft`, the teacher's probabilities moved alike, all zero where nothing is known; or `plain`,
    the images unmoved, with `grid` and `flipped`, how they were moved, and the reader's ids where it is asked."""

    shots: torch.Tensor
    labels: torch.Tensor
    strong: torch.Tensor | None = None
    soft: torch.Tensor | None = None
    plain: torch.Tensor | None = None
    grid: torch.Tensor | None = None
    flipped: torch.Tensor | None = None
    second: torch.Tensor | None = None


class Distillation:
    """The game (see partshot.objective).

    student: float [b, 3, s, s] in [-1, 1] -> logits [b, k, s, s]. shots, labels: the labeled images at the recipe's
    size, uint8 [n, s, s, 3] and ids [n, s, s]. images: unlabeled ones, uint8 [m, s, s, 3]; None trains on the shots
    alone. soft: the few-shot teacher's labels of `images`; None starts without a teacher. drawn: images and ids, as
    `shots` and `labels`, that a teacher's generator drew and the teacher labeled: they take some of the shots' places.
    reader: a frozen encoder's labels of images[::read_every], for consistency that asks whether both agree.
    """

    def __init__(
        self,
        student: nn.Module,
        shots: UInt8[torch.Tensor, "n s s 3"],
        labels: Int[torch.Tensor, "n s s"],
        mirrored_ids: list[int],
        recipe: Distill,
        images: UInt8[torch.Tensor, "m s s 3"] | None = None,
        soft: SoftLabels | None = None,
        drawn: tuple[UInt8[torch.Tensor, "d s s 3"], UInt8[torch.Tensor, "d s s"]] | None = None,
        reader: SoftLabels | None = None,
        read_every: int = 1,
    ):
        if recipe.frozen_stride and isinstance(student, LightUNet):
            student.freeze_up_to(recipe.frozen_stride)
        ema = copy.deepcopy(student).requires_grad_(False)
        self.recipe, self.mirrored_ids = recipe, mirrored_ids
        self.shots, self.labels, self.images, self.soft, self.drawn = shots, labels.long(), images, soft, drawn
        self.weights = class_weights(self.labels, len(mirrored_ids), recipe.class_power)
        # Classes that no shot shows weigh nothing and are left as they are.
        self.lean = torch.where(self.weights > 0, self.weights, 1).log()
        self.optimizer = torch.optim.AdamW(
            _groups(student, recipe), recipe.lr, weight_decay=recipe.weight_decay, fused=True
        )
        self.clock = Clock(recipe.lr)
        self.balance = Balance(self.labels, len(mirrored_ids))
        self.modules = {"student": student, "ema": ema, "clock": self.clock, "balance": self.balance}
        if recipe.consistency is not None and recipe.consistency.flexmatch:
            self.modules["limits"] = Limits(len(mirrored_ids), recipe.consistency)
        self.reader, self.read_every = reader, read_every
        if reader is not None:
            self.modules["agreement"] = Agreement()
        self.progress = 0.0
        self.last_loss = torch.zeros(())

    @property
    def device(self) -> torch.device:
        """Where the student is, and where images are changed."""
        return next(self.modules["student"].parameters()).device

    def phases(self) -> Sequence[Phase]:
        """One: the student's."""
        return [Phase("loss", self.optimizer, self.loss, clip=5.0)]

    def prepare(self, progress: float) -> None:
        """The learning rate of the moment; and, where consistency begins, whether the reader and the average agree."""
        self.progress = progress
        if self.reader is not None and progress >= self.recipe.consistency.start:
            self.modules["agreement"].measure(self._overlap)
        if self.recipe.schedule == "cosine":
            # A twentieth of the run warms up: BatchNorm's first averages are those of noise.
            rate = self.recipe.lr * min(1.0, (progress + 1e-3) / 0.05) * 0.5 * (1 + math.cos(math.pi * progress))
        else:
            rate = float(self.clock.rate)
        for group in self.optimizer.param_groups:
            # Optimizers of older checkpoints name no share.
            group["lr"] = rate * group.get("share", 1.0)

    def batch(self, rng: torch.Generator, images: int) -> Batch:
        """`images` shots, and other images while there is something to learn from them."""
        coarse = self.progress < self.recipe.low_resolution and self.recipe.size % HALVED_BY == 0
        size = self.recipe.size // 2 if coarse else self.recipe.size
        chosen = torch.randint(len(self.shots), (images,), generator=rng)
        shots, labels = self._read(self.shots, chosen, size), self.labels[chosen].to(self.device)
        if self.drawn is not None:
            others = torch.randint(len(self.drawn[0]), (round(images * self.recipe.drawn),), generator=rng)
            shots[: len(others)] = self._read(self.drawn[0], others, size)
            labels[: len(others)] = self.drawn[1][others].long().to(self.device)
        if size != self.recipe.size:
            # Any of the four pixels that became one: always the same would shift all labels by a quarter pixel.
            down, right = torch.randint(2, (2,), generator=rng).tolist()
            labels = labels[:, down::2, right::2]
        if self.images is not None and self.recipe.color_transfer:
            lenders = torch.randint(len(self.images), (images,), generator=rng)
            shots = transfer_colors(shots, self._read(self.images, lenders, size), self.recipe.color_transfer, rng)
        shots, labels = augment(shots, labels, self.recipe.augment, rng, self.mirrored_ids)
        if self.recipe.mosaic is not None:
            shots, labels = mosaic(shots, labels, self.recipe.mosaic, rng)
        if self._source() is None:
            return Batch(shots, labels)
        # As many of them per shot as the recipe says, on every one of several devices.
        others = max(1, round(images * self.recipe.unlabeled / self.recipe.batch))
        return Batch(shots, labels, **self._views(rng, others, size))

    def loss(self, batch: Batch) -> Float[torch.Tensor, ""]:
        """The labeled shots' cross-entropy, class by class weighed, plus what the unlabeled images ask."""
        loss = self._loss(batch)
        self.last_loss = loss.detach()
        return loss

    def _loss(self, batch: Batch) -> torch.Tensor:
        student = self.modules["student"]
        if batch.strong is None:
            return pixel_loss(student(batch.shots), batch.labels, self.weights)
        logits = student(torch.cat([batch.shots, batch.strong]))
        known, guessed = logits[: len(batch.shots)], logits[len(batch.shots) :].float()
        loss = pixel_loss(known, batch.labels, self.weights)
        if batch.soft is not None:
            return loss + self._teachers_say() * soft_loss(guessed, batch.soft)
        target = self._opinion(batch)
        # Over all pixels, the unsure ones too, so that few opinions weigh little.
        guessed = guessed - self._lean(guessed)
        told = F.cross_entropy(guessed, target, ignore_index=IGNORE, reduction="sum") / target.numel()
        return loss + self.recipe.consistency.weight * told

    def finish(self, progress: float) -> Mapping[str, float]:
        """The running average takes a step; young averages forget faster."""
        self.clock.steps += 1
        n = int(self.clock.steps)
        keep = min(self.recipe.ema_decay, (1 + n) / (10 + n))
        with torch.no_grad():
            student, ema = self.modules["student"].state_dict(), self.modules["ema"].state_dict()
            for name, value in ema.items():
                if value.dtype.is_floating_point:
                    value.lerp_(student[name], 1 - keep)
                else:
                    value.copy_(student[name])
        if self.recipe.schedule == "plateau":
            self.clock.watch(self.last_loss)
        return {"lr": self.optimizer.param_groups[0]["lr"]}

    def trained(self) -> dict[str, torch.Tensor]:
        """The running average's weights: they are better than the student's own."""
        return self.modules["ema"].state_dict()

    def _source(self) -> Literal["soft", "ema"] | None:
        """Who labels the unlabeled images at this moment of the run."""
        consistency = self.recipe.consistency
        if self.images is None or not self.recipe.unlabeled:
            return None
        if self.soft is not None and (consistency is None or self.progress < consistency.teacher):
            return "soft"
        return "ema" if consistency is not None and self.progress >= consistency.start else None

    def _teachers_say(self) -> float:
        """Weight of the few-shot teacher: the same all through in a plain distillation, else fading."""
        consistency = self.recipe.consistency
        return 1.0 if consistency is None else 1 - self.progress / consistency.teacher

    def _views(self, rng: torch.Generator, many: int, size: int) -> dict[str, torch.Tensor]:
        """What a batch holds of unlabeled images."""
        asked = self.reader is not None and float(self.modules["agreement"].overlap) >= self.recipe.consistency.agree
        read = torch.randint(len(self.reader if asked else self.images), (many,), generator=rng)
        chosen = read * self.read_every if asked else read
        plain = self._read(self.images, chosen, size)
        grid, flipped = warp_grid(many, (size, size), self.recipe.views, rng, self.device)
        moved = F.grid_sample(plain, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
        strong = photometric(moved, self.recipe.views, rng)
        if self._source() == "soft":
            soft = warp_soft_labels(self.soft.read(chosen, size).to(self.device), grid, flipped, self.mirrored_ids)
            return {"strong": strong, "soft": soft}
        views = {"strong": strong, "plain": plain, "grid": grid, "flipped": flipped}
        if asked:
            views["second"] = self.reader.read(read, size).argmax(1).to(self.device)
        return views

    def _overlap(self) -> float:
        """Mean IoU of the reader's masks and the average's, on some images."""
        ema, counts = self.modules["ema"].eval(), 0
        chosen = torch.arange(0, len(self.reader), max(1, len(self.reader) // _COMPARED))[:_COMPARED]
        for some in chosen.split(_TOGETHER):
            with torch.no_grad():
                logits = ema(self._read(self.images, some * self.read_every, self.recipe.size)).float()
            ours, theirs = (logits - self._lean(logits)).argmax(1).cpu(), self.reader.read(some, logits.shape[2])
            counts = counts + confusion(theirs.argmax(1).byte().numpy(), ours.byte().numpy(), len(self.mirrored_ids))
        return mean_iou(counts, absent="nan")

    def _opinion(self, batch: Batch) -> torch.Tensor:
        """The running average's ids for the strong views, 255 where it is not sure.

        It looks at the images as they are, where it errs least, and what it says is moved as the student's view was.
        """
        ema = self.modules["ema"].eval()
        with torch.no_grad():
            logits = ema(batch.plain).float()
            likely = self.balance((logits - self._lean(logits)).softmax(1))
            confidence, ids = likely.max(1)
            limits = self.modules.get("limits")
            limit = self.recipe.consistency.confidence if limits is None else limits(confidence, ids)
            sure = confidence > limit
            if batch.second is not None:
                sure &= batch.second == ids
            ids = torch.where(sure, ids, IGNORE)
        return warp_labels(ids, batch.grid, batch.flipped, self.mirrored_ids)

    def _lean(self, logits: torch.Tensor) -> torch.Tensor:
        """By how much class weights raise each class's logits over its log posterior, [k, 1, 1].

        Opinions are formed and followed without it (logit adjustment, Menon et al. 2021). With it, the average calls
        too much a part, the student learns that, and the longer the run, the more the parts outgrow themselves.
        """
        return self.lean.to(logits.device)[:, None, None]

    def _read(self, stack: torch.Tensor, chosen: torch.Tensor, size: int) -> torch.Tensor:
        """Images of a stack as [b, 3, size, size] in [-1, 1]; half size by averaging."""
        x = stack[chosen].to(self.device).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
        return x if x.shape[2] == size else F.avg_pool2d(x, x.shape[2] // size)


def _groups(student: nn.Module, recipe: Distill) -> list[dict]:
    """What the optimizer steps: all that is trained, the encoder at a rate of its own where the recipe has one."""
    trained = [(name, param) for name, param in student.named_parameters() if param.requires_grad]
    apart = [param for name, param in trained if name.startswith("encoder.") and recipe.encoder_lr_factor != 1]
    ids = {id(param) for param in apart}
    rest = [param for _, param in trained if id(param) not in ids]
    groups = [{"params": rest, "share": 1.0}, {"params": apart, "share": recipe.encoder_lr_factor}]
    return [group for group in groups if group["params"]]


def soft_loss(
    logits: Float[torch.Tensor, "b k h w"], target: Float[torch.Tensor, "b k h w"]
) -> Float[torch.Tensor, ""]:
    """Soft-target cross-entropy over pixels whose target is known.

    Pixels moved in from outside the image have all-zero targets; they are masked out, since a plain mean would
    dilute the loss by their share (method of ReGAN's auto-shot training).
    """
    share = target.sum(1)
    losses = -(target * logits.float().log_softmax(1)).sum(1)
    return losses.sum() / share.sum().clamp(min=1)


class Balance(nn.Module):
    """Keeps the classes' shares of all opinions near their shares of the shots' pixels.

    Without it, a class that the average underrates is called less and less until it is gone, which is the rule with one
    label (distribution alignment, Berthelot et al. 2020, here over pixels). Classes that no shot shows are left alone.
    """

    MEMORY, FLOOR = 0.98, 1e-5

    def __init__(self, labels: Int[torch.Tensor, "n h w"], classes: int):
        super().__init__()
        counts = torch.bincount(labels[labels != IGNORE], minlength=classes).float()
        self.register_buffer("wanted", counts / counts.sum())
        self.register_buffer("heard", self.wanted.clone())

    def forward(self, likely: Float[torch.Tensor, "b k h w"]) -> Float[torch.Tensor, "b k h w"]:
        """Probabilities brought nearer to balance; remembers how they were before."""
        self.heard.lerp_(likely.mean((0, 2, 3)), 1 - self.MEMORY)
        ratio = torch.where(self.wanted > 0, (self.wanted + self.FLOOR) / (self.heard + self.FLOOR), 1)
        balanced = likely * ratio[:, None, None]
        return balanced / balanced.sum(1, keepdim=True)


class Limits(nn.Module):
    """From which confidence a pseudo-label counts: a limit for each class, lower for those that are never sure.

    Source: FlexMatch (Zhang et al. 2021), with a running mean of each class's confidence instead of its count, as
    FreeMatch (Wang et al. 2023) has it.
    """

    MEMORY = 0.95

    def __init__(self, classes: int, consistency: Consistency):
        super().__init__()
        self.highest, self.power = consistency.confidence, consistency.flexmatch
        self.register_buffer("usual", torch.ones(classes))

    def forward(
        self, confidence: Float[torch.Tensor, "b h w"], ids: Int[torch.Tensor, "b h w"]
    ) -> Float[torch.Tensor, "b h w"]:
        """The limit of each pixel's class, 0..1; remembers how confident each class was."""
        flat, counts = ids.flatten(), torch.bincount(ids.flatten(), minlength=len(self.usual))
        means = torch.bincount(flat, confidence.flatten().float(), len(self.usual)) / counts.clamp(min=1)
        self.usual.copy_(torch.where(counts > 0, self.usual.lerp(means.to(self.usual), 1 - self.MEMORY), self.usual))
        return (self.highest * (self.usual / self.usual.max()) ** self.power)[ids]


class Agreement(nn.Module):
    """How much two models' masks of unlabeled images overlap, mean IoU 0..1: measured once, kept for a restart."""

    def __init__(self):
        super().__init__()
        self.register_buffer("overlap", torch.tensor(-1.0))

    def measure(self, overlap: Callable[[], float]) -> None:
        """Measures it, if nobody has."""
        if float(self.overlap) < 0:
            self.overlap.fill_(overlap())


class Clock(nn.Module):
    """What of a schedule must survive a restart: steps taken, and how long the loss has not fallen."""

    # ReGAN: patience 20 epochs, a tenth, not below 1e-6. An epoch of this project is 200 steps.
    PATIENCE, FACTOR, FLOOR, EPOCH = 20, 0.1, 1e-6, 200

    def __init__(self, rate: float):
        super().__init__()
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("rate", torch.tensor(rate, dtype=torch.float64))
        self.register_buffer("total", torch.zeros((), dtype=torch.float64))
        self.register_buffer("best", torch.tensor(1e9, dtype=torch.float64))
        self.register_buffer("waited", torch.zeros((), dtype=torch.int64))

    def watch(self, loss: torch.Tensor) -> None:
        """Counts one step's loss; at an epoch's end, lowers the rate if its mean has not fallen for too long."""
        self.total += loss.double()
        if int(self.steps) % self.EPOCH:
            return
        mean, self.total = self.total / self.EPOCH, torch.zeros_like(self.total)
        if mean < self.best:
            self.best, self.waited = mean, torch.zeros_like(self.waited)
        elif int(self.waited) + 1 >= self.PATIENCE:
            self.rate, self.waited = (self.rate * self.FACTOR).clamp(min=self.FLOOR), torch.zeros_like(self.waited)
        else:
            self.waited += 1
