"""The named tables of `partshot bench`: which contenders stand in each, and what the table is after.

Most published comparisons of GANORCON and ReGAN have one. Knows rows by name; how a row is made is contenders.py's
affair.
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
# Generated images to learn from, of seeds that nothing else splits.
_DRAWN, _DRAWN_SEED = 1000, 4_000_000


@dataclass(frozen=True)
class Table:
    """what: the question, for the page. source: where it was asked. rows: the contenders of a Field.

    over: what the plot's lines run over; "labels" takes the numbers of labels.
    """

    what: str
    source: str
    rows: Callable[[MethodBuilder], list[Entry]]
    over: str = "labels"


def representations(every: MethodBuilder) -> list[Entry]:
    """Everything that reads images, each under the same head, beside what needs no representation."""
    rows = [every.auto("auto"), every.several("several", PRETEXTS)]
    rows += [every.encoder(pretext, pretext) for pretext in PRETEXTS]
    rows += [every.inverted("generator, inverted")] if every.drawn_by else []
    rows += [every.head(name, partial(open_representation, name + POSITION)) for name in ("random", "pixels")]
    rows += [every.forest(), every.supervised()]
    # Another toy's exact masks are a step towards a toy, but none towards real images.
    rows += [every.transfer()] if every.field.toy else []
    best = PRETEXTS[-1]
    student = f"unet-{every.encoder_recipe(best).net}"
    return [*rows, every.mean_teacher(), every.started(student), every.started(student, best)]


def heads(every: MethodBuilder) -> list[Entry]:
    """Every head on one encoder."""
    return [every.encoder(head, PRETEXTS[0], head=head) for head in HEADS]


def layers(every: MethodBuilder) -> list[Entry]:
    """One head on groups of a generator's layers."""
    _need_generator(every, "layers")
    return [every.inverted(name, name) for name in LAYERS]


def moco_vs_simsiam(every: MethodBuilder) -> list[Entry]:
    """Both contrastive encoders under two heads, and what their students make of it."""
    pairs = [(pretext, head) for pretext in PRETEXTS for head in ("mlp-ganorcon", "conv")]
    return [row for pretext, head in pairs for row in every.with_student(f"{pretext}, {head}", pretext, head)]


def pretraining(every: MethodBuilder) -> list[Entry]:
    """One contrastive encoder that learned from the Field's own images, from other things', and from nothing."""
    rows = [every.encoder("moco, its own images", "moco")]
    for name in TOYS:
        if not (every.field.toy and name == every.field.name):
            rows.append(every.encoder(f"moco, {name}", "moco", partial(toy_images, name, every.work, every.quiet)))
    return [*rows, every.head("random weights", partial(open_representation, "random" + POSITION))]


def gan_images(every: MethodBuilder) -> list[Entry]:
    """The same encoder, trained on real images and on what a generator generates."""
    _need_generator(every, "gan-images")
    drawn = every.work / "images" / f"drawn-{every.drawn_by}"
    draw = partial(sample, every.generator, drawn, _DRAWN, _DRAWN_SEED, 1.0, every.quiet)
    return [
        *(every.encoder(f"{pretext}, real", pretext) for pretext in PRETEXTS),
        *(
            every.encoder(f"{pretext}, generated", pretext, draw)._replace(source=every.drawn_by)
            for pretext in PRETEXTS
        ),
    ]


def inversion(every: MethodBuilder) -> list[Entry]:
    """How long an image must be searched for before its features are any good."""
    _need_generator(every, "inversion")
    rows = [every.inverted(f"{steps} steps", steps=steps) for steps in STEPS]
    most = (max(every.recipe.ks),)
    return [row._replace(ks=most, line="inverted", at=float(s)) for row, s in zip(rows, STEPS, strict=True)]


def shift(every: MethodBuilder) -> list[Entry]:
    """Images moved sideways, which a generator of centerd things cannot draw."""
    rows = [every.inverted("generator, inverted")] if every.drawn_by else []
    rows += [every.encoder(pretext, pretext) for pretext in PRETEXTS[-1:]]
    rows += [every.mean_teacher()]
    most = (max(every.recipe.ks),)
    return [
        row._replace(
            name=f"{row.name}, {percent} %",
            ks=most,
            test=shifted(every.field.test, percent / 100),
            line=row.name,
            at=float(percent),
        )
        for row in rows
        for percent in SHIFTS
    ]


def supervised(every: MethodBuilder) -> list[Entry]:
    """How many labels a supervised network needs to do what few labels do with plain images beside them."""
    splits = every.field.splits
    there = tuple(k for k in LABELS if k <= len(every.field.pool)) if splits is None else tuple(sorted(splits))
    return [every.supervised()._replace(ks=there), every.mean_teacher()]


TABLES: Mapping[str, Table] = {
    "representations": Table("Which way of reading images is worth most?", "GANORCON, table 1", representations),
    "heads": Table("How large should the few-shot head be?", "ReGAN, supplement", heads),
    "layers": Table("Which of a generator's layers know the parts?", "ReGAN, table 7", layers),
    "moco-vs-simsiam": Table("Which contrastive pretext, which head?", "GANORCON, table 4", moco_vs_simsiam),
    "pretraining": Table("Must the encoder know the things?", "GANORCON, table 5", pretraining),
    "gan-images": Table("Are generated images as good to learn from?", "GANORCON, table 6", gan_images),
    "inversion": Table("How long must inversion search?", "GANORCON, table 3", inversion, "steps"),
    "shift": Table("Who can read images that are moved?", "GANORCON, figure 2", shift, "shift in % of the width"),
    "supervised": Table("How many labels is the rest worth?", "ReGAN, figure 6", supervised),
}


def shifted(shots: Shots, share: float) -> Shots:
    """Images moved to the left by a share of their width, as GANORCON moves them; the right edge is repeated.

    Masks move along; what was not in the image is 255.
    """
    images, labels = [], []
    for image, mask in zip(shots.images, shots.labels, strict=True):
        by = round(share * image.shape[1])
        images.append(np.pad(image[:, by:], ((0, 0), (0, by), (0, 0)), mode="edge"))
        labels.append(np.pad(mask[:, by:], ((0, 0), (0, by)), constant_values=IGNORE))
    return replace(shots, images=tuple(images), labels=tuple(labels))


def _need_generator(every: MethodBuilder, table: str) -> None:
    if not every.drawn_by:
        raise BadRecipe(
            f"table '{table}' on {every.field.name} needs a generator of such images; run partshot pretrain "
            "stylegan2 on them and give its folder as --generator"
        )
