"""auto-shot: the road by way of a generator. A few of its own images are labeled, and it generates and labels thousands.

The rows that the demo and the benchmarks show of it. auto_shot: a student that learns from what the generator drew and
the few-shot head labeled, and needs no generator afterwards (ReGAN). few_shot: that head itself, which reads given
images by inversion, seconds each.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from partshot.benchmark.baselines import Predictor, folder_of_draw, predictor
from partshot.data.images import resize_images
from partshot.data.shots import Shots
from partshot.ops.images import as_tensors
from partshot.represent.spec import Latents
from partshot.represent.stylegan import StyleGAN
from partshot.segmenter import Segmenter
from partshot.student import Student
from partshot.tasks.distill import GENERATED, train_student
from partshot.tasks.fit import HEAD
from partshot.tasks.sample import latents_of_names
from partshot.train.distill_recipe import Distill
from partshot.train.fit_ensemble import FitEnsemble
from partshot.train.fit_head import FitHead
from partshot.train.progress import Ticker
from partshot.train.student_choice import STUDENT

# Images that are inverted together.
_BATCH = 16


class AutoShot:
    """The rows of one generator.

    folder: where students are trained, one sub-folder each. generator: generates and reads. recipe: the
    student's. fit: of the head. own: whether the labeled images are the generator's,
    under the names of sample.sample_name; others are inverted. drawn: how many images the student learns from.
    head: a name of catalog.HEADS. images: plain ones, uint8 [n, s, s, 3] at the recipe's size, that the student sees
    besides where its recipe has consistency. trained: which student it is, a name as `train_student` takes them.
    """

    def __init__(
        self,
        folder: Path,
        generator: StyleGAN,
        recipe: Distill,
        fit: FitHead | FitEnsemble,
        own: bool = True,
        drawn: int = GENERATED,
        seed: int = 0,
        quiet: bool = False,
        head: str = HEAD,
        images: np.ndarray | None = None,
        trained: str = STUDENT,
    ):
        self.folder, self.generator, self.recipe = folder, generator, recipe
        self.fit, self.own, self.drawn, self.seed, self.quiet = fit, own, drawn, seed, quiet
        self._teachers: dict[tuple[str, ...], Segmenter] = {}
        self._found: dict[str, Latents] = {}
        self.head, self.images, self.trained = head, images, trained

    def auto_shot(self, shots: Shots) -> Predictor:
        """A student of what the head that these shots were fitted to labels."""
        return predictor(self.student(shots))

    def few_shot(self, shots: Shots) -> Predictor:
        """The head itself, on what the images are inverted to: once, whatever the shots."""
        teacher = self.teacher(shots)
        return lambda images: [one.labels for one in teacher.predict(images, self.inverted(images))]

    def student(self, shots: Shots) -> Student:
        """Trained, or read."""
        given = (self.images, self.teacher(shots), self.trained, self.seed, self.quiet, self.drawn)
        return train_student(shots, self.recipe, self.training(shots), *given)

    def training(self, shots: Shots) -> Path:
        """Folder of the student's training."""
        return folder_of_draw(self.folder, "auto-shot", shots)

    def teacher(self, shots: Shots) -> Segmenter:
        """The head, fitted once per draw."""
        if shots.names not in self._teachers:
            latents = latents_of_names(self.generator, shots) if self.own else self.inverted(shots.images)
            fitted = Segmenter(self.generator, shots.parts, self.head, self.generator.size, self.fit)
            self._teachers[shots.names] = fitted.fit(shots, self.quiet, latents)
        return self._teachers[shots.names]

    def inverted(self, images: Sequence[np.ndarray]) -> Latents:
        """The latents that draw these images; each image is inverted once."""
        stack = resize_images(images, self.generator.size)
        keys = [hashlib.sha256(image.tobytes()).hexdigest() for image in stack]
        new = [i for i, key in enumerate(keys) if key not in self._found]
        with Ticker("invert", len(new), 0, self.quiet) as ticker:
            for first in range(0, len(new), _BATCH):
                some = new[first : first + _BATCH]
                found = self.generator.latents(as_tensors(stack[some]))
                self._found |= {keys[i]: found[j : j + 1] for j, i in enumerate(some)}
                ticker.tick(min(first + _BATCH, len(new)))
        return Latents.join([self._found[key] for key in keys])
