"""The named tables of `partshot bench`: the question that each answers and the methods that it compares.

Most published comparisons of GANORCON and ReGAN have one. methods.py builds the rows.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from partshot.benchmark.datasets import TOYS, toy_images
from partshot.benchmark.methods import Entry, MethodBuilder
from partshot.data.shots import Shots
from partshot.errors import BadRecipe
from partshot.parts import IGNORE
from partshot.represent.choose import POSITION, open_representation
from partshot.tasks.sample import sample

PRETEXTS = ("simsiam", "moco")
HEADS = ("linear", "mlp-1", "mlp-2", "mlp-ganorcon", "cnn-s", "cnn-m", "cnn-l", "conv", "ensemble")
LAYERS = ("coarse", "middle", "fine", "regan", "all")
STEPS = (10, 30, 100, 300)
SHIFTS = (0, 10, 20, 30)
LABELS = (1, 3, 10, 30, 100, 300)
# Number of generated images for pretraining, and their first seed; no other code uses these seeds.
_GENERATED, _GENERATED_SEED = 1000, 4_000_000


@dataclass(frozen=True)
class Table:
    """A named table.

    what: the question, used as title. source: the publication with the same comparison. rows: builds the rows. over:
    the x axis of the plot; "labels" is the number of labels.
    """

    what: str
    source: str
    rows: Callable[[MethodBuilder], list[Entry]]
    over: str = "labels"


def representations(build: MethodBuilder) -> list[Entry]:
    """All representations with the same head, and methods without a representation."""
    rows = [build.auto("auto"), build.several("several", PRETEXTS)]
    rows += [build.encoder(pretext, pretext) for pretext in PRETEXTS]
    rows += [build.inverted("generator, inverted")] if build.generator_weights else []
    rows += [build.head(name, partial(open_representation, name + POSITION)) for name in ("random", "pixels")]
    rows += [build.forest(), build.supervised()]
    # Pretraining on another toy's exact masks is meaningful for toys only, not for real images.
    rows += [build.transfer()] if build.dataset.toy else []
    best = PRETEXTS[-1]
    student = f"unet-{build.encoder_recipe(best).net}"
    return [*rows, build.mean_teacher(), build.initialized(student), build.initialized(student, best)]


def heads(build: MethodBuilder) -> list[Entry]:
    """All heads on one encoder."""
    return [build.encoder(head, PRETEXTS[0], head=head) for head in HEADS]


def layers(build: MethodBuilder) -> list[Entry]:
    """One head on several groups of generator layers."""
    _need_generator(build, "layers")
    return [build.inverted(name, name) for name in LAYERS]


def moco_vs_simsiam(build: MethodBuilder) -> list[Entry]:
    """Both contrastive encoders with two heads each, and the students distilled from them."""
    pairs = [(pretext, head) for pretext in PRETEXTS for head in ("mlp-ganorcon", "conv")]
    return [row for pretext, head in pairs for row in build.with_student(f"{pretext}, {head}", pretext, head)]


def pretraining(build: MethodBuilder) -> list[Entry]:
    """A contrastive encoder pretrained on the dataset's images, on other toys, and not at all."""
    rows = [build.encoder("moco, its own images", "moco")]
    for name in TOYS:
        if not (build.dataset.toy and name == build.dataset.name):
            rows.append(build.encoder(f"moco, {name}", "moco", partial(toy_images, name, build.work, build.quiet)))
    return [*rows, build.head("random initialization", partial(open_representation, "random" + POSITION))]


def gan_images(build: MethodBuilder) -> list[Entry]:
    """The same encoder, pretrained on real images and on generated images."""
    _need_generator(build, "gan-images")
    folder = build.work / "images" / f"generated-{build.generator_weights}"
    images = partial(sample, build.generator, folder, _GENERATED, _GENERATED_SEED, 1.0, build.quiet)
    return [
        *(build.encoder(f"{pretext}, real", pretext) for pretext in PRETEXTS),
        *(
            build.encoder(f"{pretext}, generated", pretext, images)._replace(source=build.generator_weights)
            for pretext in PRETEXTS
        ),
    ]


def inversion(build: MethodBuilder) -> list[Entry]:
    """Accuracy with inversion of different length."""
    _need_generator(build, "inversion")
    rows = [build.inverted(f"{steps} steps", steps=steps) for steps in STEPS]
    most = (max(build.recipe.ks),)
    return [row._replace(ks=most, line="inverted", at=float(s)) for row, s in zip(rows, STEPS, strict=True)]


def shift(build: MethodBuilder) -> list[Entry]:
    """Test images shifted to the left, which a generator trained on centered objects cannot reconstruct."""
    rows = [build.inverted("generator, inverted")] if build.generator_weights else []
    rows += [build.encoder(pretext, pretext) for pretext in PRETEXTS[-1:]]
    rows += [build.mean_teacher()]
    most = (max(build.recipe.ks),)
    return [
        row._replace(
            name=f"{row.name}, {percent} %",
            ks=most,
            test=shifted(build.dataset.test, percent / 100),
            line=row.name,
            at=float(percent),
        )
        for row in rows
        for percent in SHIFTS
    ]


def supervised(build: MethodBuilder) -> list[Entry]:
    """A supervised network with many labels, against few labels with unlabeled images."""
    splits = build.dataset.splits
    there = tuple(k for k in LABELS if k <= len(build.dataset.pool)) if splits is None else tuple(sorted(splits))
    return [build.supervised()._replace(ks=there), build.mean_teacher()]


TABLES: Mapping[str, Table] = {
    "representations": Table("Which representation is best with few labels?", "GANORCON, table 1", representations),
    "heads": Table("How large should the few-shot head be?", "ReGAN, supplement", heads),
    "layers": Table("Which generator layers are best for part segmentation?", "ReGAN, table 7", layers),
    "moco-vs-simsiam": Table("Which contrastive pretext task, and which head?", "GANORCON, table 4", moco_vs_simsiam),
    "pretraining": Table("Must the pretraining images be of the same domain?", "GANORCON, table 5", pretraining),
    "gan-images": Table("Are generated images as good for pretraining as real ones?", "GANORCON, table 6", gan_images),
    "inversion": Table("How many steps does inversion need?", "GANORCON, table 3", inversion, "steps"),
    "shift": Table("Which methods are robust to shifts?", "GANORCON, figure 2", shift, "shift in % of the width"),
    "supervised": Table("How many labels does a supervised network need instead?", "ReGAN, figure 6", supervised),
}


def shifted(shots: Shots, share: float) -> Shots:
    """Images shifted to the left by a share of their width, as in GANORCON; the right edge is repeated.

    Masks are shifted likewise; pixels from outside the image have the label 255.
    """
    images, labels = [], []
    for image, mask in zip(shots.images, shots.labels, strict=True):
        by = round(share * image.shape[1])
        images.append(np.pad(image[:, by:], ((0, 0), (0, by), (0, 0)), mode="edge"))
        labels.append(np.pad(mask[:, by:], ((0, 0), (0, by)), constant_values=IGNORE))
    return replace(shots, images=tuple(images), labels=tuple(labels))


def _need_generator(build: MethodBuilder, table: str) -> None:
    if not build.generator_weights:
        raise BadRecipe(
            f"table '{table}' on {build.dataset.name} needs a generator of such images; train one with partshot "
            "pretrain stylegan2 and give its folder as --generator"
        )
