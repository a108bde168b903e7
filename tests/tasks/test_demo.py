"""demo: drawn pictures, one and ten labels, a table of all methods, a report; a stopped one goes on."""

import json

import pytest
from PIL import Image

from partshot.errors import BadRecipe
from partshot.represent import stylegan
from partshot.represent.invert import invert
from partshot.shipped import Shipped
from partshot.tasks import demo as task
from partshot.tasks.demo import demo
from partshot.train.fit_head import PRESETS as FIT_PRESETS


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        small(patch)
        demo(out, size=32, quiet=True)
    return out


def small(patch):
    few = {"KIMG": 0.032, "AUTO_KIMG": 0.032, "FIT_IMAGES": 8, "PICTURES": 6, "HELD_OUT": 3, "INVERTED": 2, "DRAWN": 6}
    for name, value in (few | {"LEAST_SIZE": 32}).items():
        patch.setattr(task, name, value)
    patch.setattr(stylegan, "invert", lambda g, x, d, recipe, _: invert(g, x, d, recipe.changed(steps=2)))
    patch.setattr("partshot.train.forest._TREES", 3)
    patch.setitem(FIT_PRESETS, "fast", FIT_PRESETS["fast"].changed(images=8))


def test_results_have_a_row_for_every_method_and_count(made):
    results = json.loads((made / "results.json").read_text())
    assert {"student", "head", "forest", "linear", "supervised", "auto_shot", "few_shot"} <= set(results)
    for row in results.values():
        assert set(row) == {"1", "10"}
        for cell in row.values():
            assert 0 <= cell["miou"] <= 1 and 0 <= cell["wiou"] <= 1
            assert len(cell["per_part"]) == 10 and "hair" in cell["per_part"]


def test_report_student_and_pictures_are_there(made):
    page = (made / "report.html").read_text(encoding="utf-8")
    assert "forest" in page and "supervised" in page
    assert "student, k = 1<" in page and "student, k = 10<" in page  # both have training curves
    assert Shipped(made / "student.onnx").size == 32
    assert Image.open(made / "demo.png").width > 3 * 128
    assert len(list((made / "pictures" / "images").iterdir())) == 24


def test_a_stopped_demo_goes_on_and_a_torn_row_is_done_again(made, monkeypatch):
    small(monkeypatch)
    before = json.loads((made / "results.json").read_text())
    rows = (made / "rows.jsonl").read_text().splitlines(keepends=True)
    torn = rows[-1]
    (made / "rows.jsonl").write_text("".join(rows[:-1]) + torn[: len(torn) // 2])
    monkeypatch.setattr("partshot.tasks.distill.run_loop", lambda *_, **__: pytest.fail("trained again"))
    demo(made, size=32, quiet=True)
    assert json.loads((made / "results.json").read_text()) == before
    assert len((made / "rows.jsonl").read_text().splitlines()) == len(rows)


def test_another_size_in_the_same_folder_is_refused(made, monkeypatch):
    small(monkeypatch)
    with pytest.raises(BadRecipe, match="choose an empty folder"):
        demo(made, size=64, quiet=True)


def test_other_kinds_go_the_encoders_road_alone(tmp_path, monkeypatch):
    small(monkeypatch)
    demo(tmp_path, kind="cars", size=32, quiet=True)
    results = json.loads((tmp_path / "results.json").read_text())
    assert "student" in results and "auto_shot" not in results
