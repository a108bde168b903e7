"""compact: a large student teaches a fast one, and the exported models of both are compared.

The compact student is trained on the large one's soft labels of all images, beside the labeled ones.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from partshot.data.images import resize_images
from partshot.data.shots import Shots
from partshot.evenly import evenly
from partshot.inference.exported_model import ExportedModel
from partshot.metrics import score
from partshot.student import Student
from partshot.tasks.export import export
from partshot.tasks.train_student import Teachers, Training, train_student
from partshot.train.distill_recipe import PRESETS

_COMPARED, _SECONDS, _AT_ONCE = 64, 2.0, 8


@dataclass(frozen=True)
class Compared:
    """images_per_second: of the exported files on all cores of this machine, at the images' usual size, the large
    student's first. agreement: mean IoU of the compact student's labels against the large one's, 0..1."""

    images_per_second: tuple[float, float]
    agreement: float


def compact(
    shots: Shots, large: Student, onnx: Path, images: np.ndarray, out: Path, one_sided: bool, seed: int, quiet: bool
) -> Compared:
    """Trains out/student on the large student's labels and writes it beside `onnx` as compact.onnx.

    onnx: the large student's file. images: unlabeled, uint8 [n, s, s, 3]. one_sided: whether objects face one way.
    """
    recipe = PRESETS["compact"]
    recipe = recipe.one_sided() if one_sided else recipe
    small = resize_images(list(images), recipe.size)
    trained = train_student(shots, recipe, out, small, Training(seed=seed), Teachers(large), quiet)
    file = onnx.with_name("compact.onnx")
    export(trained, file, shots.images)
    some = list(evenly(images, _COMPARED))
    ours, theirs = ([one.labels for one in student.predict(some)] for student in (trained, large))
    speeds = tuple(_speed(ExportedModel(path), shots.native) for path in (onnx, file))
    return Compared(speeds, score(theirs, ours, shots.parts).miou_nan)


def _speed(network: ExportedModel, side: int) -> float:
    """Images a second of this side in pixels, several at a time: the best of several rounds."""
    images = np.random.default_rng(0).integers(0, 256, (_AT_ONCE, side, side, 3), dtype=np.uint8)
    network.predict(images)
    best, until = 0.0, time.monotonic() + _SECONDS
    while time.monotonic() < until:
        began = time.perf_counter()
        network.predict(images)
        best = max(best, _AT_ONCE / (time.perf_counter() - began))
    return best
