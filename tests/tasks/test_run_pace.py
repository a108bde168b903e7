"""How long a run may train: by the pace of this machine, timed on the very training and kept for a resume."""

import json

import numpy as np
import pytest

from partshot.errors import BadRecipe
from partshot.tasks import run_pace as pace
from partshot.toy.dataset import toy_shots
from partshot.train.distill_recipe import PRESETS

RECIPE = PRESETS["default"].changed(size=32, batch=4, unlabeled=4)


@pytest.fixture(scope="module")
def shots():
    return toy_shots("faces", 32, 2, seed=2)


@pytest.fixture(scope="module")
def images():
    return np.stack(toy_shots("faces", 32, 6, seed=1).images)


def horizon(shots, images, seconds, trainings=1.0, frozen=0, fitted=0):
    work = pace.Work(trainings, frozen, fitted, to_predict=100, read_seconds=0.01)
    return pace.horizon(shots, RECIPE, images, "fast-unet", seconds, work)


def test_the_rest_is_taken_off_and_folds_share_what_is_left(shots, images, monkeypatch):
    monkeypatch.setattr(pace, "_measured", lambda *_: (0.1, 0.03))
    rest = pace._FIXED + 100 * (2 * 0.01 + 0.03)
    # A thousand images are 250 steps of .1 s.
    assert horizon(shots, images, rest + 50) == pytest.approx(2.0, abs=0.02)
    assert horizon(shots, images, rest + 125, trainings=2.5) == pytest.approx(2.0, abs=0.02)


def test_heads_on_the_frozen_encoder_are_allowed_for_and_not_fitted_to_measure(shots, images, monkeypatch):
    seen = []

    def trained(given, recipe, out, *_, **__):
        seen.append(recipe.consistency.min_agreement)
        raise KeyboardInterrupt

    asking = PRESETS["pretrained"].changed(size=32)
    with monkeypatch.context() as patch:
        patch.setattr(pace, "train_student", trained)
        with pytest.raises(KeyboardInterrupt):
            pace._measured(shots, asking, images, "light-efficientnet-lite0")
    assert seen == [0] and asking.consistency.min_agreement > 0
    monkeypatch.setattr(pace, "_measured", lambda *_: (0.1, 0.03))
    one = pace._FROZEN_FIT + pace._FROZEN_IMAGE * len(images)
    longest = horizon(shots, images, 500)
    assert longest - horizon(shots, images, 500, frozen=3, fitted=3) == pytest.approx(3 * one / 25, abs=0.02)
    labels = pace._FROZEN_IMAGE * len(images)
    assert longest - horizon(shots, images, 500, frozen=30) == pytest.approx(30 * labels / 25, abs=0.02)


def test_too_little_time_is_warned_of_with_what_it_takes(shots, images, monkeypatch):
    monkeypatch.setattr(pace, "_measured", lambda *_: (0.1, 0.03))
    with pytest.warns(UserWarning, match=r"--minutes is too short: .* take about \d\.\d minutes on this machine"):
        assert horizon(shots, images, 10) == pace.LEAST_KIMG


def test_a_step_of_this_very_training_is_timed(shots, images, monkeypatch):
    step, look = pace._measured(shots, RECIPE, images, "fast-unet")
    assert 0 < step < 5 and 0 < look < 5
    slow = pace.train_student

    def slower(given, recipe, out, *rest, **options):
        trained = slow(given, recipe, out, *rest, **options)
        journal = out / "journal.jsonl"
        lines = [json.loads(line) for line in journal.read_text().splitlines()]
        # Phases of 1 and 3 seconds a step, the first step slow once.
        ends = np.cumsum([60.0] + [1.0] * (pace._STEPS // 2 - 1) + [3.0] * (pace._STEPS // 2))
        journal.write_text(
            "".join(json.dumps(one | {"seconds": end}) + "\n" for one, end in zip(lines, ends, strict=True))
        )
        return trained

    monkeypatch.setattr(pace, "train_student", slower)
    assert pace._measured(shots, RECIPE, images, "fast-unet")[0] == pytest.approx(2.0, abs=0.15)


def test_a_resumed_run_keeps_its_horizon_and_another_measures_anew(tmp_path):
    path = tmp_path / "pace.json"
    assert pace.kept(path, "these labels", lambda: 2.5) == 2.5
    assert pace.kept(path, "these labels", lambda: pytest.fail("measured again")) == 2.5
    assert pace.kept(path, "other labels", lambda: 1.5) == 1.5


@pytest.mark.parametrize("minutes", [0, -1, float("inf"), float("nan")])
def test_no_time_and_no_end_are_refused(minutes):
    with pytest.raises(BadRecipe, match="a positive, finite number"):
        pace.refuse_minutes(minutes)
