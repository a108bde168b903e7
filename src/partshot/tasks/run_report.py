"""The report of a run: what it trained, how good the student is, and what it predicts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from partshot.data.shots import Shots
from partshot.evenly import evenly
from partshot.report import (
    Curves,
    Example,
    Figure,
    Gallery,
    Headline,
    Mirror,
    PartBars,
    Recipes,
    Skipped,
    Timing,
    check_in_words,
    estimate_in_words,
    shots_gallery,
    uncertain_gallery,
    write_report,
)
from partshot.segmenter import Segmenter
from partshot.student import BATCH, Student
from partshot.tasks.check import Checked
from partshot.tasks.compact import Compared
from partshot.tasks.estimate import Estimate
from partshot.tasks.predict import Summary
from partshot.tasks.preview import read_small
from partshot.tasks.run_plan import Inputs, Plan
from partshot.tasks.run_stages import Stages
from partshot.tasks.teacher_rules import GENERATED, reads_generator, why_unused
from partshot.train.distill_recipe import Distill
from partshot.train.journal import read_journal

_SHOWN = 12


@dataclass(frozen=True)
class Results:
    """What a run made.

    student, teacher: the models; teacher is None where none was fitted. training: the folder of the student's training.
    summary: of the predictions. compared: the compact student, where one was trained. checked, expected: how good the
    student is, as measured or else as estimated.
    """

    student: Student
    teacher: Segmenter | None
    training: Path
    summary: Summary
    compared: Compared | None = None
    checked: Checked | None = None
    expected: Estimate | None = None

    @property
    def miou(self) -> str:
        """The student's mean IoU in a few words."""
        if self.checked is not None:
            # One image gives no standard error.
            error = "" if math.isnan(self.checked.error) else f" ± {self.checked.error:.2f}"
            return f"mean IoU on held-out masks {self.checked.miou:.2f}{error}"
        if self.expected is None:
            return "mean IoU unknown"
        how = "expected mean IoU" if self.expected.corrected else "mean IoU in cross-validation"
        return f"{how} {self.expected.miou:.2f} ± {self.expected.error:.2f}"


def write_run_report(title: str, inputs: Inputs, plan: Plan, results: Results, stages: Stages) -> Path:
    """Writes report.html and returns its path."""
    shots, labeled = inputs.shots, {path.stem for path in inputs.masks}
    examples = stages.run("write the report", lambda: _examples(results, inputs.paths, labeled))
    sections = [
        *_quality(results, shots, [*_figures(plan, results, shots, stages), *_compared(results.compared)]),
        shots_gallery(shots),
        Gallery("Predictions", evenly(examples, _SHOWN)),
        uncertain_gallery(examples),
        Mirror(plan.mirror),
        Curves({"student": read_journal(results.training / "journal.jsonl")}),
        Recipes({"fit": plan.fit, "distill": plan.distill} if plan.has_teacher else {"distill": plan.distill}),
        Timing(stages.times),
        Skipped(list({**dict(inputs.stack.skipped), **dict(results.summary.skipped)}.items())),
    ]
    return write_report(inputs.out / "report.html", title, shots.parts, sections)


def _quality(results: Results, shots: Shots, figures: Sequence[Figure]) -> list[Headline | PartBars]:
    """How good the student is, as measured or else as estimated: in words, and by part where it is known."""
    checked, expected = results.checked, results.expected
    if checked is not None:
        bars = {f"student on {checked.images} held-out masks": checked.per_part}
        return [Headline(check_in_words(checked), figures), PartBars(bars)]
    headline = Headline(estimate_in_words(expected, len(shots)), figures)
    if expected is None:
        return [headline]
    bars = f"students of the cross-validation: {expected.share:.0%} of the training, fewer labels"
    return [headline, PartBars({bars: expected.folds.occurring})]


def _examples(results: Results, paths: Sequence[Path], labeled: set[str]) -> list[Example]:
    """Some unlabeled images, shrunk, evenly spaced over the folder, with the masks of student and teacher."""
    teacher = results.teacher
    # Fewer with a generator: it inverts each image.
    most = _SHOWN if teacher is not None and reads_generator(teacher) else 4 * _SHOWN
    chosen = evenly([path for path in paths if path.stem not in labeled], most)
    examples = []
    # A few at a time: probabilities take far more memory than images.
    for first in range(0, len(chosen), BATCH):
        several = [one for one in map(read_small, chosen[first : first + BATCH]) if one is not None]
        images = [image for _, image, _ in several]
        by_student = results.student.predict(images)
        by_teacher = [None] * len(images) if teacher is None else [one.labels for one in teacher.predict(images)]
        examples += [
            Example(path.stem, image, teacher=theirs, prediction=ours.labels, uncertainty=ours.uncertainty)
            for (path, image, _), ours, theirs in zip(several, by_student, by_teacher, strict=True)
        ]
    return examples


def _figures(plan: Plan, results: Results, shots: Shots, stages: Stages) -> list[Figure]:
    summary, store = results.summary, stages.store
    figures = [
        Figure("images", str(plan.images), f"{summary.written + summary.kept} with a predicted mask"),
        Figure("labeled", str(plan.shots), ", ".join(plan.parts)),
        Figure("student", plan.student, f"at {plan.distill.size} px; {plan.why}"),
    ]
    if results.teacher is not None:
        role = _role(results.teacher, shots, plan.distill)
        figures.append(Figure("teacher", plan.representation, f"head {plan.head}; {role}"))
    if store is not None and store.found + store.extracted:
        figures.append(Figure("features from cache", f"{store.found:,}", f"{store.extracted:,} extracted"))
    return figures


def _role(teacher: Segmenter, shots: Shots, recipe: Distill) -> str:
    if reads_generator(teacher):
        return f"labels {GENERATED} generated images"
    why = why_unused(teacher, shots, recipe)
    return f"not used: {why}" if why else "its labels start the student"


def _compared(compared: Compared | None) -> list[Figure]:
    if compared is None:
        return []
    large, small = compared.images_per_second
    agreement = f"mean IoU of {compared.agreement:.3f} with the student's masks"
    return [Figure("compact student", f"{small:.0f}", f"images/s, the student {large:.0f}; {agreement} (compact.onnx)")]
