"""demo: the whole job on drawn pictures, with one and with ten labels, next to what users do today.

Needs nothing but this package: draws the pictures and their exact masks, hides all masks but one (ten), does the main
job, and measures student, few-shot head and every rival on held-out pictures.
"""

import json
import time
from functools import partial
from pathlib import Path

import numpy as np

from partshot.artifact import replacing_file
from partshot.data.images import resize_image
from partshot.data.shots import Shots
from partshot.data.toy import draw, toy_shots, write_toy
from partshot.evaluate import Row, kshot, score, table_to_dict, tabulate
from partshot.nets.student import STRIDE
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
from partshot.represent.choose import open_representation
from partshot.represent.invert import PRESETS as INVERT_PRESETS
from partshot.represent.stylegan import load_stylegan
from partshot.segmenter import Student
from partshot.tasks.auto_shot import AutoShot
from partshot.tasks.compare import Contest
from partshot.tasks.distill import DRAWN, facing
from partshot.tasks.export import export
from partshot.tasks.fit import HEAD, REPRESENTATION, facing_fit
from partshot.tasks.sample import embedded_shots
from partshot.train.distill import PRESETS
from partshot.train.fit_head import PRESETS as FIT_PRESETS
from partshot.train.journal import Journal, read_journal
from partshot.train.progress import Ticker

KS = (1, 10)
PICTURES, HELD_OUT = 600, 200
# Small pictures are worked on enlarged: at 64 px an eye is two pixels wide, and no network tells it from its lid.
LEAST_SIZE = 128
# What two cores train in 80 seconds per student at 128 px; at three quarters of it eyes and noses are not there yet.
KIMG = 4.0
# Pictures that the few-shot heads of the encoder's road see: half of the usual.
FIT_IMAGES = 600
# What the embedded generator draws; other kinds go the encoder's road alone.
DRAWN_KIND = "faces"
# Held-out faces that are inverted, in steps that take about a second for each.
INVERTED, STEPS = 32, 100
# Of a student of what the generator drew, at the generator's 64 px: a good minute.
AUTO_KIMG = 24.0
_BY_GENERATOR = (
    " auto_shot and few_shot go by way of the embedded generator: the labels are of faces that it drew, chosen and not "
    "random: its mean face first, then ones that differ. auto_shot is a student of "
    f"{DRAWN:,} that it drew and labelled; few_shot reads the first {INVERTED} held-out faces by inversion."
)
# Seeds of the toy: unlabelled pictures, labelled ones and held-out ones never meet.
_PLAIN, _LABELLED, _TEST = 1, 2, 3


def demo(out: Path, kind: str = "faces", size: int = 64, seed: int = 0, quiet: bool = False) -> Path:
    """Draws, labels one and ten, does the main job and reports; returns out/report.html.

    kind: a kind of data.toy.KINDS. size: side in pixels, 32-512; the ten minutes are for up to 128.
    out: gets report.html, results.json, student.onnx (from ten labels), demo.png, a few of the pictures, and the runs.
    """
    out, began = Path(out), time.monotonic()
    work = max(LEAST_SIZE, (size + STRIDE - 1) // STRIDE * STRIDE)
    with Ticker("draw", PICTURES, 0, quiet) as ticker:
        pictures = _pictures(kind, size, work, ticker)
    pool = toy_shots(kind, size, max(KS), seed=_LABELLED + 10 * seed)
    test = toy_shots(kind, size, HELD_OUT, seed=_TEST)
    write_toy(kind, 24, size, out / "pictures", seed=_TEST)
    drawn = time.monotonic() - began

    recipe = facing(PRESETS["default"].changed(size=work, kimg=KIMG), pictures)
    fit = facing_fit(FIT_PRESETS["fast"].changed(seed=seed), not recipe.augment.flip)
    representation = open_representation(REPRESENTATION)
    few = fit.changed(images=FIT_IMAGES)
    contest = Contest(out / "runs", pictures, representation, recipe, HEAD, few, seed=seed, quiet=quiet)
    journal = Journal(out / "rows.jsonl")
    journal.rewind(0)
    done = [Row.from_dict(line) for line in read_journal(journal.path)]
    methods = contest.methods()
    measured = partial(kshot, on_result=lambda row: journal.write(row.to_dict()), done=done)
    rows = measured(methods, pool, test, KS, [seed])
    road = None
    if kind == DRAWN_KIND:
        auto = PRESETS["auto-shot"].changed(kimg=AUTO_KIMG)
        generator = load_stylegan(recipe=INVERT_PRESETS["fast"].changed(steps=STEPS))
        road = AutoShot(out / "runs", generator, auto, fit, drawn=DRAWN, seed=seed, quiet=quiet)
        faces = {k: embedded_shots().subset(range(k)) for k in KS}
        first = {k: {seed: some.names} for k, some in faces.items()}
        rows += measured({"auto_shot": road.auto_shot}, faces[max(KS)], test, KS, [seed], first)
        inverted = test.subset(range(min(INVERTED, len(test))))
        rows += measured({"few_shot": road.few_shot}, faces[max(KS)], inverted, KS, [seed], first)
    table = tabulate(rows)
    with replacing_file(out / "results.json") as path:
        path.write_text(json.dumps(table_to_dict(table), indent=1), encoding="utf-8")

    best = contest.distilled(pool.draw(max(KS), seed))
    export(best, out / "student.onnx", test.images[:4])
    predictions = best.predict(test.images)
    students = {"student": {k: contest.distilled(pool.draw(k, seed)) for k in KS}}
    if road is not None:
        students["auto-shot"] = {k: road.student(some) for k, some in faces.items()}
    _draw_sheet(out / "demo.png", test, students)
    teacher = contest.teacher(pool.draw(max(KS), seed)).predict(test.images)
    result = score(test.labels, [p.labels for p in predictions], test.parts, test.names)
    looks = [
        Picture(name, image, truth, teacher=b.labels, prediction=a.labels, score=dict(result.per_picture)[name])
        for name, image, truth, a, b in zip(test.names, test.images, test.labels, predictions, teacher, strict=True)
    ]
    same = ""
    if all(table["student"][k].per_part == table["mean teacher"][k].per_part for k in KS):
        same = " The few-shot teacher (head) is too weak to be heard, so student and mean teacher are one network."
    by_generator = "" if road is None else _BY_GENERATOR
    note = f"Mean IoU on {HELD_OUT} held-out pictures with exact masks; one draw of labels.{same}{by_generator}"
    sections = [
        Headline(table_in_words(table, "student", HELD_OUT), _figures(table)),
        Methods(table, note=note),
        shots_gallery(pool.draw(max(KS), seed)),
        worst_gallery(looks, prediction="student"),
        Confusion(result.confusion),
        Mirror(recipe.augment.flip),
        Curves(_journals(contest, pool, seed)),
        Recipes(
            {"fit": few, "distill": recipe, **({} if road is None else {"fit, auto-shot": fit, "auto-shot": auto})}
        ),
        Timing(
            [("draw", drawn), *[(f"{row.method}, k = {row.k}", row.fit_seconds + row.predict_seconds) for row in rows]]
        ),
    ]
    return write_report(out / "report.html", f"partshot demo: drawn {kind}", pool.parts, sections)


def _pictures(kind: str, size: int, work: int, ticker: Ticker) -> np.ndarray:
    drawn = []
    for i in range(PICTURES):
        drawn.append(resize_image(draw(kind, size, _PLAIN, i)[0], work))
        ticker.tick(i + 1)
    return np.stack(drawn)


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


def _journals(contest: Contest, pool: Shots, seed: int) -> dict[str, list[dict]]:
    folders = {k: contest.training(pool.draw(k, seed)) for k in KS}
    return {f"student, k = {k}": read_journal(folder / "journal.jsonl") for k, folder in folders.items()}
