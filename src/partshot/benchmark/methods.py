"""The methods that `partshot bench` compares, each a function from labeled shots to a predictor (`kshot.Method`).

Encoders and students are trained when the first row needs them, once for all rows and all tables that share a work
folder. tables.py lists the methods of each table.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property, partial
from pathlib import Path
from typing import NamedTuple

from pydantic import Field, field_validator, model_validator

from partshot.benchmark.auto_shot import AutoShot, AutoShotConfig
from partshot.benchmark.baselines import Baselines, folder_of_split, predictor
from partshot.benchmark.datasets import TOYS, Dataset, toy_images
from partshot.benchmark.kshot import Method
from partshot.catalog import PRETEXTS, lookup
from partshot.data.shots import Shots, load_shots
from partshot.progress import print_status
from partshot.recipe import Recipe
from partshot.represent.cache import Store
from partshot.represent.choose import cached, open_representation
from partshot.represent.concatenated import Several
from partshot.represent.invert import PRESETS as INVERT_PRESETS
from partshot.represent.position import Positioned
from partshot.represent.spec import Representation
from partshot.represent.stylegan import load_stylegan
from partshot.segmenter import Segmenter
from partshot.tasks.fit import HEAD, facing_fit
from partshot.tasks.pretrain import DEFAULT, LONG, pretrain, resolve
from partshot.tasks.run_auto import LONG_TRAINED_BONUS, READY, TRAINED, Candidate, choose, ready
from partshot.tasks.teacher_rules import teacher_size
from partshot.tasks.train_student import Teachers, Training, train_student, without_flips
from partshot.train.distill_recipe import PRESETS as DISTILL_PRESETS
from partshot.train.distill_recipe import Distill
from partshot.train.fit_head import PRESETS as FIT_PRESETS
from partshot.train.fit_head import FitHead
from partshot.train.fitting import Fit, fit_presets
from partshot.train.forest import Forest

EMBEDDED_TOY = "toy-face"
"""The toy that the embedded generator was trained on."""


class BenchRecipe(Recipe):
    """How long and how often the methods of a table are trained.

    size: side in pixels of the images for encoders and heads; students are trained at 128 px or more. ks: numbers of
    labels. seeds: splits of the labels. encoder_preset: preset of all contrastive pretexts, and "PRETEXT=PRESET" after
    a comma for one with another preset. encoder_kimg: thousands of images for training each encoder; None takes the
    preset's. student_kimg: thousands of labeled images for training each student. fit_images: images for fitting each
    head, except an ensemble, which is fitted to pixels. steps: of the inversion of one image.
    """

    size: int = Field(default=64, ge=32, multiple_of=32)
    ks: tuple[int, ...] = (1, 5, 10)
    seeds: tuple[int, ...] = (0, 1, 2)
    encoder_preset: str = DEFAULT
    encoder_kimg: float | None = Field(default=None, gt=0)
    student_kimg: float = Field(default=4, gt=0)
    fit_images: int = Field(default=600, ge=1)
    steps: int = Field(default=100, ge=1)

    def preset_of(self, pretext: str) -> str:
        """The preset of one pretext."""
        common, own = _presets(self.encoder_preset)
        return own.get(pretext, common)

    @field_validator("encoder_preset")
    @classmethod
    def _readable(cls, value: str) -> str:
        for pretext in _presets(value)[1]:
            lookup(PRETEXTS, pretext, "pretext")
        return value

    @model_validator(mode="after")
    def _each_once(self):
        for name, values, least in (("ks", self.ks, 1), ("seeds", self.seeds, 0)):
            if not values or len(set(values)) < len(values) or min(values) < least:
                raise ValueError(f"{name} are {list(values)}; give at least one, each once, all at least {least}")
        return self


class Entry(NamedTuple):
    """One row of a table.

    name: as shown in the table. fit: the method. recipes: role -> recipe, to which the table links. ks: numbers of
    labels if not the table's. test: test images if not the dataset's. line, at: for plots over something other than the
    number of labels, the line to which the row belongs and its x coordinate. source: what the row depends on besides
    its recipes, such as a generator's fingerprint.
    """

    name: str
    fit: Method
    recipes: Mapping[str, Recipe]
    ks: tuple[int, ...] | None = None
    test: Shots | None = None
    line: str = ""
    at: float | None = None
    source: str = ""


class MethodBuilder:
    """Builds the rows of tables for one dataset.

    work: folder in which encoders and students are trained. generator: folder of a trained generator of such images;
    None takes the embedded generator if the dataset is the toy that it was trained on, else no generator. Raises
    BadArtifact if that folder contains no generator.
    """

    def __init__(self, dataset: Dataset, work: Path, recipe: BenchRecipe, generator: Path | None = None, quiet=False):
        self.dataset, self.work, self.recipe, self.quiet = dataset, work, recipe, quiet
        self.generator = generator
        has_generator = generator is not None or (dataset.toy and dataset.name == EMBEDDED_TOY)
        # The fingerprint of its weights; empty without a generator.
        self.generator_weights = load_stylegan(generator).weights if has_generator else ""

    @cached_property
    def fit(self) -> FitHead:
        """The recipe for fitting heads to labeled images."""
        recipe = FIT_PRESETS["fast"].changed(images=self.recipe.fit_images)
        return facing_fit(recipe, not self.distill.augment.flip)

    def fit_of(self, head: str) -> Fit:
        """The recipe for fitting the head of that name.

        Heads that are fitted to points have their own settings. "conv" is fitted to a quarter of the images, as in
        GANORCON (section 4.2: 200 epochs, and 800 for the MLP).
        """
        if head == "conv":
            return self.fit.changed(images=max(1, self.recipe.fit_images // 4))
        own = fit_presets(head)["fast"]
        return self.fit if isinstance(own, FitHead) else own

    @cached_property
    def distill(self) -> Distill:
        """The recipe for training students with consistency on the dataset's unlabeled images."""
        recipe = DISTILL_PRESETS["default"].changed(size=self.student_size, kimg=self.recipe.student_kimg)
        return without_flips(recipe, self._images)

    @property
    def student_size(self) -> int:
        """At least 128 px: smaller images are enlarged for students, since at 64 px an eye is two pixels wide."""
        return max(128, self.recipe.size)

    def head(self, name: str, opened: Callable[[], Representation], head: str = HEAD) -> Entry:
        """A head on the representation that `opened` returns."""
        fitted = self.segmenter(opened, head)
        return Entry(name, lambda shots: predictor(fitted(shots)), {"fit": self.fit_of(head)})

    def encoder(self, name: str, pretext: str, images: Callable[[], Path] | None = None, head: str = HEAD) -> Entry:
        """A head on a pretrained encoder. images: returns the pretraining folder; None takes the dataset's images."""
        row = self.head(name, lambda: self.encoder_of(pretext, images), head)
        return row._replace(recipes={"encoder": self.encoder_recipe(pretext), **row.recipes})

    def with_student(self, name: str, pretext: str, head: str = HEAD) -> list[Entry]:
        """A head on an encoder, and a student distilled from it on unlabeled images (GANORCON, step III)."""
        recipe = self.distill.changed(consistency=None)
        teacher = self.segmenter(lambda: self.encoder_of(pretext), head)
        recipes = self.encoder(name, pretext, head=head).recipes
        folder = self._students(recipe, *recipes.values())

        def method(shots: Shots):
            out = folder_of_split(folder, f"{pretext}-{head}", shots)
            teachers = Teachers(teacher(shots))
            return predictor(train_student(shots, recipe, out, self._images, teachers=teachers, quiet=self.quiet))

        direct = Entry(name, lambda shots: predictor(teacher(shots)), recipes)
        return [direct, Entry(f"{name}, distilled", method, {**recipes, "student": recipe})]

    def several(self, name: str, pretexts: Sequence[str]) -> Entry:
        """A head on the concatenated features of several encoders and a randomly initialized one."""

        def opened() -> Representation:
            members = [open_representation("resnet", self.trained(pretext)) for pretext in pretexts]
            return Positioned(Several([*members, open_representation("random")]))

        row = self.head(name, opened)
        return row._replace(recipes={p: self.encoder_recipe(p) for p in pretexts} | row.recipes)

    def auto(self, name: str) -> Entry:
        """The best candidate of `run` in cross-validation on the shots, chosen as in `run` but without a time limit."""
        # The folds and the heads all need features of the same views.
        store = Store(self.work / "features")

        bonus = {p: LONG_TRAINED_BONUS if self.recipe.preset_of(p) == LONG else 0.0 for p in TRAINED}

        def encoder(pretext: str) -> Representation:
            return cached(self.encoder_of(pretext), store)

        encoders = [Candidate(p, partial(encoder, p), bonus=bonus[p]) for p in TRAINED]
        candidates = [*ready(lambda name: cached(open_representation(name), store)), *encoders]

        def method(shots: Shots):
            choice = choose(candidates, shots, self.fit, teacher_size(self.distill), math.inf, self.quiet)
            print_status(f"auto: {choice.why}", self.quiet)
            taken = choice.taken
            segmenter = Segmenter(taken.opened(), shots.parts, taken.head, self.recipe.size, self.fit)
            return predictor(segmenter.fit(shots, quiet=True))

        recipes = {p: self.encoder_recipe(p) for p in TRAINED} | {"fit": self.fit}
        # Without a bonus the source is that of rows from before the bonus was added, so these rows stay valid.
        source = f"{READY}{TRAINED}" + (f"{bonus}" if any(bonus.values()) else "")
        return Entry(name, method, recipes, source=source)

    def inverted(self, name: str, layers: str = "regan", steps: int | None = None) -> Entry:
        """A head on the generator's features of inverted images."""
        recipe = INVERT_PRESETS["fast"].changed(steps=steps or self.recipe.steps)
        fit = self.fit.changed(augment=None)

        @cache
        def methods() -> AutoShot:
            generator = load_stylegan(self.generator, layers, recipe=recipe)
            # The latents do not depend on the layers, so each image is inverted once.
            generator.store = Store(self.work / "inverted")
            config = AutoShotConfig(self.distill, fit, generated_shots=False)
            return AutoShot(self.work, generator, config, quiet=self.quiet)

        recipes = {"inversion": recipe, "fit": fit}
        return Entry(name, lambda shots: methods().few_shot(shots), recipes, source=self.generator_weights)

    def mean_teacher(self, name: str = "mean teacher") -> Entry:
        """The student's network with consistency on unlabeled images, without a representation."""
        return Entry(name, lambda shots: predictor(self._baselines.mean_teacher(shots)), {"student": self.distill})

    def initialized(self, student: str, pretext: str | None = None) -> Entry:
        """A mean teacher with another network, whose encoder is pretrained or randomly initialized (None).

        student: a network whose encoder is that of the pretext, such as "unet-resnet18" for resnet18.
        """
        recipes = {} if pretext is None else {"encoder": self.encoder_recipe(pretext)}
        folder = self._students(self.distill, *recipes.values())

        def method(shots: Shots):
            out = folder_of_split(folder, f"{student}-{pretext or 'random'}", shots)
            start = None if pretext is None else self.trained(pretext)
            training = Training(student, start=start)
            return predictor(train_student(shots, self.distill, out, self._images, training, quiet=self.quiet))

        name = f"mean teacher, {student}" if pretext is None else f"mean teacher, {student} of {pretext}"
        return Entry(name, method, {**recipes, "student": self.distill})

    def supervised(self, name: str = "supervised") -> Entry:
        """The student's network, trained on the labeled images alone."""
        recipe = self.distill.changed(unlabeled=0, consistency=None)
        return Entry(name, lambda shots: predictor(self._baselines.supervised(shots)), {"student": recipe})

    def transfer(self, name: str = "transfer") -> Entry:
        """The student's network, trained on many exact masks of another toy and then on the labeled images."""
        recipe = self.distill.changed(unlabeled=0, consistency=None)

        def method(shots: Shots):
            out = folder_of_split(self._students(recipe), "transfer", shots)
            training = Training(start=self._transfer_source)
            return predictor(train_student(shots, recipe, out, None, training, quiet=self.quiet))

        return Entry(name, method, {"student": recipe})

    def forest(self, name: str = "forest") -> Entry:
        """A random forest on filters, which is what users do today."""
        return Entry(name, lambda shots: Forest(shots.parts).fit(shots).predict, {})

    def encoder_of(self, pretext: str, images: Callable[[], Path] | None = None) -> Representation:
        """The pretrained encoder, with the position features."""
        return Positioned(open_representation("resnet", self.trained(pretext, images)))

    def trained(self, pretext: str, images: Callable[[], Path] | None = None) -> Path:
        """The folder of a pretrained encoder."""
        folder = self.dataset.unlabeled if images is None else images()
        left_out = self.dataset.left_out if images is None else ()
        recipe = self.encoder_recipe(pretext)
        source = f"{self.dataset.name}-{self.dataset.fingerprint}" if images is None else folder.parent.name
        out = self.work / "encoders" / f"{pretext}-{source}-{recipe.fingerprint}"
        given = {"preset": self.recipe.preset_of(pretext), "size": self.recipe.size, "kimg": self.recipe.encoder_kimg}
        return pretrain(pretext, folder, out, **given, quiet=self.quiet, leave_out=tuple(left_out))

    def segmenter(self, opened: Callable[[], Representation], head: str = HEAD) -> Callable[[Shots], Segmenter]:
        """A function that fits a head to shots. It caches the last fit for rows that share it."""
        opened = cache(opened)

        @_cached_last
        def fitted(shots: Shots) -> Segmenter:
            found = Segmenter(opened(), shots.parts, head, self.recipe.size, self.fit_of(head))
            return found.fit(shots, quiet=True)

        return fitted

    def encoder_recipe(self, pretext: str) -> Recipe:
        """The recipe of a pretext."""
        return resolve(pretext, self.recipe.preset_of(pretext), self.recipe.size, self.recipe.encoder_kimg)

    @cached_property
    def _transfer_source(self) -> Path:
        """The folder of a student that is trained on all masks of another toy."""
        other = next(name for name in TOYS if name != self.dataset.name)
        folder = toy_images(other, self.work, self.quiet).parent
        recipe = DISTILL_PRESETS["supervised"].changed(size=self.student_size, kimg=4 * self.recipe.student_kimg)
        out = self.work / "students" / f"all-of-{other}-{recipe.fingerprint}"
        train_student(load_shots(folder), recipe, out, quiet=self.quiet)
        return out

    @cached_property
    def _images(self):
        return self.dataset.images(self.student_size)

    @cached_property
    def _baselines(self) -> Baselines:
        return Baselines(self._students(self.distill), self._images, self.distill, quiet=self.quiet)

    def _students(self, *recipes: Recipe) -> Path:
        """The folder for students of this dataset and these settings only."""
        state = f"{self.dataset.fingerprint}/{self.recipe.size}/{[recipe.fingerprint for recipe in recipes]}"
        return self.work / "students" / f"{self.dataset.name}-{hashlib.sha256(state.encode()).hexdigest()[:8]}"


def _presets(text: str) -> tuple[str, dict[str, str]]:
    """Parses "A,moco=B" to the preset of all pretexts, "A", and those of single pretexts, {"moco": "B"}."""
    common, *own = (part.strip() for part in text.split(","))
    pairs = [tuple(part.partition("=")[::2]) for part in own]
    if not common or "=" in common or not all(preset for _, preset in pairs) or len(dict(pairs)) < len(pairs):
        raise ValueError("write PRESET for all pretexts, and append ,PRETEXT=PRESET for single ones, as in A,moco=B")
    return common, dict(pairs)


def _cached_last(fit: Callable[[Shots], object]) -> Callable[[Shots], object]:
    """The same function with a cache of its last result."""
    last: dict[tuple[str, ...], object] = {}

    def cached_fit(shots: Shots):
        if shots.names not in last:
            last.clear()
            last[shots.names] = fit(shots)
        return last[shots.names]

    return cached_fit
