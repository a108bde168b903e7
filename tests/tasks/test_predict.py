import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from partshot.cli import app
from partshot.data.labels import read_labels
from partshot.errors import BadArtifact, BadImage, BadLabels, BadRecipe, DiskFull
from partshot.inference.exported_model import ExportedModel
from partshot.parts import PartSet
from partshot.tasks import predict as task
from partshot.tasks.predict import LoadedImage, in_batches, predict

PARTS = PartSet.of("background", "bright", "hazy")


@pytest.fixture
def model(pixel_model, tmp_path):
    return pixel_model(tmp_path / "model.onnx")


@pytest.fixture
def folder(tmp_path):
    """Five images of three sizes."""
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i, size in enumerate([(20, 30), (7, 9), (20, 30), (20, 30), (1, 1)]):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(tmp_path / "images" / f"p{i}.bmp")
    return tmp_path / "images"


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def test_writes_an_indexed_png_of_the_same_stem_and_size_for_each_image(model, folder, tmp_path):
    summary = predict(model, folder, tmp_path / "out", batch=2)

    assert (summary.written, summary.kept, summary.skipped) == (5, 0, ())
    for i in range(5):
        mask = tmp_path / "out" / f"p{i}.png"
        expected = (pixels(folder / f"p{i}.bmp")[..., 0] > 127).astype(np.uint8)
        np.testing.assert_array_equal(read_labels(mask, PARTS), expected)
        assert Image.open(mask).mode == "P"
        assert bytes(Image.open(mask).getpalette())[:9] == PARTS.palette()[:9]
    assert PartSet.load(tmp_path / "out" / "classes.json") == PARTS
    assert not list((tmp_path / "out").glob(".*"))


def test_overlays_and_confidence_lie_in_folders_of_their_own(model, folder, tmp_path):
    predict(model, folder, tmp_path / "out", overlays=True, confidence=True)

    sure = np.asarray(Image.open(tmp_path / "out" / "confidence" / "p1.png"))
    np.testing.assert_array_equal(sure, pixels(folder / "p1.bmp")[..., 1])
    assert Image.open(tmp_path / "out" / "overlays" / "p1.jpg").size == (9, 7)
    assert len(list((tmp_path / "out").glob("*.png"))) == 5


def test_one_image_instead_of_a_folder(model, folder, tmp_path):
    summary = predict(model, folder / "p1.bmp", tmp_path / "out")

    assert summary.written == 1
    assert (tmp_path / "out" / "p1.png").exists()


def test_an_image_that_is_skipped_does_not_count_as_predicted_in_windows(model, folder, tmp_path):
    rng = np.random.default_rng(1)
    Image.fromarray(rng.integers(0, 256, (90, 90, 3), dtype=np.uint8)).save(folder / "torn.bmp")
    (folder / "torn.bmp").write_bytes((folder / "torn.bmp").read_bytes()[:2000])

    summary = predict(model, folder, tmp_path / "out", window=64)

    assert (summary.written, summary.windowed, len(summary.skipped)) == (5, 5, 1)


def test_a_corrupt_image_is_skipped_and_listed(model, folder, tmp_path):
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff no image")
    (folder / "empty.png").touch()

    summary = predict(model, folder, tmp_path / "out")

    assert summary.written == 5
    assert [path.name for path, _ in summary.skipped] == ["broken.jpg", "empty.png"]
    assert "broken.jpg" in summary.skipped[0][1]
    assert set(json.loads((tmp_path / "out" / "predictions.json").read_text())["skipped"]) == {
        "broken.jpg",
        "empty.png",
    }
    assert not (tmp_path / "out" / "broken.png").exists()
    again = predict(model, folder, tmp_path / "out")
    assert (again.written, again.kept, len(again.skipped)) == (0, 5, 2)


def test_it_is_an_error_when_no_image_can_be_read(model, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").touch()

    with pytest.raises(BadImage, match="none of 1 images"):
        predict(model, tmp_path / "images", tmp_path / "out")


def test_running_again_keeps_what_is_there_and_only_does_the_rest(model, folder, tmp_path):
    predict(model, folder, tmp_path / "out")
    (tmp_path / "out" / "p3.png").unlink()
    later = (tmp_path / "out" / "p2.png").stat().st_mtime + 10
    os.utime(folder / "p2.bmp", (later, later))

    summary = predict(model, folder, tmp_path / "out")

    assert (summary.written, summary.kept) == (2, 3)
    assert (tmp_path / "out" / "p3.png").exists()


def test_a_kept_mask_is_not_enough_when_an_overlay_is_asked_for(model, folder, tmp_path):
    predict(model, folder, tmp_path / "out")

    assert predict(model, folder, tmp_path / "out", overlays=True).written == 5
    assert predict(model, folder, tmp_path / "out", overlays=True).written == 0


def test_overwrite_and_another_model_do_everything_anew(pixel_model, model, folder, tmp_path):
    predict(model, folder, tmp_path / "out")
    assert predict(model, folder, tmp_path / "out", overwrite=True).written == 5

    other = pixel_model(tmp_path / "other.onnx", channel=2, parts=PartSet.of("none", "blue"))
    assert predict(other, folder, tmp_path / "out").written == 5

    expected = pixels(folder / "p0.bmp")[..., 2] > 127
    np.testing.assert_array_equal(read_labels(tmp_path / "out" / "p0.png"), expected)
    assert PartSet.load(tmp_path / "out" / "classes.json").names == ("none", "blue")


def test_another_models_masks_are_not_taken_for_its_own_after_a_stop(pixel_model, model, folder, tmp_path, monkeypatch):
    predict(model, folder, tmp_path / "out")
    other = pixel_model(tmp_path / "other.onnx", channel=2)
    write = task.write_labels

    def stop_at_p2(path, labels, parts):
        if path.stem == "p2":
            raise KeyboardInterrupt
        return write(path, labels, parts)

    monkeypatch.setattr(task, "write_labels", stop_at_p2)
    with pytest.raises(KeyboardInterrupt):
        predict(other, folder, tmp_path / "out", batch=1)
    monkeypatch.setattr(task, "write_labels", write)
    predict(other, folder, tmp_path / "out")

    for i in range(5):
        expected = pixels(folder / f"p{i}.bmp")[..., 2] > 127
        np.testing.assert_array_equal(read_labels(tmp_path / "out" / f"p{i}.png"), expected)


def test_masks_that_were_drawn_by_hand_are_never_replaced(model, folder, tmp_path):
    (tmp_path / "masks").mkdir()
    Image.fromarray(np.ones((20, 30), np.uint8)).save(tmp_path / "masks" / "p0.png")

    with pytest.raises(BadLabels, match="p0.png.*not predicted"):
        predict(model, folder, tmp_path / "masks")
    with pytest.raises(BadImage, match="contains the images"):
        predict(model, folder, folder)
    assert read_labels(tmp_path / "masks" / "p0.png").all()

    assert predict(model, folder, tmp_path / "masks", overwrite=True).written == 5


def test_wrong_arguments_are_errors_before_any_work(model, folder, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(BadArtifact, match="missing.onnx"):
        predict(tmp_path / "missing.onnx", folder, out)
    with pytest.raises(BadImage, match="no such folder"):
        predict(model, tmp_path / "missing", out)
    with pytest.raises(BadRecipe, match="batch 0"):
        predict(model, folder, out, batch=0)
    with pytest.raises(BadImage, match="is a file"):
        predict(model, folder, model)
    Image.new("RGB", (3, 3)).save(folder / "p0.png")
    with pytest.raises(BadImage, match="p0.bmp and p0.png"):
        predict(model, folder, out)
    assert not out.exists()


def test_a_full_disk_is_an_error_that_leaves_no_half_mask(model, folder, tmp_path, monkeypatch):
    def full(path, labels, parts):
        raise DiskFull(f"{path}: the disk is full")

    monkeypatch.setattr(task, "write_labels", full)

    with pytest.raises(DiskFull, match="the disk is full"):
        predict(model, folder, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.png"))


def test_a_very_large_image_gets_a_mask_of_its_own_size(model, tmp_path, monkeypatch):
    monkeypatch.setattr(task, "_MOST_PIXELS", 60 * 80)
    (tmp_path / "images").mkdir()
    image = np.zeros((240, 321, 3), np.uint8)
    image[:120, :160] = 255
    Image.fromarray(image).save(tmp_path / "images" / "large.png")
    seen = []
    original = ExportedModel.predict
    monkeypatch.setattr(
        ExportedModel, "predict", lambda self, images: seen.append(images.shape) or original(self, images)
    )

    predict(model, tmp_path / "images", tmp_path / "out", overlays=True, confidence=True)

    labels = read_labels(tmp_path / "out" / "large.png")
    assert labels.shape == (240, 321)
    assert (labels == (image[..., 0] > 127)).mean() > 0.97
    assert seen[0][1] * seen[0][2] <= 60 * 80
    assert Image.open(tmp_path / "out" / "confidence" / "large.png").size == (321, 240)


def test_images_of_one_size_go_together_and_few_wait():
    def image(i: int, edge: int) -> Image:
        return LoadedImage(Path(f"p{i}"), np.zeros((edge, edge, 3), np.uint8), (edge, edge))

    mixed = [image(i, 8 + i % 2) for i in range(10)]
    groups = list(in_batches(mixed, 4))
    assert sorted(len(g) for g in groups) == [1, 1, 4, 4]
    assert all(len({p.image.shape for p in g}) == 1 for g in groups)
    assert sorted(p.path for g in groups for p in g) == sorted(p.path for p in mixed)

    taken = []
    all_different = (taken.append(i) or image(i, 1 + i) for i in range(100))
    next(in_batches(all_different, 2))
    assert len(taken) <= 8

    huge = [image(i, 2048) for i in range(3)]
    assert [len(g) for g in in_batches(huge, 8)] == [1, 1, 1]


def test_reading_runs_ahead_in_threads_but_not_without_bound(model, tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    for i in range(40):
        Image.new("RGB", (4, 4)).save(tmp_path / "images" / f"p{i}.bmp")
    read, threads, ahead = [], set(), []
    read_image, original = task.read_image, ExportedModel.predict

    def counted(path):
        threads.add(threading.current_thread())
        read.append(path)
        return read_image(path)

    def predicted(self, images):
        ahead.append(len(read))
        return original(self, images)

    monkeypatch.setattr(task, "read_image", counted)
    monkeypatch.setattr(ExportedModel, "predict", predicted)

    predict(model, tmp_path / "images", tmp_path / "out", batch=2)

    assert threading.main_thread() not in threads
    assert ahead[0] <= 2 + 2 * 2 + 1


def test_the_command_warns_of_a_skipped_image_and_fails_when_all_are(model, folder, tmp_path):
    (folder / "broken.jpg").write_bytes(b"no image")
    (tmp_path / "bad").mkdir()
    for i in range(15):
        (tmp_path / "bad" / f"{i}.png").touch()

    one = CliRunner().invoke(app, ["predict", str(model), str(folder), "--out", str(tmp_path / "out"), "--overlays"])
    all_of_them = CliRunner().invoke(app, ["predict", str(model), str(tmp_path / "bad"), "--out", str(tmp_path / "o")])

    assert one.exit_code == 0
    assert one.stderr.count("warning: skipped: ") == 1 and "broken.jpg: cannot be read" in one.stderr
    assert "5 masks written" in one.stdout and "1 skipped" in one.stdout
    assert (tmp_path / "out" / "overlays" / "p0.jpg").exists()
    assert all_of_them.exit_code == 2
    assert all_of_them.stderr.startswith("error: none of 15 images") and all_of_them.stderr.count("\n") == 1


def test_the_command_lists_only_some_of_many_skipped_images(model, folder, tmp_path):
    for i in range(15):
        (folder / f"bad{i}.png").touch()

    result = CliRunner().invoke(app, ["predict", str(model), str(folder), "--out", str(tmp_path / "out")])

    assert result.exit_code == 0
    assert result.stderr.count(" skipped: ") == 10 and "warning: 5 more skipped" in result.stderr


def test_predicting_imports_no_torch(model, folder, tmp_path):
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path\nfrom partshot.tasks.predict import predict\n"
        "print(predict(*map(Path, sys.argv[1:]), overlays=True, confidence=True).written)\n"
        "assert not [m for m in sys.modules if m.split('.')[0] in ('torchvision', 'jaxtyping', 'sklearn', 'onnx')]\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", program, str(model), str(folder), str(tmp_path / "out")], capture_output=True, text=True
    )

    assert (done.stdout.strip(), done.returncode) == ("5", 0), done.stderr
