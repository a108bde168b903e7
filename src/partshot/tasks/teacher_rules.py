"""Rules about a student's teachers: which are used, and what they label.

train_student.py trains the student on those labels.
"""

from partshot.data.shots import Shots
from partshot.metrics import score
from partshot.progress import Ticker
from partshot.represent.reduced import Reduced
from partshot.represent.stylegan import StyleGAN
from partshot.segmenter import Segmenter
from partshot.student import Student
from partshot.train.distill_recipe import Distill
from partshot.train.student_choice import is_pretrained

MIN_TEACHER_MIOU = 0.8
"""Mean IoU on its own shots that a few-shot teacher needs to be used. Measured (LOG.md, 2026-11-21): teachers of blood
cells with about .7 on their shots cost the student .008 over twelve splits."""

GENERATED = 2000
"""Labeled images that a generator adds to the shots; ReGAN's auto-shot takes 5,000 of 512 px."""

MIN_CONFIDENCE = 0.6
"""Least probability of a label on a generated image; others are ignored."""

FEW = 2
"""Labeled images up to which a frozen encoder labels the unlabeled ones, too (`Consistency.min_agreement`)."""

# Generated images have seeds from here on; seeds below are for people to label.
_FIRST_SEED = 1_000_000


def reads_generator(teacher: Segmenter | Student) -> bool:
    """Whether a teacher reads a generator's features, and so generates the images that it labels."""
    if isinstance(teacher, Student):
        return False
    representation = teacher.representation
    inner = representation.representation if isinstance(representation, Reduced) else representation
    return isinstance(inner, StyleGAN)


def why_unused(teacher: Segmenter | Student, shots: Shots, recipe: Distill) -> str:
    """Why a teacher's labels do not start the student, in words; "" where they do.

    With consistency, only those of a teacher with MIN_TEACHER_MIOU on its own shots do, if the recipe asks for any.
    """
    if uses_no_teacher(recipe):
        return "the preset uses no teacher"
    if recipe.consistency is None:
        return ""
    own = [one.labels for one in teacher.predict(shots.images)]
    if score(shots.labels, own, shots.parts, shots.names).miou_nan >= MIN_TEACHER_MIOU:
        return ""
    return f"its mean IoU on its own labeled images is below {MIN_TEACHER_MIOU:g}; label more images"


def uses_no_teacher(recipe: Distill) -> bool:
    """Whether a recipe uses no few-shot teacher's labels, however good it is."""
    return not recipe.unlabeled or (recipe.consistency is not None and recipe.consistency.teacher == 0)


def needs_frozen_segmenter(student: str, recipe: Distill, shots: int) -> bool:
    """Whether a head on the frozen encoder labels the unlabeled images, too.

    It does with at most FEW shots, for students that start from a pretrained encoder.
    """
    wanted = recipe.consistency is not None and recipe.consistency.min_agreement > 0 and recipe.unlabeled > 0
    return wanted and shots <= FEW and is_pretrained(student)


def teacher_size(recipe: Distill) -> int:
    """Side in pixels of the images that a student's few-shot teacher is given: half, at a quarter of the cost.

    The teacher's labels only start the student, and they are kept at half size anyway.
    """
    return max(32, recipe.size // 2)


def generated_shots(
    teacher: Segmenter, count: int, seed: int = 0, quiet: bool = False, second: Student | None = None
) -> Shots:
    """Images of a teacher's generator with the teacher's labels.

    Labels of a probability below MIN_CONFIDENCE are 255: most wrong ones are, where parts meet. Of an ensemble, the
    share DISCARD_SHARE of the images, the most uncertain ones, is left out. second: a student whose labels must agree;
    see Segmenter.generate.
    """
    first = _FIRST_SEED + seed * count
    with Ticker("generate labeled images", count, 0, quiet) as ticker:
        return teacher.generate(range(first, first + count), MIN_CONFIDENCE, ticker.tick, second=second)
