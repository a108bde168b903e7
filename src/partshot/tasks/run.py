"""run: from a folder of pictures and a few masks to masks for all, student.onnx and a report, in one command.

The story of the whole project, stage by stage, each resumable by itself: read the shots, look which way things face,
get a representation, fit the few-shot teacher, distil the student, export it, predict everything, and report with an
estimate from the shots alone.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from partshot.artifact import standing
from partshot.data.images import Stack, list_images, read_image, read_stack
from partshot.data.shots import Shots, find_pairs, load_shots
from partshot.data.symmetry import one_sided
from partshot.errors import BadImage, BadRecipe
from partshot.evaluate import Score
from partshot.nets.student import build_student
from partshot.pretext.stylegan2 import refuse_few
from partshot.recipe import Recipe
from partshot.report import (
    Curves,
    Figure,
    Gallery,
    Headline,
    Mirror,
    PartBars,
    Picture,
    Recipes,
    Skipped,
    Timing,
    estimate_in_words,
    shots_gallery,
    uncertain_gallery,
    write_report,
)
from partshot.represent.choose import POSITION, open_representation
from partshot.represent.spec import Representation
from partshot.represent.stylegan2 import StyleGAN2
from partshot.segmenter import Segmenter, Student
from partshot.tasks.distill import DRAWN, STUDENT, draws, is_heard, teacher_size, train_student
from partshot.tasks.export import export
from partshot.tasks.fit import HEAD, estimated, facing_fit
from partshot.tasks.predict import predict
from partshot.tasks.pretrain import pretrain, resolve
from partshot.tasks.sample import latents_of
from partshot.train.distill import PRESETS, Distill
from partshot.train.fit_head import PRESETS as FIT_PRESETS
from partshot.train.fit_head import FitHead
from partshot.train.journal import read_journal

# Unlabelled pictures that a student trains on; more would not be seen six times in the default horizon.
_MOST_PICTURES = 4000
# Thousands of shots per minute of two cores at 128 px, measured; a time limit is turned into a horizon by it.
_KIMG_PER_MINUTE = 3.3
_SHOWN = 12
# Representations that `run` trains on the folder first, and what they are opened as.
_PRETEXTS = {"simsiam": "resnet", "stylegan2": "stylegan2"}
# A generator of more pixels takes days without a GPU; its student works at its own size.
_LARGEST_DRAWN = 64


class Plan(Recipe):
    """What `run` will do, as `--dry-run` prints it.

    representation, head: of the few-shot teacher. mirror: whether pictures may be mirrored. student: the network.
    """

    pictures: int
    shots: int
    parts: tuple[str, ...]
    mirror_pairs: tuple[str, ...]
    mirror: bool
    representation: str
    head: str
    fit: FitHead
    student: str
    distill: Distill
    seed: int

    def __str__(self) -> str:
        lines = [f"{self.pictures} pictures, {self.shots} of them labelled; parts: {', '.join(self.parts)}"]
        pairs = ", ".join(self.mirror_pairs) or "none"
        lines.append(f"mirrored: {'yes' if self.mirror else 'no, the things face one way'}; pairs that swap: {pairs}")
        lines.append(f"teacher: {self.head} on {self.representation}\n[fit]\n{self.fit.to_toml()}")
        lines.append(f"student: {self.student}\n[distill]\n{self.distill.to_toml()}")
        return "\n".join(lines)


@dataclass
class _Clock:
    """Seconds of each stage, for the report."""

    stages: list[tuple[str, float]] = field(default_factory=list)

    def time(self, stage: str, work: Callable):
        """Runs a stage and notes how long it took."""
        began = time.monotonic()
        result = work()
        self.stages.append((stage, time.monotonic() - began))
        return result


def run(
    images: Path,
    labels: Path,
    out: Path,
    representation: str = "auto",
    size: int | None = None,
    minutes: float | int | None = None,
    student: str = STUDENT,
    seed: int = 0,
    rgb_masks: bool = False,
    dry_run: bool = False,
    quiet: bool = False,
) -> Path | Plan:
    """Does everything; returns the report's path, or with `dry_run` the plan and nothing is written.

    images, labels: see data.shots.load_shots. out: gets masks/, student.onnx, report.html and the stages' folders;
    running it again goes on where it stopped. representation: "auto", "simsiam", "stylegan2" (hours without a GPU),
    "random", "pixels", "timm:NAME" or "timm:NAME@WEIGHTS". size: side that pictures are worked on at, a multiple of
    32; None takes the preset's. minutes: about how long the student may train. Raises what the stages raise, before
    any work where it can be.
    """
    clock, out = _Clock(), Path(out)
    shots = load_shots(labels, images, rgb_masks=rgb_masks)
    pairs = find_pairs(labels, images)
    recipe = _recipe(size, minutes)
    masks = [pair.mask for pair in pairs]
    paths = list_images(images, leave_out=masks)
    # Built for nothing but their errors: an unknown name is told before any work.
    build_student(student, len(shots.parts))
    if representation not in ("auto", *_PRETEXTS):
        open_representation(representation)
    if representation == "stylegan2":
        refuse_few(len(paths))
    stack = clock.time("read", lambda: read_stack(_some(paths), recipe.size, skip_corrupt=True))
    plan = _plan(shots, stack, len(paths), representation, recipe, student, seed)
    if dry_run:
        return plan

    reads = clock.time("representation", lambda: _representation(plan, images, masks, out, quiet))
    teacher = clock.time("fit", lambda: _teacher(plan, reads, shots, out, quiet))
    estimate = clock.time("leave one out", lambda: _estimate(plan, reads, shots))
    trained = clock.time(
        "distill",
        lambda: train_student(shots, plan.distill, out / "distill", stack.images, teacher, student, seed, quiet),
    )
    onnx = out / "student.onnx"
    clock.time("export", lambda: export(trained, onnx, shots.images))
    summary = clock.time("predict", lambda: predict(onnx, images, out / "masks", quiet=quiet, leave_out=masks))
    pictures = _look(trained, teacher, paths, {pair.name for pair in pairs})
    sections = [
        Headline(
            estimate_in_words(None if estimate is None else estimate.miou, len(shots)),
            _figures(plan, summary, _role(teacher, shots, plan)),
        ),
        shots_gallery(shots),
        Gallery("Predictions", pictures, prediction="student"),
        uncertain_gallery(pictures),
        Mirror(plan.mirror),
        Curves({"student": read_journal(out / "distill" / "journal.jsonl")}),
        Recipes({"fit": plan.fit, "distill": plan.distill}),
        Timing(clock.stages),
        Skipped(list({**dict(stack.skipped), **dict(summary.skipped)}.items())),
    ]
    if estimate is not None:
        sections.insert(1, PartBars({"head, left-out shots": estimate.per_part}))
    return write_report(out / "report.html", f"Parts of {Path(images).resolve().name}", shots.parts, sections)


def _recipe(size: int | None, minutes: float | int | None) -> Distill:
    recipe = PRESETS["default"]
    if size is not None:
        recipe = recipe.changed(size=size)
    if minutes is not None:
        if not 0 < minutes < math.inf:
            raise BadRecipe(f"minutes {minutes:g} given; more than 0 are needed, and not for ever")
        pace = _KIMG_PER_MINUTE * (128 / recipe.size) ** 2
        recipe = recipe.changed(kimg=max(0.5, round(minutes * pace, 1)))
    return recipe


def _plan(
    shots: Shots, stack: Stack, pictures: int, representation: str, recipe: Distill, student: str, seed: int
) -> Plan:
    faces_one_way = one_sided(stack.images)
    # Measured on real pictures, see LOG.md: small folders gain nothing from a contrastive encoder over random weights,
    # and the map of positions is worth more than either.
    name = "random" if representation == "auto" else representation
    drawn = name.startswith("stylegan2")
    fit = facing_fit(FIT_PRESETS["fast"].changed(seed=seed), faces_one_way)
    return Plan(
        pictures=pictures,
        shots=len(shots),
        parts=shots.parts.names,
        mirror_pairs=tuple(f"{shots.parts.names[a]} / {shots.parts.names[b]}" for a, b in shots.parts.mirror),
        mirror=not faces_one_way,
        # A generator draws features and picture alike; it has no map to add. What is inverted is read once.
        representation=name if drawn else name.removesuffix(POSITION) + POSITION,
        head=HEAD,
        fit=fit.changed(augment=None) if drawn else fit,
        student=student,
        distill=recipe.one_sided() if faces_one_way else recipe,
        seed=seed,
    )


def _representation(plan: Plan, images: Path, masks: Sequence[Path], out: Path, quiet: bool) -> Representation:
    name = plan.representation.removesuffix(POSITION)
    if name not in _PRETEXTS:
        return open_representation(plan.representation)
    size, kimg = plan.distill.size, min(resolve(name).kimg, 4 * plan.distill.kimg)
    if name == "stylegan2":
        size, kimg = min(_LARGEST_DRAWN, 1 << size.bit_length() - 1), resolve(name).kimg
    given = {"size": size, "kimg": kimg, "seed": plan.seed, "quiet": quiet, "leave_out": masks}
    folder = pretrain(name, images, out / "representation", **given)
    return open_representation(plan.representation.replace(name, _PRETEXTS[name], 1), folder)


def _teacher(plan: Plan, reads: Representation, shots: Shots, out: Path, quiet: bool) -> Segmenter:
    size = reads.size if isinstance(reads, StyleGAN2) else teacher_size(plan.distill)
    teacher = Segmenter(reads, shots.parts, plan.head, size, plan.fit)
    folder = out / "segmenter"
    if standing(folder).exists():
        earlier = Segmenter.load(folder)
        if earlier.fitted == teacher.fingerprint(shots):
            return earlier
    latents = latents_of(reads, shots) if isinstance(reads, StyleGAN2) else None
    teacher.fit(shots, quiet, latents).save(folder)
    return teacher


def _estimate(plan: Plan, reads: Representation, shots: Shots) -> Score | None:
    if isinstance(reads, StyleGAN2):
        # Every fold would invert every picture again.
        return None
    return estimated(reads, plan.head, shots, plan.fit, teacher_size(plan.distill))


def _look(student: Student, teacher: Segmenter, paths: Sequence[Path], labelled: set[str]) -> list[Picture]:
    """Some pictures of the folder, spread evenly over it, as student and teacher see them."""
    # Fewer where the teacher has to invert each.
    most = _SHOWN if draws(teacher) else 4 * _SHOWN
    chosen = [path for path in paths[:: max(1, len(paths) // most)] if path.stem not in labelled][:most]
    seen = []
    for path in chosen:
        try:
            seen.append((path, read_image(path)))
        except BadImage:  # predict has already reported it by name
            continue
    pictures = [image for _, image in seen]
    ours, theirs = student.predict(pictures), teacher.predict(pictures)
    return [
        Picture(path.stem, image, teacher=b.labels, prediction=a.labels, uncertainty=a.uncertainty)
        for (path, image), a, b in zip(seen, ours, theirs, strict=True)
    ]


def _role(teacher: Segmenter, shots: Shots, plan: Plan) -> str:
    if draws(teacher):
        return f"labels {DRAWN} pictures that it draws"
    return "starts the student" if is_heard(teacher, shots, plan.distill) else "too weak to start the student"


def _figures(plan: Plan, summary, role: str) -> list[Figure]:
    return [
        Figure("pictures", str(plan.pictures), f"{summary.written + summary.kept} have a mask now"),
        Figure("labelled", str(plan.shots), ", ".join(plan.parts)),
        Figure("teacher", plan.representation, f"head {plan.head}; {role}"),
        Figure("student", plan.student, f"at {plan.distill.size} px"),
    ]


def _some(paths: Sequence[Path]) -> list[Path]:
    return list(paths[:: max(1, len(paths) // _MOST_PICTURES)])[:_MOST_PICTURES]
