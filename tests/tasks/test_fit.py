"""fit: labeled images become a teacher on disk, with an honest estimate where there is more than one."""

import json
import shutil

import pytest
from PIL import Image

from partshot.errors import BadRecipe
from partshot.parts import PartSet
from partshot.represent.choose import open_representation
from partshot.segmenter import Segmenter
from partshot.tasks import fit as task
from partshot.tasks.fit import facing_fit, fit, teacher_names
from partshot.toy.dataset import toy_shots, write_toy
from partshot.train.fit_ensemble import PRESETS as ENSEMBLE_PRESETS
from partshot.train.fit_head import PRESETS
from partshot.train.fit_points import PRESETS as POINT_PRESETS


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setitem(PRESETS, "fast", PRESETS["fast"].changed(images=16))


@pytest.fixture
def toy(tmp_path):
    return write_toy("faces", 3, 32, tmp_path / "toy")


def fitted(folder, out, labels=None, **given):
    options = {"representation": "pixels+position", "head": "linear", "size": 32, "quiet": True, **given}
    return fit(folder / "images", labels or folder / "masks", out, **options)


def test_a_teacher_is_written_that_predicts(toy, tmp_path):
    made = fitted(toy, tmp_path / "out")
    assert made == tmp_path / "out" / "segmenter"
    teacher = Segmenter.load(made)
    (answer,) = teacher.predict([toy_shots("faces", 40, 1).images[0]])
    assert answer.labels.shape == (40, 40)
    assert teacher.parts == PartSet.load(toy / "classes.json")


def test_the_estimate_is_written_with_two_shots_or_more(toy, tmp_path, capsys):
    fitted(toy, tmp_path / "out", quiet=False)
    assert "cross-validation on the labeled images: mean IoU" in "".join(capsys.readouterr())
    estimate = json.loads((tmp_path / "out" / "leave_one_out.json").read_text())
    assert 0 <= estimate["miou"] <= 1
    assert sum(map(sum, estimate["confusion"])) == 3 * 32 * 32
    for i in (1, 2):
        (toy / "masks" / f"0000{i}.png").unlink()
    fitted(toy, tmp_path / "one")
    assert not (tmp_path / "one" / "leave_one_out.json").exists()


def test_some_images_show_which_way_objects_face(toy, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(task, "_LOOKED_AT", 2)
    monkeypatch.setattr(task, "one_sided", lambda images: seen.append(len(images)) or False)
    fitted(toy, tmp_path / "out")
    assert seen == [2]


def test_an_ensemble_has_its_own_presets(toy, tmp_path, monkeypatch):
    monkeypatch.setitem(ENSEMBLE_PRESETS, "fast", ENSEMBLE_PRESETS["fast"].changed(pixels=64 * 5))
    teacher = Segmenter.load(fitted(toy, tmp_path / "out", head="ensemble", seed=3))
    assert teacher.recipe == ENSEMBLE_PRESETS["fast"].changed(seed=3)
    estimate = json.loads((tmp_path / "out" / "leave_one_out.json").read_text())
    assert sum(map(sum, estimate["confusion"])) == 3 * 32 * 32
    with pytest.raises(BadRecipe, match="head 'ensemble' has no preset 'regan-code'; known: datasetgan, fast"):
        fitted(toy, tmp_path / "other", head="ensemble", preset="regan-code")


def test_masks_may_lie_beside_their_images(toy, tmp_path):
    beside = tmp_path / "beside"
    beside.mkdir()
    for path in (toy / "images").iterdir():
        Image.open(path).save(beside / f"{path.stem}.bmp")
        shutil.copy(toy / "masks" / path.name, beside)
    assert fit(beside, beside, tmp_path / "out", "pixels", "linear", size=32, quiet=True).is_dir()


def test_things_that_face_one_way_are_not_mirrored(toy, tmp_path, monkeypatch):
    assert Segmenter.load(fitted(toy, tmp_path / "both")).recipe.augment.flip
    monkeypatch.setattr(task, "one_sided", lambda images: True)
    assert not Segmenter.load(fitted(toy, tmp_path / "one")).recipe.augment.flip
    plain = PRESETS["regan-code"]
    assert facing_fit(plain, True) is plain


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ({"preset": "fats"}, "did you mean 'fast'"),
        ({"head": "cnn-x"}, "did you mean 'cnn-"),
        ({"representation": "pixel"}, "did you mean 'pixels'"),
    ],
)
def test_wrong_names_are_answered_with_the_nearest(toy, tmp_path, given, hint):
    with pytest.raises(BadRecipe, match=hint):
        fitted(toy, tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_a_name_may_carry_the_position(tmp_path):
    assert open_representation("pixels+position").spec.channels == (5, *open_representation("pixels").spec.channels)


def test_a_head_of_points_reads_components_of_the_folder(toy, tmp_path, monkeypatch):
    monkeypatch.setitem(POINT_PRESETS, "fast", POINT_PRESETS["fast"].changed(views=1, steps=5, batch=64))
    teacher = Segmenter.load(fitted(toy, tmp_path / "out", head="mlp-pair", size=None))
    assert teacher.size == 128 and all(teacher.representation.spec.shared_scale[1:])
    assert (tmp_path / "out" / "leave_one_out.json").exists()


def test_a_pretrained_encoder_that_is_here_is_the_default(monkeypatch):
    monkeypatch.setattr(task, "default_encoder", lambda: "dinov2-small")
    assert teacher_names() == ("dinov2-small[4-32]+position", "mlp-pair")
    assert teacher_names("random") == ("random", "cnn-s") and teacher_names(head="linear")[1] == "linear"
    monkeypatch.setattr(task, "default_encoder", lambda: None)
    assert teacher_names() == ("random+position", "cnn-s")
