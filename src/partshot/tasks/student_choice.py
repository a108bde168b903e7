"""Which student is trained, and by which preset, when nobody says: the one that this machine affords.

A student that starts from a pretrained encoder is better at every number of labels than one of random initialization,
after as much time on a CPU (LOG.md, 2026-11-28). So it is the first choice where such weights are on this machine;
nothing is downloaded for it.
"""

from dataclasses import dataclass

from partshot.nets.student import LIGHT
from partshot.ops.precision import best_device
from partshot.represent.encoders import ENCODERS, default_encoder
from partshot.tasks.distill import STUDENT

AUTO = "auto"


@dataclass(frozen=True)
class Choice:
    """student: a name of nets.student. preset: a row of train.distill_recipe.PRESETS. why: for people."""

    student: str
    preset: str
    why: str


def choose_student(student: str = AUTO) -> Choice:
    """The student of that name with the preset that fits it, or the best that this machine affords."""
    if student != AUTO:
        return Choice(student, "pretrained" if is_pretrained(student) else "default", "as asked for")
    encoder = default_encoder()
    if encoder is None:
        why = "no pretrained encoder is on this machine; to get one: pip install 'partshot[pretrained]'"
        return Choice(STUDENT, "default", why)
    row = ENCODERS[encoder]
    where = "GPU" if best_device().type == "cuda" else "CPU"
    return Choice(f"{LIGHT}{encoder}", "pretrained", f"starts from {encoder} ({row.trained_on}), trains on the {where}")


def is_pretrained(student: str) -> bool:
    """Whether a student's name stands for a pretrained encoder's weights."""
    return student.startswith(LIGHT) and student.removeprefix(LIGHT) in ENCODERS
