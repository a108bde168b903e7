"""export: writes a student as one ONNX file, and fails unless onnxruntime agrees with torch."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from partshot.errors import BadRecipe
from partshot.export import export_onnx
from partshot.student import Student
from partshot.tasks.trained import find_student


def export(student: Path | str | Student, out: Path | str, sample: Sequence[np.ndarray] = ()) -> Path:
    """Writes a student, or the one in a folder that `distill` or `run` wrote, as the ONNX file `out`.

    sample: images, uint8 [h, w, 3], on which the file is compared with the student, beside random noise.
    Raises BadRecipe for another file name; BadArtifact when the folder holds no student, or when onnxruntime's answers
    differ from torch's.
    """
    if Path(out).suffix.lower() != ".onnx":
        raise BadRecipe(f"{out}: give a file name that ends in .onnx")
    found = student if isinstance(student, Student) else Student.load(find_student(Path(student)))
    return export_onnx(found.inference_net, found.parts, found.input_size, out, sample, found.squashed, found.native)
