"""demo: drawn pictures, one and ten labels, a table of all methods, a report; a stopped one goes on."""

import json

import pytest
from PIL import Image

from partshot.errors import BadRecipe
from partshot.shipped import Shipped
from partshot.tasks.demo import DemoRecipe, demo


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        small(patch)
        demo(out, size=32, quiet=True, recipe=FEW)
    return out


FEW = DemoRecipe(
    pictures=6,
    held_out=3,
    least=32,
    kimg=0.032,
    fit_images=8,
    auto_fit_images=8,
    auto_kimg=0.032,
    drawn=6,
    inverted=2,
    steps=2,
)


def small(patch):
    patch.setattr("partshot.train.forest._TREES", 3)


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
    journal = made / "rows" / f"encoders-10-{FEW.fingerprint}.jsonl"
    rows = journal.read_text().splitlines(keepends=True)
    torn = rows[-1]
    journal.write_text("".join(rows[:-1]) + torn[: len(torn) // 2])
    monkeypatch.setattr("partshot.tasks.distill.run_loop", lambda *_, **__: pytest.fail("trained again"))
    demo(made, size=32, quiet=True, recipe=FEW)
    assert json.loads((made / "results.json").read_text()) == before
    assert len(journal.read_text().splitlines()) == len(rows)


def test_another_size_in_the_same_folder_is_refused(made, monkeypatch):
    small(monkeypatch)
    with pytest.raises(BadRecipe, match="choose an empty folder"):
        demo(made, size=64, quiet=True, recipe=FEW)


def test_other_kinds_go_the_encoders_road_alone(tmp_path, monkeypatch):
    small(monkeypatch)
    demo(tmp_path, kind="cars", size=32, quiet=True, recipe=FEW)
    results = json.loads((tmp_path / "results.json").read_text())
    assert "student" in results and "auto_shot" not in results


def test_both_numbers_of_labels_may_be_learnt_from_side_by_side(made, tmp_path, monkeypatch):
    # Not in this process: others do not see this.
    monkeypatch.setattr("partshot.tasks.distill.run_loop", lambda *_, **__: pytest.fail("trained here"))
    demo(tmp_path, size=32, quiet=True, recipe=FEW, jobs=2)
    one, two = (json.loads((folder / "results.json").read_text()) for folder in (made, tmp_path))
    assert {name: set(row) for name, row in one.items()} == {name: set(row) for name, row in two.items()}
    assert list(one) == list(two)
