import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
from PIL import Image
from typer.testing import CliRunner

from partshot.cli import app
from partshot.data.labels import read_labels
from partshot.errors import BadImage, BadRecipe
from partshot.inference.exported_model import ExportedModel
from partshot.inference.reading import Reading
from partshot.inference.refine import refine
from partshot.tasks.predict import predict


@pytest.fixture
def model(pixel_model, tmp_path):
    """Of images of 100 px; says of single pixels whether they are bright."""
    path = pixel_model(tmp_path / "model.onnx")
    told = onnx.load(path)
    onnx.helper.set_model_props(told, {**{p.key: p.value for p in told.metadata_props}, "partshot.native": "100"})
    onnx.save(told, path)
    return path


def blocks(folder, name: str, height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(height)
    image = rng.integers(0, 2, (-(-height // 20), -(-width // 20), 3), dtype=np.uint8) * np.uint8(255)
    image[..., 1] = 200  # how sure the model is
    image = np.repeat(np.repeat(image, 20, 0), 20, 1)[:height, :width]
    folder.mkdir(exist_ok=True)
    Image.fromarray(image).save(folder / name)
    return image[..., 0] > 127


def test_only_large_images_are_read_in_windows_unless_asked(model):
    shipped = ExportedModel(model)
    assert shipped.native == 100
    assert Reading().windows(shipped, 200, 130) == ()
    assert Reading().windows(shipped, 130, 201) == (100,)
    assert Reading.parse("off", "1").windows(shipped, 3000, 4000) == ()
    assert Reading.parse("50", "0.5,1,2").windows(shipped, 40, 40) == (25, 50, 100)
    assert Reading.parse("auto", 2).windows(shipped, 40, 40) == (200,)


def test_a_model_that_does_not_know_its_images_reads_them_whole(pixel_model, tmp_path):
    shipped = ExportedModel(pixel_model(tmp_path / "model.onnx"))
    assert Reading().windows(shipped, 3000, 4000) == ()
    assert Reading.parse(64, "1").windows(shipped, 300, 400) == (64,)
    with pytest.raises(BadRecipe, match="--window PX beside --scale"):
        Reading.parse("auto", "2").windows(shipped, 10, 10)


def test_what_cannot_be_is_refused():
    for window, scale, why in [
        ("large", "1", "auto, off or a side"),
        ("5", "1", "16 to"),
        ("auto", "1,x", "a number, or several"),
        ("auto", "0", "0.05 to 20"),
        ("off", "2", "leave one of them out"),
    ]:
        with pytest.raises(BadRecipe, match=why):
            Reading.parse(window, scale)


def test_a_large_image_gets_its_mask_from_windows(model, tmp_path, monkeypatch):
    images, seen, original = tmp_path / "images", [], ExportedModel.predict
    truth = {name: blocks(images, name, *size) for name, size in {"a.png": (90, 100), "b.png": (310, 450)}.items()}
    monkeypatch.setattr(
        ExportedModel, "predict", lambda self, images: seen.append(images.shape) or original(self, images)
    )

    done = predict(model, images, tmp_path / "out", overlays=True, confidence=True)

    for name, expected in truth.items():
        np.testing.assert_array_equal(read_labels(tmp_path / "out" / name), expected)
    assert {shape[1:3] for shape in seen} == {(90, 100), (100, 100)}
    assert (done.written, done.windowed) == (2, 1) and "1 read in windows" in str(done)
    assert Image.open(tmp_path / "out" / "overlays" / "b.jpg").size == (450, 310)
    assert Image.open(tmp_path / "out" / "confidence" / "b.png").size == (450, 310)


def test_other_windows_are_other_predictions(model, tmp_path):
    images, out = tmp_path / "images", tmp_path / "out"
    blocks(images, "a.png", 90, 100)

    assert predict(model, images, out).written == 1
    assert predict(model, images, out).kept == 1
    manifest = json.loads((out / "predictions.json").read_text())
    assert manifest.pop("reading") == {"window": None, "scales": [1.0]}
    (out / "predictions.json").write_text(json.dumps(manifest))  # as an older version wrote it
    assert predict(model, images, out).kept == 1
    assert predict(model, images, out, window=64).written == 1
    assert predict(model, images, out, window=64, scale="1,2").written == 1
    assert predict(model, images, out, window=64, scale="1,2").kept == 1
    assert predict(model, images, out, window=64, scale="1,2", refined=True).written == 1
    assert predict(model, images, out, window=64, scale="1,2", refined=True).kept == 1


def test_refined_labels_are_those_of_the_image_as_it_was_read(model, tmp_path, monkeypatch):
    images = tmp_path / "images"
    for name, size in {"small.png": (40, 60), "whole.png": (90, 120), "windows.png": (310, 450)}.items():
        image = np.full((*size, 3), 200, np.uint8)
        image[..., 0] = np.where(blocks(images, name, *size), 131, 124)
        image[::7, ::5, 0] = 255 - image[::7, ::5, 0]  # single pixels that are taken for the other label
        Image.fromarray(image).save(images / name)
    factors, given = [], ["predict", str(model), str(images), "--out"]
    monkeypatch.setattr("partshot.tasks.predict.refine", lambda *g: factors.append(g[3]) or refine(*g))

    assert CliRunner().invoke(app, [*given, str(tmp_path / "plain")]).exit_code == 0
    assert factors == []
    assert CliRunner().invoke(app, [*given, str(tmp_path / "refined"), "--refine", "--confidence"]).exit_code == 0

    assert sorted(factors) == [60 / 64, 100 / 64, 120 / 64]
    for name, factor in {"small.png": 60 / 64, "whole.png": 120 / 64, "windows.png": 100 / 64}.items():
        image = np.array(Image.open(images / name))
        plain = (image[..., 0] > 127).astype(np.uint8)
        np.testing.assert_array_equal(read_labels(tmp_path / "plain" / name), plain)
        found, sure = refine(image, plain, np.full(plain.shape, 200, np.uint8), factor)
        np.testing.assert_array_equal(read_labels(tmp_path / "refined" / name), found)
        assert (found != plain).any() == (factor > 1)
        written = np.array(Image.open(tmp_path / "refined" / "confidence" / name))
        assert np.abs(written.astype(int) - sure).max() <= 1


def test_the_limit_of_megapixels_is_an_option(model, tmp_path):
    images = tmp_path / "images"
    blocks(images, "a.png", 3000, 4000)

    with pytest.raises(BadImage, match="12 megapixels, the limit.* is 5; .*--max-megapixels"):
        predict(model, images, tmp_path / "out", max_megapixels=5)
    given = ["predict", str(model), str(images), "--out", str(tmp_path / "out"), "--window", "2000", "--scale", "1,0.7"]
    result = CliRunner().invoke(app, [*given, "--max-megapixels", "12"])
    assert result.exit_code == 0 and "1 read in windows" in result.stdout


def test_memory_goes_with_the_width_and_not_with_the_pixels(model, tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (2000, 8000), "white").save(tmp_path / "images" / "a.tif")
    program = (
        "import sys, resource\nfrom partshot.tasks.predict import predict\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak(); predict(*sys.argv[1:4], window=1000, quiet=True); print(peak() - before)"
    )
    given = [str(model), str(tmp_path / "images"), str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", program, *given], capture_output=True, text=True, check=True)

    factor = 1 if sys.platform == "darwin" else 1024
    # The image twice (Pillow's four bytes a pixel, ours of three), its labels and confidence; and a row of windows.
    assert int(done.stdout) * factor < 16e6 * (4 + 3 + 2) + 80e6
    assert read_labels(tmp_path / "out" / "a.png").all()
