"""run: from a folder of images and a few masks to masks for all, student.onnx and a report, in one command.

The story of the whole project, stage by stage, each resumable by itself: read the shots, look which way things face,
train the student that this machine affords, export it, predict everything, estimate from the shots alone how good the
student is (or measure it on masks kept apart), and report. A representation that is asked for is trained first, and a
few-shot teacher fitted on it.
"""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from partshot.artifact import replacing_file, standing
from partshot.data.images import Stack, list_images, read_image, read_stack
from partshot.data.shots import Shots, find_pairs, load_shots, mask_files
from partshot.errors import BadImage, BadRecipe
from partshot.nets.student import build_student
from partshot.ops.precision import best_device
from partshot.pretext.stylegan2 import check_image_count
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
from partshot.report.notes import duration
from partshot.represent.cache import Store, cache_folder, open_store
from partshot.represent.choose import POSITION, cached, open_representation
from partshot.represent.spec import Representation
from partshot.represent.stylegan import StyleGAN
from partshot.segmenter import Segmenter, Student
from partshot.tasks.check import Checked, check, check_pairs
from partshot.tasks.compact import Compared, compact
from partshot.tasks.distill import GENERATED, draws, is_teacher_used, teacher_size, train_student
from partshot.tasks.estimate import Estimate, estimate, trainings
from partshot.tasks.export import export
from partshot.tasks.predict import predict
from partshot.tasks.pretrain import DEFAULT, LONG, pretrain, resolve
from partshot.tasks.preview import EXPECTED_SECONDS, is_due, preview
from partshot.tasks.run_auto import LONG_TRAINED_BONUS, TRAINED, Candidate, choose, ready
from partshot.tasks.run_pace import horizon, kept, refuse_minutes
from partshot.tasks.run_plan import NO_TEACHER, Plan, make_plan
from partshot.tasks.sample import latents_of
from partshot.train.journal import read_journal
from partshot.train.progress import say
from partshot.train.student_choice import AUTO, choose_student, pretrained_student, student_recipe

# Unlabeled images that a student trains on; more would not be seen six times in the default horizon.
_MOST_IMAGES = 4000
# Thousands of images that an encoder sees in a minute on two cores and on a GPU, for telling whether "auto" has the
# time to train one.
_KIMG_PER_MINUTE = {"cpu": 2.0, "cuda": 190.0}
_SHOWN = 12
# Representations that `run` trains on the folder first, and what they are opened as.
_PRETEXTS = {"moco": "resnet", "simsiam": "resnet", "stylegan1": "stylegan1", "stylegan2": "stylegan2"}
# A generator of more pixels takes days without a GPU; its student works at its own size.
_LARGEST_DRAWN = 64


@dataclass
class _Clock:
    """Seconds of each stage and what it took from the store, for the report and, as it goes, for the terminal."""

    store: Store | None
    quiet: bool
    stages: list[tuple[str, float]] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def left(self, minutes: float | int) -> float:
        """Seconds that are left of so many minutes since it began."""
        return 60 * minutes - (time.monotonic() - self.began)

    def time(self, stage: str, work: Callable, note: Callable[[], str] = lambda: ""):
        """Runs a stage and notes how long it took. note: asked afterwards what is to be said of it."""
        began, before = time.monotonic(), self._reads()
        result = work()
        seconds, (found, extracted) = time.monotonic() - began, self._reads() - before
        reads = f"features: {found:,} from cache, {extracted:,} extracted" if found or extracted else ""
        notes = "; ".join(filter(None, (note(), reads)))
        self.stages.append((f"{stage} ({notes})" if notes else stage, seconds))
        say(f"{stage}: {duration(seconds)}" + (f", {notes}" if notes else ""), self.quiet)
        return result

    def _reads(self) -> np.ndarray:
        return np.array((0, 0) if self.store is None else (self.store.found, self.store.extracted))


def run(
    images: Path,
    labels: Path,
    out: Path,
    representation: str = NO_TEACHER,
    size: int | None = None,
    minutes: float | int | None = None,
    student: str = AUTO,
    seed: int = 0,
    rgb_masks: bool = False,
    dry_run: bool = False,
    quiet: bool = False,
    cache: bool = True,
    auto_minutes: float | int = 2,
    previewed: bool = True,
    compacted: bool = False,
    check_masks: Path | None = None,
) -> Path | Plan:
    """Does everything; returns the report's path, or with `dry_run` the plan and nothing is written.

    images, labels: see data.shots.load_shots. out: gets masks/, student.onnx, report.html and the stages' folders;
    running it again goes on where it stopped. representation: of a few-shot teacher; "none", the default, fits no
    teacher; "auto", "moco", "simsiam", "stylegan1" or "stylegan2" (hours without a GPU), "random", "pixels",
    "timm:NAME" or "timm:NAME@WEIGHTS". size: side that images are worked on at, a multiple of 32; None takes the
    preset's. minutes: about how long all of it may take, for which the student's horizon is chosen by the pace of this
    machine (tasks/pace.py; a compact student comes on top). student: a name of nets.student, or "auto": from a
    pretrained encoder where one is on this machine (tasks/student_choice.py).
    auto_minutes: about how long "auto" may try representations, their layers and heads on left-out shots; encoders are
    trained for it where there is time. Raises what the stages raise, before any work where it can be.

    previewed: whether first masks are written before the student is trained, where a pretrained encoder is on this
    machine and `out` holds none yet (tasks/preview.py). compacted: also train a faster student of the student's labels,
    out/compact.onnx (tasks/compact.py).

    check_masks: a folder of masks of further images of `images`, none of them labeled in `labels`. Nothing is ever
    trained on these masks; their images stay among the unlabeled ones. The report then says what the student scores on
    them, also out/check.json (tasks/check.py), and the cross-validation estimate is skipped.

    Again with other labels and the same `out`, all that depends on labels is made anew. cache: take features and
    trained encoders from earlier runs, whatever their labels and `out`, and keep them for later ones
    (represent/cache.py).
    """
    store, began = open_store(cache), time.time()
    clock, out = _Clock(store, quiet or dry_run), Path(out)
    aside = [] if check_masks is None else [*mask_files(check_masks).values()]
    shots = load_shots(labels, images, rgb_masks=rgb_masks, leave_out=aside)
    pairs = find_pairs(labels, images, leave_out=aside)
    checks = [] if check_masks is None else check_pairs(check_masks, images, pairs, shots.parts, rgb_masks)
    choice = choose_student(student)
    refuse_minutes(minutes)
    recipe = student_recipe(size, choice.preset, shots.native)
    masks = [pair.mask for pair in (*pairs, *checks)]
    paths = list_images(images, leave_out=masks)
    # Built for nothing but their errors: an unknown name is told before any work.
    build_student(pretrained_student(choice.student)[0], len(shots.parts))
    opened = None if representation in (NO_TEACHER, "auto", *_PRETEXTS) else open_representation(representation)
    if representation.startswith(("stylegan1:", "stylegan2:")):
        raise BadRecipe(f"--representation {representation}: run trains a generator on your images; write stylegan2")
    if representation in ("stylegan1", "stylegan2"):
        check_image_count(len(paths))
    stack = clock.time("read", lambda: read_stack(_some(paths), recipe.size, skip_corrupt=True))
    drawn = isinstance(opened, StyleGAN) or representation in ("stylegan1", "stylegan2")
    plan = make_plan(
        shots, stack, len(paths), representation, drawn, recipe, choice, seed, float(auto_minutes), len(checks)
    )
    folds = 0.0 if drawn or checks else trainings(len(shots))
    if dry_run:
        first = EXPECTED_SECONDS if previewed and is_due(out) else 0
        return plan if minutes is None else plan.lasting(_horizon(plan, shots, stack, clock, minutes, folds, first))

    title = f"Parts of {Path(images).resolve().name}"
    reader = None
    if previewed and is_due(out):
        first = clock.time("preview", lambda: preview(shots, paths, out, title, seed, quiet))
        reader = first.reader
        say(f"preview: {first}: {out / 'report.html'}", quiet)
    teacher = None
    if plan.taught:
        plan, teacher = _taught(plan, images, masks, out, shots, clock, began)
    if minutes is not None:
        state = f"{shots.fingerprint}/{plan.fingerprint}/{minutes:g}"
        measure = partial(_horizon, plan, shots, stack, clock, minutes, folds)
        plan = plan.lasting(clock.time("measure the pace", lambda: kept(out / "pace.json", state, measure)))
    training = _training(out, shots, f"{plan.head} on {plan.representation}" if plan.auto_minutes else "")
    given = {"student": plan.student, "seed": seed, "quiet": quiet}
    trained = clock.time(
        "train the student",
        lambda: train_student(shots, plan.distill, training, stack.images, teacher, **given, reader=reader),
    )
    onnx = out / "student.onnx"
    clock.time("export", lambda: export(trained, onnx, shots.images))
    summary = clock.time(
        "predict", lambda: predict(onnx, images, out / "masks", quiet=quiet, leave_out=masks, window="off")
    )
    both = None
    if compacted:
        place = training / "compact"
        teach = partial(compact, shots, trained, onnx, stack.images, place, not plan.mirror, seed, quiet)
        both = clock.time("compact student", teach)
    checked = expected = None
    if checks:
        checked = clock.time("check", lambda: check(checks, onnx, shots.parts, out, rgb_masks, quiet))
    # A generator's teacher, which labels most of what the student sees, was fitted to all labeled images.
    elif teacher is None or not draws(teacher):
        expected = clock.time(
            "estimate", lambda: estimate(shots, plan.distill, out / "estimate", stack.images, **given)
        )
    examples = clock.time("report", lambda: _look(trained, teacher, paths, {path.stem for path in masks}))
    sections = [
        *_quality(checked, expected, shots, [*_figures(plan, summary, teacher, shots, store), *_compared(both)]),
        shots_gallery(shots),
        Gallery("Predictions", examples, prediction="student"),
        uncertain_gallery(examples),
        Mirror(plan.mirror),
        Curves({"student": read_journal(training / "journal.jsonl")}),
        Recipes({"fit": plan.fit, "distill": plan.distill} if plan.taught else {"distill": plan.distill}),
        Timing(clock.stages),
        Skipped(list({**dict(stack.skipped), **dict(summary.skipped)}.items())),
    ]
    return write_report(out / "report.html", title, shots.parts, sections)


def _horizon(
    plan: Plan, shots: Shots, stack: Stack, clock: _Clock, minutes: float | int, folds: float, before: float | int = 0
) -> float:
    """The student's horizon in thousands of images, so that all of the run takes that long. folds: how many horizons an
    estimate trains. before: seconds of what comes before the training."""
    read = dict(clock.stages)["read"] / len(stack.images)
    given = (clock.left(minutes) - before, 1 + folds, plan.images + plan.checks, read)
    return horizon(shots, plan.distill, stack.images, plan.student, *given)


def _quality(
    checked: Checked | None, expected: Estimate | None, shots: Shots, figures: Sequence[Figure]
) -> list[Headline | PartBars]:
    """How good the student is, as measured or else as estimated: in words, and part by part where it is known."""
    if checked is not None:
        bars = {f"student on {checked.images} check masks": checked.per_part}
        return [Headline(check_in_words(checked), figures), PartBars(bars)]
    headline = Headline(estimate_in_words(expected, len(shots)), figures)
    if expected is None:
        return [headline]
    return [headline, PartBars({f"cross-validation, {expected.share:.0%} of the training": expected.folds.per_part})]


def _taught(
    plan: Plan, images: Path, masks: Sequence[Path], out: Path, shots: Shots, clock: _Clock, began: float
) -> tuple[Plan, Segmenter]:
    """The few-shot teacher, on the representation that was asked for, which is trained first where that is needed; and
    the plan with what was chosen."""
    store, quiet = clock.store, clock.quiet
    shelf = None if store is None else cache_folder() / "trained"
    if plan.auto_minutes:
        tried = _candidates(plan, images, masks, out, quiet, store, shelf)
        plan = clock.time("choose", lambda: _chosen(plan, tried, shots, out, quiet), lambda: _why(out))
    reads = clock.time(
        "representation",
        lambda: cached(_representation(plan, images, masks, out, quiet, shelf), store),
        lambda: _when_trained(plan, out, began),
    )
    return plan, clock.time("fit", lambda: _teacher(plan, reads, shots, out, quiet))


def _representation(
    plan: Plan, images: Path, masks: Sequence[Path], out: Path, quiet: bool, shelf: Path | None = None
) -> Representation:
    name = plan.representation.removesuffix(POSITION)
    if name not in _PRETEXTS:
        return open_representation(plan.representation)
    given = {**_training_of(name, plan), "seed": plan.seed, "quiet": quiet, "leave_out": masks}
    folder = pretrain(name, images, out / "representation" / name, **given, shelf=shelf)
    return open_representation(plan.representation.replace(name, _PRETEXTS[name], 1), folder)


def _training_of(name: str, plan: Plan) -> dict:
    """How a pretext is trained here: preset, size and kimg, as `pretrain` takes them."""
    preset, size = DEFAULT, plan.distill.size
    if name.startswith("stylegan"):
        return {"preset": preset, "size": min(_LARGEST_DRAWN, 1 << size.bit_length() - 1), "kimg": resolve(name).kimg}
    if best_device().type == "cuda" and name == "moco":
        return {"preset": LONG, "size": size, "kimg": resolve(name, LONG).kimg}
    return {"preset": preset, "size": size, "kimg": min(resolve(name).kimg, 4 * plan.distill.kimg)}


def _candidates(
    plan: Plan, images: Path, masks: Sequence[Path], out: Path, quiet: bool, store: Store | None, shelf: Path | None
) -> list[Candidate]:
    """Whom "auto" chooses from: what needs no training, and then the encoders."""

    def trained(name: str) -> Representation:
        of = plan.changed(representation=name)
        return cached(_representation(of, images, masks, out, quiet, shelf), store)

    pace = _KIMG_PER_MINUTE.get(best_device().type, _KIMG_PER_MINUTE["cpu"]) / 60
    encoders = []
    for name in TRAINED:
        how, told = _training_of(name, plan), f"{name}{POSITION}"
        favor = LONG_TRAINED_BONUS if how["preset"] == LONG else 0.0
        encoders.append(Candidate(told, partial(trained, told), seconds=how["kimg"] / pace, favor=favor))
    return [*ready(lambda name: cached(open_representation(name), store)), *encoders]


def _chosen(plan: Plan, candidates: Sequence[Candidate], shots: Shots, out: Path, quiet: bool) -> Plan:
    """The plan with the winner's representation and head; a stopped run goes on with what it chose before."""
    told = out / "auto.json"
    state = f"{shots.fingerprint}/{plan.fit.fingerprint}/{plan.distill.size}/{plan.auto_minutes}"
    if told.exists():
        before = json.loads(told.read_text(encoding="utf-8"))
        if before["state"] == state:
            return plan.changed(representation=before["representation"], head=before["head"])
    many = len(candidates)
    say(f"auto: compares up to {many} ways of reading on left-out shots, {plan.auto_minutes:g} min", quiet)
    choice = choose(candidates, shots, plan.fit, teacher_size(plan.distill), 60 * plan.auto_minutes, quiet)
    taken = {"representation": choice.taken.name, "head": choice.taken.head}
    with replacing_file(told) as path:
        path.write_text(json.dumps({"state": state, **taken, "why": choice.why}, indent=1), encoding="utf-8")
    return plan.changed(**taken)


def _why(out: Path) -> str:
    return json.loads((out / "auto.json").read_text(encoding="utf-8"))["why"]


def _when_trained(plan: Plan, out: Path, began: float) -> str:
    """Whether the representation was trained since `began`, in seconds of the clock, or earlier; "" for others."""
    name = plan.representation.removesuffix(POSITION)
    if name not in _PRETEXTS:
        return ""
    journal = out / "representation" / name / "journal.jsonl"
    return "trained now" if journal.exists() and journal.stat().st_mtime >= began else "trained earlier"


def _teacher(plan: Plan, reads: Representation, shots: Shots, out: Path, quiet: bool) -> Segmenter:
    size = reads.size if isinstance(reads, StyleGAN) else teacher_size(plan.distill)
    teacher = Segmenter(reads, shots.parts, plan.head, size, plan.fit)
    folder = out / "segmenter"
    if standing(folder).exists():
        earlier = Segmenter.load(folder)
        if earlier.fitted == teacher.fingerprint(shots):
            # Of the same fingerprint, but asks the store.
            earlier.representation = reads
            return earlier
    latents = latents_of(reads, shots) if isinstance(reads, StyleGAN) else None
    teacher.fit(shots, quiet, latents).save(folder)
    return teacher


def _training(out: Path, shots: Shots, chosen: str) -> Path:
    """The folder of the student's training, emptied when it is one from other labels or another chosen teacher."""
    folder, state = out / "distill", f"{shots.fingerprint} {chosen}".strip()
    told = folder / "labels.txt"
    if told.exists() and told.read_text(encoding="utf-8") != state:
        shutil.rmtree(folder)
    with replacing_file(told) as path:
        path.write_text(state, encoding="utf-8")
    return folder


def _look(student: Student, teacher: Segmenter | None, paths: Sequence[Path], labeled: set[str]) -> list[Example]:
    """Some images of the folder, spread evenly over it, as student and teacher see them."""
    # Fewer where the teacher has to invert each.
    most = _SHOWN if teacher is not None and draws(teacher) else 4 * _SHOWN
    chosen = [path for path in paths[:: max(1, len(paths) // most)] if path.stem not in labeled][:most]
    seen = []
    for path in chosen:
        try:
            seen.append((path, read_image(path)))
        except BadImage:  # predict has already reported it by name
            continue
    arrays = [image for _, image in seen]
    ours = student.predict(arrays)
    theirs = [None] * len(seen) if teacher is None else [one.labels for one in teacher.predict(arrays)]
    return [
        Example(path.stem, image, teacher=b, prediction=a.labels, uncertainty=a.uncertainty)
        for (path, image), a, b in zip(seen, ours, theirs, strict=True)
    ]


def _role(teacher: Segmenter, shots: Shots, plan: Plan) -> str:
    if draws(teacher):
        return f"labels {GENERATED} images that it draws"
    return "starts the student" if is_teacher_used(teacher, shots, plan.distill) else "too weak to start the student"


def _figures(plan: Plan, summary, teacher: Segmenter | None, shots: Shots, store: Store | None) -> list[Figure]:
    figures = [
        Figure("images", str(plan.images), f"{summary.written + summary.kept} have a mask now"),
        Figure("labeled", str(plan.shots), ", ".join(plan.parts)),
        Figure("student", plan.student, f"at {plan.distill.size} px; {plan.why}"),
    ]
    if teacher is not None:
        role = _role(teacher, shots, plan)
        figures.append(Figure("teacher", plan.representation, f"head {plan.head}; {role}"))
    if store is not None and store.found + store.extracted:
        figures.append(Figure("features from cache", f"{store.found:,}", f"{store.extracted:,} extracted"))
    return figures


def _compared(both: Compared | None) -> list[Figure]:
    if both is None:
        return []
    large, small = both.images_per_second
    note = f"images/s, the student {large:.0f}; agrees with it to a mean IoU of {both.agreement:.3f} (compact.onnx)"
    return [Figure("compact student", f"{small:.0f}", note)]


def _some(paths: Sequence[Path]) -> list[Path]:
    return list(paths[:: max(1, len(paths) // _MOST_IMAGES)])[:_MOST_IMAGES]
