"""run: from a folder of images and a few masks to masks for all, student.onnx and a report, in one command.

Stages, each resumable: read the images and labels, decide the plan, write a preview, fit a teacher if one is asked
for, train the student, export it, predict all images, estimate the student's quality or measure it, write the report.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar

from partshot.data.images import list_images, read_stack
from partshot.data.shots import Pair, Shots, find_pairs, load_pairs, mask_files
from partshot.errors import BadLabels, BadRecipe
from partshot.evenly import evenly
from partshot.inference.predictions import OutputPaths, refuse_foreign_masks
from partshot.nets.student import build_student
from partshot.pretext.stylegan2 import check_image_count
from partshot.progress import print_status
from partshot.recipe import Recipe
from partshot.represent.cache import open_store
from partshot.represent.choose import open_representation
from partshot.represent.stylegan import StyleGAN
from partshot.segmenter import Segmenter
from partshot.tasks.check import check, check_pairs
from partshot.tasks.compact import compact
from partshot.tasks.estimate import FOLDS, SHARE, estimate
from partshot.tasks.export import export
from partshot.tasks.fit import teacher_names
from partshot.tasks.predict import predict
from partshot.tasks.preview import EXPECTED_SECONDS, is_due, preview
from partshot.tasks.run_pace import Work, horizon, kept, refuse_minutes
from partshot.tasks.run_plan import NO_TEACHER, Inputs, Plan, Wishes, make_plan
from partshot.tasks.run_report import Results, write_run_report
from partshot.tasks.run_stages import Stages
from partshot.tasks.run_teacher import PRETEXTS, Folder, fit_teacher
from partshot.tasks.stage_folder import stage_folder
from partshot.tasks.teacher_rules import needs_frozen_segmenter, reads_generator, uses_no_teacher
from partshot.tasks.train_student import MOST_IMAGES, Teachers, Training, frozen_encoder, train_student
from partshot.train.student_choice import AUTO, Choice, choose_student, pretrained_student, student_recipe

# The stage that shows how long an image takes to read.
_READ = "read images"


class RunOptions(Recipe):
    """What `run` does beyond its defaults.

    size: side in pixels that images are processed at, a multiple of 32; None takes the preset's. minutes: about how
    long the whole run may take: the student's horizon is chosen from the measured pace of this machine (run_pace.py); a
    compact student comes on top. student: a name of nets.student, or "auto": one that starts from a pretrained encoder,
    where one is on this machine (train/student_choice.py). rgb_masks: labels are RGB images in the parts' colors.
    cache: use features and encoders that earlier runs computed or trained, and keep new ones (represent/cache.py).
    auto_minutes: about how long representation "auto" compares representations by cross-validation. preview: write
    first masks before the student is trained, where a pretrained encoder is on this machine and `out` holds none yet
    (preview.py). compact: also train a faster student on the student's labels, out/compact.onnx (compact.py).

    check_masks: a folder of masks of further images of the folder, none of them labeled otherwise. Nothing is trained
    on these masks; their images stay among the unlabeled ones. The report, and out/check.json, give the student's score
    on them (check.py), and the cross-validation estimate is skipped.
    """

    renamed: ClassVar = {"previewed": "preview", "compacted": "compact"}

    size: int | None = None
    minutes: float | int | None = None
    student: str = AUTO
    seed: int = 0
    rgb_masks: bool = False
    cache: bool = True
    auto_minutes: float = 2
    preview: bool = True
    compact: bool = False
    check_masks: Path | None = None


_DEFAULTS = RunOptions()


def run(
    images: Path | str,
    labels: Path | str,
    out: Path | str,
    representation: str = NO_TEACHER,
    options: RunOptions = _DEFAULTS,
    dry_run: bool = False,
    quiet: bool = False,
    **changes,
) -> Path | Plan:
    """Does everything; returns the report's path, or with `dry_run` the plan, and nothing is written.

    images, labels: see data.shots.load_shots. out: gets masks/, student.onnx, report.html and the stages' folders. Run
    again, it resumes; with other labels and the same `out`, all that depends on labels is made again. representation:
    of a few-shot teacher: "none", the default, fits no teacher; "auto", "moco", "simsiam", "stylegan1" or "stylegan2"
    (hours without a GPU), "random", "pixels", "timm:NAME" or "timm:NAME@WEIGHTS". changes: options by name, as in
    `run(..., minutes=10)`. Raises what the stages raise, before any training where possible.
    """
    options = options.changed(**changes)
    stages = Stages(open_store(options.cache), quiet or dry_run)
    found = _inputs(Path(images), Path(labels), Path(out), representation, options, stages)
    plan = make_plan(found)
    if dry_run:
        if options.minutes is None:
            return plan
        due = options.preview and is_due(found.out)
        before = (EXPECTED_SECONDS if due else 0) + 60 * plan.auto_minutes
        return plan.lasting(_horizon(found, plan, options.minutes, stages, due and _is_students(plan.student), before))

    title = f"Parts of {_folder_name(found.images)}"
    frozen = _preview(found, title, options, quiet, stages)
    teacher = None
    if plan.has_teacher:
        plan, teacher = fit_teacher(plan, Folder(found.images, found.masks, found.out), found.shots, stages)
    if options.minutes is not None:
        state = f"{found.shots.fingerprint}/{plan.fingerprint}/{options.minutes:g}"
        measure = partial(_horizon, found, plan, options.minutes, stages, frozen is not None)
        kimg = stages.run("measure the training speed", lambda: kept(found.out / "pace.json", state, measure))
        plan = plan.lasting(kimg)
    results = _train_and_predict(found, plan, teacher, frozen, options, stages)
    report = write_run_report(title, found, plan, results, stages)
    print_status(f"masks: {found.out / 'masks'}; network: {found.out / 'student.onnx'}; {results.miou}", quiet)
    return report


def _folder_name(images: Path) -> str:
    """The name of the folder of images, or of the one above where it is just "images"."""
    folder = images.resolve()
    return folder.parent.name if folder.name == "images" and folder.parent.name else folder.name


def _inputs(images: Path, labels: Path, out: Path, representation: str, options: RunOptions, stages: Stages) -> Inputs:
    """Reads and checks everything that a run needs."""
    aside = [] if options.check_masks is None else [*mask_files(options.check_masks).values()]
    pairs = find_pairs(labels, images, leave_out=aside)
    shots = load_pairs(pairs, rgb_masks=options.rgb_masks)
    checks: list[Pair] = []
    if options.check_masks is not None:
        checks = check_pairs(options.check_masks, images, pairs, shots.parts, options.rgb_masks)
    choice = choose_student(options.student)
    refuse_minutes(options.minutes)
    recipe = student_recipe(options.size, choice.preset, shots.native)
    masks = [pair.mask for pair in (*pairs, *checks)]
    paths = list_images(images, leave_out=masks)
    _refuse_labels_in(out / "masks", masks)
    refuse_foreign_masks(OutputPaths(out / "masks", False, False), paths)
    generates = _refuse_unknown(representation, choice, shots, len(paths))
    some = evenly(paths, MOST_IMAGES)
    stack = stages.run(_READ, lambda: read_stack(some, recipe.size, skip_corrupt=True))
    stack.warn_of_skipped()
    wishes = Wishes(representation, generates, choice, recipe, options.seed, options.auto_minutes)
    return Inputs(images, out, shots, checks, masks, paths, stack, wishes)


def _refuse_labels_in(folder: Path, masks: Sequence[Path]) -> None:
    """Raises BadLabels where labels lie in the folder of the predictions."""
    own = next((mask for mask in masks if mask.parent.resolve() == folder.resolve()), None)
    if own is not None:
        raise BadLabels(f"{own}: the predicted masks are written to this folder; choose another --out")


def _refuse_unknown(representation: str, choice: Choice, shots: Shots, images: int) -> bool:
    """Raises for an unknown student or representation; returns whether the representation is a generator."""
    build_student(pretrained_student(choice.student)[0], len(shots.parts))
    if representation.startswith(("stylegan1:", "stylegan2:")):
        raise BadRecipe(f"--representation {representation}: run trains a generator on your images; write stylegan2")
    if representation in ("stylegan1", "stylegan2"):
        check_image_count(images)
        return True
    if representation in (NO_TEACHER, "auto", *PRETEXTS):
        return False
    return isinstance(open_representation(representation), StyleGAN)


def _preview(found: Inputs, title: str, options: RunOptions, quiet: bool, stages: Stages) -> Segmenter | None:
    """First masks and a first report, where they are due.

    Returns the model that predicted them, if it reads the encoder that the student starts from.
    """
    if not options.preview or not is_due(found.out):
        return None
    first = stages.run("preview", lambda: preview(found.shots, found.paths, found.out, title, options.seed, quiet))
    print_status(f"{first}; first report: {found.out / 'report.html'}", quiet)
    return first.segmenter if _is_students(found.wishes.student.student) else None


def _is_students(student: str) -> bool:
    """Whether a preview's encoder, the machine's default, is the one that the student starts from."""
    return teacher_names()[0] == frozen_encoder(student)


def _train_and_predict(
    found: Inputs,
    plan: Plan,
    teacher: Segmenter | None,
    frozen: Segmenter | None,
    options: RunOptions,
    stages: Stages,
) -> Results:
    shots, out, quiet = found.shots, found.out, stages.quiet
    # What "auto" chooses can change with the labels or the time.
    chosen = f"{plan.head} on {plan.representation}" if plan.auto_minutes else ""
    folder = stage_folder(out / "distill", f"{shots.fingerprint} {chosen}".strip())
    training = Training(plan.student, options.seed)
    given = (shots, plan.distill, folder, found.stack.images, training, Teachers(teacher, frozen=frozen), quiet)
    student = stages.run("train the student", lambda: train_student(*given))
    onnx = out / "student.onnx"
    stages.run("export to ONNX", lambda: export(student, onnx, shots.images))
    reading = {"leave_out": found.masks, "quiet": quiet, "window": "off"}
    summary = stages.run("predict masks", lambda: predict(onnx, found.images, out / "masks", **reading))
    compared = checked = expected = None
    if options.compact:
        teach = partial(compact, shots, student, onnx, found.stack.images, folder / "compact", not plan.mirror)
        compared = stages.run("train the compact student", lambda: teach(options.seed, quiet))
    if found.checks:
        checked = stages.run(
            "score on held-out masks", lambda: check(found.checks, onnx, shots.parts, out, options.rgb_masks, quiet)
        )
    # A generator's teacher, whose labels are most of what the student sees, was fitted to all labeled images.
    elif teacher is None or not reads_generator(teacher):
        given = (shots, plan.distill, out / "estimate", found.stack.images, training, quiet)
        full = plan.distill.kimg >= found.wishes.recipe.kimg
        expected = stages.run("estimate by cross-validation", lambda: estimate(*given, corrected=full))
    return Results(student, teacher, folder, summary, compared, checked, expected)


def _horizon(
    found: Inputs, plan: Plan, minutes: float | int, stages: Stages, previewed: bool, before: float | int = 0
) -> float:
    """The student's horizon in thousands of images, so that the whole run takes that long.

    previewed: whether a preview fits the student's head on the frozen encoder. before: seconds of what comes before the
    training.
    """
    shots, images = found.shots, found.stack.images
    # The folds of an estimate train, too, each without some of the shots.
    folds = [] if found.wishes.generates or found.checks else shots.folds(FOLDS)
    heads = sum(needs_frozen_segmenter(plan.student, plan.distill, len(shots) - len(held)) for held in folds)
    # Where a teacher labels the images, no head on the frozen encoder does.
    taught = plan.has_teacher and (found.wishes.generates or not uses_no_teacher(plan.distill))
    own = needs_frozen_segmenter(plan.student, plan.distill, len(shots)) and not taught
    read = dict(stages.times)[_READ] / len(images)
    work = Work(1 + SHARE * len(folds), heads + own, heads + (own and not previewed), plan.images + plan.checks, read)
    return horizon(shots, plan.distill, images, plan.student, stages.seconds_left(minutes) - before, work)
