"""The folder of predictions: masks and a classes.json that a person made there are never overwritten."""

import json

import pytest

from partshot.errors import BadLabels
from partshot.inference.predictions import MANIFEST, ModelInfo, OutputPaths, prepare_folder
from partshot.inference.settings import InferenceOptions
from partshot.parts import PartSet

PARTS = PartSet.of("background", "wing")
MODEL = ModelInfo("abc", "0.1", PARTS)


@pytest.fixture
def images(tmp_path):
    (tmp_path / "images").mkdir()
    paths = [tmp_path / "images" / f"{name}.jpg" for name in ("a", "b", "hand")]
    for path in paths:
        path.touch()
    return paths


def prepare(out, images, model=MODEL, overwrite=False):
    return prepare_folder(OutputPaths(out, False, False), model, images, overwrite, InferenceOptions())


def write_mask(out, image):
    out.mkdir(exist_ok=True)
    (out / f"{image.stem}.png").write_text("mask")


def test_a_mask_drawn_by_hand_is_refused_also_beside_predictions(images, tmp_path):
    out = tmp_path / "masks"
    write_mask(out, images[2])
    # Alone it is refused, too: with other masks beside it, they would be taken for labels.
    with pytest.raises(BadLabels, match=r"hand\.png: was not predicted by partshot; .*--overwrite"):
        prepare(out, images[1:2])
    (out / "hand.png").unlink()
    prepare(out, images[1:2])
    write_mask(out, images[1])
    write_mask(out, images[2])
    for model in (MODEL, ModelInfo("other", "0.1", PARTS)):
        with pytest.raises(BadLabels, match=r"hand\.png: was not predicted by partshot; .*--overwrite"):
            prepare(out, images, model)
    prepare(out, images, overwrite=True)
    prepare(out, images)  # from then on it is a prediction


def test_predictions_of_several_folders_of_images_share_a_folder(images, tmp_path):
    out = tmp_path / "masks"
    since = prepare(out, images[:1])["since"]
    write_mask(out, images[0])
    manifest = prepare(out, images[1:])
    assert manifest["since"] == since and manifest["masks"] == ["a.png", "b.png", "hand.png"]
    assert json.loads((out / MANIFEST).read_text()) == manifest
    for image in images[1:]:
        write_mask(out, image)
    assert prepare(out, images) == manifest
    assert prepare(out, images, ModelInfo("other", "0.1", PARTS))["masks"] == manifest["masks"]


def test_a_manifest_of_an_older_version_without_masks_is_resumed(images, tmp_path):
    out = tmp_path / "masks"
    manifest = prepare(out, images)
    write_mask(out, images[0])
    (out / MANIFEST).write_text(json.dumps({k: v for k, v in manifest.items() if k != "masks"}))
    assert prepare(out, images) == manifest


def test_a_classes_json_written_by_hand_is_kept(images, tmp_path):
    out = tmp_path / "masks"
    out.mkdir()
    for text in ('{"classes": [{"id": 0, "name": "background"}, {"id": 1, "name": "leg"}]}', "{half"):
        (out / "classes.json").write_text(text)
        with pytest.raises(BadLabels, match=r"classes\.json: was not written by partshot.*--overwrite"):
            prepare(out, images)
        assert (out / "classes.json").read_text() == text and not (out / MANIFEST).exists()

    same = '{"classes": [{"id": 0, "name": "background"}, {"id": 1, "name": "wing"}]}'
    (out / "classes.json").write_text(same)
    prepare(out, images)
    assert (out / "classes.json").read_text() == same

    # Of a model that predicted there before.
    other = PartSet.of("background", "leg")
    prepare(out, images, ModelInfo("other", "0.1", other))
    assert PartSet.load(out / "classes.json") == other


def test_overwrite_replaces_a_classes_json(images, tmp_path):
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "classes.json").write_text("{half")
    prepare(tmp_path / "masks", images, overwrite=True)
    assert PartSet.load(tmp_path / "masks" / "classes.json") == PARTS
