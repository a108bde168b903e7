"""Evaluating folders of masks and exported networks, from files to files."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from partshot.data.labels import write_labels
from partshot.errors import BadArtifact, BadLabels, BadParts
from partshot.inference.exported_model import ExportedModel, model_metadata
from partshot.metrics import score
from partshot.parts import PartSet
from partshot.tasks.evaluate import evaluate

PARTS = PartSet.of("background", "bright", "never")


@pytest.fixture
def pack(tmp_path):
    """Three images of three sizes whose part 1 is white, masks of two, and predictions with a mistake each."""
    for folder in ("images", "masks", "predicted"):
        (tmp_path / folder).mkdir()
    (tmp_path / "classes.json").write_text(json.dumps(PARTS.to_dict()))
    for i, name in enumerate(("a", "b", "c")):
        labels = np.zeros((8 + i, 12), np.uint8)
        labels[2:6, 3:9] = 1
        Image.fromarray(np.where(labels[..., None] == 1, 255, 0).astype(np.uint8).repeat(3, 2)).save(
            tmp_path / "images" / f"{name}.png"
        )
        wrong = labels.copy()
        wrong[2, 3 : 4 + i] = 0
        write_labels(tmp_path / "predicted" / f"{name}.png", wrong, PARTS)
        if name != "c":
            labels[0] = 255
            write_labels(tmp_path / "masks" / f"{name}.png", labels, PARTS)
    return tmp_path


def save_threshold(path, parts: PartSet, native: int | None = None):
    """The smallest network there is: red above 127 is part 1."""
    onnx = pytest.importorskip("onnx")
    helper, kinds = onnx.helper, onnx.TensorProto
    nodes = [
        helper.make_node("Gather", ["images", "zero"], ["red"], axis=3),
        helper.make_node("Greater", ["red", "half"], ["bright"]),
        helper.make_node("Cast", ["bright"], ["labels"], to=kinds.UINT8),
        helper.make_node("Identity", ["red"], ["confidence"]),
    ]
    pixels = ["b", "h", "w"]
    graph = helper.make_graph(
        nodes,
        "threshold",
        [helper.make_tensor_value_info("images", kinds.UINT8, [*pixels, 3])],
        [helper.make_tensor_value_info(name, kinds.UINT8, pixels) for name in ("labels", "confidence")],
        [helper.make_tensor("zero", kinds.INT64, [], [0]), helper.make_tensor("half", kinds.UINT8, [], [127])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, model_metadata(parts, 64, "0.1.0", native=native))
    onnx.save(model, path)
    return path


def test_a_folder_of_masks_is_scored_and_reported(pack):
    result = evaluate(pack / "predicted", pack / "images", pack / "masks", pack / "out")
    # The part has 24 pixels in each image, of which 1 and 2 are lost to the background; row 0 is ignored.
    assert result.per_part["bright"] == pytest.approx(45 / 48)
    background = 7 * 12 - 24 + 8 * 12 - 24
    assert result.per_part["background"] == pytest.approx(background / (background + 3))
    assert result.worst(1)[0][0] == "b" and result.absent == ("never",)
    saved = json.loads((pack / "out" / "results.json").read_text())
    assert saved["miou"] == result.miou and saved["images"] == 2 and saved["parts"] == list(PARTS.names)
    page = (pack / "out" / "report.html").read_text()
    assert "Worst images first" in page and "On 2 images with masks" in page and "nowhere: never" in page
    assert page.index("<h3>b<") < page.index("<h3>a<")


def test_an_exported_network_is_scored_on_the_images_themselves(pack):
    model = save_threshold(pack / "student.onnx", PARTS)
    result = evaluate(model, pack / "images", pack / "masks", pack / "out")
    assert result.miou_nan == 1.0 and len(result.per_image) == 2


def test_large_images_are_scored_as_predict_predicts_them(pack, monkeypatch):
    labels = np.zeros((200, 330), np.uint8)
    labels[50:90, 30:300] = 1
    Image.fromarray(np.where(labels[..., None] == 1, 255, 0).astype(np.uint8).repeat(3, 2)).save(pack / "images/d.png")
    write_labels(pack / "masks" / "d.png", labels, PARTS)
    sides, whole = [], ExportedModel.predict
    monkeypatch.setattr(ExportedModel, "predict", lambda self, x: sides.append(max(x.shape[1:3])) or whole(self, x))
    model = save_threshold(pack / "student.onnx", PARTS, native=64)
    assert evaluate(model, pack / "images", pack / "masks", pack / "out").miou_nan == 1.0
    # In windows of the size of the images that the model was trained on.
    assert max(sides) < 200
    # Or, without windows, at most so many pixels at once.
    monkeypatch.setattr("partshot.tasks.predict._MOST_PIXELS", 10_000)
    sides.clear()
    model = save_threshold(pack / "student.onnx", PARTS)
    assert evaluate(model, pack / "images", pack / "masks", pack / "out").miou_nan > 0.95
    assert max(sides) < 200


def test_results_are_those_of_the_scores_themselves(pack):
    result = evaluate(pack / "predicted", pack / "images", pack / "masks", pack / "out")

    def read(folder):
        return [np.array(Image.open(pack / folder / f"{name}.png")) for name in "ab"]

    assert result.to_dict() == score(read("masks"), read("predicted"), PARTS, ["a", "b"]).to_dict()


def test_a_missing_prediction_is_named(pack):
    (pack / "predicted" / "b.png").rename(pack / "predicted" / "bb.png")
    with pytest.raises(BadLabels, match=r"predicted/b.png: no predicted mask for image 'b'; predict it"):
        evaluate(pack / "predicted", pack / "images", pack / "masks", pack / "out")
    assert not (pack / "out").exists()


def test_a_prediction_of_another_size_is_refused(pack):
    write_labels(pack / "predicted" / "a.png", np.zeros((4, 6), np.uint8), PARTS)
    with pytest.raises(BadLabels, match="a: prediction is 6x4 but its mask is 12x8"):
        evaluate(pack / "predicted", pack / "images", pack / "masks", pack / "out")


def test_a_model_with_other_parts_is_refused(pack):
    model = save_threshold(pack / "student.onnx", PartSet.of("background", "dark"))
    with pytest.raises(BadParts, match="has the parts background, dark, the masks .* have background, bright, never"):
        evaluate(model, pack / "images", pack / "masks", pack / "out")


def test_ids_without_names_are_refused(pack):
    (pack / "classes.json").unlink()
    with pytest.raises(BadParts, match="no classes.json"):
        evaluate(pack / "predicted", pack / "images", pack / "masks", pack / "out")


def test_a_model_that_is_not_there_is_refused(pack):
    with pytest.raises(BadArtifact, match="nowhere.onnx: no such file or folder"):
        evaluate(pack / "nowhere.onnx", pack / "images", pack / "masks", pack / "out")


@pytest.mark.parametrize("holds, said", [("a.onnx", "add --folds"), ("card.json", "run: partshot export")])
def test_a_folder_of_models_is_no_folder_of_masks(pack, holds, said):
    (pack / "models").mkdir()
    (pack / "models" / holds).touch()
    with pytest.raises(BadArtifact, match=said):
        evaluate(pack / "models", pack / "images", pack / "masks", pack / "out")


def test_evaluating_imports_no_torch():
    code = "import sys; import partshot.tasks.evaluate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
