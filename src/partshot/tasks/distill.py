"""distill: from a few labeled images, unlabeled ones and a teacher, if there is one, to a student on disk."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic import Field

from partshot.artifact import inside, read_card, standing
from partshot.data.images import list_images, read_stack
from partshot.data.shots import Pair, find_pairs, load_pairs
from partshot.evenly import evenly
from partshot.recipe import Recipe
from partshot.segmenter import Segmenter
from partshot.student import Student
from partshot.tasks.teacher_rules import GENERATED, reads_generator
from partshot.tasks.train_student import MOST_IMAGES, Teachers, Training, train_student, without_flips
from partshot.tasks.trained import find_student
from partshot.train.student_choice import AUTO, choose_student, student_recipe


class DistillOptions(Recipe):
    """What `distill` does.

    student: see nets.student, or "auto" (train/student_choice.py). preset: a row of distill_recipe.PRESETS; None takes
    the student's own. size: side of the images in pixels, a multiple of 32; kimg: horizon in thousands of labeled
    images seen; each replaces the preset's. generated: images that a teacher with a generator generates and
    labels. start, snapshots: see `train_student.Training`. rgb_masks: labels are RGB images in the parts' colors.
    """

    renamed: ClassVar = {"drawn": "generated"}

    student: str = AUTO
    preset: str | None = None
    size: int | None = None
    kimg: float | None = None
    generated: int = Field(default=GENERATED, ge=1)
    seed: int = 0
    start: Path | None = None
    snapshots: int = Field(default=0, ge=0)
    rgb_masks: bool = False


_DEFAULTS = DistillOptions()


def distill(
    images: Path | str,
    labels: Path | str,
    out: Path | str,
    teacher: Path | str | None = None,
    options: DistillOptions = _DEFAULTS,
    quiet: bool = False,
    **changes,
) -> Path:
    """Trains a student on the images in `images` and the masks in `labels`; returns out/student.

    teacher: the --out of `fit` or its segmenter/, whose soft labels of the unlabeled images start the student. A
    teacher with a generator as its representation adds generated images with its labels instead (auto-shot). A
    student's folder is a teacher, too, for a more compact student. None trains on the labels alone. changes: options by
    name, as in `distill(..., kimg=3)`. Resumes a stopped training of the same settings.

    Warns when the teacher is not used, when the preset needs a generator, and when there are no unlabeled images.
    """
    options, images, labels = options.changed(**changes), Path(images), Path(labels)
    pairs = find_pairs(labels, images)
    shots = load_pairs(pairs, rgb_masks=options.rgb_masks)
    choice = choose_student(options.student, options.preset)
    recipe = student_recipe(options.size, choice.preset, shots.native)
    recipe = recipe if options.kimg is None else recipe.changed(kimg=options.kimg)
    unlabeled = unlabeled_stack(images, pairs, recipe.size)
    recipe = without_flips(recipe, unlabeled)
    few_shot = None if teacher is None else _load_teacher(Path(teacher))
    generates = few_shot is not None and reads_generator(few_shot)
    if recipe.generated == 1 and not generates:
        why = "is for a --teacher with a generator; the student is trained on the labeled images alone"
        warnings.warn(f"preset '{choice.preset}' {why}", stacklevel=1)
    if recipe.consistency is not None and len(unlabeled) <= len(shots):
        why = "contains only labeled images, so consistency adds nothing; add unlabeled images"
        warnings.warn(f"{images}: {why}", stacklevel=1)
    training = Training(choice.student, options.seed, options.start, options.snapshots)
    train_student(shots, recipe, Path(out), unlabeled, training, Teachers(few_shot, options.generated), quiet)
    return Path(out) / "student"


def unlabeled_stack(images: Path, pairs: Sequence[Pair], size: int) -> np.ndarray:
    """Images of a folder, without the pairs' masks that lie beside them, as uint8 [n, size, size, 3].

    At most MOST_IMAGES, evenly spaced. Warns of images that cannot be read.
    """
    paths = list_images(images, leave_out=[pair.mask for pair in pairs])
    stack = read_stack(evenly(paths, MOST_IMAGES), size, skip_corrupt=True)
    stack.warn_of_skipped()
    return stack.images


def _load_teacher(folder: Path) -> Segmenter | Student:
    """What `fit` wrote, or a student that `distill` or `run` wrote, which teaches a more compact one."""
    found = find_student(folder)
    if (standing(found) / "card.json").exists() and read_card(found)["kind"] == "student":
        return Student.load(found)
    return Segmenter.load(inside(folder, "segmenter"))
