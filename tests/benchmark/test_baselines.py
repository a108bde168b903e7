"""compare: every row gets the same shots and answers with labels; students are trained once per draw."""

import numpy as np
import pytest

from partshot.benchmark.baselines import Baselines
from partshot.represent.choose import open_representation
from partshot.tasks import distill as distilling
from partshot.toy.dataset import toy_shots
from partshot.train.distill_recipe import PRESETS
from partshot.train.fit_head import PRESETS as FIT_PRESETS

ROWS = ("student", "head", "mean teacher", "supervised", "linear", "random", "forest")


@pytest.fixture(scope="module")
def shots():
    return toy_shots("faces", 32, 2, seed=2)


@pytest.fixture
def contest(tmp_path):
    images = np.stack(toy_shots("faces", 32, 4, seed=1).images)
    recipe = PRESETS["default"].changed(size=32, kimg=0.032)
    fit = FIT_PRESETS["fast"].changed(images=8)
    return Baselines(tmp_path, images, open_representation("pixels+position"), recipe, "linear", fit, quiet=True)


def test_every_row_answers_with_labels(contest, shots, monkeypatch):
    monkeypatch.setattr(distilling, "MIN_TEACHER_MIOU", 0.0)
    methods = contest.methods()
    assert set(ROWS) <= set(methods)
    for name in ROWS:
        (labels,) = methods[name](shots)([shots.images[0]])
        assert labels.shape == (32, 32) and labels.dtype == np.uint8 and labels.max() < 10, name
    assert {p.name.rsplit("-", 2)[0] for p in contest.folder.iterdir()} == {"student", "mean-teacher", "supervised"}


def test_an_unheard_teacher_leaves_the_mean_teacher(contest, shots, monkeypatch):
    monkeypatch.setattr(distilling, "MIN_TEACHER_MIOU", 1.0)
    assert np.array_equal(
        *(contest.methods()[name](shots)([shots.images[0]])[0] for name in ("student", "mean teacher"))
    )
    assert {p.name.rsplit("-", 2)[0] for p in contest.folder.iterdir()} == {"mean-teacher"}


def test_a_table_may_show_some_rows_with_a_teacher_of_its_own(contest, shots):
    taught = []
    recipe = contest.recipe.changed(consistency=contest.recipe.consistency.changed(teacher=0))
    given = (contest.folder, contest.images, contest.representation, recipe)
    other = Baselines(
        *given, fit=contest.fit, quiet=True, teach=lambda shots: taught.append(1) or contest.teacher(shots)
    )
    assert list(other.methods("forest", "student")) == ["student", "forest"]
    # A recipe that hears no teacher has none fitted.
    assert other.training(shots).name.startswith("mean-teacher") and not taught
    assert other.teacher(shots) is other.teacher(shots) is contest.teacher(shots) and taught == [1]


def test_a_draw_is_trained_once_and_its_teacher_fitted_once(contest, shots, monkeypatch):
    first = contest.supervised(shots)
    teacher = contest.teacher(shots)
    monkeypatch.setattr(distilling, "run_loop", lambda *_, **__: pytest.fail("trained again"))
    assert contest.teacher(shots) is teacher
    again = contest.supervised(shots)
    assert np.array_equal(first.predict(shots.images)[0].labels, again.predict(shots.images)[0].labels)
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        contest.supervised(shots.subset([1]))
