"""Estimates a student's quality from the labeled images alone, by cross-validation of its own training.

The labeled images are split into folds. For each fold a student is trained by the same recipe without it, for a stated
share of the horizon, and predicts its images. Such a student has fewer labels and less training than the delivered one,
and so makes more errors; the usual ratio of the two was measured and is applied (REMAINING).
"""

import json
import math
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from partshot.artifact import write_json
from partshot.data.shots import Shots
from partshot.metrics import Score, score
from partshot.ops.overlap import confusion, mean_iou
from partshot.progress import print_status
from partshot.tasks.stage_folder import stage_folder
from partshot.tasks.train_student import Training, train_student
from partshot.train.distill_recipe import Distill

FOLDS = 3
"""More folds cost more trainings and estimate little better."""

SHARE = 0.5
"""Share of the student's horizon that each fold is trained for."""

REMAINING = 0.85
"""Error of the delivered student, 1 - mean IoU, as a share of the folds' error (LOG.md, 2026-11-28)."""

REMAINING_STD = 0.05
"""Standard deviation of that share between data sets, roughly, from four runs that had .83 to .87 at full length."""

_RESAMPLES = 200


@dataclass(frozen=True)
class Estimate:
    """miou: expected mean IoU over all classes of the delivered student, 0..1; that of the folds if not `corrected`.

    error: its standard error, from resampling the labeled images and from the correction. folds: their pooled score.
    share: of the horizon that each fold was trained for. corrected: whether REMAINING was applied.
    """

    miou: float
    error: float
    folds: Score
    share: float
    corrected: bool = True

    def to_dict(self) -> dict:
        """Plain values for JSON; `from_dict` reads them back."""
        values = {"miou": self.miou, "error": self.error, "share": self.share, "corrected": self.corrected}
        return {**values, "folds": self.folds.to_dict()}

    @classmethod
    def from_dict(cls, values: dict) -> "Estimate":
        """What `to_dict` wrote."""
        folds, corrected = Score.from_dict(values["folds"]), values.get("corrected", True)
        return cls(values["miou"], values["error"], folds, values["share"], corrected)


def estimate(
    shots: Shots,
    recipe: Distill,
    out: Path,
    images: np.ndarray | None,
    training: Training,
    quiet: bool = False,
    corrected: bool = True,
) -> Estimate | None:
    """Cross-validates a student's training; None with one shot.

    shots, recipe, images, training: as `train_student` takes them. out: where folds are trained, so that a stopped
    estimate resumes; gets estimate.json. corrected: whether to correct for the folds' shorter training and fewer
    labels; only measured for recipes of the preset's length.
    """
    if len(shots) < 2:
        return None
    path, student = out / "estimate.json", f"{training.student}/{training.seed}"
    state = f"{shots.fingerprint}/{recipe.fingerprint}/{student}/{SHARE}/{FOLDS}/{corrected}"
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        if before.pop("state") == state:
            return Estimate.from_dict(before)
    # Before the first fold, so that folds of other labels, left by a stop, are not taken for a training to resume.
    stage_folder(out, state)
    short = recipe.changed(kimg=recipe.kimg * SHARE)
    folds, labels = shots.folds(FOLDS), [np.empty(0)] * len(shots)
    for fold, held in enumerate(folds):
        print_status(f"estimate: fold {fold + 1} of {len(folds)}", quiet)
        trained = train_student(shots.without(held), short, out / f"fold-{fold}", images, training, quiet=quiet)
        for i, found in zip(held, trained.predict([shots.images[i] for i in held]), strict=True):
            labels[i] = found.labels
    found = score(shots.labels, labels, shots.parts, shots.names)
    error, miou = standard_error(shots.labels, labels, len(shots.parts)), found.miou_nan
    if corrected:
        error, miou = math.hypot(error, REMAINING_STD * (1 - miou)), expected(miou)
    result = Estimate(miou, error, found, SHARE, corrected)
    write_json(path, {"state": state, **result.to_dict()})
    for fold in range(len(folds)):
        shutil.rmtree(out / f"fold-{fold}", ignore_errors=True)
    return result


def expected(folds: float, remaining: float = REMAINING) -> float:
    """Expected mean IoU, 0..1, of the delivered student, from that of its folds."""
    return 1 - remaining * (1 - folds)


def standard_error(truths: Iterable[np.ndarray], predictions: Iterable[np.ndarray], classes: int) -> float:
    """Bootstrap standard error of the pooled mean IoU: images are resampled with replacement.

    truths, predictions: one uint8 [h, w] each per image. NaN where fewer than two images have a labeled pixel.
    """
    pairs = zip(truths, predictions, strict=True)
    counts = np.stack([confusion(truth, found, classes) for truth, found in pairs])
    counts = counts[counts.any((1, 2))]
    if len(counts) < 2:
        return float("nan")
    resampled = np.random.default_rng(0).integers(len(counts), size=(_RESAMPLES, len(counts)))
    return float(np.std([mean_iou(counts[some].sum(0), absent="nan") for some in resampled]))
