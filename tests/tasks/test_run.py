"""run: pictures and two masks become masks for all, an ONNX file and a report; again, nothing is trained."""

import shutil

import numpy as np
import pytest
from PIL import Image

from partshot.data.labels import read_labels
from partshot.data.shots import load_shots
from partshot.data.toy import write_toy
from partshot.errors import BadImage, BadLabels, BadRecipe
from partshot.parts import PartSet
from partshot.pretext.stylegan2 import FEWEST
from partshot.pretext.stylegan2 import PRESETS as GAN_PRESETS
from partshot.represent import stylegan2
from partshot.segmenter import Segmenter
from partshot.shipped import Shipped
from partshot.tasks import distill as distilling
from partshot.tasks import run as task
from partshot.tasks.run import Plan, run
from partshot.train.distill import PRESETS
from partshot.train.fit_head import PRESETS as FIT_PRESETS


@pytest.fixture(scope="module", autouse=True)
def quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "default", PRESETS["default"].changed(size=32, kimg=0.1))
        patch.setitem(FIT_PRESETS, "fast", FIT_PRESETS["fast"].changed(images=8))
        yield


def make_toy(folder, count=24):
    """Toy faces of which the first two keep their masks."""
    write_toy("faces", count, 32, folder)
    for i in range(2, count):
        (folder / "masks" / f"{i:05d}.png").unlink()
    return folder


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """24 faces, 2 labelled, one of another size, and a torn one."""
    folder = make_toy(tmp_path_factory.mktemp("toy"))
    Image.open(folder / "images" / "00007.png").resize((50, 41)).save(folder / "images" / "00007.png")
    (folder / "images" / "torn.png").write_bytes((folder / "images" / "00000.png").read_bytes()[:200])
    return folder


def ran(toy, out, **given):
    return run(toy / "images", toy / "masks", out, **{"representation": "pixels", "quiet": True, **given})


@pytest.fixture(scope="module")
def out(toy, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    ran(toy, out)
    return out


def test_every_picture_has_a_mask_of_its_name_and_size(toy, out):
    masks = {path.stem for path in (out / "masks").glob("*.png")}
    assert masks == {f"{i:05d}" for i in range(24)}
    parts = PartSet.load(out / "masks" / "classes.json")
    for picture in (toy / "images").glob("0*.png"):
        height_width = Image.open(picture).size[::-1]
        assert read_labels(out / "masks" / picture.name, parts).shape == height_width


def test_the_onnx_file_knows_the_parts(toy, out):
    shipped = Shipped(out / "student.onnx")
    assert shipped.parts == PartSet.load(toy / "classes.json") and shipped.size == 32
    labels, _ = shipped.predict(np.zeros((1, 20, 30, 3), np.uint8))
    assert labels.shape == (1, 20, 30)


def test_the_report_names_what_was_skipped_and_asks_for_nothing(out):
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "torn.png" in page and "left eye" not in page and "hair" in page
    assert "<script src" not in page and "http://" not in page.replace("http://www.w3.org", "")


def test_a_second_call_trains_nothing(toy, out, monkeypatch):
    trained = (out / "distill" / "student" / "card.json").stat().st_mtime_ns
    monkeypatch.setattr(distilling, "run_loop", lambda *_, **__: pytest.fail("trained again"))
    assert ran(toy, out) == out / "report.html"
    assert (out / "distill" / "student" / "card.json").stat().st_mtime_ns == trained


def test_a_teacher_that_stands_is_kept_so_that_other_sums_refuse_no_resume(toy, out, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(task.Segmenter, "fit", lambda *_, **__: pytest.fail("fitted again"))
        patch.setattr(task, "_estimate", lambda *_: None)
        ran(toy, out)
    shots = load_shots(toy / "masks", toy / "images")
    kept = Segmenter.load(out / "segmenter")
    assert kept.fitted == kept.fingerprint(shots)
    assert kept.fitted != kept.fingerprint(shots.subset([1, 0]))


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(toy, tmp_path):
    plan = ran(toy, tmp_path / "out", dry_run=True, minutes=2, size=64)
    assert isinstance(plan, Plan) and not (tmp_path / "out").exists()
    assert (plan.pictures, plan.shots, plan.representation, plan.distill.size) == (25, 2, "pixels+position", 64)
    assert plan.distill.kimg > 0.5
    text = str(plan)
    assert "25 pictures, 2 of them labelled" in text and "hair" in text and "kimg" in text


def test_masks_may_lie_beside_their_pictures(tmp_path):
    toy, beside = make_toy(tmp_path / "toy", 4), tmp_path / "beside"
    beside.mkdir()
    for path in (toy / "images").iterdir():
        Image.open(path).save(beside / f"{path.stem}.bmp")
    for path in (toy / "masks").iterdir():
        shutil.copy(path, beside)
    run(beside, beside, tmp_path / "out", "pixels", quiet=True)
    assert len(list((tmp_path / "out" / "masks").glob("*.png"))) == 4


def test_a_corrupt_label_is_fatal_before_anything_is_written(tmp_path):
    toy = make_toy(tmp_path / "toy", 4)
    mask = toy / "masks" / "00001.png"
    mask.write_bytes(mask.read_bytes()[:100])
    with pytest.raises(BadLabels, match="00001.png"):
        ran(toy, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ({"student": "swfit"}, "did you mean 'swift'"),
        ({"representation": "pixls"}, "did you mean 'pixels'"),
        ({"size": 33}, "size"),
        ({"minutes": float("inf")}, "not for ever"),
    ],
)
def test_wrong_settings_are_told_before_any_work(toy, tmp_path, given, hint):
    with pytest.raises(BadRecipe, match=hint):
        ran(toy, tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_a_generator_is_trained_on_the_folder_and_labels_what_it_draws(tmp_path, monkeypatch):
    toy, out = make_toy(tmp_path / "toy", count=FEWEST), tmp_path / "out"
    quick = GAN_PRESETS["small-folder"].changed(kimg=0.016, batch=8, grow=())
    monkeypatch.setitem(GAN_PRESETS, "small-folder", quick)
    monkeypatch.setattr(task, "DRAWN", 6)
    slow = stylegan2.invert
    monkeypatch.setattr(stylegan2, "invert", lambda g, x, d, recipe, _: slow(g, x, d, recipe.changed(steps=2)))
    plan = ran(toy, out, representation="stylegan2", dry_run=True)
    assert plan.representation == "stylegan2" and plan.fit.augment is None
    ran(toy, out, representation="stylegan2")
    assert len(list((out / "masks").glob("0*.png"))) == FEWEST
    assert (out / "representation" / "samples").is_dir()
    assert "labels 6 pictures that it draws" in (out / "report.html").read_text(encoding="utf-8")
    teacher = Segmenter.load(out / "segmenter")
    assert isinstance(teacher.representation, stylegan2.StyleGAN2) and teacher.size == 32


def test_too_few_pictures_for_a_generator_are_told_before_any_work(toy, tmp_path):
    with pytest.raises(BadImage, match="StyleGAN2 learns from 50 or more"):
        ran(toy, tmp_path / "out", representation="stylegan2", dry_run=True)
