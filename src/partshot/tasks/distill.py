"""distill: from a few shots, a teacher and a folder of plain images to a student on disk.

Also trains the two rows that every table needs beside it, the same network from the labels alone and as a plain mean
teacher: both are this game with a source left out.
"""

import copy
import hashlib
import shutil
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from partshot.artifact import Artifact, inside, read_card, standing
from partshot.data.images import list_images, read_stack, resize_images
from partshot.data.shots import Shots, find_pairs, load_shots
from partshot.data.symmetry import one_sided
from partshot.errors import BadArtifact
from partshot.metrics import score
from partshot.nets.student import LIGHT, build_student, start_from
from partshot.represent.choose import POSITION
from partshot.represent.reduced import Reduced
from partshot.represent.spec import fingerprint as weights_of
from partshot.represent.stylegan import StyleGAN
from partshot.represent.vit import read_weights
from partshot.segmenter import DISCARD_SHARE, Segmenter
from partshot.student import Student
from partshot.tasks.export import export
from partshot.tasks.fit import ENCODER_LEVELS, frozen_reader
from partshot.train.distill import Distillation
from partshot.train.distill_recipe import Distill
from partshot.train.loop import LoopRecipe, run_loop
from partshot.train.progress import Ticker, say
from partshot.train.student_choice import (
    AUTO,
    STUDENT,
    choose_student,
    is_pretrained,
    pretrained_student,
    student_recipe,
)

MIN_TEACHER_MIOU = 0.8
"""Mean IoU on its own shots from which a few-shot teacher is heard. Measured (LOG.md, 2026-11-21): teachers of blood
cells that read their shots to about .7 cost the student .008 over twelve draws, so none like them is heard."""

GENERATED = 2000
"""Labeled images that a generator adds to the shots; ReGAN's auto-shot takes 5,000 of 512 px."""
_SURE = 0.6

FEW = 2
"""Labeled images up to which a frozen encoder is asked, too (`Consistency.agree`)."""
# Images that it labels at most; where it is asked, others are left out.
_MOST_READ = 1000
# Seeds below are for people to label.
_FIRST_DRAWN = 1_000_000


def distill(
    images: Path,
    labels: Path,
    out: Path,
    teacher: Path | None = None,
    student: str = AUTO,
    preset: str | None = None,
    size: int | None = None,
    kimg: float | int | None = None,
    drawn: int = GENERATED,
    seed: int = 0,
    rgb_masks: bool = False,
    quiet: bool = False,
    start: Path | None = None,
    snapshots: int = 0,
) -> Path:
    """Trains a student on the images in `images` and the masks in `labels`; returns out/student.

    teacher: the --out of `fit` or its segmenter/, whose soft labels start the student; None starts from the labels
    alone. A teacher that reads a generator draws `drawn` images instead, which with its labels take the recipe's
    share of the shots' places (auto-shot). student: see nets.student, or "auto" (tasks/student_choice.py). preset: a
    row of distill_recipe.PRESETS, None takes the student's own; size and kimg replace the row's.
    start: weights that the student begins with (transfer learning): another student's folder, that of an encoder of the
    same net, as `pretrain` wrote it, or a file of an encoder's weights. snapshots: how many times on the way, at even
    distances, the student is written as out/snapshots/001.onnx and so on, for `partshot evaluate --folds` to choose
    from. Running it again goes on where it stopped.
    """
    shots = load_shots(labels, images, rgb_masks=rgb_masks)
    choice = choose_student(student, preset)
    recipe = student_recipe(size, choice.preset, shots.native)
    recipe = recipe if kimg is None else recipe.changed(kimg=kimg)
    unlabeled = unlabeled_stack(images, labels, recipe.size)
    recipe = facing(recipe, unlabeled)
    segmenter = None if teacher is None else _teacher(Path(teacher))
    if segmenter is not None and not draws(segmenter) and not is_teacher_used(segmenter, shots, recipe):
        why = f"it reads its own shots to a mean IoU below {MIN_TEACHER_MIOU:g}"
        why = why if recipe.unlabeled else "the preset hears none"
        warnings.warn(f"{teacher}: this teacher is not heard: {why}", stacklevel=1)
    drawing = segmenter is not None and draws(segmenter)
    if recipe.drawn == 1 and not drawing:
        why = f"preset '{choice.preset}' is for a --teacher that reads a generator; the student sees the labels alone"
        warnings.warn(why, stacklevel=1)
    if recipe.consistency is not None and len(unlabeled) <= len(shots):
        why = f"{images}: holds no images but the labeled ones, so consistency adds nothing; add plain ones"
        warnings.warn(why, stacklevel=1)
    train_student(shots, recipe, Path(out), unlabeled, segmenter, choice.student, seed, quiet, drawn, start, snapshots)
    return Path(out) / "student"


def draws(teacher: Segmenter | Student) -> bool:
    """Whether a teacher reads a generator, and so draws images that it labels instead of labeling given ones."""
    if isinstance(teacher, Student):
        return False
    reads = teacher.representation
    return isinstance(reads.representation if isinstance(reads, Reduced) else reads, StyleGAN)


def _teacher(folder: Path) -> Segmenter | Student:
    """What `fit` wrote, or the student that `distill` or `run` did, which teaches a more compact one."""
    within = (folder, folder / "student", folder / "distill" / "student")
    cards = [one for one in within if (standing(one) / "card.json").exists()]
    found = next((one for one in cards if read_card(one)["kind"] == "student"), None)
    return Segmenter.load(inside(folder, "segmenter")) if found is None else Student.load(found)


def generated_shots(
    teacher: Segmenter, count: int, seed: int = 0, quiet: bool = False, second: Student | None = None
) -> Shots:
    """Images that a teacher's generator draws, with the teacher's labels where it is sure of them.

    Labels it is not sure of are 255: they are wrong most often where parts meet. Of an ensemble, the share
    DISCARD_SHARE of them is left out. second: see Segmenter.generate; where the two disagree, neither is sure.
    """
    first = _FIRST_DRAWN + seed * count
    with Ticker("draw labeled images", count, 0, quiet) as ticker:
        return teacher.generate(range(first, first + count), _SURE, ticker.tick, second=second)


def unlabeled_stack(images: Path, labels: Path, size: int) -> np.ndarray:
    """Every image of a folder, masks beside them left out, as uint8 [n, size, size, 3]."""
    masks = [pair.mask for pair in find_pairs(labels, images)]
    return read_stack(list_images(images, leave_out=masks), size, skip_corrupt=True).images


def train_student(
    shots: Shots,
    recipe: Distill,
    out: Path,
    images: np.ndarray | None = None,
    teacher: Segmenter | Student | None = None,
    student: str = STUDENT,
    seed: int = 0,
    quiet: bool = False,
    drawn: int = GENERATED,
    start: Path | None = None,
    snapshots: int = 0,
    reader: Segmenter | None = None,
) -> Student:
    """Trains a student, or goes on where an earlier call stopped, or reads what it finished.

    shots: the labeled images, in every batch. recipe: where things face one way (see data.symmetry), call with
    `recipe.one_sided()`. out: the run's folder. images: uint8 [n, s, s, 3] at the recipe's size, unlabeled; None trains
    on the shots alone. teacher: whose soft labels of `images` start the student, if it reads its own shots well enough
    (MIN_TEACHER_MIOU); a recipe without consistency follows any, another student too. One that draws gives `drawn`
    images with its labels instead, which take the recipe's share of the shots' places, and with a self_training is
    helped by a first student, trained in out/first. start, snapshots: see `distill`. reader: what `frozen_reader`
    fitted to these shots already, for a recipe that asks one (`uses_frozen_reader`); None fits it where it is asked.
    """
    asked, (student, pretrained) = student, pretrained_student(student)
    begin = pretrained if start is None else _weights(start, student)
    fingerprint = _fingerprint(shots, recipe, images, teacher, student, seed, drawn, begin)
    folder = out / "student"
    if standing(folder).exists():
        finished = Student.load(folder, fingerprint)
        if snapshots > len(list((out / "snapshots").glob("*.onnx"))):
            warnings.warn(f"{folder} is finished, so no snapshots of it are kept; choose another --out", stacklevel=2)
        return finished
    soft, extra = None, None
    if teacher is not None and draws(teacher):
        second = None
        if recipe.self_training:
            second = _self_training(shots, recipe, out / "first", images, teacher, student, seed, quiet, drawn, start)
            begin, start = second.net.state_dict(), out / "first"
        labeled = generated_shots(teacher, drawn, seed, quiet, second)
        extra = tuple(map(torch.from_numpy, labeled.stack(recipe.size)))
    elif teacher is not None and images is not None and is_teacher_used(teacher, shots, recipe):
        with Ticker("teacher labels images", len(images), 0, quiet) as ticker:
            soft = teacher.soft_labels(images, ticker.tick)
    read, every = None, 1 if images is None else -(-len(images) // _MOST_READ)
    if teacher is None and images is not None and uses_frozen_reader(asked, recipe, shots):
        some = images[::every]
        if not _is_fitted(out / "reader", shots):
            several, sided = partial(resize_images, some), not recipe.augment.flip
            if reader is None:
                say("a head is fitted to the frozen encoder", quiet)
                reader = frozen_reader(shots, several, seed, sided, _encoder(asked))
            reader.save(out / "reader")
        # From disk, so that a stopped run goes on with the same.
        reader = Segmenter.load(out / "reader")
        with Ticker("frozen encoder labels images", len(some), 0, quiet) as ticker:
            read = reader.soft_labels(some, ticker.tick)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = build_student(student, len(shots.parts))
    if begin is not None:
        start_from(net, begin, student if start is None else str(start))
    stack, ids = shots.stack(recipe.size)
    game = Distillation(
        net,
        torch.from_numpy(stack),
        torch.from_numpy(ids).long(),
        shots.parts.mirrored_ids(),
        recipe,
        None if images is None else torch.from_numpy(images),
        soft,
        extra,
        read,
        every,
    )
    # What a generator draws says nothing of the size of the images to come.
    native = shots.native if extra is None else None
    loop = LoopRecipe(kimg=recipe.kimg, batch=recipe.batch, seed=seed)
    what = f"student from {len(shots)} label{'s' if len(shots) > 1 else ''}"
    what += "" if extra is None else f" and {len(extra[0])} drawn images"
    card = {"fingerprint": fingerprint, "recipe": recipe.model_dump(mode="json")}

    def as_it_is() -> Student:
        average = copy.deepcopy(game.modules["ema"]).to("cpu")
        if read is not None:
            card["agreement"] = round(float(game.modules["agreement"].overlap), 3)
        found = Student(average, student, shots.parts, recipe.size, card, recipe.flip_tta, native=native)
        if images is None or not recipe.decision_temperature:
            return found
        return found.fit_offsets(images, game.lean.tolist(), recipe.decision_temperature)

    show = _Snapshots(out, snapshots, recipe, as_it_is) if snapshots else None
    run_loop(game, loop, out, what, fingerprint, quiet=quiet, show=show)
    trained = as_it_is()
    trained.save(folder)
    return trained


def uses_frozen_reader(student: str, recipe: Distill, shots: Shots) -> bool:
    """Whether a frozen encoder labels the images, too: with the fewest labels, for a student that starts from it."""
    asks = recipe.consistency is not None and recipe.consistency.agree > 0 and recipe.unlabeled > 0
    return asks and len(shots) <= FEW and is_pretrained(student)


def _is_fitted(folder: Path, shots: Shots) -> bool:
    """Whether a few-shot teacher of these very shots lies there."""
    if not standing(folder).exists():
        return False
    found = Segmenter.load(folder)
    return found.fitted == found.fingerprint(shots)


def _encoder(student: str) -> str:
    """The encoder that such a student starts from, as `fit` reads it."""
    return student.removeprefix(LIGHT) + ENCODER_LEVELS + POSITION


def _self_training(shots, recipe, out, images, teacher, student, seed, quiet, drawn, start) -> Student:
    """The student that helps to label for the second round: `train_student`, by the recipe's self_training."""
    first = recipe.self_training_round()
    say(f"first of two rounds, at {first.size} px", quiet)
    if images is not None:
        images = resize_images(images, first.size)
    trained = train_student(shots, first, out, images, teacher, student, seed, quiet, drawn, start)
    say(f"second of two rounds, at {recipe.size} px: the first round's student helps to label", quiet)
    return trained


class _Snapshots:
    """Writes a student, so many times on the way, as out/snapshots/001.onnx and so on; those of an earlier run go."""

    def __init__(self, out: Path, count: int, recipe: Distill, student: Callable[[], Student]):
        self.folder, self.count, self.recipe, self.student = out / "snapshots", count, recipe, student
        self.written = 0
        if not standing(out / "checkpoint").exists():
            shutil.rmtree(self.folder, ignore_errors=True)

    def __call__(self, game: Distillation, seen: int) -> None:
        number = min(self.count, int(seen * self.count // (self.recipe.kimg * 1000)))
        if number > self.written:
            export(self.student(), self.folder / f"{number:03d}.onnx")
            self.written = number


def facing(recipe: Distill, images: np.ndarray) -> Distill:
    """The recipe, without mirroring where the images show that their things face one way."""
    return recipe.one_sided() if one_sided(images) else recipe


def teacher_size(recipe: Distill) -> int:
    """Side of the images that the few-shot teacher of a student reads: half, at a quarter of the cost.

    It only starts the student off, and its soft labels are kept at half size anyway.
    """
    return max(32, recipe.size // 2)


def is_teacher_used(teacher: Segmenter | Student, shots: Shots, recipe: Distill) -> bool:
    """Whether a teacher may start a student: one that misreads even the shots it was fitted on holds it back."""
    if recipe.consistency is None or not recipe.unlabeled:
        return recipe.unlabeled > 0
    if recipe.consistency.teacher == 0:
        return False
    own = [one.labels for one in teacher.predict(shots.images)]
    return score(shots.labels, own, shots.parts, shots.names).miou_nan >= MIN_TEACHER_MIOU


def _weights(start: Path, student: str) -> dict[str, torch.Tensor]:
    """What a student begins with: another student's tensors, a trained encoder's, or those of a file."""
    if not start.is_dir():
        return read_weights(start)
    folder = inside(start, "student")
    stored = Artifact.load(inside(start, "representation") if folder == start else folder)
    if stored.kind not in ("student", "representation"):
        raise BadArtifact(f"{start}: holds a {stored.kind}; a student or a trained encoder is needed to start from")
    net = stored.card.get("net")
    if stored.kind == "representation" and not student.endswith(f"-{net}"):
        raise BadArtifact(f"{start}: an encoder of '{net}', which no '{student}' has; take --student light-{net}")
    return {name: torch.from_numpy(np.array(tensor)) for name, tensor in stored.tensors.items()}


def _fingerprint(shots, recipe, images, teacher, student, seed, drawn, begin) -> str:
    digest = hashlib.sha256(f"{recipe.fingerprint}/{student}/{seed}/{shots.fingerprint}".encode())
    digest.update(b"/letterboxed" if shots.oblong else b"")
    if images is not None:
        digest.update(f"{images.shape}".encode())
        digest.update(np.ascontiguousarray(images[:: max(1, len(images) // 64)]).tobytes())
    if teacher is not None:
        # Not its weights: fitted anew on another number of threads, they differ in the last digits.
        digest.update(teacher.fitted.encode())
        if draws(teacher):
            digest.update(f"{drawn}/{_SURE}".encode())
            if teacher.head_name == "ensemble":
                digest.update(f"/{DISCARD_SHARE}".encode())
    if begin is not None:
        digest.update(weights_of({}, begin).encode())
    return digest.hexdigest()[:12]
