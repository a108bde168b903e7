"""demo: the whole job on drawn pictures, with one and with ten labels, next to what users do today.

Needs nothing but this package: draws the pictures and their exact masks, hides all masks but one (ten), does the main
job, and measures student, few-shot head and every rival on held-out pictures.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from pydantic import Field

from partshot.artifact import replacing_file
from partshot.data.images import resize_images
from partshot.data.shots import Shots
from partshot.data.symmetry import one_sided
from partshot.data.toy import draw, toy_shots, write_toy
from partshot.evaluate import Draws, Method, Row, kshot, score, table_to_dict, tabulate
from partshot.machine import available_cores
from partshot.nets.student import STRIDE
from partshot.recipe import Recipe
from partshot.report import (
    Confusion,
    Curves,
    Figure,
    Headline,
    Methods,
    Mirror,
    Picture,
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
from partshot.segmenter import Student
from partshot.tasks.auto_shot import AutoShot
from partshot.tasks.compare import Contest
from partshot.tasks.distill import DRAWN
from partshot.tasks.export import export
from partshot.tasks.fit import HEAD, REPRESENTATION, facing_fit
from partshot.tasks.sample import embedded_shots
from partshot.train.distill_recipe import PRESETS, Distill
from partshot.train.fit_head import PRESETS as FIT_PRESETS
from partshot.train.fit_head import FitHead
from partshot.train.journal import Journal, read_journal
from partshot.train.progress import Ticker
from partshot.workers import side_by_side

KS = (1, 10)
# What the embedded generator draws; other kinds go the encoder's road alone.
DRAWN_KIND = "faces"
# Seeds of the toy: unlabelled pictures, labelled ones and held-out ones never meet.
_PLAIN, _LABELLED, _TEST = 1, 2, 3


class DemoRecipe(Recipe):
    """How much the demo does.

    pictures: unlabelled ones. held_out: what is measured on. least: side in pixels that pictures are worked on at
    least; at 64 px an eye is two pixels wide, and no network tells it from its lid. kimg: thousands of shots that each
    student sees; at three quarters of it eyes and noses are not there yet. fit_images: pictures that the few-shot heads
    of the encoder's road see, half of the usual; auto_fit_images: those of the generator's road. auto_kimg: of a
    student of what the generator drew, enlarged to twice its 64 px; drawn: how many pictures that is. inverted, steps:
    held-out faces that are inverted, and for how long.
    """

    pictures: int = Field(default=600, ge=1)
    held_out: int = Field(default=200, ge=1)
    least: int = Field(default=128, ge=32)
    kimg: float = Field(default=4.0, gt=0)
    fit_images: int = Field(default=600, ge=1)
    auto_fit_images: int = Field(default=1200, ge=1)
    auto_kimg: float = Field(default=PRESETS["auto-shot-consistent"].kimg, gt=0)
    drawn: int = Field(default=DRAWN, ge=1)
    inverted: int = Field(default=32, ge=1)
    steps: int = Field(default=100, ge=1)


TEN_MINUTES = DemoRecipe()


def demo(
    out: Path,
    kind: str = "faces",
    size: int = 64,
    seed: int = 0,
    quiet: bool = False,
    jobs: int | None = 1,
    recipe: DemoRecipe = TEN_MINUTES,
) -> Path:
    """Draws, labels one and ten, does the main job and reports; returns out/report.html.

    kind: a kind of data.toy.KINDS. size: side in pixels, 32-512; the ten minutes are for up to 128.
    out: gets report.html, results.json, student.onnx (from ten labels), demo.png, a few of the pictures, and the runs.
    jobs: how many numbers of labels are learnt from side by side, each in a process of its own, for which the caller's
    script must be importable (`if __name__ == "__main__"`); None takes as many as there are cores for.
    """
    out, began, cores = Path(out), time.monotonic(), available_cores()
    jobs = min(len(KS), cores if jobs is None else jobs)
    work = max(recipe.least, (size + STRIDE - 1) // STRIDE * STRIDE)
    with Ticker("draw", recipe.pictures, 0, quiet) as ticker:
        plain = _drawn(kind, size, recipe.pictures, ticker)
    pool = toy_shots(kind, size, max(KS), seed=_LABELLED + 10 * seed)
    test = toy_shots(kind, size, recipe.held_out, seed=_TEST)
    write_toy(kind, 24, size, out / "pictures", seed=_TEST)
    sided, threads = one_sided(np.stack(plain)), None if jobs == 1 else max(1, cores // jobs)
    roads = _Roads(out, seed, recipe, plain, sided, work, pool, test, quiet, threads)
    times = [("draw", time.monotonic() - began)]

    began = time.monotonic()
    learnt = dict(zip(KS, side_by_side(roads.encoders, KS, jobs), strict=True))
    times.append(("learn by way of an encoder, and all rivals", time.monotonic() - began))
    rows = [row for k in KS for row in learnt[k].rows]
    students = {"student": {k: Student.load(learnt[k].student) for k in KS}}
    if kind == DRAWN_KIND:
        began = time.monotonic()
        # Once, for both numbers of labels.
        roads.generators().inverted(roads.to_invert.images)
        times.append((f"invert {len(roads.to_invert)} faces", time.monotonic() - began))
        began = time.monotonic()
        shown = dict(zip(KS, side_by_side(roads.generator, KS, jobs), strict=True))
        times.append(("learn by way of the generator", time.monotonic() - began))
        # A table shows methods one after the other, each with all its numbers of labels.
        rows += sorted((row for k in KS for row in shown[k].rows), key=lambda row: row.method)
        students["auto-shot"] = {k: Student.load(shown[k].student) for k in KS}
    table = tabulate(rows)
    with replacing_file(out / "results.json") as path:
        path.write_text(json.dumps(table_to_dict(table), indent=1), encoding="utf-8")

    best = students["student"][max(KS)]
    export(best, out / "student.onnx", test.images[:4])
    predictions = best.predict(test.images)
    _draw_sheet(out / "demo.png", test, students)
    result = score(test.labels, [p.labels for p in predictions], test.parts, test.names)
    looks = [
        Picture(name, image, truth, teacher=head, prediction=found.labels, score=dict(result.per_picture)[name])
        for name, image, truth, found, head in zip(
            test.names, test.images, test.labels, predictions, learnt[max(KS)].head, strict=True
        )
    ]
    same = ""
    if all(table["student"][k].per_part == table["mean teacher"][k].per_part for k in KS):
        same = " The few-shot teacher (head) is too weak to be heard, so student and mean teacher are one network."
    by_generator = roads.words if kind == DRAWN_KIND else ""
    note = f"Mean IoU on {len(test)} held-out pictures with exact masks; one draw of labels.{same}{by_generator}"
    recipes = {"fit": roads.few, "distill": roads.distill}
    if kind == DRAWN_KIND:
        recipes |= {"fit, auto-shot": roads.fit, "auto-shot": roads.auto}
    sections = [
        Headline(table_in_words(table, "student", len(test)), _figures(table)),
        Methods(table, note=note),
        shots_gallery(pool.draw(max(KS), seed)),
        worst_gallery(looks, prediction="student"),
        Confusion(result.confusion),
        Mirror(roads.distill.augment.flip),
        Curves({f"student, k = {k}": learnt[k].journal for k in KS}),
        Recipes(recipes),
        Timing(times),
    ]
    return write_report(out / "report.html", f"partshot demo: drawn {kind}", pool.parts, sections)


class _Learnt(NamedTuple):
    """What one road made of one number of labels: plain values, which another process can send.

    student: its folder. head: the few-shot teacher's labels of the held-out pictures.
    """

    rows: list[Row]
    student: Path
    journal: list[dict]
    head: list[np.ndarray] = []


@dataclass(frozen=True)
class _Roads:
    """Both ways from labels to a student, for any number of labels, in this process or another.

    plain: the unlabelled pictures as drawn. sided: whether they all face one way. work: side in pixels that the
    encoder's road works at. threads: that one process may use; None leaves it as it is.
    """

    out: Path
    seed: int
    recipe: DemoRecipe
    plain: tuple[np.ndarray, ...]
    sided: bool
    work: int
    pool: Shots
    test: Shots
    quiet: bool
    threads: int | None

    @cached_property
    def pictures(self) -> np.ndarray:
        """The unlabelled pictures at the side that the encoder's road works at."""
        return resize_images(self.plain, self.work)

    @property
    def distill(self) -> Distill:
        """The student's recipe."""
        recipe = PRESETS["default"].changed(size=self.work, kimg=self.recipe.kimg)
        return recipe.one_sided() if self.sided else recipe

    @property
    def auto(self) -> Distill:
        """auto-shot's."""
        return PRESETS["auto-shot-consistent"].changed(kimg=self.recipe.auto_kimg)

    @property
    def fit(self) -> FitHead:
        """The heads' on the generator's road."""
        fast = FIT_PRESETS["fast"].changed(seed=self.seed, images=self.recipe.auto_fit_images)
        return facing_fit(fast, self.sided)

    @property
    def few(self) -> FitHead:
        """The heads' on the encoder's road."""
        return self.fit.changed(images=self.recipe.fit_images)

    @property
    def to_invert(self) -> Shots:
        """The held-out pictures that are inverted."""
        return self.test.subset(range(min(self.recipe.inverted, len(self.test))))

    @property
    def words(self) -> str:
        """What to know of the generator's rows."""
        return (
            " auto_shot and few_shot go by way of the embedded generator: the labels are of faces that it drew, chosen "
            "and not random: its mean face first, then ones that differ. auto_shot is a student of "
            f"{self.recipe.drawn:,} that it drew and labelled, which has to say the same of the unlabelled pictures "
            f"however they are changed; few_shot reads the first {len(self.to_invert)} held-out "
            "faces by inversion."
        )

    def encoders(self, k: int) -> _Learnt:
        """The encoder's road and every rival, from k labels."""
        self._settle()
        given = (self.out / "runs", self.pictures, open_representation(REPRESENTATION), self.distill, HEAD, self.few)
        contest, shots = Contest(*given, seed=self.seed, quiet=self.quiet), self.pool.draw(k, self.seed)
        rows = self._measured(f"encoders-{k}", contest.methods(), self.pool, self.test, k)
        head = [one.labels for one in contest.teacher(shots).predict(self.test.images)]
        trained = contest.training(shots)
        return _Learnt(rows, trained / "student", read_journal(trained / "journal.jsonl"), head)

    def generator(self, k: int) -> _Learnt:
        """The generator's road, from its first k faces."""
        self._settle()
        road, faces = self.generators(), embedded_shots().subset(range(k))
        draws = {k: {self.seed: faces.names}}
        rows = self._measured(f"auto-shot-{k}", {"auto_shot": road.auto_shot}, faces, self.test, k, draws)
        rows += self._measured(f"few-shot-{k}", {"few_shot": road.few_shot}, faces, self.to_invert, k, draws)
        return _Learnt(rows, road.training(faces) / "student", [])

    def generators(self) -> AutoShot:
        """The rows of the embedded generator; what was inverted is kept."""
        generator = load_stylegan(recipe=INVERT_PRESETS["fast"].changed(steps=self.recipe.steps))
        generator.store = Store(self.out / "inverted")
        small = resize_images(self.plain, self.auto.size)
        given = (self.out / "runs", generator, self.auto, self.fit)
        return AutoShot(*given, drawn=self.recipe.drawn, seed=self.seed, quiet=self.quiet, pictures=small)

    def _settle(self) -> None:
        if self.threads is not None:
            torch.set_num_threads(self.threads)

    def _measured(
        self, name: str, methods: Mapping[str, Method], pool: Shots, test: Shots, k: int, draws: Draws | None = None
    ) -> list[Row]:
        """Rows of k labels, new ones written down as they come."""
        journal = Journal(self.out / "rows" / f"{name}-{self.recipe.fingerprint}.jsonl")
        journal.rewind(0)
        done = [Row.from_dict(line) for line in read_journal(journal.path)]
        return kshot(methods, pool, test, [k], [self.seed], draws, lambda row: journal.write(row.to_dict()), done)


def _drawn(kind: str, size: int, count: int, ticker: Ticker) -> tuple[np.ndarray, ...]:
    drawn = []
    for i in range(count):
        drawn.append(draw(kind, size, _PLAIN, i)[0])
        ticker.tick(i + 1)
    return tuple(drawn)


def _draw_sheet(path: Path, test: Shots, students: dict[str, dict[int, Student]]) -> None:
    few = slice(0, 8)
    seen = {
        f"{name}, {k} label{'s' if k > 1 else ''}": [p.labels for p in student.predict(test.images[few])]
        for name, by_k in students.items()
        for k, student in by_k.items()
    }
    rows = {"held-out pictures": None, **seen, "exact masks": test.labels[few]}
    write_sheet(path, test.images[few], rows, test.parts)


def _figures(table) -> list[Figure]:
    ours, forest = table["student"], table["forest"]
    return [
        Figure(f"mean IoU, {k} label{'s' if k > 1 else ''}", f"{ours[k].miou:.3f}", f"forest {forest[k].miou:.3f}")
        for k in KS
    ]
