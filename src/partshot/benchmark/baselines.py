"""The rows that every table shows beside the student, so that nobody has to take its word.

forest: what users do today, a random forest on filters. linear: frozen features and a linear head. random: the same
few-shot head on features with random weights, the same row as head where those are the teacher's. supervised: the
student's own network from the labels alone, as strongly augmented but for colors borrowed from other images, since it
sees none. mean teacher: the same network with consistency on the unlabeled images, but no representation and no
few-shot teacher. head: the few-shot teacher. student: all of it; where the few-shot teacher is not heard (see
tasks.distill), that is the mean teacher's network, trained once, and the first of the two rows bears its time. Each is
a function from shots to a predictor, as `evaluate.kshot` takes them. A table may show some of them alone.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from partshot.data.shots import Shots
from partshot.represent.choose import POSITION, open_representation
from partshot.represent.spec import Representation
from partshot.segmenter import Segmenter
from partshot.student import Student
from partshot.tasks.distill import is_teacher_used, teacher_size, train_student, uses_frozen_reader
from partshot.tasks.fit import HEAD
from partshot.train.distill_recipe import Distill
from partshot.train.fit_head import PRESETS as FIT_PRESETS
from partshot.train.fit_head import FitHead
from partshot.train.forest import Forest
from partshot.train.student_choice import STUDENT

Predictor = Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]]


class Baselines:
    """Everyone gets the same shots, the same unlabeled images and the same student's network.

    folder: where students are trained, one sub-folder each, so that a contest goes on where it stopped.
    images: uint8 [n, s, s, 3] at the recipe's size. representation: the teacher's. recipe: the student's; the
    supervised row sees as many shots in as many steps, and no other images. head, fit: the teacher's head and how it
    is fitted. teach: shots -> another few-shot teacher, fitted; None fits that head on that representation.
    """

    def __init__(
        self,
        folder: Path,
        images: np.ndarray,
        representation: Representation,
        recipe: Distill,
        head: str = HEAD,
        fit: FitHead = FIT_PRESETS["fast"],
        student: str = STUDENT,
        seed: int = 0,
        quiet: bool = False,
        teach: Callable[[Shots], Segmenter] | None = None,
    ):
        self.folder, self.images, self.representation = folder, images, representation
        self.recipe, self.head, self.fit, self.student = recipe, head, fit, student
        self.seed, self.quiet = seed, quiet
        self.teach = teach or (lambda shots: self._segmenter(self.representation, self.head, shots))
        self._teachers: dict[tuple[str, ...], Segmenter] = {}

    def methods(self, *names: str) -> dict[str, Callable[[Shots], Predictor]]:
        """Name -> fit, in the order in which tables show them; of these names alone, where some are given."""
        every = {
            "student": lambda shots: predictor(self.distilled(shots)),
            "head": lambda shots: predictor(self.teacher(shots)),
            "mean teacher": lambda shots: predictor(self.mean_teacher(shots)),
            "supervised": lambda shots: predictor(self.supervised(shots)),
            "linear": lambda shots: predictor(self._segmenter(self.representation, "linear", shots)),
            "random": lambda shots: predictor(self._of_random_weights(shots)),
            "forest": lambda shots: Forest(shots.parts, seed=self.seed).fit(shots).predict,
        }
        return {name: fit for name, fit in every.items() if name in names} if names else every

    def teacher(self, shots: Shots) -> Segmenter:
        """The few-shot teacher, fitted once per draw."""
        if shots.names not in self._teachers:
            self._teachers[shots.names] = self.teach(shots)
        return self._teachers[shots.names]

    def _of_random_weights(self, shots: Shots) -> Segmenter:
        random = open_representation("random" + POSITION)
        if random.spec.fingerprint == self.representation.spec.fingerprint:
            return self.teacher(shots)
        return self._segmenter(random, self.head, shots)

    def distilled(self, shots: Shots) -> Student:
        """The student with everything: the mean teacher's network where the few-shot teacher is not heard."""
        if not self._uses_teacher(shots):
            return self.mean_teacher(shots)
        return self._train("student", shots, self.recipe, self.images, self.teacher(shots))

    def training(self, shots: Shots) -> Path:
        """Folder of the student's training, with its journal."""
        return self._run("student" if self._uses_teacher(shots) else "mean-teacher", shots)

    def mean_teacher(self, shots: Shots) -> Student:
        """The student without a teacher to start it."""
        return self._train("mean-teacher", shots, self.recipe, self.images, None)

    def supervised(self, shots: Shots) -> Student:
        """The student's network from the labels alone."""
        recipe = self.recipe.changed(unlabeled=0, consistency=None)
        return self._train("supervised", shots, recipe, None, None)

    def _segmenter(self, representation: Representation, head: str, shots: Shots) -> Segmenter:
        fitted = Segmenter(representation, shots.parts, head, teacher_size(self.recipe), self.fit)
        return fitted.fit(shots, quiet=self.quiet)

    def _uses_teacher(self, shots: Shots) -> bool:
        if self.recipe.consistency is not None and self.recipe.consistency.teacher == 0:
            # None is, so none has to be fitted.
            return False
        return is_teacher_used(self.teacher(shots), shots, self.recipe)

    def _train(self, name: str, shots: Shots, recipe: Distill, images, teacher) -> Student:
        out = self._run(name, shots)
        # A frozen encoder's head is the teacher of such a student here; it is not fitted twice.
        reader = self.teacher(shots) if uses_frozen_reader(self.student, recipe, shots) else None
        given = (self.student, self.seed, self.quiet)
        return train_student(shots, recipe, out, images, teacher, *given, reader=reader)

    def _run(self, name: str, shots: Shots) -> Path:
        return folder_of_draw(self.folder, name, shots)


def folder_of_draw(folder: Path, name: str, shots: Shots) -> Path:
    """Where the row `name` is trained on this draw of shots."""
    draw = hashlib.sha256("/".join(shots.names).encode()).hexdigest()[:8]
    return folder / f"{name}-{len(shots)}-{draw}"


def predictor(fitted: Segmenter | Student) -> Predictor:
    return lambda images: [one.labels for one in fitted.predict(images)]
