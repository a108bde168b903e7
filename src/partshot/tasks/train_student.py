"""train_student: a student from labeled images, unlabeled ones and, where there are any, teachers.

Trains the network, resumes a stopped training, or loads a finished one. The training objective is train/distill.py's.
"""

import copy
import hashlib
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from partshot.artifact import Artifact, inside, standing
from partshot.data.images import resize_images
from partshot.data.shots import Shots
from partshot.data.soft_labels import SoftLabels
from partshot.data.symmetry import one_sided
from partshot.errors import BadArtifact
from partshot.nets.student import LIGHT, build_student, start_from
from partshot.progress import Ticker, print_status
from partshot.represent.choose import POSITION
from partshot.represent.spec import fingerprint as weights_of
from partshot.represent.timm_encoder import read_weights
from partshot.segmenter import DISCARD_SHARE, Segmenter
from partshot.student import Student
from partshot.tasks.export import export
from partshot.tasks.fit import ENCODER_LEVELS, frozen_segmenter
from partshot.tasks.teacher_rules import (
    GENERATED,
    MIN_CONFIDENCE,
    generated_shots,
    needs_frozen_segmenter,
    reads_generator,
    why_unused,
)
from partshot.tasks.trained import find_student, kept_segmenter
from partshot.train.distill import Distillation, LabelSources
from partshot.train.distill_recipe import Distill
from partshot.train.loop import LoopRecipe, run_loop
from partshot.train.student_choice import STUDENT, pretrained_student

MOST_IMAGES = 4000
"""Unlabeled images of a folder that a student trains on; more would be seen fewer than six times in the default
horizon."""

MOST_FROZEN = 1000
"""Unlabeled images that a head on the frozen encoder labels at most."""


@dataclass(frozen=True)
class Teachers:
    """Models whose labels a student learns from, beside the labeled images.

    few_shot: its soft labels of the unlabeled images start the student, if it segments its own shots well enough
    (MIN_TEACHER_MIOU); a recipe without consistency follows any, another student too. One that reads a generator adds
    `generated` images with its labels instead, which take the recipe's share of the batch. frozen: what
    `frozen_segmenter` fitted to these shots, for a recipe that needs one (`needs_frozen_segmenter`); None fits it.
    """

    few_shot: Segmenter | Student | None = None
    generated: int = GENERATED
    frozen: Segmenter | None = None


@dataclass(frozen=True)
class Training:
    """Which network is trained, and how it begins.

    student: see nets.student. start: weights to begin with (transfer learning): a student, as `distill` or `run` wrote
    it, an encoder of the same net, as `pretrain` wrote it, or a file of an encoder's weights. snapshots: how many times
    during the training, at equal intervals, the student is exported to out/snapshots/001.onnx and so on.
    """

    student: str = STUDENT
    seed: int = 0
    start: Path | None = None
    snapshots: int = 0


def train_student(
    shots: Shots,
    recipe: Distill,
    out: Path,
    images: np.ndarray | None = None,
    training: Training = Training(),
    teachers: Teachers = Teachers(),
    quiet: bool = False,
) -> Student:
    """Trains a student, resumes a stopped training, or loads a finished one.

    shots: the labeled images, in every batch. recipe: where objects face one way (see data.symmetry), pass
    `recipe.one_sided()`. out: the run's folder. images: uint8 [n, s, s, 3] at the recipe's size, unlabeled; None trains
    on the shots alone. A recipe with self-training first trains a student in out/first, which helps the teacher to
    label generated images. Warns when the few-shot teacher is not used. BadArtifact when `out` holds a run of other
    settings, or `training.start` other weights.
    """
    student, pretrained = pretrained_student(training.student)
    begin = pretrained if training.start is None else _weights(training.start, student)
    fingerprint = _fingerprint(shots, recipe, images, teachers, student, training.seed, begin)
    finished = _finished(out, fingerprint, training.snapshots)
    if finished is not None:
        return finished
    source = student if training.start is None else str(training.start)
    sources = _labeled(shots, recipe.size)
    teacher = teachers.few_shot
    if teacher is not None and not reads_generator(teacher) and (why := why_unused(teacher, shots, recipe)):
        warnings.warn(f"the few-shot teacher is not used: {why}", stacklevel=2)
        # So that the frozen encoder labels in its place.
        teacher = None
    if teacher is not None and reads_generator(teacher):
        first = None
        if recipe.self_training:
            first = _self_training_round(shots, recipe, out / "first", images, training, teachers, quiet)
            begin, source = first.net.state_dict(), str(out / "first")
        generated = _generated(teachers, training.seed, quiet, first, recipe.size)
        sources = replace(sources, generated=generated)
    elif teacher is not None and images is not None:
        with Ticker("teacher labels images", len(images), 0, quiet) as ticker:
            sources = replace(sources, soft=teacher.soft_labels(images, ticker.tick))
    elif images is not None and needs_frozen_segmenter(training.student, recipe, len(shots)):
        frozen, every = _frozen_labels(shots, recipe, out / "reader", images, training, teachers.frozen, quiet)
        sources = replace(sources, frozen=frozen, every=every)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        net = build_student(student, len(shots.parts))
    if begin is not None:
        start_from(net, begin, source)
    unlabeled = None if images is None else torch.from_numpy(images)
    objective = Distillation(net, sources, shots.parts.mirrored_ids(), recipe, unlabeled)
    # The size of generated images is not that of the images to predict.
    native = shots.native if sources.generated is None else None
    card = {"fingerprint": fingerprint, "recipe": recipe.model_dump(mode="json")}
    current = partial(_current, objective, student, shots, recipe, images, native, card)
    show = _Snapshots(out, training.snapshots, recipe, current) if training.snapshots else None
    loop = LoopRecipe(kimg=recipe.kimg, batch=recipe.batch, seed=training.seed)
    run_loop(objective, loop, out, _title(shots, sources), fingerprint, quiet=quiet, show=show)
    trained = current()
    trained.save(out / "student")
    return trained


def _finished(out: Path, fingerprint: str, snapshots: int) -> Student | None:
    folder = out / "student"
    if not standing(folder).exists():
        return None
    if snapshots > len(list((out / "snapshots").glob("*.onnx"))):
        warnings.warn(f"{folder} is finished, so no snapshots of it are kept; choose another --out", stacklevel=3)
    return Student.load(folder, fingerprint)


def _labeled(shots: Shots, size: int) -> LabelSources:
    images, labels = shots.stack(size)
    return LabelSources(torch.from_numpy(images), torch.from_numpy(labels).long())


def _title(shots: Shots, sources: LabelSources) -> str:
    if sources.generated is not None:
        return f"train the student ({len(shots)} labeled, {len(sources.generated[0]):,} generated images)"
    return f"train the student ({len(shots)} labeled image{'s' if len(shots) > 1 else ''})"


def _current(
    objective: Distillation,
    student: str,
    shots: Shots,
    recipe: Distill,
    images: np.ndarray | None,
    native: int | None,
    card: dict,
) -> Student:
    """The student as trained so far: the EMA of the network, with offsets for the largest expected overlap."""
    net = copy.deepcopy(objective.modules["ema"]).to("cpu")
    if "agreement" in objective.modules:
        card = {**card, "agreement": round(float(objective.modules["agreement"].overlap), 3)}
    found = Student(net, student, shots.parts, recipe.size, card, recipe.flip_tta, native=native)
    if images is None or not recipe.decision_temperature:
        return found
    return found.fit_offsets(images, objective.logit_adjustment.tolist(), recipe.decision_temperature)


def _generated(
    teachers: Teachers, seed: int, quiet: bool, second: Student | None, size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    labeled = generated_shots(teachers.few_shot, teachers.generated, seed, quiet, second)
    images, labels = labeled.stack(size)
    return torch.from_numpy(images), torch.from_numpy(labels)


def _frozen_labels(
    shots: Shots,
    recipe: Distill,
    folder: Path,
    images: np.ndarray,
    training: Training,
    frozen: Segmenter | None,
    quiet: bool,
) -> tuple[SoftLabels, int]:
    """Soft labels by a head on the frozen encoder, of every n-th unlabeled image, and n.

    The head is fitted where none is given, and kept in `folder`.
    """
    every = -(-len(images) // MOST_FROZEN)
    some = images[::every]

    def fit() -> Segmenter:
        if frozen is not None:
            return frozen
        print_status("fitting the few-shot head on the frozen encoder", quiet)
        several, sided = partial(resize_images, some), not recipe.augment.flip
        return frozen_segmenter(shots, several, training.seed, sided, frozen_encoder(training.student))

    kept = kept_segmenter(folder, shots, fit)
    with Ticker("frozen encoder labels images", len(some), 0, quiet) as ticker:
        return kept.soft_labels(some, ticker.tick), every


def frozen_encoder(student: str) -> str:
    """The representation that a head on the frozen encoder of a student reads, as `frozen_segmenter` takes it."""
    return student.removeprefix(LIGHT) + ENCODER_LEVELS + POSITION


def _self_training_round(
    shots: Shots,
    recipe: Distill,
    out: Path,
    images: np.ndarray | None,
    training: Training,
    teachers: Teachers,
    quiet: bool,
) -> Student:
    """The first of two rounds: a smaller student, which helps the teacher to label for the second round."""
    first = recipe.self_training_round()
    print_status(f"first of two rounds, at {first.size} px", quiet)
    if images is not None:
        images = resize_images(images, first.size)
    trained = train_student(shots, first, out, images, replace(training, snapshots=0), teachers, quiet)
    print_status(f"second of two rounds, at {recipe.size} px: the first round's student helps to label", quiet)
    return trained


class _Snapshots:
    """Exports the student `count` times during training to out/snapshots/; removes those of an earlier run."""

    def __init__(self, out: Path, count: int, recipe: Distill, student: Callable[[], Student]):
        self.folder, self.count, self.recipe, self.student = out / "snapshots", count, recipe, student
        if not standing(out / "checkpoint").exists():
            shutil.rmtree(self.folder, ignore_errors=True)
        # Those from before a stop are kept.
        self.written = max((int(path.stem) for path in self.folder.glob("[0-9]*.onnx")), default=0)

    def __call__(self, objective: Distillation, seen: int) -> None:
        number = min(self.count, int(seen * self.count // (self.recipe.kimg * 1000)))
        if number > self.written:
            export(self.student(), self.folder / f"{number:03d}.onnx")
            self.written = number


def without_flips(recipe: Distill, images: np.ndarray) -> Distill:
    """The recipe, without mirroring where the images show that their objects face one way."""
    return recipe.one_sided() if one_sided(images) else recipe


def _weights(start: Path, student: str) -> Mapping[str, torch.Tensor]:
    """Weights to begin with: another student's, a trained encoder's, or those of a file."""
    if not start.is_dir():
        return read_weights(start)
    folder = find_student(start)
    stored = Artifact.load(inside(start, "representation") if folder == start else folder)
    if stored.kind not in ("student", "representation"):
        raise BadArtifact(
            f"{start}: contains a {stored.kind}; training can start from a student or a pretrained encoder only"
        )
    net = stored.card.get("net")
    if stored.kind == "representation" and not student.endswith(f"-{net}"):
        raise BadArtifact(f"{start}: an encoder of '{net}', which no '{student}' has; take --student light-{net}")
    return {name: torch.from_numpy(np.array(tensor)) for name, tensor in stored.tensors.items()}


def _fingerprint(
    shots: Shots,
    recipe: Distill,
    images: np.ndarray | None,
    teachers: Teachers,
    student: str,
    seed: int,
    begin: Mapping[str, torch.Tensor] | None,
) -> str:
    """12 hex digits of all that the trained student depends on."""
    digest = hashlib.sha256(f"{recipe.fingerprint}/{student}/{seed}/{shots.fingerprint}".encode())
    digest.update(b"/letterboxed" if shots.oblong else b"")
    if images is not None:
        digest.update(f"{images.shape}".encode())
        digest.update(np.ascontiguousarray(images[:: max(1, len(images) // 64)]).tobytes())
    teacher = teachers.few_shot
    if teacher is not None:
        # Not its weights: fitted anew on another number of threads, they differ in the last digits.
        digest.update(teacher.fitted.encode())
        if reads_generator(teacher):
            digest.update(f"{teachers.generated}/{MIN_CONFIDENCE}".encode())
            if teacher.head_name == "ensemble":
                digest.update(f"/{DISCARD_SHARE}".encode())
    if begin is not None:
        digest.update(weights_of({}, begin).encode())
    return digest.hexdigest()[:12]
