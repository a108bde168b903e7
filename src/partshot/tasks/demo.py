"""demo: the whole job on drawn images, with one and with ten labels, next to what users do today.

Needs nothing but this package: draws the images and their exact masks, hides all masks but one (ten), does the main
job as `run` does, and measures student, few-shot head and their rivals on held-out images. It goes in phases, what
takes seconds first, and reports after each, so that something is seen before anything is trained.
"""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from pydantic import Field

from partshot.artifact import replacing_file, standing
from partshot.benchmark.auto_shot import AutoShot, AutoShotConfig
from partshot.benchmark.baselines import Baselines, HeadConfig
from partshot.benchmark.kshot import Method, Row, Splits, Table, kshot, table_to_dict, tabulate
from partshot.data.images import resize_images
from partshot.data.shots import Shots
from partshot.data.symmetry import one_sided
from partshot.machine import available_cores
from partshot.metrics import Score
from partshot.nets.student import STRIDE
from partshot.recipe import Recipe
from partshot.report import (
    Confusion,
    Curves,
    Example,
    Figure,
    Headline,
    Methods,
    Mirror,
    Recipes,
    Timing,
    shots_gallery,
    table_in_words,
    worst_gallery,
    write_report,
    write_sheet,
)
from partshot.represent.cache import Store
from partshot.represent.choose import open_representation
from partshot.represent.invert import PRESETS as INVERT_PRESETS
from partshot.represent.stylegan import load_stylegan
from partshot.segmenter import Segmenter
from partshot.student import Student
from partshot.tasks.export import export
from partshot.tasks.fit import HEAD, REPRESENTATION, facing_fit, frozen_segmenter
from partshot.tasks.sample import embedded_shots
from partshot.tasks.train_student import GENERATED, teacher_size
from partshot.toy.dataset import draw, toy_shots, write_toy
from partshot.train.distill_recipe import PRESETS, Distill
from partshot.train.fit_head import PRESETS as FIT_PRESETS
from partshot.train.fit_head import FitHead
from partshot.train.fit_points import PRESETS as POINT_PRESETS
from partshot.train.fit_points import FitPoints
from partshot.train.journal import Journal, read_journal
from partshot.train.progress import Ticker, print_status
from partshot.train.student_choice import Choice, choose_student
from partshot.workers import side_by_side

KS = (1, 10)
ROWS = ("student", "head", "supervised", "forest", "auto_shot", "few_shot")
"""What is measured, in the order in which the report shows it: see `tasks.compare`, and of the last two
`tasks.auto_shot`."""

# What the embedded generator draws; other kinds go the encoder's road alone.
GENERATED_KIND = "faces"
# Seeds of the toy: unlabeled images, labeled ones and held-out ones never meet.
_PLAIN, _LABELED, _TEST = 1, 2, 3
# Thousands of labeled images that the encoder's road's student sees, by its preset: at three quarters of the default
# one's, eyes and noses are not there yet.
_KIMG = {"pretrained": 3.0, "default": 4.0}
# The same of the generator's road, where it is fewer than the preset's.
_AUTO_KIMG = {"auto-shot-pretrained": 3.5}
# Images that the report shows, and those of demo.png.
_WORST, _SHEET = 8, 8


class DemoRecipe(Recipe):
    """How much the demo does.

    images: unlabeled ones. held_out: what is measured on. least: side in pixels that images are worked on at
    least; at 64 px an eye is two pixels wide, and no network tells it from its lid. kimg: thousands of labeled images
    that each student of the encoder's road sees; None: 3 where it starts from a pretrained encoder, else 4. points: how
    the head of the pretrained encoder is fitted; where none is here, fit_images: images that the head of the
    encoder's road sees, half of the usual. auto_fit_images: those of the generator's road. auto_kimg: of a student of
    what the generator drew, enlarged to twice its 64 px; None: 3.5 where it starts from a pretrained encoder, else what
    its preset has. drawn: how many images that is.
    inverted, steps: held-out faces that are inverted, and for how long.
    """

    images: int = Field(default=600, ge=1)
    held_out: int = Field(default=100, ge=1)
    least: int = Field(default=128, ge=32)
    kimg: float | None = Field(default=None, gt=0)
    points: FitPoints = POINT_PRESETS["fast"]
    fit_images: int = Field(default=600, ge=1)
    auto_fit_images: int = Field(default=1200, ge=1)
    auto_kimg: float | None = Field(default=None, gt=0)
    drawn: int = Field(default=GENERATED, ge=1)
    inverted: int = Field(default=32, ge=1)
    steps: int = Field(default=100, ge=1)


DEFAULT_RECIPE = DemoRecipe()


def demo(
    out: Path,
    kind: str = "faces",
    size: int = 64,
    seed: int = 0,
    quiet: bool = False,
    jobs: int | None = 1,
    recipe: DemoRecipe = DEFAULT_RECIPE,
) -> Path:
    """Splits, labels one and ten, does the main job and reports; returns out/report.html.

    kind: a kind of data.toy.KINDS. size: side in pixels, 32-512; the ten minutes are for up to 128.
    out: gets report.html, results.json and demo.png, first with what needs no training, later with all of it;
    student.onnx (from ten labels), a few of the images, and the runs.
    jobs: how many numbers of labels are learned from side by side, each in a process of its own, for which the caller's
    script must be importable (`if __name__ == "__main__"`); None takes as many as there are cores for.
    """
    out, began, cores = Path(out), time.monotonic(), available_cores()
    jobs = min(len(KS), cores if jobs is None else jobs)
    work = max(recipe.least, (size + STRIDE - 1) // STRIDE * STRIDE)
    with Ticker("draw", recipe.images, 0, quiet) as ticker:
        plain = _drawn(kind, size, recipe.images, ticker)
    pool = toy_shots(kind, size, max(KS), seed=_LABELED + 10 * seed)
    test = toy_shots(kind, size, recipe.held_out, seed=_TEST)
    write_toy(kind, 24, size, out / "toy", seed=_TEST)
    sided, threads = one_sided(np.stack(plain)), None if jobs == 1 else max(1, cores // jobs)
    roads = _Roads(out, kind, seed, recipe, choose_student(), plain, sided, work, pool, test, quiet, threads)
    story = _Story(roads)
    story.times.append(("draw", time.monotonic() - began))

    began = time.monotonic()
    story.add("head", side_by_side(roads.first, KS, jobs), "fit a head and a forest", began)
    print_status(f"first results: {story.tell()}; students are trained next", quiet)

    began = time.monotonic()
    story.add("student", side_by_side(roads.students, KS, jobs), "train students", began)
    export(story.shown["student"][max(KS)], out / "student.onnx", test.images[:4])
    report = story.tell()

    if kind == GENERATED_KIND:
        began = time.monotonic()
        # Once, for both numbers of labels.
        roads.generators().inverted(roads.to_invert.images)
        story.times.append((f"invert {len(roads.to_invert)} faces", time.monotonic() - began))
        began = time.monotonic()
        story.add("auto-shot", side_by_side(roads.generator, KS, jobs), "learn by way of the generator", began)
        report = story.tell()
    return report


class _Learned(NamedTuple):
    """What one phase made of one number of labels: plain values, which another process can send.

    student: its folder, where one was trained. journal: of its training.
    """

    rows: list[Row]
    student: Path | None = None
    journal: Sequence[dict] = ()


@dataclass(frozen=True)
class _Roads:
    """Both ways from labels to a student, for any number of labels, in this process or another.

    choice: the student of the encoder's road. plain: the unlabeled images as drawn. sided: whether they all face one
    way. work: side in pixels that students of the encoder's road work at. threads: that one process may use; None
    leaves it as it is.
    """

    out: Path
    kind: str
    seed: int
    recipe: DemoRecipe
    choice: Choice
    plain: tuple[np.ndarray, ...]
    sided: bool
    work: int
    pool: Shots
    test: Shots
    quiet: bool
    threads: int | None

    @property
    def rows(self) -> tuple[str, ...]:
        """What will have been measured in the end."""
        return ROWS if self.kind == GENERATED_KIND else ROWS[:4]

    @cached_property
    def images(self) -> np.ndarray:
        """The unlabeled images at the side that students of the encoder's road work at."""
        return resize_images(self.plain, self.work)

    @property
    def distill(self) -> Distill:
        """The recipe of the encoder's road's student."""
        preset = self.choice.preset
        recipe = PRESETS[preset].changed(size=self.work, kimg=self.recipe.kimg or _KIMG[preset])
        return recipe.one_sided() if self.sided else recipe

    @property
    def auto(self) -> Distill:
        """auto-shot's, for a student of the same kind."""
        preset = choose_student(preset="auto-shot-pretrained").preset
        kimg = self.recipe.auto_kimg or _AUTO_KIMG.get(preset, PRESETS[preset].kimg)
        return PRESETS[preset].changed(kimg=kimg)

    @property
    def fit(self) -> FitHead:
        """The heads' on the generator's road."""
        fast = FIT_PRESETS["fast"].changed(seed=self.seed, images=self.recipe.auto_fit_images)
        return facing_fit(fast, self.sided)

    @property
    def to_invert(self) -> Shots:
        """The held-out images that are inverted."""
        return self.test.subset(range(min(self.recipe.inverted, len(self.test))))

    def labeled(self, k: int) -> Shots:
        """The k labeled images of the encoder's road."""
        return self.pool.sample(k, self.seed)

    def head(self, shots: Shots) -> Segmenter:
        """The few-shot head of the encoder's road: fitted, or read where an earlier phase has fitted it."""
        state = f"{shots.fingerprint}/{self.choice.student}/{self.recipe.fingerprint}"
        folder = self.out / "runs" / f"head-{len(shots)}-{hashlib.sha256(state.encode()).hexdigest()[:8]}"
        if standing(folder).exists():
            return Segmenter.load(folder)
        if self.choice.preset == "pretrained":
            plain = partial(resize_images, self.plain)
            fitted = frozen_segmenter(shots, plain, self.seed, self.sided, recipe=self.recipe.points)
        else:
            given = (shots.parts, HEAD, teacher_size(self.distill), self.fit.changed(images=self.recipe.fit_images))
            fitted = Segmenter(open_representation(REPRESENTATION), *given).fit(shots, self.quiet)
        fitted.save(folder)
        return fitted

    def first(self, k: int) -> _Learned:
        """What needs no training of a network, from k labels: the few-shot head, and what users do today."""
        return self._learned(k, "first", "head", "forest")

    def students(self, k: int) -> _Learned:
        """The student, and its network from the labels alone."""
        return self._learned(k, "students", "student", "supervised")

    def generator(self, k: int) -> _Learned:
        """The generator's road, from its first k faces."""
        self._settle()
        road, faces = self.generators(), embedded_shots().subset(range(k))
        draws = {k: {self.seed: faces.names}}
        rows = self._measured(f"auto-shot-{k}", {"auto_shot": road.auto_shot}, faces, self.test, k, draws)
        rows += self._measured(f"few-shot-{k}", {"few_shot": road.few_shot}, faces, self.to_invert, k, draws)
        return _Learned(rows, road.training(faces) / "student")

    def generators(self) -> AutoShot:
        """The rows of the embedded generator; what was inverted is kept."""
        generator = load_stylegan(recipe=INVERT_PRESETS["fast"].changed(steps=self.recipe.steps))
        generator.store = Store(self.out / "inverted")
        small = resize_images(self.plain, self.auto.size)
        config = AutoShotConfig(
            self.auto, self.fit, student=self.choice.student, generated=self.recipe.drawn, seed=self.seed
        )
        return AutoShot(self.out / "runs", generator, config, small, self.quiet)

    def _learned(self, k: int, phase: str, *rows: str) -> _Learned:
        """Rows of the baselines of the encoder's road."""
        self._settle()
        # The few-shot teacher is fitted by `self.head`, on its own features.
        head = HeadConfig(open_representation(REPRESENTATION))
        named = {"student": self.choice.student, "seed": self.seed, "quiet": self.quiet, "fit_teacher": self.head}
        baselines = Baselines(self.out / "runs", self.images, self.distill, head, **named)
        shots = self.labeled(k)
        found = self._measured(f"{phase}-{k}", baselines.methods(*rows), self.pool, self.test, k)
        if "student" not in rows:
            return _Learned(found)
        trained = baselines.training(shots)
        return _Learned(found, trained / "student", read_journal(trained / "journal.jsonl"))

    def _settle(self) -> None:
        if self.threads is not None:
            torch.set_num_threads(self.threads)

    def _measured(
        self, name: str, methods: Mapping[str, Method], pool: Shots, test: Shots, k: int, draws: Splits | None = None
    ) -> list[Row]:
        """Rows of k labels, new ones written down as they come."""
        journal = Journal(self.out / "rows" / f"{name}-{self.choice.student}-{self.recipe.fingerprint}.jsonl")
        journal.rewind(0)
        done = [Row.from_dict(line) for line in read_journal(journal.path)]
        return kshot(methods, pool, test, [k], [self.seed], draws, lambda row: journal.write(row.to_dict()), done)


@dataclass
class _Story:
    """What was learned and measured so far, and its report.

    shown: name -> k -> what predicts. times: (stage, seconds).
    """

    roads: _Roads
    rows: list[Row] = field(default_factory=list)
    shown: dict[str, dict[int, Segmenter | Student]] = field(default_factory=dict)
    journals: dict[str, Sequence[dict]] = field(default_factory=dict)
    times: list[tuple[str, float]] = field(default_factory=list)

    def add(self, name: str, learned: Sequence[_Learned], stage: str, began: float) -> None:
        """One phase more, for each of KS. name: of what predicts; began: when, in seconds of the monotonic clock."""
        self.times.append((stage, time.monotonic() - began))
        by_k = dict(zip(KS, learned, strict=True))
        self.rows += [row for one in learned for row in one.rows]
        # A head is read where it was fitted, and fitted anew where somebody deleted it.
        self.shown[name] = {
            k: self.roads.head(self.roads.labeled(k)) if one.student is None else Student.load(one.student)
            for k, one in by_k.items()
        }
        self.journals |= {f"{name}, k = {k}": one.journal for k, one in by_k.items()}

    def tell(self) -> Path:
        """Writes results.json, demo.png and report.html of what there is; returns the last."""
        roads, test, most = self.roads, self.roads.test, max(KS)
        table = tabulate(sorted(self.rows, key=lambda row: ROWS.index(row.method)))
        with replacing_file(roads.out / "results.json") as path:
            path.write_text(json.dumps(table_to_dict(table), indent=1), encoding="utf-8")
        students = {name: by_k for name, by_k in self.shown.items() if name != "head"}
        _draw_sheet(roads.out / "demo.png", test, students or self.shown)

        best = "student" if students else "head"
        scored = next(row.score for row in self.rows if (row.method, row.k) == (best, most))
        recipes = {"fit": self.shown["head"][most].recipe, "distill": roads.distill}
        if roads.kind == GENERATED_KIND:
            recipes |= {"fit, auto-shot": roads.fit, "auto-shot": roads.auto}
        awaited = [name for name in roads.rows if name not in table]
        sections = [
            Headline(table_in_words(table, best, len(test), awaited), _figures(table, best)),
            Methods(table, note=self._note(table)),
            shots_gallery(roads.labeled(most)),
            worst_gallery(self._worst(best, scored), _WORST, prediction=best),
            Confusion(scored.confusion),
            Mirror(roads.distill.augment.flip),
            Curves(self.journals),
            Recipes(recipes),
            Timing(self.times),
        ]
        return write_report(roads.out / "report.html", f"partshot demo: drawn {roads.kind}", roads.pool.parts, sections)

    def _worst(self, best: str, scored: Score) -> list[Example]:
        """The held-out images that went worst, as the best model and, beside a student, the head see them."""
        scores, test, most = dict(scored.worst(_WORST)), self.roads.test, max(KS)
        few = test.subset([test.names.index(name) for name in scores])
        found = [one.labels for one in self.shown[best][most].predict(few.images)]
        heads = (
            [None] * len(few) if best == "head" else [p.labels for p in self.shown["head"][most].predict(few.images)]
        )
        images = zip(few.names, few.images, few.labels, heads, found, strict=True)
        return [Example(*image, score=scores[image[0]]) for image in images]

    def _note(self, table: Table) -> str:
        """What to know of the rows."""
        roads, choice = self.roads, self.roads.choice
        note = (
            f"Mean IoU on {len(roads.test)} held-out images with exact masks; one draw of labels. head is a small "
            "head on frozen features, forest a random forest on filters"
        )
        if "student" in table:
            note += f", student {choice.student} ({choice.why}), supervised the same network from the labels alone"
        if "auto_shot" not in table:
            return f"{note}."
        return (
            f"{note}. auto_shot and few_shot go by way of the embedded generator: the labels are of faces that it "
            "drew, chosen and not random: its mean face first, then ones that differ. auto_shot is a student of "
            f"{roads.recipe.drawn:,} that it drew and labeled, which has to say the same of the unlabeled images "
            f"however they are changed; few_shot reads the first {len(roads.to_invert)} held-out faces by inversion."
        )


def _drawn(kind: str, size: int, count: int, ticker: Ticker) -> tuple[np.ndarray, ...]:
    drawn = []
    for i in range(count):
        drawn.append(draw(kind, size, _PLAIN, i)[0])
        ticker.tick(i + 1)
    return tuple(drawn)


def _draw_sheet(path: Path, test: Shots, models: Mapping[str, Mapping[int, Segmenter | Student]]) -> None:
    few = slice(0, _SHEET)
    seen = {
        f"{name}, {k} label{'s' if k > 1 else ''}": [p.labels for p in model.predict(test.images[few])]
        for name, by_k in models.items()
        for k, model in by_k.items()
    }
    rows = {"held-out images": None, **seen, "exact masks": test.labels[few]}
    write_sheet(path, test.images[few], rows, test.parts)


def _figures(table: Table, best: str) -> list[Figure]:
    ours, forest = table[best], table["forest"]
    return [
        Figure(f"mean IoU, {k} label{'s' if k > 1 else ''}", f"{ours[k].miou:.3f}", f"forest {forest[k].miou:.3f}")
        for k in KS
    ]
