"""How a student is trained: the settings of distillation with consistency, and the published ones as presets.

What is made of them stands in train/distill.py; what each is worth, in LOG.md.
"""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from partshot.data.augment import PRESETS as AUGMENTS
from partshot.data.augment import Augment
from partshot.data.mosaic import Mosaic
from partshot.recipe import Recipe


class Consistency(Recipe):
    """How the student learns from its own running average.

    weight: of the loss beside the labeled shots' own. confidence: pixels below it count nothing.
    start: share of the run before it begins, since an average that knows too little teaches its own mistakes.
    teacher: share of the run in which the few-shot teacher speaks, ever softer; at most `start`. Between the two the
    shots alone are heard, which takes back what the teacher got wrong. views: how the student's view of an unlabeled
    image is changed; None takes the shots' changes. flexmatch: exponent by which a class's limit falls with its own
    mean confidence, as a share of the surest class's (FlexMatch, Zhang et al. 2021); 0 has one limit for all. Without
    it, small and rare parts are never pseudo-labeled, and long runs lose them.
    agree: with one or two labeled images, a frozen pretrained encoder with a small head labels the unlabeled images,
    too. If its masks and the average's have at least this mean IoU at the start, a pixel is pseudo-labeled only where
    both say the same (co-training, Blum & Mitchell 1998); if not, one of them is too weak, and it is not asked again. 0
    fits none.
    """

    later: ClassVar = {"flexmatch": 0.0, "agree": 0.0}
    renamed: ClassVar = {"flexible": "flexmatch"}

    weight: float = Field(default=1.0, ge=0)
    confidence: float = Field(default=0.8, ge=0, lt=1)
    start: float = Field(default=0.4, ge=0, le=1)
    teacher: float = Field(default=0.1, ge=0, le=1)
    views: Augment | None = None
    flexmatch: float = Field(default=0.0, ge=0)
    agree: float = Field(default=0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _in_order(self):
        if self.teacher > self.start:
            raise ValueError(f"the teacher speaks until {self.teacher:g}, after the start at {self.start:g}")
        return self


class Distill(Recipe):
    """How a student is trained.

    size: side of the square images, a multiple of 32. kimg: thousands of shots seen, each changed anew. batch: shots
    per step. unlabeled: other images per step, which come on top: they never take a shot's place. drawn: share of the
    shots' places that images drawn and labeled by a generator take, where there are any. color_transfer: probability
    that a shot takes on the colors of an unlabeled image. lr, weight_decay: AdamW's. encoder_lr_factor: the encoder's
    learning rate, times lr, in students that have one (nets/light_unet.py). frozen_stride: layers of such an encoder up
    to its level of this stride are not trained; 0 trains all. schedule: "cosine" to zero after a short warm-up,
    "constant", or ReGAN's "plateau": a tenth when the loss stops falling. class_power: a class's pixels weigh (their
    number)^-class_power. ema_decay: of the exponential moving average of the weights, per step. low_resolution: share
    of the run at half size, where a step costs a quarter, if 64 divides it. self_training: of a first student, times
    kimg; 0 has none. Where a generator draws, it learns at half size, labels what is drawn together with the teacher,
    and leaves the student its weights. flip_tta: the student reads every image and its mirror image and says the mean,
    in twice the time. decision_temperature: above 0, each class is predicted from the probability at which its expected
    overlap is largest (ops/decision.py), estimated on unlabeled images at this temperature; 0 predicts the most
    probable class. mosaic: shots pasted at other places, scales and rotations, for images that show many things; a
    first student learns from single ones. augment: changes to the labeled shots and, unless consistency has views of
    its own, to the student's view of unlabeled images. consistency: None leaves it out.
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
    drawn: float = Field(default=0.5, ge=0, le=1)
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
        """The same without mirroring, for things that always face the same way."""
        changes: dict = {"augment": self.augment.changed(flip=False), "flip_tta": False}
        if self.consistency is not None and self.consistency.views is not None:
            changes["consistency"] = self.consistency.changed(views=self.consistency.views.changed(flip=False))
        return self.model_copy(update=changes)

    def self_training_round(self) -> "Distill":
        """The first student's, at half the size in whole strides of 32."""
        half = (self.size + 32) // 64 * 32
        return self.changed(
            size=max(32, half), kimg=self.kimg * self.self_training, low_resolution=0.0, self_training=0.0, mosaic=None
        )

    @property
    def views(self) -> Augment:
        """Changes to the student's view of unlabeled images."""
        return self.augment if self.consistency is None else self.consistency.views or self.augment


# From a generator's images alone, at twice the embedded one's size, in whose images an eye is two pixels wide:
# thousands need but middling changes. What each setting is worth is in LOG.md.
_AUTO_SHOT = Distill(
    size=128,
    kimg=18,
    batch=16,
    unlabeled=0,
    drawn=1,
    color_transfer=0,
    lr=1.4e-2,
    class_power=0,
    low_resolution=0.6,
    augment=AUGMENTS["weak"].changed(scale=1.2, rotation=10, shift=0.08, warp=0.02, color=0.4, cutout=0.1),
    consistency=None,
)

PRESETS = {
    "default": Distill(),
    # ReGAN, supplement and released code: soft labels only, affine changes, Adam 1e-3 with decay 1e-3, batch 32,
    # a tenth of the rate on a plateau. 300 epochs of 5,000 images. ReGAN's batches are all images with soft labels;
    # here a shot stands in every batch, so it is one beside 31.
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
    # GANORCON, section 4: DeepLabv3-ResNet101 on 10,000 images that the projector labeled, 2 epochs (5 in the code),
    # Adam 1e-3 all through, batches of 8, nothing augmented. Its labels are hard; here they are the projector's
    # probabilities. As above, a shot stands in every batch, so it is one beside 7.
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
    # A student that starts from a pretrained encoder: fewer images, larger ones, and rates that leave the encoder what
    # it knows. Rare parts weigh more and are pseudo-labeled from a lower confidence. What each setting is worth is in
    # LOG.md, 2026-11-28.
    "pretrained": Distill(
        size=256,
        kimg=3,
        unlabeled=8,
        low_resolution=0,
        class_power=0.6,
        encoder_lr_factor=0.1,
        frozen_stride=4,
        decision_temperature=1.75,
        consistency=Consistency(flexmatch=2.0, teacher=0, agree=0.7),
    ),
    # A fast student of a larger one's labels of all images, which are better than its own would be.
    "compact": Distill(kimg=6, unlabeled=24, consistency=None),
    "auto-shot": _AUTO_SHOT,
    # The same beside plain images of the kind, which show what the generator's lack, in two rounds, of which the
    # second has better labels than the head's, and read in a mirror, too. What each is worth is in LOG.md.
    "auto-shot-consistent": _AUTO_SHOT.changed(
        kimg=10,
        low_resolution=0.4,
        self_training=1.0,
        flip_tta=True,
        decision_temperature=1.75,
        unlabeled=16,
        consistency=Consistency(teacher=0, views=AUGMENTS["strong"]),
    ),
    # The same by a student that starts from a pretrained encoder: in one round, and better in less time.
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
    # For images that show many things at other scales and rotations, read in windows (predict --window): the labels
    # are of single things. With a generator, and without.
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
    # What the labels alone give, as strongly augmented as the default.
    "supervised": Distill(unlabeled=0, color_transfer=0, consistency=None),
}
