"""How long a run may train, from the minutes that it is given and the pace of this machine, which is measured.

A few steps of the very training are timed before it begins. What is not training, such as export and prediction, is
timed or allowed for, and taken off first. Knows students by their training; refuses to know where images lie.
"""

import json
import math
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, median

import numpy as np

from partshot.artifact import replacing_file
from partshot.data.shots import Shots
from partshot.errors import BadRecipe
from partshot.segmenter import Student
from partshot.tasks.train_student import Training, needs_frozen_segmenter, train_student
from partshot.train.distill_recipe import Distill
from partshot.train.journal import read_journal

LEAST_KIMG = 0.5
"""A student of fewer images knows nothing; a run whose minutes allow for less takes longer than they are."""

# Seconds of loading, export and report beside what is measured.
_FIXED = 25.0
# And of a frozen encoder that labels unlabeled images, too.
_READER = 60.0
_STEPS, _WINDOW, _PREDICTED = 24, 5, 8


def refuse_minutes(minutes: float | int | None) -> None:
    """BadRecipe for minutes that are none or never end."""
    if minutes is not None and not 0 < minutes < math.inf:
        raise BadRecipe(f"minutes {minutes:g} given; more than 0 are needed, and not for ever")


def horizon(
    shots: Shots,
    recipe: Distill,
    images: np.ndarray,
    student: str,
    seconds: float | int,
    trainings: float | int,
    to_predict: int,
    read_seconds: float,
) -> float:
    """Thousands of images for the student's training, so that all that is still to come takes `seconds`.

    shots, recipe, images, student: as `tasks.distill.train_student` takes them. trainings: how many horizons are
    trained in all, with the folds of an estimate. to_predict: how many images will be predicted. read_seconds: what
    reading one takes. Warns when the time is too short for anything but LEAST_KIMG.
    """
    began = time.monotonic()
    step, look = _measured(shots, recipe, images, student)
    # Prediction reads every image again and writes its mask.
    rest = _FIXED + to_predict * (2 * read_seconds + look)
    if needs_frozen_segmenter(student, recipe, shots):
        rest += _READER
    thousand = 1000 / recipe.batch * step * trainings
    left = seconds - (time.monotonic() - began)
    kimg = (left - rest) / thousand
    if kimg < LEAST_KIMG:
        whole = (rest + LEAST_KIMG * thousand) / 60
        warnings.warn(
            f"{max(left, 0) / 60:.1f} minutes are left for training, export and prediction, which take at least "
            f"{whole:.1f} on this machine; they will take that",
            stacklevel=2,
        )
    return max(LEAST_KIMG, round(kimg, 2))


def kept(told: Path, state: str, measure: Callable[[], float]) -> float:
    """A horizon that an earlier run of the same state has in the file `told`, else one measured and written there.

    So a stopped run goes on with the training that it began, however busy the machine is by then.
    """
    if told.exists():
        before = json.loads(told.read_text(encoding="utf-8"))
        if before["state"] == state:
            return before["kimg"]
    kimg = measure()
    with replacing_file(told) as path:
        path.write_text(json.dumps({"state": state, "kimg": kimg}), encoding="utf-8")
    return kimg


def _measured(shots: Shots, recipe: Distill, images: np.ndarray, student: str) -> tuple[float, float]:
    """Seconds of a training step, as the mean over a horizon, and of the student's look at one image."""
    short = _without_reader(recipe).changed(kimg=_STEPS * recipe.batch / 1000)
    with tempfile.TemporaryDirectory() as folder:
        trained = train_student(shots, short, Path(folder), images, Training(student), quiet=True)
        ends = [line["seconds"] for line in read_journal(Path(folder) / "journal.jsonl")]
    return _usual(np.diff([0.0, *ends]).tolist()), _look(trained, images)


def _without_reader(recipe: Distill) -> Distill:
    """The same where nobody is asked whether pseudo-labels are right."""
    if recipe.consistency is None:
        return recipe
    return recipe.changed(consistency=recipe.consistency.changed(min_agreement=0.0))


def _usual(seconds: list[float]) -> float:
    """Their mean without those that are slow once: each counts as the median of those around it.

    So phases of a training that cost more than others keep their share.
    """
    reach = _WINDOW // 2
    return fmean(median(seconds[max(0, i - reach) : i + reach + 1]) for i in range(len(seconds)))


def _look(student: Student, images: np.ndarray) -> float:
    some = list(images[:_PREDICTED])
    student.predict(some)
    began = time.perf_counter()
    student.predict(some)
    return (time.perf_counter() - began) / len(some)
