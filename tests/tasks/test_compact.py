"""compact: a fast student of a larger one's labels, with both speeds and how far the two agree."""

import numpy as np

from partshot.inference.exported_model import ExportedModel
from partshot.student import Student
from partshot.tasks import compact as task
from partshot.tasks.compact import compact
from partshot.tasks.export import export
from partshot.tasks.train_student import train_student
from partshot.toy.dataset import toy_shots
from partshot.train.distill_recipe import PRESETS


def test_a_compact_student_is_written_beside_the_large_one(tmp_path, monkeypatch):
    monkeypatch.setitem(PRESETS, "compact", PRESETS["compact"].changed(size=32, kimg=0.032))
    monkeypatch.setattr(task, "_SECONDS", 0.1)
    shots, images = toy_shots("faces", 32, 2, seed=1), np.stack(toy_shots("faces", 32, 6, seed=2).images)
    recipe = PRESETS["default"].changed(size=32, kimg=0.016)
    large = train_student(shots, recipe, tmp_path / "large", images, quiet=True)
    onnx = tmp_path / "student.onnx"
    export(large, onnx)
    found = compact(shots, large, onnx, images, tmp_path / "compact", one_sided=True, seed=0, quiet=True)
    assert ExportedModel(tmp_path / "compact.onnx").parts == shots.parts
    assert Student.load(tmp_path / "compact" / "student").size == 32
    assert min(found.images_per_second) > 0 and 0 <= found.agreement <= 1
