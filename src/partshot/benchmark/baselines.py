"""The baselines that every table shows beside the student.

Each method is a function from shots to a predictor, as `kshot.kshot` takes it. A table may show only some of them.

* student: the full method, with few-shot teacher and consistency. If the few-shot teacher is not used (see
  tasks.train_student), it is the same network as "mean teacher": it is trained once, and its fit time counts for the
  first of the two rows.
* head: the few-shot teacher.
* mean teacher: the student's network with consistency on the unlabeled images, without representation and few-shot
  teacher.
* supervised: the student's network trained on the labeled images alone. The augmentation is as strong as the student's,
  without color transfer from other images, since it is not given any.
* linear: a linear head on frozen features.
* random: the few-shot head on features of a randomly initialized network; the same row as head if those are the
  teacher's features.
* forest: a random forest on filters, which is what users do today.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from partshot.data.shots import Shots
from partshot.segmenter import Segmenter
from partshot.student import Student
from partshot.tasks.teacher_rules import needs_frozen_segmenter, uses_no_teacher, why_unused
from partshot.tasks.train_student import Teachers, Training, train_student
from partshot.train.distill_recipe import Distill
from partshot.train.forest import Forest
from partshot.train.student_choice import STUDENT

Predictor = Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]]


class Baselines:
    """All methods get the same shots and the same unlabeled images, and all students have the same network.

    folder: where students are trained, in one subfolder per method and split, so that a stopped comparison resumes.
    images: unlabeled images, uint8 [n, s, s, 3] at the recipe's size. recipe: how the student is trained; the
    supervised baseline is trained with as many shots in as many steps and with no other images. fit_teacher: shots ->
    the fitted few-shot teacher; None trains the student without one. student: name of the student's network. seed: of
    student and forest.
    """

    def __init__(
        self,
        folder: Path,
        images: np.ndarray,
        recipe: Distill,
        fit_teacher: Callable[[Shots], Segmenter] | None = None,
        student: str = STUDENT,
        seed: int = 0,
        quiet: bool = False,
    ):
        self.folder, self.images, self.recipe, self.fit_teacher = folder, images, recipe, fit_teacher
        self.student, self.seed, self.quiet = student, seed, quiet
        self._teachers: dict[tuple[str, ...], Segmenter] = {}

    def methods(self, *names: str) -> dict[str, Callable[[Shots], Predictor]]:
        """Name -> method, for these names, in the order in which tables show them."""
        every = {
            "student": lambda shots: predictor(self.distilled(shots)),
            "head": lambda shots: predictor(self.teacher(shots)),
            "supervised": lambda shots: predictor(self.supervised(shots)),
            "forest": lambda shots: Forest(shots.parts, seed=self.seed).fit(shots).predict,
        }
        return {name: fit for name, fit in every.items() if name in names}

    def teacher(self, shots: Shots) -> Segmenter:
        """The few-shot teacher, fitted once per split."""
        if shots.names not in self._teachers:
            self._teachers[shots.names] = self.fit_teacher(shots)
        return self._teachers[shots.names]

    def distilled(self, shots: Shots) -> Student:
        """The student of the full method; if the few-shot teacher is not used, the mean teacher's network."""
        if not self._uses_teacher(shots):
            return self.mean_teacher(shots)
        return self._train("student", shots, self.recipe, self.images, self.teacher(shots))

    def training(self, shots: Shots) -> Path:
        """The folder in which the student is trained, with its journal."""
        return self._run("student" if self._uses_teacher(shots) else "mean-teacher", shots)

    def mean_teacher(self, shots: Shots) -> Student:
        """The student, trained without a few-shot teacher."""
        return self._train("mean-teacher", shots, self.recipe, self.images, None)

    def supervised(self, shots: Shots) -> Student:
        """The student's network, trained on the labeled images alone."""
        recipe = self.recipe.changed(unlabeled=0, consistency=None)
        return self._train("supervised", shots, recipe, None, None)

    def _uses_teacher(self, shots: Shots) -> bool:
        if self.fit_teacher is None or uses_no_teacher(self.recipe):
            return False
        return not why_unused(self.teacher(shots), shots, self.recipe)

    def _train(self, name: str, shots: Shots, recipe: Distill, images, teacher) -> Student:
        out = self._run(name, shots)
        # If the student needs a head on its frozen encoder, that is the few-shot teacher here; it is not fitted twice.
        asked = self.fit_teacher is not None and needs_frozen_segmenter(self.student, recipe, len(shots))
        frozen = self.teacher(shots) if asked else None
        training, teachers = Training(self.student, self.seed), Teachers(teacher, frozen=frozen)
        return train_student(shots, recipe, out, images, training, teachers, self.quiet)

    def _run(self, name: str, shots: Shots) -> Path:
        return folder_of_split(self.folder, name, shots)


def folder_of_split(folder: Path, name: str, shots: Shots) -> Path:
    """The folder in which the method `name` is trained on this split."""
    split = hashlib.sha256("/".join(shots.names).encode()).hexdigest()[:8]
    return folder / f"{name}-{len(shots)}-{split}"


def predictor(fitted: Segmenter | Student) -> Predictor:
    """A function that predicts the labels of images."""
    return lambda images: [one.labels for one in fitted.predict(images)]
