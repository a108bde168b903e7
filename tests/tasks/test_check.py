"""check: masks kept apart are scored in the end and never trained on; what is wrong is told before any work."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from partshot.data.labels import write_labels
from partshot.data.shots import find_pairs
from partshot.errors import BadImage, BadLabels, BadParts
from partshot.parts import PartSet
from partshot.tasks import run as task
from partshot.tasks.check import check, check_pairs
from partshot.tasks.run import run
from partshot.toy.dataset import write_toy
from partshot.train.distill_recipe import PRESETS

PARTS = PartSet.of("background", "bright", "hazy")


@pytest.fixture
def pack(tmp_path):
    """Four images of two sizes, bright in a square; a is labeled, b and c have check masks, of which c's is wrong."""
    for folder in ("images", "masks", "kept"):
        (tmp_path / folder).mkdir()
    (tmp_path / "classes.json").write_text(json.dumps(PARTS.to_dict()))
    for i, name in enumerate("abcd"):
        labels = np.zeros((8 + i % 2, 12), np.uint8)
        labels[2:6, 3:9] = 1
        image = np.where(labels[..., None] == 1, 255, 0).astype(np.uint8).repeat(3, 2)
        Image.fromarray(image).save(tmp_path / "images" / f"{name}.bmp")
        if name == "c":
            labels[2:6, 3:6] = 0
        if name != "d":
            write_labels(tmp_path / ("masks" if name == "a" else "kept") / f"{name}.png", labels, PARTS)
    return tmp_path


def pairs_of(pack, kept="kept"):
    labeled = find_pairs(pack / "masks", pack / "images", leave_out=[*(pack / "images").glob("*.png")])
    return check_pairs(pack / kept, pack / "images", labeled, PARTS)


def test_the_exported_student_is_scored_and_the_figures_are_written(pack, pixel_model):
    model = pixel_model(pack / "student.onnx")
    found = check(pairs_of(pack), model, PARTS, pack, quiet=True)
    # Of b's 24 bright pixels and c's 12, c's 12 others are predicted too.
    assert found.per_part["bright"] == pytest.approx(36 / 48)
    assert found.miou == pytest.approx((36 / 48 + (204 - 48) / (204 - 36)) / 2)
    assert found.images == 2 and found.absent == ("hazy",) and 0 < found.error < 0.2
    told = json.loads((pack / "check.json").read_text())
    assert (told["miou"], told["error"], told["images"]) == (found.miou, found.error, 2)
    assert dict(told["score"]["per_image"])["b"] == 1 and len(told["student"]) == 64
    assert {path.name for path in pack.iterdir()} == {
        *("images", "masks", "kept", "classes.json", "student.onnx", "check.json")
    }


def test_one_image_gives_no_standard_error(pack, pixel_model):
    labels = np.full((8, 12), 255, np.uint8)
    write_labels(pack / "kept" / "c.png", labels, PARTS)
    found = check(pairs_of(pack), pixel_model(pack / "student.onnx"), PARTS, pack, quiet=True)
    assert found.images == 1 and np.isnan(found.error)
    assert json.loads((pack / "check.json").read_text())["error"] is None


def test_masks_may_lie_beside_their_images(pack):
    for mask in (pack / "kept").iterdir():
        shutil.copy(mask, pack / "images")
    assert [pair.image.name for pair in pairs_of(pack, "images")] == ["b.bmp", "c.bmp"]


def test_what_is_wrong_is_told_with_its_cure(pack):
    kept, mask = pack / "kept", pack / "masks" / "a.png"
    shutil.copy(mask, kept / "e.png")
    with pytest.raises(BadLabels, match=r"e.png: no image 'e' in .*images; add the image or remove the mask"):
        pairs_of(pack)
    (kept / "e.png").rename(kept / "a.png")
    with pytest.raises(BadLabels, match=r"a.png: its image is labeled in .*masks, too.*remove one of the two"):
        pairs_of(pack)
    (kept / "a.png").rename(kept / "d.png")
    with pytest.raises(BadLabels, match="d.png is 12x8 pixels, but its image .* is 12x9"):
        pairs_of(pack)
    (kept / "d.png").unlink()
    write_labels(kept / "b.png", np.full((9, 12), 255, np.uint8), PARTS)
    write_labels(kept / "c.png", np.full((8, 12), 255, np.uint8), PARTS)
    with pytest.raises(BadLabels, match="no pixel of any mask is labeled"):
        pairs_of(pack)
    (kept / "classes.json").write_text(json.dumps(PartSet.of("background", "dark", "hazy").to_dict()))
    with pytest.raises(BadParts, match=r"kept/classes.json: names the parts background, dark, .* one classes.json"):
        pairs_of(pack)
    for path in kept.iterdir():
        path.unlink()
    with pytest.raises(BadLabels, match=r"kept: contains no mask"):
        pairs_of(pack)
    kept.rmdir()
    with pytest.raises(BadLabels, match="kept: no such folder"):
        pairs_of(pack)


def test_an_image_that_cannot_be_read_is_told(pack):
    (pack / "images" / "b.bmp").write_bytes(b"BM")
    with pytest.raises(BadImage, match="b.bmp"):
        pairs_of(pack)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """Four faces, two labeled; check masks of the others lie beside the images."""
    folder = write_toy("faces", 4, 32, tmp_path_factory.mktemp("toy"))
    for path in sorted((folder / "images").iterdir()):
        Image.open(path).save(path.with_suffix(".bmp"))
        path.unlink()
    for name in ("00002.png", "00003.png"):
        (folder / "masks" / name).rename(folder / "images" / name)
    return folder


def ran(toy, out, **given):
    given = {"student": "fast-unet", "preview": False, "quiet": True, "check_masks": toy / "images", **given}
    return run(toy / "images", toy / "masks", out, **given)


def test_a_run_measures_instead_of_estimating(toy, tmp_path, monkeypatch, pixel_model):
    monkeypatch.setitem(PRESETS, "default", PRESETS["default"].changed(size=32, kimg=0.016))
    monkeypatch.setattr(task, "estimate", lambda *_, **__: pytest.fail("estimated"))
    trained, previewed, theirs = [], [], task.train_student

    def train(shots, recipe, out, images, *given, **named):
        trained.append((shots.names, len(images)))
        return theirs(shots, recipe, out, images, *given, **named)

    monkeypatch.setattr(task, "train_student", train)
    monkeypatch.setattr(task, "is_due", lambda _: True)

    def preview(shots, images, *_):
        previewed.extend(images)
        return SimpleNamespace(segmenter=None)

    monkeypatch.setattr(task, "preview", preview)
    # A real export takes longer than all the rest.
    monkeypatch.setattr(task, "export", lambda student, onnx, _: pixel_model(onnx, parts=student.parts))
    page = ran(toy, tmp_path, preview=True).read_text(encoding="utf-8")
    # The check masks are no shots, and their images are among those without labels.
    assert trained == [(("00000", "00001"), 4)]
    assert [path.name for path in previewed] == [f"{i:05d}.bmp" for i in range(4)]
    told = json.loads((tmp_path / "check.json").read_text())
    assert told["images"] == 2 and {name for name, _ in told["score"]["per_image"]} == {"00002", "00003"}
    assert f"Measured mean IoU of the final student: {told['miou']:.2f} ± {told['error']:.2f}, on 2 images" in page
    assert "student on 2 held-out masks" in page and f"<title>Parts of {toy.name}" in page
    assert len(list((tmp_path / "masks").glob("*.png"))) == 4


def test_a_dry_run_says_how_many_there_are(toy, tmp_path):
    plan = ran(toy, tmp_path / "out", dry_run=True)
    assert "4 images, 2 of them labeled, 2 with a held-out mask" in str(plan) and not (tmp_path / "out").exists()
    assert "held-out mask" not in str(plan.changed(checks=0))


def test_a_bad_check_mask_stops_a_run_before_any_work(pack):
    with pytest.raises(BadLabels, match="its image is labeled in"):
        ran(pack, pack / "out", check_masks=pack / "masks")
    assert not (pack / "out").exists()
