"""Settings of distillation with consistency, and published ones as presets.

train/distill.py implements them. LOG.md has the effect of each.
"""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from partshot.data.augment import PRESETS as AUGMENTS
from partshot.data.augment import Augment
from partshot.data.mosaic import Mosaic
from partshot.recipe import Recipe


class Consistency(Recipe):
    """How the student learns from pseudo-labels of its own EMA (Mean Teacher with FixMatch's threshold).

    weight: of this loss, beside that of the labeled images. confidence: pixels of lower confidence are ignored.
    start: fraction of the training after which consistency begins; a worse EMA teaches its own mistakes.
    teacher: fraction of the training in which the few-shot teacher's soft labels are used, with falling weight; at most
    `start`. Between the two only labeled images are used, which corrects the teacher's mistakes.
    views: strong augmentation of the unlabeled images; None takes that of the labeled images.
    flexmatch: exponent by which a class's threshold falls with its mean confidence, relative to the most confident
    class (FlexMatch, Zhang et al. 2021); 0 has one threshold for all classes. Without it, small and rare parts are
    never pseudo-labeled, and long trainings lose them.
    min_agreement: with one or two labeled images, a head on a frozen pretrained encoder labels the unlabeled images,
    too. If its masks and the EMA's have at least this mean IoU at `start`, pixels are pseudo-labeled only where both
    agree (co-training, Blum & Mitchell 1998). If not, one of them is too weak, and the head is not used. 0 fits no
    such head.
    """

    later: ClassVar = {"flexmatch": 0.0, "min_agreement": 0.0}
    renamed: ClassVar = {"flexible": "flexmatch", "agree": "min_agreement"}

    weight: float = Field(default=1.0, ge=0)
    confidence: float = Field(default=0.8, ge=0, lt=1)
    start: float = Field(default=0.4, ge=0, le=1)
    teacher: float = Field(default=0.1, ge=0, le=1)
    views: Augment | None = None
    flexmatch: float = Field(default=0.0, ge=0)
    min_agreement: float = Field(default=0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _in_order(self):
        if self.teacher > self.start:
            raise ValueError(f"teacher ({self.teacher:g}) is after the start ({self.start:g}); set it to start or less")
        return self


class Distill(Recipe):
    """How a student is trained.

    Images and optimizer:
    size: side of the square images, a multiple of 32. kimg: thousands of labeled images seen, augmented anew each time.
    batch: labeled images per step. unlabeled: unlabeled images per step, in addition to `batch`. generated: fraction of
    `batch` that generated images with a teacher's labels take, if there are any. lr, weight_decay: AdamW's.
    encoder_lr_factor: factor on lr for a pretrained encoder (nets/light_unet.py). frozen_stride: layers of such an
    encoder up to its level of this stride are frozen; 0 trains all. schedule: "cosine" to zero after a short warm-up,
    "constant", or ReGAN's "plateau": a tenth when the loss stops falling. class_power: the loss weight of a class is
    (its number of pixels)^-class_power. ema_decay: of the EMA of the weights, per step.

    Augmentation:
    color_transfer: probability that a labeled image takes the colors of an unlabeled one. mosaic: labeled images pasted
    at random places, scales and rotations, for images that show many objects; the self-training round does without.
    augment: of the labeled images and, unless consistency has `views`, of the student's view of unlabeled images.

    Phases:
    low_resolution: fraction of the training at half the size, where a step costs a quarter; only if 64 divides size.
    self_training: length of the self-training round relative to kimg; 0 has none. With a generator, a student is first
    trained at half the size. It helps the teacher to label the generated images, and the final student starts from its
    weights. consistency: None leaves it out.

    Prediction:
    flip_tta: the student predicts every image and its horizontal flip and returns the mean, in twice the time.
    decision_temperature: above 0, the student predicts each class from the probability at which its expected overlap is
    largest (ops/decision.py), estimated on unlabeled images at this temperature; 0 predicts the most probable class.
    """

    later: ClassVar = {
        "self_training": 0.0,
        "flip_tta": False,
        "mosaic": None,
        "encoder_lr_factor": 1.0,
        "frozen_stride": 0,
        "decision_temperature": 0.0,
    }
    renamed: ClassVar = {
        "unlabelled": "unlabeled",
        "drawn": "generated",
        "borrow": "color_transfer",
        "encoder_rate": "encoder_lr_factor",
        "fixed_stride": "frozen_stride",
        "average": "ema_decay",
        "coarse": "low_resolution",
        "rehearsal": "self_training",
        "mirrored": "flip_tta",
    }

    size: int = Field(default=128, ge=32, multiple_of=32)
    kimg: float = Field(default=18, gt=0)
    batch: int = Field(default=8, ge=1)
    unlabeled: int = Field(default=16, ge=0)
    generated: float = Field(default=0.5, ge=0, le=1)
    color_transfer: float = Field(default=0.5, ge=0, le=1)
    lr: float = Field(default=3e-3, gt=0)
    weight_decay: float = Field(default=1e-2, ge=0)
    encoder_lr_factor: float = Field(default=1.0, gt=0)
    frozen_stride: int = Field(default=0, ge=0)
    schedule: Literal["cosine", "constant", "plateau"] = "cosine"
    class_power: float = Field(default=0.4, ge=0, le=1)
    ema_decay: float = Field(default=0.99, ge=0, lt=1)
    low_resolution: float = Field(default=0.5, ge=0, le=1)
    self_training: float = Field(default=0.0, ge=0)
    flip_tta: bool = False
    decision_temperature: float = Field(default=0.0, ge=0)
    mosaic: Mosaic | None = None
    augment: Augment = AUGMENTS["strong"]
    consistency: Consistency | None = Consistency()

    def one_sided(self) -> "Distill":
        """The same without horizontal flips, for objects that always face the same way."""
        changes: dict = {"augment": self.augment.changed(flip=False), "flip_tta": False}
        if self.consistency is not None and self.consistency.views is not None:
            changes["consistency"] = self.consistency.changed(views=self.consistency.views.changed(flip=False))
        return self.model_copy(update=changes)

    def self_training_round(self) -> "Distill":
        """The recipe of the self-training round: half the size, rounded to a multiple of 32."""
        half = (self.size + 32) // 64 * 32
        return self.changed(
            size=max(32, half), kimg=self.kimg * self.self_training, low_resolution=0.0, self_training=0.0, mosaic=None
        )

    @property
    def views(self) -> Augment:
        """Strong augmentation of the student's view of unlabeled images."""
        return self.augment if self.consistency is None else self.consistency.views or self.augment


# On generated images alone, at twice the size of the embedded generator, in whose images an eye is two pixels wide.
# Thousands of images need only moderate augmentation. LOG.md has the effect of each setting.
_AUTO_SHOT = Distill(
    size=128,
    kimg=18,
    batch=16,
    unlabeled=0,
    generated=1,
    color_transfer=0,
    lr=1.4e-2,
    class_power=0,
    low_resolution=0.6,
    augment=AUGMENTS["weak"].changed(scale=1.2, rotation=10, shift=0.08, warp=0.02, color=0.4, cutout=0.1),
    consistency=None,
)

PRESETS = {
    "default": Distill(),
    # ReGAN, supplement and released code: soft labels only, affine augmentation, Adam 1e-3 with decay 1e-3, batch 32,
    # a tenth of the rate on a plateau, 300 epochs of 5,000 images. All of ReGAN's images have soft labels; here every
    # batch has at least one labeled image, so it is 1 + 31.
    "regan-autoshot": Distill(
        size=512,
        color_transfer=0,
        kimg=1500 / 31,
        batch=1,
        unlabeled=31,
        lr=1e-3,
        weight_decay=1e-3,
        schedule="plateau",
        class_power=0,
        low_resolution=0,
        augment=AUGMENTS["regan-autoshot"],
        consistency=None,
    ),
    # GANORCON, section 4: DeepLabv3-ResNet101 on 10,000 images labeled by the projector, 2 epochs (5 in the code),
    # constant Adam 1e-3, batch 8, no augmentation. Its labels are hard; here they are the projector's probabilities.
    # As above, one labeled image is part of every batch: 1 + 7.
    "ganorcon": Distill(
        size=512,
        color_transfer=0,
        kimg=20 / 7,
        batch=1,
        unlabeled=7,
        lr=1e-3,
        weight_decay=0,
        schedule="constant",
        class_power=0,
        low_resolution=0,
        augment=AUGMENTS["none"],
        consistency=None,
    ),
    # A student with a pretrained encoder: fewer and larger images, and learning rates that preserve the encoder's
    # features. Rare parts have a larger loss weight and a lower confidence threshold. LOG.md, 2026-11-28, has the
    # effect of each setting.
    "pretrained": Distill(
        size=256,
        kimg=3,
        unlabeled=8,
        low_resolution=0,
        class_power=0.6,
        encoder_lr_factor=0.1,
        frozen_stride=4,
        decision_temperature=1.75,
        consistency=Consistency(flexmatch=2.0, teacher=0, min_agreement=0.7),
    ),
    # A fast student, trained on a larger student's labels of all images, which are better than its own would be.
    "compact": Distill(kimg=6, unlabeled=24, consistency=None),
    "auto-shot": _AUTO_SHOT,
    # The same with unlabeled real images, which show what generated ones lack; with a self-training round, after which
    # the labels are better than the head's; and with flip TTA. LOG.md has the effect of each.
    "auto-shot-consistent": _AUTO_SHOT.changed(
        kimg=10,
        low_resolution=0.4,
        self_training=1.0,
        flip_tta=True,
        decision_temperature=1.75,
        unlabeled=16,
        consistency=Consistency(teacher=0, views=AUGMENTS["strong"]),
    ),
    # The same for a student with a pretrained encoder: without a self-training round, better in less time.
    "auto-shot-pretrained": _AUTO_SHOT.changed(
        kimg=4,
        batch=8,
        lr=3e-3,
        class_power=0.5,
        low_resolution=0,
        flip_tta=True,
        encoder_lr_factor=0.1,
        frozen_stride=4,
        unlabeled=8,
        decision_temperature=1.5,
        consistency=Consistency(teacher=0, views=AUGMENTS["strong"]),
    ),
    # For images that show many objects at other scales and rotations, predicted in windows (predict --window), from
    # labels of single objects. With a generator, and without.
    "auto-shot-many": _AUTO_SHOT.changed(
        kimg=12,
        low_resolution=0.4,
        self_training=0.8,
        flip_tta=True,
        unlabeled=8,
        mosaic=Mosaic(),
        consistency=Consistency(teacher=0, views=AUGMENTS["strong"].changed(rotation=45, scale=2)),
    ),
    "many-objects": Distill(mosaic=Mosaic(), augment=AUGMENTS["strong"].changed(rotation=45, scale=2)),
    # Labeled images only, with the default augmentation.
    "supervised": Distill(unlabeled=0, color_transfer=0, consistency=None),
}
