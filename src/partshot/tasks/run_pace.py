"""The student's training horizon for a given run time (`run --minutes`), from the measured pace of this machine.

Some steps of the same training are timed before it begins. Time for export, prediction and other stages is measured or
estimated, and subtracted first.
"""

import json
import math
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

import numpy as np

from partshot.artifact import write_json
from partshot.data.shots import Shots
from partshot.errors import BadRecipe
from partshot.student import Student
from partshot.tasks.train_student import MOST_FROZEN, Training, train_student
from partshot.train.distill_recipe import Distill
from partshot.train.journal import read_journal

LEAST_KIMG = 1.0
"""Shortest horizon in thousands of images; a run whose minutes allow for less takes longer."""

# Seconds of loading, export and report beside what is measured.
_FIXED = 25.0
# Seconds for a head on the frozen encoder: fitting it, and labeling an image with it.
_FROZEN_FIT, _FROZEN_IMAGE = 10.0, 0.02
_STEPS, _WINDOW, _PREDICTED = 24, 5, 8


def refuse_minutes(minutes: float | int | None) -> None:
    """Raises BadRecipe unless minutes are positive and finite."""
    if minutes is not None and not 0 < minutes < math.inf:
        raise BadRecipe(f"--minutes {minutes:g}: must be a positive, finite number")


@dataclass(frozen=True)
class Work:
    """What a run has still to do, beside the fixed parts.

    trainings: how many of the student's horizons it trains for in all, the estimate's folds included. frozen: with how
    many heads on the frozen encoder it labels the unlabeled images. fitted: how many of these it fits first.
    to_predict: images to predict. read_seconds: to read one of them.
    """

    trainings: float
    frozen: int
    fitted: int
    to_predict: int
    read_seconds: float


def horizon(shots: Shots, recipe: Distill, images: np.ndarray, student: str, seconds: float | int, work: Work) -> float:
    """Thousands of images for the student's training, so that the rest of the run takes `seconds`.

    shots, recipe, images, student: as `train_student` takes them. Warns when the time is too short for anything but
    LEAST_KIMG.
    """
    began = time.monotonic()
    step, prediction = _measured(shots, recipe, images, student)
    # Prediction reads every image again and writes its mask.
    rest = _FIXED + work.to_predict * (2 * work.read_seconds + prediction)
    rest += work.fitted * _FROZEN_FIT + work.frozen * _FROZEN_IMAGE * min(MOST_FROZEN, len(images))
    thousand = 1000 / recipe.batch * step * work.trainings
    left = seconds - (time.monotonic() - began)
    kimg = (left - rest) / thousand
    if kimg < LEAST_KIMG:
        whole = (rest + LEAST_KIMG * thousand) / 60
        # The folds of an estimate train, too.
        folds = "its cross-validation, " if work.trainings > 1 else ""
        warnings.warn(
            f"--minutes is too short: the shortest training, {folds}export and prediction take about {whole:.1f} "
            "minutes on this machine and are not shortened further. The masks will be poor, perhaps worse than those "
            "of the preview; give more --minutes",
            stacklevel=2,
        )
    return max(LEAST_KIMG, round(kimg, 2))


def kept(path: Path, state: str, measure: Callable[[], float]) -> float:
    """The horizon that an earlier run of the same state wrote to `path`, else a measured one, which is written there.

    So a resumed run keeps its horizon, whatever the machine's load.
    """
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        if before["state"] == state:
            return before["kimg"]
    kimg = measure()
    write_json(path, {"state": state, "kimg": kimg})
    return kimg


def _measured(shots: Shots, recipe: Distill, images: np.ndarray, student: str) -> tuple[float, float]:
    """Seconds of a training step, averaged over a horizon, and of predicting one image."""
    short = _without_frozen(recipe).changed(kimg=_STEPS * recipe.batch / 1000)
    with tempfile.TemporaryDirectory() as folder:
        trained = train_student(shots, short, Path(folder), images, Training(student), quiet=True)
        ends = [line["seconds"] for line in read_journal(Path(folder) / "journal.jsonl")]
    return _robust_mean(np.diff([0.0, *ends]).tolist()), _seconds_of_prediction(trained, images)


def _without_frozen(recipe: Distill) -> Distill:
    """The same recipe without the frozen encoder's labels."""
    if recipe.consistency is None:
        return recipe
    return recipe.changed(consistency=recipe.consistency.changed(min_agreement=0.0))


def _robust_mean(seconds: list[float]) -> float:
    """Mean of a running median, which ignores single slow steps and keeps phases that are slow throughout."""
    reach = _WINDOW // 2
    return fmean(median(seconds[max(0, i - reach) : i + reach + 1]) for i in range(len(seconds)))


def _seconds_of_prediction(student: Student, images: np.ndarray) -> float:
    some = list(images[:_PREDICTED])
    student.predict(some)
    began = time.perf_counter()
    student.predict(some)
    return (time.perf_counter() - began) / len(some)
