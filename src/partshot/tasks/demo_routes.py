"""The two routes of the demo, by a pretrained encoder and by a generator: what each phase trains and measures."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from pydantic import Field

from partshot.benchmark.auto_shot import AutoShot, AutoShotConfig
from partshot.benchmark.baselines import Baselines
from partshot.benchmark.kshot import Method, Row, Splits, kshot
from partshot.data.images import resize_images
from partshot.data.shots import Shots
from partshot.recipe import Recipe
from partshot.represent.cache import Store
from partshot.represent.choose import open_representation
from partshot.represent.invert import PRESETS as INVERT_PRESETS
from partshot.represent.stylegan import load_stylegan
from partshot.segmenter import Segmenter
from partshot.tasks.fit import HEAD, REPRESENTATION, facing_fit, frozen_segmenter
from partshot.tasks.sample import embedded_shots
from partshot.tasks.teacher_rules import GENERATED, teacher_size
from partshot.tasks.trained import kept_segmenter
from partshot.train.distill_recipe import PRESETS, Distill
from partshot.train.fit_head import PRESETS as FIT_PRESETS
from partshot.train.fit_head import FitHead
from partshot.train.fit_points import PRESETS as POINT_PRESETS
from partshot.train.fit_points import FitPoints
from partshot.train.journal import Journal, read_journal
from partshot.train.student_choice import Choice, choose_student

KS = (1, 10)
ROWS = ("student", "head", "supervised", "forest", "auto_shot", "few_shot")
"""The methods, in the order of the report: see `benchmark.baselines`, and for the last two `benchmark.auto_shot`."""

GENERATOR_KIND = "faces"
"""What the embedded generator generates; other kinds have the encoder route only."""

# Horizon in thousands of labeled images of the encoder route's student, by preset. With three quarters of the default
# one's, eyes and noses are missing.
_KIMG = {"pretrained": 3.0, "default": 4.0}
# The same for the generator route, where it is less than the preset's.
_AUTO_KIMG = {"auto-shot-pretrained": 3.5}


class DemoRecipe(Recipe):
    """How much the demo does.

    images: unlabeled ones. held_out: test images. least: smallest side in pixels that images are processed at; at 64 px
    an eye is two pixels wide. kimg: horizon of each student of the encoder route, in thousands of labeled images; None:
    3 where it starts from a pretrained encoder, else 4. points: how the head of the pretrained encoder is fitted; where
    none is on this machine, fit_images: images that the head of the encoder route is trained on, half of the usual.
    auto_fit_images: the same for the generator route. auto_kimg: horizon of a student of generated images, which are
    enlarged to twice their 64 px; None: 3.5 where it starts from a pretrained encoder, else the preset's. generated:
    how many images that is. inverted, steps: held-out faces that are inverted, and the optimizer's steps.
    """

    renamed: ClassVar = {"pictures": "images", "drawn": "generated"}

    images: int = Field(default=600, ge=1)
    held_out: int = Field(default=100, ge=1)
    least: int = Field(default=128, ge=32)
    kimg: float | None = Field(default=None, gt=0)
    points: FitPoints = POINT_PRESETS["fast"]
    fit_images: int = Field(default=600, ge=1)
    auto_fit_images: int = Field(default=1200, ge=1)
    auto_kimg: float | None = Field(default=None, gt=0)
    generated: int = Field(default=GENERATED, ge=1)
    inverted: int = Field(default=32, ge=1)
    steps: int = Field(default=100, ge=1)


class PhaseResult(NamedTuple):
    """Results of one phase with one number of labels: plain values, which another process can send.

    student: its folder, where one was trained. journal: of its training.
    """

    rows: list[Row]
    student: Path | None = None
    journal: Sequence[dict] = ()


@dataclass(frozen=True)
class Routes:
    """The encoder route and the generator route from labels to a student, in this process or another.

    choice: the student of the encoder route. unlabeled: images at their own size. one_sided: whether they all face one
    way. work: side in pixels of the encoder route's images. threads: that one process may use; None does not limit.
    """

    out: Path
    kind: str
    seed: int
    recipe: DemoRecipe
    choice: Choice
    unlabeled: tuple[np.ndarray, ...]
    one_sided: bool
    work: int
    pool: Shots
    test: Shots
    quiet: bool
    threads: int | None

    @property
    def rows(self) -> tuple[str, ...]:
        """The methods that are measured in all phases."""
        return ROWS if self.kind == GENERATOR_KIND else ROWS[:4]

    @cached_property
    def images(self) -> np.ndarray:
        """The unlabeled images at the side of the encoder route."""
        return resize_images(self.unlabeled, self.work)

    @property
    def distill(self) -> Distill:
        """The recipe of the encoder route's student."""
        preset = self.choice.preset
        recipe = PRESETS[preset].changed(size=self.work, kimg=self.recipe.kimg or _KIMG[preset])
        return recipe.one_sided() if self.one_sided else recipe

    @property
    def auto(self) -> Distill:
        """The recipe of the generator route's student."""
        preset = choose_student(preset="auto-shot-pretrained").preset
        kimg = self.recipe.auto_kimg or _AUTO_KIMG.get(preset, PRESETS[preset].kimg)
        return PRESETS[preset].changed(kimg=kimg)

    @property
    def fit(self) -> FitHead:
        """The recipe of the heads on the generator."""
        fast = FIT_PRESETS["fast"].changed(seed=self.seed, images=self.recipe.auto_fit_images)
        return facing_fit(fast, self.one_sided)

    @property
    def to_invert(self) -> Shots:
        """The held-out images that are inverted."""
        return self.test.subset(range(min(self.recipe.inverted, len(self.test))))

    def labeled(self, k: int) -> Shots:
        """The k labeled images of the encoder route."""
        return self.pool.sample(k, self.seed)

    def head(self, shots: Shots) -> Segmenter:
        """The few-shot head of the encoder route: fitted, or loaded if an earlier phase fitted it."""
        state = f"{shots.fingerprint}/{self.choice.student}/{self.recipe.fingerprint}"
        folder = self.out / "runs" / f"head-{len(shots)}-{hashlib.sha256(state.encode()).hexdigest()[:8]}"
        return kept_segmenter(folder, shots, lambda: self._fitted_head(shots))

    def _fitted_head(self, shots: Shots) -> Segmenter:
        if self.choice.preset == "pretrained":
            unlabeled = partial(resize_images, self.unlabeled)
            return frozen_segmenter(shots, unlabeled, self.seed, self.one_sided, recipe=self.recipe.points)
        given = (shots.parts, HEAD, teacher_size(self.distill), self.fit.changed(images=self.recipe.fit_images))
        return Segmenter(open_representation(REPRESENTATION), *given).fit(shots, self.quiet)

    def first(self, k: int) -> PhaseResult:
        """Methods that train no network, with k labels: the few-shot head and the random forest."""
        return self._baselines(k, "first", "head", "forest")

    def students(self, k: int) -> PhaseResult:
        """The student, and the same network trained on the labels alone."""
        return self._baselines(k, "students", "student", "supervised")

    def generator(self, k: int) -> PhaseResult:
        """The generator route, from the first k labeled faces of the embedded generator."""
        self._limit_threads()
        route, faces = self.generators(), embedded_shots().subset(range(k))
        splits = {k: {self.seed: faces.names}}
        rows = self._measured(f"auto-shot-{k}", {"auto_shot": route.auto_shot}, faces, self.test, k, splits)
        rows += self._measured(f"few-shot-{k}", {"few_shot": route.few_shot}, faces, self.to_invert, k, splits)
        return PhaseResult(rows, route.training(faces) / "student")

    def generators(self) -> AutoShot:
        """The methods of the generator route; inverted latents are cached."""
        generator = load_stylegan(recipe=INVERT_PRESETS["fast"].changed(steps=self.recipe.steps))
        generator.store = Store(self.out / "inverted")
        small = resize_images(self.unlabeled, self.auto.size)
        config = AutoShotConfig(
            self.auto, self.fit, student=self.choice.student, generated=self.recipe.generated, seed=self.seed
        )
        return AutoShot(self.out / "runs", generator, config, small, self.quiet)

    def _baselines(self, k: int, phase: str, *rows: str) -> PhaseResult:
        """Rows of the encoder route."""
        self._limit_threads()
        given = (self.out / "runs", self.images, self.distill, self.head, self.choice.student, self.seed, self.quiet)
        baselines = Baselines(*given)
        shots = self.labeled(k)
        found = self._measured(f"{phase}-{k}", baselines.methods(*rows), self.pool, self.test, k)
        if "student" not in rows:
            return PhaseResult(found)
        trained = baselines.training(shots)
        return PhaseResult(found, trained / "student", read_journal(trained / "journal.jsonl"))

    def _limit_threads(self) -> None:
        if self.threads is not None:
            torch.set_num_threads(self.threads)

    def _measured(
        self, name: str, methods: Mapping[str, Method], pool: Shots, test: Shots, k: int, splits: Splits | None = None
    ) -> list[Row]:
        """Rows with k labels; new ones are saved as they come."""
        journal = Journal(self.out / "rows" / f"{name}-{self.choice.student}-{self.recipe.fingerprint}.jsonl")
        journal.repair()
        done = [Row.from_dict(line) for line in read_journal(journal.path)]
        return kshot(methods, pool, test, [k], [self.seed], splits, lambda row: journal.write(row.to_dict()), done)
