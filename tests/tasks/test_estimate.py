"""estimate: every labeled image is predicted by a student that never saw it, by the student's own recipe."""

import numpy as np
import pytest

from partshot.student import Prediction
from partshot.tasks import estimate as task
from partshot.tasks import train_student as train_student_module
from partshot.tasks.estimate import FOLDS, SHARE, estimate, expected
from partshot.tasks.train_student import Training, train_student
from partshot.toy.dataset import toy_shots
from partshot.train.distill_recipe import PRESETS

RECIPE = PRESETS["default"].changed(size=32, kimg=0.064)


class Knows:
    """A student that predicts the truth of some images and background of others."""

    def __init__(self, shots, known):
        self.shots, self.known = shots, known

    def predict(self, images):
        found = []
        for image in images:
            i = next(i for i, one in enumerate(self.shots.images) if one is image)
            labels = self.shots.labels[i] if i in self.known else np.zeros_like(self.shots.labels[i])
            found.append(Prediction(labels, np.zeros(0), np.zeros(0)))
        return found


def test_each_fold_is_trained_without_what_it_predicts_for_a_share_of_the_horizon(tmp_path, monkeypatch):
    shots, trained = toy_shots("faces", 32, 5, seed=3), []

    def train(kept, recipe, out, images, training, quiet):
        trained.append((kept.names, recipe.kimg, training.student, training.seed))
        return Knows(shots, range(5))

    monkeypatch.setattr(task, "train_student", train)
    found = estimate(shots, RECIPE, tmp_path, None, Training(seed=7), quiet=True)
    assert len(trained) == FOLDS and {one[1:] for one in trained} == {(RECIPE.kimg * SHARE, "fast-unet", 7)}
    # Each image is left out once.
    assert sorted(name for kept, *_ in trained for name in set(shots.names) - set(kept)) == sorted(shots.names)
    assert found.folds.miou_nan == 1 == found.miou and found.error == 0 and found.share == SHARE and found.corrected
    again = estimate(shots, RECIPE, tmp_path, None, Training(seed=7), quiet=True)
    assert len(trained) == FOLDS and again.miou == found.miou and again.folds.per_part == found.folds.per_part
    estimate(shots, RECIPE.changed(kimg=0.1), tmp_path, None, Training(seed=7), quiet=True)
    assert len(trained) == 2 * FOLDS


def test_images_that_differ_give_a_standard_error(tmp_path, monkeypatch):
    shots = toy_shots("faces", 32, 4, seed=3)
    monkeypatch.setattr(task, "train_student", lambda *_, **__: Knows(shots, [0, 1]))
    found = estimate(shots, RECIPE, tmp_path, None, Training(), quiet=True)
    assert 0 < found.folds.miou_nan < found.miou < 1 and found.error > 0.01
    plain = estimate(shots, RECIPE, tmp_path, None, Training(), quiet=True, corrected=False)
    assert plain.miou == found.folds.miou_nan and plain.error < found.error and not plain.corrected


def test_one_image_leaves_none_to_test_on(tmp_path):
    assert estimate(toy_shots("faces", 32, 1), RECIPE, tmp_path / "out", None, Training()) is None
    assert not (tmp_path / "out").exists()


def test_the_share_of_errors_that_remains_is_taken_off():
    assert expected(0.5, 0.8) == pytest.approx(0.6) and expected(1.0) == 1


def stopped_in_the_second_fold(shots, images, out, monkeypatch):
    """An estimate that trains its first fold and is stopped; returns the names of the folds that were begun."""
    begun = []

    def stop(kept, recipe, folder, *rest, **options):
        begun.append(folder.name)
        if folder.name == "fold-1":
            raise KeyboardInterrupt
        return train_student(kept, recipe, folder, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(task, "train_student", stop)
        with pytest.raises(KeyboardInterrupt):
            estimate(shots, RECIPE.changed(kimg=0.016), out, images, Training(), quiet=True)
    return begun


@pytest.fixture(scope="module")
def images():
    return np.stack(toy_shots("faces", 32, 4, seed=4).images)


def test_a_real_training_resumes_and_leaves_no_folds(images, tmp_path, monkeypatch):
    shots = toy_shots("faces", 32, 2, seed=3)
    assert stopped_in_the_second_fold(shots, images, tmp_path, monkeypatch) == ["fold-0", "fold-1"]
    assert (tmp_path / "fold-0" / "student").exists()
    titles, loop = [], train_student_module.run_loop

    def counted(objective, recipe, out, *rest, **options):
        titles.append(out.name)
        return loop(objective, recipe, out, *rest, **options)

    monkeypatch.setattr(train_student_module, "run_loop", counted)
    found = estimate(shots, RECIPE.changed(kimg=0.016), tmp_path, images, Training(), quiet=True)
    assert titles == ["fold-1"] and 0 <= found.folds.miou <= 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["estimate.json", "labels.txt"]


def test_folds_of_other_labels_are_trained_again(images, tmp_path, monkeypatch):
    stopped_in_the_second_fold(toy_shots("faces", 32, 2, seed=3), images, tmp_path, monkeypatch)
    other = toy_shots("faces", 32, 2, seed=5)
    assert estimate(other, RECIPE.changed(kimg=0.016), tmp_path, images, Training(), quiet=True) is not None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["estimate.json", "labels.txt"]
