"""baselines: every method gets the same shots and predicts labels; students are trained once per split."""

import numpy as np
import pytest

from partshot.benchmark.baselines import Baselines
from partshot.represent.choose import open_representation
from partshot.segmenter import Segmenter
from partshot.tasks import teacher_rules
from partshot.tasks import train_student as distilling
from partshot.toy.dataset import toy_shots
from partshot.train.distill_recipe import PRESETS
from partshot.train.fit_head import PRESETS as FIT_PRESETS

ROWS = ("student", "head", "supervised", "forest")


@pytest.fixture(scope="module")
def shots():
    return toy_shots("faces", 32, 2, seed=2)


def fit_teacher(shots):
    fit = FIT_PRESETS["fast"].changed(images=8)
    return Segmenter(open_representation("pixels+position"), shots.parts, "linear", 32, fit).fit(shots, quiet=True)


@pytest.fixture
def baselines(tmp_path):
    images = np.stack(toy_shots("faces", 32, 4, seed=1).images)
    recipe = PRESETS["default"].changed(size=32, kimg=0.032)
    return Baselines(tmp_path, images, recipe, fit_teacher, quiet=True)


def test_every_method_predicts_labels(baselines, shots, monkeypatch):
    monkeypatch.setattr(teacher_rules, "MIN_TEACHER_MIOU", 0.0)
    methods = baselines.methods(*ROWS)
    assert tuple(methods) == ROWS
    for name in ROWS:
        (labels,) = methods[name](shots)([shots.images[0]])
        assert labels.shape == (32, 32) and labels.dtype == np.uint8 and labels.max() < 10, name
    assert {p.name.rsplit("-", 2)[0] for p in baselines.folder.iterdir()} == {"student", "supervised"}


def test_an_unused_teacher_leaves_the_mean_teacher(baselines, shots, monkeypatch):
    monkeypatch.setattr(teacher_rules, "MIN_TEACHER_MIOU", 1.0)
    student, plain = baselines.distilled(shots), baselines.mean_teacher(shots)
    assert np.array_equal(*(found.predict(shots.images)[0].labels for found in (student, plain)))
    assert {p.name.rsplit("-", 2)[0] for p in baselines.folder.iterdir()} == {"mean-teacher"}


def test_selected_methods_with_another_teacher(baselines, shots):
    fitted = []

    def fit_other(shots):
        fitted.append(1)
        return baselines.teacher(shots)

    recipe = baselines.recipe.changed(consistency=baselines.recipe.consistency.changed(teacher=0))
    other = Baselines(baselines.folder, baselines.images, recipe, fit_other, quiet=True)
    assert list(other.methods("forest", "student")) == ["student", "forest"]
    # No teacher is fitted for a recipe that uses none.
    assert other.training(shots).name.startswith("mean-teacher") and not fitted
    assert other.teacher(shots) is other.teacher(shots) is baselines.teacher(shots) and fitted == [1]


def test_student_and_teacher_are_trained_once_per_split(baselines, shots, monkeypatch):
    first = baselines.supervised(shots)
    teacher = baselines.teacher(shots)
    monkeypatch.setattr(distilling, "run_loop", lambda *_, **__: pytest.fail("trained again"))
    assert baselines.teacher(shots) is teacher
    again = baselines.supervised(shots)
    assert np.array_equal(first.predict(shots.images)[0].labels, again.predict(shots.images)[0].labels)
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        baselines.supervised(shots.subset([1]))
