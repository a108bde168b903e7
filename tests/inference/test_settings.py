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
from partshot.inference.refine import refine
from partshot.inference.settings import InferenceOptions
from partshot.tasks.predict import predict


@pytest.fixture
def model(pixel_model, tmp_path):
    """Trained on images of 100 px; labels each pixel as bright or not."""
    path = pixel_model(tmp_path / "model.onnx")
    loaded = onnx.load(path)
    onnx.helper.set_model_props(loaded, {**{p.key: p.value for p in loaded.metadata_props}, "partshot.native": "100"})
    onnx.save(loaded, path)
    return path


def blocks(folder, name: str, height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(height)
    image = rng.integers(0, 2, (-(-height // 20), -(-width // 20), 3), dtype=np.uint8) * np.uint8(255)
    image[..., 1] = 200  # the model's confidence
    image = np.repeat(np.repeat(image, 20, 0), 20, 1)[:height, :width]
    folder.mkdir(exist_ok=True)
    Image.fromarray(image).save(folder / name)
    return image[..., 0] > 127


def test_auto_uses_windows_for_large_images_only(model):
    model = ExportedModel(model)
    assert model.native == 100
    assert InferenceOptions().windows(model, 200, 130) == ()
    assert InferenceOptions().windows(model, 130, 201) == (100,)
    assert InferenceOptions.parse("off", "1").windows(model, 3000, 4000) == ()
    assert InferenceOptions.parse("50", "0.5,1,2").windows(model, 40, 40) == (25, 50, 100)
    assert InferenceOptions.parse("auto", 2).windows(model, 40, 40) == (200,)


def test_without_training_image_size_images_are_predicted_whole(pixel_model, tmp_path):
    model = ExportedModel(pixel_model(tmp_path / "model.onnx"))
    assert InferenceOptions().windows(model, 3000, 4000) == ()
    assert InferenceOptions.parse(64, "1").windows(model, 300, 400) == (64,)
    with pytest.raises(BadRecipe, match="--window PX together with --scale"):
        InferenceOptions.parse("auto", "2").windows(model, 10, 10)


def test_invalid_options_raise():
    for window, scale, message in [
        ("large", "1", "--window large: must be 16 to 65536 pixels, or auto, or off"),
        ("5", "1", "16 to"),
        ("auto", "1,x", "--scale 1,x: must be numbers"),
        ("auto", "0", "0.05 to 20"),
        ("off", "2", "leave out one of the two"),
    ]:
        with pytest.raises(BadRecipe, match=message):
            InferenceOptions.parse(window, scale)


def test_large_images_are_predicted_in_windows(model, tmp_path, monkeypatch):
    images, shapes, original = tmp_path / "images", [], ExportedModel.predict
    truth = {name: blocks(images, name, *size) for name, size in {"a.png": (90, 100), "b.png": (310, 450)}.items()}
    monkeypatch.setattr(
        ExportedModel, "predict", lambda self, images: shapes.append(images.shape) or original(self, images)
    )

    done = predict(model, images, tmp_path / "out", overlays=True, confidence=True)

    for name, expected in truth.items():
        np.testing.assert_array_equal(read_labels(tmp_path / "out" / name), expected)
    assert {shape[1:3] for shape in shapes} == {(90, 100), (100, 100)}
    assert (done.written, done.windowed) == (2, 1) and "1 predicted in windows" in str(done)
    assert Image.open(tmp_path / "out" / "overlays" / "b.jpg").size == (450, 310)
    assert Image.open(tmp_path / "out" / "confidence" / "b.png").size == (450, 310)


def test_changed_options_recompute_predictions(model, tmp_path):
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


def test_refined_labels_match_refine_for_the_downsampling_factor(model, tmp_path, monkeypatch):
    images = tmp_path / "images"
    for name, size in {"small.png": (40, 60), "whole.png": (90, 120), "windows.png": (310, 450)}.items():
        image = np.full((*size, 3), 200, np.uint8)
        image[..., 0] = np.where(blocks(images, name, *size), 131, 124)
        image[::7, ::5, 0] = 255 - image[::7, ::5, 0]  # single pixels with the wrong label
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
        found, confidence = refine(image, plain, np.full(plain.shape, 200, np.uint8), factor)
        np.testing.assert_array_equal(read_labels(tmp_path / "refined" / name), found)
        assert (found != plain).any() == (factor > 1)
        written = np.array(Image.open(tmp_path / "refined" / "confidence" / name))
        assert np.abs(written.astype(int) - confidence).max() <= 1


def test_max_megapixels_is_an_option(model, tmp_path):
    images = tmp_path / "images"
    blocks(images, "a.png", 3000, 4000)

    with pytest.raises(BadImage, match="12 megapixels, over the limit of 5 .*--max-megapixels"):
        predict(model, images, tmp_path / "out", max_megapixels=5)
    given = ["predict", str(model), str(images), "--out", str(tmp_path / "out"), "--window", "2000", "--scale", "1,0.7"]
    result = CliRunner().invoke(app, [*given, "--max-megapixels", "12"])
    assert result.exit_code == 0 and "1 predicted in windows" in result.stdout


def test_memory_grows_with_the_width_only(model, tmp_path):
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
    # The image twice (4 bytes per pixel in Pillow, 3 as an array), its labels and confidence, and a row of windows.
    assert int(done.stdout) * factor < 16e6 * (4 + 3 + 2) + 80e6
    assert read_labels(tmp_path / "out" / "a.png").all()
