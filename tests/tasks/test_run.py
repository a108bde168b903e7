"""run: images and two masks become masks for all, an ONNX file and a report; again, nothing is trained."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from partshot.artifact import Artifact, read_card
from partshot.data.labels import read_labels
from partshot.data.shots import load_shots
from partshot.errors import BadImage, BadLabels, BadRecipe
from partshot.inference.exported_model import ExportedModel
from partshot.metrics import score
from partshot.parts import PartSet
from partshot.pretext.moco import PRESETS as MOCO_PRESETS
from partshot.pretext.simsiam import PRESETS as SIMSIAM
from partshot.pretext.stylegan2 import MIN_IMAGES
from partshot.pretext.stylegan2 import PRESETS as GAN_PRESETS
from partshot.represent import stylegan
from partshot.represent.cache import VARIABLE, open_store
from partshot.segmenter import Segmenter
from partshot.student import Student
from partshot.tasks import pretrain as pretraining
from partshot.tasks import run as task
from partshot.tasks import run_auto as auto
from partshot.tasks import run_report, run_teacher, teacher_rules, train_student
from partshot.tasks.estimate import Estimate
from partshot.tasks.predict import Summary
from partshot.tasks.run import run
from partshot.tasks.run_plan import Plan
from partshot.tasks.run_teacher import Folder
from partshot.toy.dataset import write_toy
from partshot.train.distill_recipe import PRESETS
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
    """24 faces, 2 labeled, one of another size, and a torn one."""
    folder = make_toy(tmp_path_factory.mktemp("toy"))
    Image.open(folder / "images" / "00007.png").resize((50, 41)).save(folder / "images" / "00007.png")
    (folder / "images" / "torn.png").write_bytes((folder / "images" / "00000.png").read_bytes()[:200])
    return folder


@pytest.fixture
def quick_export(monkeypatch, pixel_model):
    """An export in no time, of a model that looks at single pixels: fixture `out` has a real one."""
    monkeypatch.setattr(task, "export", lambda student, onnx, _: pixel_model(onnx, parts=student.parts))


def ran(toy, out, **given):
    return run(
        toy / "images",
        toy / "masks",
        out,
        **{"representation": "pixels", "student": "fast-unet", "preview": False, "quiet": True, **given},
    )


@pytest.fixture(scope="module")
def out(toy, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    ran(toy, out)
    return out


def test_every_image_has_a_mask_of_its_name_and_size(toy, out):
    masks = {path.stem for path in (out / "masks").glob("*.png")}
    assert masks == {f"{i:05d}" for i in range(24)}
    parts = PartSet.load(out / "masks" / "classes.json")
    for image in (toy / "images").glob("0*.png"):
        height_width = Image.open(image).size[::-1]
        assert read_labels(out / "masks" / image.name, parts).shape == height_width


def test_the_onnx_file_knows_the_parts(toy, out):
    shipped = ExportedModel(out / "student.onnx")
    assert shipped.parts == PartSet.load(toy / "classes.json") and shipped.size == 32
    labels, _ = shipped.predict(np.zeros((1, 20, 30, 3), np.uint8))
    assert labels.shape == (1, 20, 30)


def test_the_report_names_what_was_skipped_and_asks_for_nothing(out):
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "torn.png" in page and "left eye" not in page and "hair" in page
    assert "<script src" not in page and "http://" not in page.replace("http://www.w3.org", "")


def test_a_second_call_trains_nothing(toy, out, monkeypatch):
    trained = (out / "distill" / "student" / "card.json").stat().st_mtime_ns
    monkeypatch.setattr(train_student, "run_loop", lambda *_, **__: pytest.fail("trained again"))
    assert ran(toy, out) == out / "report.html"
    assert (out / "distill" / "student" / "card.json").stat().st_mtime_ns == trained


def test_a_teacher_that_stands_is_kept_so_that_other_sums_refuse_no_resume(toy, out, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Segmenter, "fit", lambda *_, **__: pytest.fail("fitted again"))
        patch.setattr(task, "estimate", lambda *_, **__: None)
        ran(toy, out)
    shots = load_shots(toy / "masks", toy / "images")
    kept = Segmenter.load(out / "segmenter")
    assert kept.fitted == kept.fingerprint(shots)
    assert kept.fitted != kept.fingerprint(shots.subset([1, 0]))


@pytest.mark.parametrize(
    "preset, least, role",
    [
        ("default", 0.0, "its labels start the student"),
        ("default", 1.01, "not used: its mean IoU on its own labeled images is below 1.01; label more images"),
        ("pretrained", 0.0, "not used: the preset uses no teacher"),
    ],
)
def test_the_report_says_what_became_of_the_teacher(toy, out, monkeypatch, preset, least, role):
    monkeypatch.setattr(teacher_rules, "MIN_TEACHER_MIOU", least)
    shots = load_shots(toy / "masks", toy / "images")
    assert run_report._role(Segmenter.load(out / "segmenter"), shots, PRESETS[preset]) == role


def test_a_part_that_occurs_nowhere_has_no_bar(toy, out, tmp_path):
    shots = load_shots(toy / "masks", toy / "images")
    labels = [np.zeros((4, 4), np.uint8)]
    folds = score(labels, labels, shots.parts, ["one"])
    student = Student.load(out / "distill" / "student")
    expected = Estimate(1.0, 0.1, folds, 0.5)
    results = run_report.Results(student, None, tmp_path, Summary(tmp_path, 1, 0, (), 1.0), expected=expected)
    (*_, bars) = run_report._quality(results, shots, [])
    assert [*bars.by_method.values()] == [{"background": 1.0}]


def test_the_report_holds_small_images_from_all_of_the_folder(toy, out, tmp_path, monkeypatch):
    for i in range(30):
        Image.new("RGB", (1500, 1000)).save(tmp_path / f"{i:02d}.png")
    student, asked = Student.load(out / "distill" / "student"), []
    theirs = Student.predict
    monkeypatch.setattr(Student, "predict", lambda self, images: asked.append(len(images)) or theirs(self, images))
    monkeypatch.setattr(run_report, "_SHOWN", 5)
    results = run_report.Results(student, None, tmp_path, Summary(tmp_path, 30, 0, (), 1.0))
    examples = run_report._examples(results, sorted(tmp_path.iterdir()), {"00"})
    assert len(examples) == 20 and examples[0].name == "01" and examples[-1].name >= "28"
    assert {one.image.shape for one in examples} == {(341, 512, 3)} and max(asked) <= 8
    assert all(one.prediction.shape == one.uncertainty.shape == (341, 512) for one in examples)


def test_other_labels_extract_nothing_and_train_no_encoder(toy, tmp_path, monkeypatch, quick_export):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setitem(SIMSIAM, "small-folder", SIMSIAM["small-folder"].changed(kimg=0.016, batch=8))
    stores = []
    monkeypatch.setattr(task, "open_store", lambda wanted: stores.append(open_store(wanted)) or stores[-1])
    out, other = tmp_path / "out", tmp_path / "other"
    ran(toy, out, representation="simsiam")
    assert stores[0].extracted > 0
    first = {path.name: path.stat().st_mtime_ns for path in (out / "masks").glob("*.png")}
    journal = (out / "representation" / "simsiam" / "journal.jsonl").read_bytes()

    # The same images, of which two now tell face and background apart and nothing else.
    masks = tmp_path / "masks"
    masks.mkdir()
    (masks / "classes.json").write_text('{"classes": [{"id": 0, "name": "background"}, {"id": 1, "name": "face"}]}')
    for path in (toy / "masks").glob("*.png"):
        Image.fromarray((np.asarray(Image.open(path)) > 0).astype(np.uint8)).save(masks / path.name)
    monkeypatch.setattr(pretraining, "run_loop", lambda *_, **__: pytest.fail("an encoder was trained again"))
    run(toy / "images", masks, out, "simsiam", student="fast-unet", preview=False, quiet=True)
    assert stores[1].extracted == 0 and stores[1].found > 0
    assert (out / "representation" / "simsiam" / "journal.jsonl").read_bytes() == journal
    assert PartSet.load(out / "masks" / "classes.json").names == ("background", "face")
    assert len(first) == 24 and all((out / "masks" / name).stat().st_mtime_ns > then for name, then in first.items())
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "trained earlier" in page and "from cache, 0 extracted" in page
    assert "face" in page and "hair" not in page

    # In another folder: the encoder is there without a training, and the student owes nothing to earlier labels.
    monkeypatch.setattr(task, "export", lambda *_: None)
    monkeypatch.setattr(task, "predict", lambda *_, **__: Summary(other, 24, 0, (), 1.0))
    run(toy / "images", masks, other, "simsiam", student="fast-unet", preview=False, quiet=True)
    assert stores[2].extracted == 0 and not (other / "representation" / "simsiam" / "journal.jsonl").exists()
    for part in ("representation/simsiam/representation", "segmenter", "distill/student"):
        one, two = (Artifact.load(folder / part).tensors for folder in (out, other))
        assert one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)


def test_without_a_cache_nothing_is_kept(toy, tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(run_teacher, "cached", lambda reads, store: pytest.fail(f"asks {store}"))
    with pytest.raises(pytest.fail.Exception, match="asks None"):
        ran(toy, tmp_path / "out", cache=False)


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(toy, tmp_path):
    plan = ran(toy, tmp_path / "out", dry_run=True, minutes=2, size=64)
    assert isinstance(plan, Plan) and not (tmp_path / "out").exists()
    assert (plan.images, plan.shots, plan.representation, plan.distill.size) == (24, 2, "pixels+position", 64)
    assert plan.distill.kimg > 0.5 and plan.distill != ran(toy, tmp_path / "out", dry_run=True, size=64).distill
    text = str(plan)
    assert "24 images, 2 of them labeled" in text and "hair" in text and "kimg" in text


def test_masks_may_lie_beside_their_images(tmp_path, quick_export):
    toy, beside = make_toy(tmp_path / "toy", 4), tmp_path / "beside"
    beside.mkdir()
    for path in (toy / "images").iterdir():
        Image.open(path).save(beside / f"{path.stem}.bmp")
    for path in (toy / "masks").iterdir():
        shutil.copy(path, beside)
    run(beside, beside, tmp_path / "out", "pixels", student="fast-unet", preview=False, quiet=True)
    assert len(list((tmp_path / "out" / "masks").glob("*.png"))) == 4


def test_a_corrupt_label_is_fatal_before_anything_is_written(tmp_path):
    toy = make_toy(tmp_path / "toy", 4)
    mask = toy / "masks" / "00001.png"
    mask.write_bytes(mask.read_bytes()[:100])
    with pytest.raises(BadLabels, match="00001.png"):
        ran(toy, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_masks_made_by_hand_are_refused_as_the_place_of_predictions_before_anything_is_written(tmp_path):
    toy = make_toy(tmp_path / "toy", 4)
    with pytest.raises(BadLabels, match="predicted masks are written to this folder; choose another --out"):
        ran(toy, toy)
    (tmp_path / "out" / "masks").mkdir(parents=True)
    shutil.copy(toy / "masks" / "00001.png", tmp_path / "out" / "masks" / "00003.png")
    with pytest.raises(BadLabels, match="00003.png: was not predicted by partshot"):
        ran(toy, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["masks"] and not (toy / "distill").exists()


def test_a_previews_head_serves_a_student_of_the_same_encoder_alone(monkeypatch):
    monkeypatch.setattr("partshot.tasks.fit.default_encoder", lambda: "efficientnet-lite0")
    assert task._is_students("light-efficientnet-lite0")
    assert not task._is_students("light-dinov2-small") and not task._is_students("fast-unet")


def test_the_time_of_auto_and_of_heads_is_allowed_for_in_a_plan(toy, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(task, "horizon", lambda *given: asked.append(given[-2:]) or 1.0)
    monkeypatch.setattr(task, "needs_frozen_segmenter", lambda *_: True)
    monkeypatch.setattr(task, "is_due", lambda out: True)
    monkeypatch.setattr(task, "_is_students", lambda student: True)
    given = {"dry_run": True, "minutes": 60}
    for more in ({}, {"preview": True}, {"representation": "auto", "auto_minutes": 10}):
        ran(toy, tmp_path / "out", **{"representation": "none", **given, **more})
    (plain, _), (previewed, _), (auto, _) = asked
    assert plain - previewed == pytest.approx(task.EXPECTED_SECONDS, abs=5)
    assert plain - auto == pytest.approx(600, abs=5)
    # Two folds with a head each, and the student's own.
    assert [(work.frozen, work.fitted) for _, work in asked] == [(3, 3), (3, 2), (2, 2)]


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ({"student": "fast-unte"}, "did you mean 'fast-unet'"),
        ({"representation": "pixls"}, "did you mean 'pixels'"),
        ({"size": 33}, "size"),
        ({"minutes": float("inf")}, "must be a positive, finite number"),
    ],
)
def test_wrong_settings_are_told_before_any_work(toy, tmp_path, given, hint):
    with pytest.raises(BadRecipe, match=hint):
        ran(toy, tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_a_generator_is_trained_on_the_folder_and_labels_what_it_draws(tmp_path, monkeypatch, quick_export):
    toy, out = make_toy(tmp_path / "toy", count=MIN_IMAGES), tmp_path / "out"
    quick = GAN_PRESETS["small-folder"].changed(kimg=0.016, batch=8, grow=())
    monkeypatch.setitem(GAN_PRESETS, "small-folder", quick)
    monkeypatch.setattr(run_report, "GENERATED", 6)
    slow = stylegan.invert
    monkeypatch.setattr(stylegan, "invert", lambda g, x, d, recipe, _: slow(g, x, d, recipe.changed(steps=2)))
    plan = ran(toy, out, representation="stylegan2", dry_run=True)
    assert plan.representation == "stylegan2" and plan.fit.augment is None
    ran(toy, out, representation="stylegan2")
    assert len(list((out / "masks").glob("0*.png"))) == MIN_IMAGES
    assert (out / "representation" / "stylegan2" / "samples").is_dir()
    assert "labels 6 generated images" in (out / "report.html").read_text(encoding="utf-8")
    teacher = Segmenter.load(out / "segmenter")
    assert isinstance(teacher.representation, stylegan.StyleGAN) and teacher.size == 32


def test_an_encoder_is_trained_on_the_folder_and_read_as_a_resnet(toy, tmp_path, monkeypatch):
    quick = MOCO_PRESETS["small-folder"].changed(kimg=0.032, batch=8)
    monkeypatch.setitem(MOCO_PRESETS, "small-folder", quick)
    plan = ran(toy, tmp_path, representation="moco", dry_run=True)
    assert plan.representation == "moco+position"
    reads = run_teacher._representation(plan, Folder(toy / "images", [], tmp_path), True, None)
    assert reads.spec.channels == (5, 64, 128, 256, 512)
    card = read_card(tmp_path / "representation" / "moco" / "representation")
    assert (card["pretext"], card["size"], card["kimg"]) == ("moco", 32, 0.032)


def test_a_gpu_trains_for_longer(toy, tmp_path, monkeypatch):
    plan = ran(toy, tmp_path, representation="moco", dry_run=True)
    here = run_teacher._pretraining("moco", plan)
    assert here == {"preset": "small-folder", "size": 32, "kimg": 4 * plan.distill.kimg}
    monkeypatch.setattr(run_teacher, "best_device", lambda: torch.device("cuda"))
    there = run_teacher._pretraining("moco", plan)
    assert there == {"preset": "small-folder-long", "size": 32, "kimg": MOCO_PRESETS["small-folder-long"].kimg}
    assert run_teacher._pretraining("simsiam", plan)["preset"] == "small-folder"


def test_auto_chooses_says_why_and_keeps_to_it(toy, tmp_path, monkeypatch, quick_export):
    tried = []

    def estimated(reads, head, *_):
        tried.append(head)
        return SimpleNamespace(miou_nan=0.9 if head == "linear" else 0.5)

    monkeypatch.setattr(auto, "cross_validated_score", estimated)
    monkeypatch.setitem(run_teacher._KIMG_PER_MINUTE, "cpu", 1e-3)
    plan = ran(toy, tmp_path / "out", representation="auto", auto_minutes=10, dry_run=True)
    assert "(10 min)" in str(plan) and not tried
    ran(toy, tmp_path / "out", representation="auto", auto_minutes=10)
    # Encoders would take longer.
    assert len(tried) == len(auto.READY)
    assert Segmenter.load(tmp_path / "out" / "segmenter").head_name == "linear"
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "linear on random+position: mean IoU in cross-validation: linear on random+position 0.90" in page
    assert "too little time left for cnn-s on moco+position" in page
    ran(toy, tmp_path / "out", representation="auto", auto_minutes=10)
    assert len(tried) == len(auto.READY)


def test_a_misspelt_pretext_is_told_beside_those_that_are_trained(toy, tmp_path):
    with pytest.raises(BadRecipe, match="did you mean 'moco'?"):
        ran(toy, tmp_path, representation="mocco", dry_run=True)


def test_too_few_images_for_a_generator_are_told_before_any_work(toy, tmp_path):
    with pytest.raises(BadImage, match="a StyleGAN needs 50 or more"):
        ran(toy, tmp_path / "out", representation="stylegan2", dry_run=True)
