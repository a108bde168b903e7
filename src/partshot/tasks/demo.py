"""demo: the whole method on toy images, with one and with ten labels, beside common alternatives.

Needs nothing but this package: makes toy images with exact masks, hides all masks but one (ten), trains by both routes
and writes a report after each phase. Interrupted, it resumes.
"""

import time
from pathlib import Path

import numpy as np

from partshot.data.symmetry import one_sided
from partshot.machine import available_cores
from partshot.nets.student import STRIDE
from partshot.progress import Ticker, print_status
from partshot.tasks.demo_report import DemoReport
from partshot.tasks.demo_routes import GENERATOR_KIND, KS, DemoRecipe, Routes
from partshot.tasks.export import export
from partshot.toy.dataset import draw, toy_shots, write_toy
from partshot.train.student_choice import choose_student
from partshot.workers import side_by_side

# Seeds of the toys: unlabeled, labeled and held-out images never meet.
_UNLABELED, _LABELED, _TEST = 1, 2, 3
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
    """Makes toy images, trains with one and with ten labels, and reports; returns out/report.html.

    kind: a kind of toy.dataset.KINDS. size: side in pixels, 32-512; it takes about seven minutes on two cores up to
    128. out: gets report.html, results.json and demo.png after each phase, student.onnx (from ten labels), some of the
    images, and the runs. jobs: how many numbers of labels are trained in parallel, each in its own process, for which
    the caller's script must be importable (`if __name__ == "__main__"`); None takes as many as there are cores.
    """
    out, began, cores = Path(out), time.monotonic(), available_cores()
    jobs = min(len(KS), cores if jobs is None else jobs)
    work = max(recipe.least, (size + STRIDE - 1) // STRIDE * STRIDE)
    with Ticker("generate images", recipe.images, 0, quiet) as ticker:
        unlabeled = _unlabeled(kind, size, recipe.images, ticker)
    pool = toy_shots(kind, size, max(KS), seed=_LABELED + 10 * seed)
    test = toy_shots(kind, size, recipe.held_out, seed=_TEST)
    write_toy(kind, 24, size, out / "toy", seed=_TEST)
    sided, threads = one_sided(np.stack(unlabeled)), None if jobs == 1 else max(1, cores // jobs)
    routes = Routes(out, kind, seed, recipe, choose_student(), unlabeled, sided, work, pool, test, quiet, threads)
    report = DemoReport(routes)
    report.times.append(("draw", time.monotonic() - began))

    began = time.monotonic()
    report.add("head", side_by_side(routes.first, KS, jobs), "fit a head and a forest", began)
    print_status(f"first results: {report.write()}; students are trained next", quiet)

    began = time.monotonic()
    report.add("student", side_by_side(routes.students, KS, jobs), "train students", began)
    export(report.shown["student"][max(KS)], out / "student.onnx", test.images[:4])
    path = report.write()

    if kind == GENERATOR_KIND:
        began = time.monotonic()
        # Once, for both numbers of labels.
        routes.generators().inverted(routes.to_invert.images)
        report.times.append((f"invert {len(routes.to_invert)} faces", time.monotonic() - began))
        began = time.monotonic()
        report.add("auto-shot", side_by_side(routes.generator, KS, jobs), "train on generated images", began)
        path = report.write()
    return path


def _unlabeled(kind: str, size: int, count: int, ticker: Ticker) -> tuple[np.ndarray, ...]:
    images = []
    for i in range(count):
        images.append(draw(kind, size, _UNLABELED, i)[0])
        ticker.tick(i + 1)
    return tuple(images)
