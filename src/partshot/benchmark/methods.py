"""Who stands in a table: how each row comes from labeled shots to predictions.

A contender is a function from shots to a predictor (see evaluate.Method). Encoders and students are trained when the
first row asks for them, once for all rows and all tables that share a folder. Which contenders a table has is
tables.py's affair.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property, partial
from pathlib import Path
from typing import NamedTuple

from pydantic import Field as Setting
from pydantic import field_validator, model_validator

from partshot.benchmark.auto_shot import AutoShot
from partshot.benchmark.baselines import Baselines, folder_of_draw, predictor
from partshot.benchmark.datasets import TOYS, Field, toy_images
from partshot.benchmark.kshot import Method
from partshot.catalog import PRETEXTS, lookup
from partshot.data.shots import Shots, load_shots
from partshot.recipe import Recipe
from partshot.represent.cache import Store
from partshot.represent.choose import cached, open_representation
from partshot.represent.invert import PRESETS as INVERT_PRESETS
from partshot.represent.position import Positioned
from partshot.represent.several import Several
from partshot.represent.spec import Representation
from partshot.represent.stylegan import load_stylegan
from partshot.segmenter import Segmenter
from partshot.tasks.distill import facing, teacher_size, train_student
from partshot.tasks.fit import HEAD, REPRESENTATION, facing_fit
from partshot.tasks.pretrain import DEFAULT, LONG, pretrain, resolve
from partshot.tasks.run_auto import LONG_TRAINED_BONUS, READY, TRAINED, Candidate, choose, ready
from partshot.train.distill_recipe import PRESETS as DISTILL_PRESETS
from partshot.train.distill_recipe import Distill
from partshot.train.fit_head import PRESETS as FIT_PRESETS
from partshot.train.fit_head import FitHead
from partshot.train.fitting import Fit, fit_presets
from partshot.train.forest import Forest
from partshot.train.progress import print_status
from partshot.train.student_choice import STUDENT

EMBEDDED_TOY = "toy-face"
"""The toy that the embedded generator generates."""


class BenchRecipe(Recipe):
    """How thoroughly a table is measured.

    size: side of the images that encoders and heads read; students read no less than 128 px. ks: numbers of labels.
    seeds: splits of them. encoder_preset: a row of every contrastive pretext's table, and "PRETEXT=ROW" behind a comma
    for one that takes another; encoder_kimg: thousands of images that each encoder sees in training, None the row's
    own. student_kimg: of shots that each student sees. fit_images: images that each head sees, but an ensemble, which
    sees pixels. steps: of inverting one image.
    """

    size: int = Setting(default=64, ge=32, multiple_of=32)
    ks: tuple[int, ...] = (1, 5, 10)
    seeds: tuple[int, ...] = (0, 1, 2)
    encoder_preset: str = DEFAULT
    encoder_kimg: float | None = Setting(default=None, gt=0)
    student_kimg: float = Setting(default=4, gt=0)
    fit_images: int = Setting(default=600, ge=1)
    steps: int = Setting(default=100, ge=1)

    def preset_of(self, pretext: str) -> str:
        """The row of a pretext's table."""
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
                raise ValueError(f"{name} are {list(values)}; give some, each once, from {least} on")
        return self


class Entry(NamedTuple):
    """One row of a table. name: as the table shows it. fit: the contender. recipes: by role, for the links beside it.

    ks: numbers of labels if not the table's. test: what it is measured on if not the Field's test images. line, at:
    in a plot over something else than labels, which line the row belongs to and where on it. source: what besides its
    recipes decides the row, such as a generator's fingerprint.
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
    """All of them for one Field.

    work: where encoders and students are trained. recipe: how thoroughly. generator: a trained one's folder; None takes
    the embedded one for its own toy, and none for anything else. Raises BadArtifact where it holds no generator.
    """

    def __init__(self, field: Field, work: Path, recipe: BenchRecipe, generator: Path | None = None, quiet=False):
        self.field, self.work, self.recipe, self.quiet = field, work, recipe, quiet
        self.generator = generator
        # Its fingerprint; empty where there is none.
        drawn = generator is not None or (field.toy and field.name == EMBEDDED_TOY)
        self.drawn_by = load_stylegan(generator).weights if drawn else ""

    @cached_property
    def fit(self) -> FitHead:
        """How heads are fitted to labeled images."""
        recipe = FIT_PRESETS["fast"].changed(images=self.recipe.fit_images)
        return facing_fit(recipe, not self.distill.augment.flip)

    def fit_of(self, head: str) -> Fit:
        """How a head of that name is: those of points have settings of their own, CONV sees a quarter of the images.

        So it does beside the MLP in GANORCON (section 4.2: 200 epochs and 800).
        """
        if head == "conv":
            return self.fit.changed(images=max(1, self.recipe.fit_images // 4))
        own = fit_presets(head)["fast"]
        return self.fit if isinstance(own, FitHead) else own

    @cached_property
    def distill(self) -> Distill:
        """How students are trained with consistency on the Field's plain images."""
        recipe = DISTILL_PRESETS["default"].changed(size=self.student_size, kimg=self.recipe.student_kimg)
        return facing(recipe, self._images)

    @property
    def student_size(self) -> int:
        """Students read small images enlarged: at 64 px an eye is two pixels wide."""
        return max(128, self.recipe.size)

    def head(self, name: str, opened: Callable[[], Representation], head: str = HEAD) -> Entry:
        """A head on a representation, which `opened` gives."""
        fitted = self.segmenter(opened, head)
        return Entry(name, lambda shots: predictor(fitted(shots)), {"fit": self.fit_of(head)})

    def encoder(self, name: str, pretext: str, images: Callable[[], Path] | None = None, head: str = HEAD) -> Entry:
        """A head on an encoder that a pretext trained. images: the folder that it learned from; None the Field's."""
        row = self.head(name, lambda: self.encoder_of(pretext, images), head)
        return row._replace(recipes={"encoder": self.encoder_recipe(pretext), **row.recipes})

    def with_student(self, name: str, pretext: str, head: str = HEAD) -> list[Entry]:
        """A head on an encoder, and the student that learns what it says of plain images (GANORCON, step III)."""
        recipe = self.distill.changed(consistency=None)
        teacher = self.segmenter(lambda: self.encoder_of(pretext), head)
        recipes = self.encoder(name, pretext, head=head).recipes
        folder = self._students(recipe, *recipes.values())

        def method(shots: Shots):
            out = folder_of_draw(folder, f"{pretext}-{head}", shots)
            given = (self._images, teacher(shots), STUDENT, 0, self.quiet)
            return predictor(train_student(shots, recipe, out, *given))

        direct = Entry(name, lambda shots: predictor(teacher(shots)), recipes)
        return [direct, Entry(f"{name}, distilled", method, {**recipes, "student": recipe})]

    def several(self, name: str, pretexts: Sequence[str]) -> Entry:
        """A head on several encoders and on random weights, side by side."""

        def opened() -> Representation:
            members = [open_representation("resnet", self.trained(pretext)) for pretext in pretexts]
            return Positioned(Several([*members, open_representation("random")]))

        row = self.head(name, opened)
        return row._replace(recipes={p: self.encoder_recipe(p) for p in pretexts} | row.recipes)

    def auto(self, name: str) -> Entry:
        """Whatever left-out shots speak for, among what `run` tries, as it does, but with all the time it takes."""
        # Fits that leave out different shots read the same views, and so do different heads.
        store = Store(self.work / "features")

        favor = {p: LONG_TRAINED_BONUS if self.recipe.preset_of(p) == LONG else 0.0 for p in TRAINED}

        def encoder(pretext: str) -> Representation:
            return cached(self.encoder_of(pretext), store)

        encoders = [Candidate(p, partial(encoder, p), favor=favor[p]) for p in TRAINED]
        candidates = [*ready(lambda name: cached(open_representation(name), store)), *encoders]

        def method(shots: Shots):
            choice = choose(candidates, shots, self.fit, teacher_size(self.distill), math.inf, self.quiet)
            print_status(f"auto: {choice.why}", self.quiet)
            maker = Segmenter(choice.taken.opened(), shots.parts, choice.taken.head, self.recipe.size, self.fit)
            return predictor(maker.fit(shots, quiet=True))

        recipes = {p: self.encoder_recipe(p) for p in TRAINED} | {"fit": self.fit}
        # Rows in which nobody is favored were measured before there was such a thing, and stay valid.
        source = f"{READY}{TRAINED}" + (f"{favor}" if any(favor.values()) else "")
        return Entry(name, method, recipes, source=source)

    def inverted(self, name: str, layers: str = "regan", steps: int | None = None) -> Entry:
        """A head on the latents of images, found by inversion."""
        recipe = INVERT_PRESETS["fast"].changed(steps=steps or self.recipe.steps)
        fit = self.fit.changed(augment=None)

        @cache
        def road() -> AutoShot:
            generator = load_stylegan(self.generator, layers, recipe=recipe)
            # Whatever the layers, an image is searched for once.
            generator.store = Store(self.work / "inverted")
            return AutoShot(self.work, generator, self.distill, fit, own=False, quiet=self.quiet)

        recipes = {"inversion": recipe, "fit": fit}
        return Entry(name, lambda shots: road().few_shot(shots), recipes, source=self.drawn_by)

    def mean_teacher(self, name: str = "mean teacher") -> Entry:
        """The student's network with consistency on plain images, and no representation."""
        return Entry(name, lambda shots: predictor(self._contest.mean_teacher(shots)), {"student": self.distill})

    def started(self, student: str, pretext: str | None = None) -> Entry:
        """A mean teacher of another student's network, whose encoder begins with what a pretext trained, or as chance.

        student: of an encoder of the pretext's net, as "unet-resnet18" of resnet18.
        """
        recipes = {} if pretext is None else {"encoder": self.encoder_recipe(pretext)}
        folder = self._students(self.distill, *recipes.values())

        def method(shots: Shots):
            out = folder_of_draw(folder, f"{student}-{pretext or 'chance'}", shots)
            start = None if pretext is None else self.trained(pretext)
            given = (self._images, None, student, 0, self.quiet)
            return predictor(train_student(shots, self.distill, out, *given, start=start))

        name = f"mean teacher, {student}" if pretext is None else f"mean teacher, {student} of {pretext}"
        return Entry(name, method, {**recipes, "student": self.distill})

    def supervised(self, name: str = "supervised") -> Entry:
        """The student's network from the labels alone."""
        recipe = self.distill.changed(unlabeled=0, consistency=None)
        return Entry(name, lambda shots: predictor(self._contest.supervised(shots)), {"student": recipe})

    def transfer(self, name: str = "transfer") -> Entry:
        """The student's network, trained with many exact masks of another toy and then with the labels."""
        recipe = self.distill.changed(unlabeled=0, consistency=None)

        def method(shots: Shots):
            out = folder_of_draw(self._students(recipe), "transfer", shots)
            given = (None, None, STUDENT, 0, self.quiet)
            return predictor(train_student(shots, recipe, out, *given, start=self._elsewhere))

        return Entry(name, method, {"student": recipe})

    def forest(self, name: str = "forest") -> Entry:
        """What users do today: a random forest on filters."""
        return Entry(name, lambda shots: Forest(shots.parts).fit(shots).predict, {})

    def encoder_of(self, pretext: str, images: Callable[[], Path] | None = None) -> Representation:
        """The trained encoder, with the map of positions."""
        return Positioned(open_representation("resnet", self.trained(pretext, images)))

    def trained(self, pretext: str, images: Callable[[], Path] | None = None) -> Path:
        """The folder of a trained encoder."""
        folder = self.field.plain if images is None else images()
        left_out = self.field.left_out if images is None else ()
        recipe = self.encoder_recipe(pretext)
        source = f"{self.field.name}-{self.field.fingerprint}" if images is None else folder.parent.name
        out = self.work / "encoders" / f"{pretext}-{source}-{recipe.fingerprint}"
        given = {"preset": self.recipe.preset_of(pretext), "size": self.recipe.size, "kimg": self.recipe.encoder_kimg}
        return pretrain(pretext, folder, out, **given, quiet=self.quiet, leave_out=left_out)

    def segmenter(self, opened: Callable[[], Representation], head: str = HEAD) -> Callable[[Shots], Segmenter]:
        """Fits a head to shots; the last fit is kept, for rows that share it."""
        opened = cache(opened)

        @_once
        def fitted(shots: Shots) -> Segmenter:
            maker = Segmenter(opened(), shots.parts, head, self.recipe.size, self.fit_of(head))
            return maker.fit(shots, quiet=True)

        return fitted

    def encoder_recipe(self, pretext: str) -> Recipe:
        """How a pretext trains an encoder."""
        return resolve(pretext, self.recipe.preset_of(pretext), self.recipe.size, self.recipe.encoder_kimg)

    @cached_property
    def _elsewhere(self) -> Path:
        """A student that knows all masks of another toy."""
        other = next(name for name in TOYS if name != self.field.name)
        folder = toy_images(other, self.work, self.quiet).parent
        recipe = DISTILL_PRESETS["supervised"].changed(size=self.student_size, kimg=4 * self.recipe.student_kimg)
        out = self.work / "students" / f"all-of-{other}-{recipe.fingerprint}"
        train_student(load_shots(folder), recipe, out, quiet=self.quiet)
        return out

    @cached_property
    def _images(self):
        return self.field.images(self.student_size)

    @cached_property
    def _contest(self) -> Baselines:
        given = (self._students(self.distill), self._images, open_representation(REPRESENTATION), self.distill)
        return Baselines(*given, fit=self.fit, quiet=self.quiet)

    def _students(self, *recipes: Recipe) -> Path:
        """Where students of this Field and these settings are trained, and no others."""
        state = f"{self.field.fingerprint}/{self.recipe.size}/{[recipe.fingerprint for recipe in recipes]}"
        return self.work / "students" / f"{self.field.name}-{hashlib.sha256(state.encode()).hexdigest()[:8]}"


def _presets(told: str) -> tuple[str, dict[str, str]]:
    """ "A,moco=B" as the row of all pretexts and those of single ones."""
    common, *own = (part.strip() for part in told.split(","))
    pairs = [tuple(part.partition("=")[::2]) for part in own]
    if not common or "=" in common or not all(row for _, row in pairs) or len(dict(pairs)) < len(pairs):
        raise ValueError("write ROW for all pretexts and ,PRETEXT=ROW behind it for one, as in A,moco=B")
    return common, dict(pairs)


def _once(fit: Callable[[Shots], object]) -> Callable[[Shots], object]:
    """The same function, remembering its last answer."""
    last: dict[tuple[str, ...], object] = {}

    def remembering(shots: Shots):
        if shots.names not in last:
            last.clear()
            last[shots.names] = fit(shots)
        return last[shots.names]

    return remembering
