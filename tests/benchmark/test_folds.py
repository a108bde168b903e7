"""folds: the model that is best on a fifth of the images is scored on the others."""

import json

import numpy as np
import pytest
from PIL import Image

from partshot.benchmark.folds import folds
from partshot.data.labels import write_labels
from partshot.errors import BadArtifact, BadLabels
from partshot.parts import PartSet

PARTS = PartSet.of("background", "bright")


@pytest.fixture
def pack(tmp_path):
    """Five images; "good" is wrong on the first only, "bad" is correct on the first only."""
    for folder in ("images", "masks", "models/bad", "models/good"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "classes.json").write_text(json.dumps(PARTS.to_dict()))
    truth = np.zeros((8, 8), np.uint8)
    truth[:4] = 1
    for i, name in enumerate("abcde"):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "images" / f"{name}.png")
        write_labels(tmp_path / "masks" / f"{name}.png", truth, PARTS)
        for model, right in (("bad", i == 0), ("good", i > 0)):
            write_labels(tmp_path / "models" / model / f"{name}.png", truth if right else 1 - truth, PARTS)
    return tmp_path


def test_each_fold_selects_a_model_and_scores_it_on_the_other_images(pack):
    found = folds(pack / "models", pack / "images", pack / "masks", pack / "out")
    assert [fold.chosen for fold in found.folds] == ["bad", *["good"] * 4]
    # "bad" is selected on a and wrong on all others; "good" is wrong on one of four: 12 of 20 pixels of the union.
    assert [fold.score.miou for fold in found.folds] == pytest.approx([0.0, *[0.6] * 4])
    saved = json.loads((pack / "out" / "folds.json").read_text())
    assert saved["miou"] == pytest.approx(0.48) and saved["miou_std"] == pytest.approx(0.24)
    assert saved["images"] == 5 and [fold["validation"] for fold in saved["folds"]] == [[name] for name in "abcde"]
    assert saved["folds"][0]["candidates"] == {"bad": 1.0, "good": 0.0}


def test_invalid_input_is_refused(pack):
    (pack / "empty").mkdir()
    with pytest.raises(BadArtifact, match="contains no ONNX file and no folder of masks"):
        folds(pack / "empty", pack / "images", pack / "masks", pack / "out")
    (pack / "one.onnx").touch()
    with pytest.raises(BadArtifact, match="is one model; give a folder of several"):
        folds(pack / "one.onnx", pack / "images", pack / "masks", pack / "out")
    (pack / "run" / "snapshots").mkdir(parents=True)
    with pytest.raises(BadArtifact, match="did you mean its snapshots/"):
        folds(pack / "run", pack / "images", pack / "masks", pack / "out")
    (pack / "masks" / "e.png").unlink()
    with pytest.raises(BadLabels, match="4 images cannot make 5 folds"):
        folds(pack / "models", pack / "images", pack / "masks", pack / "out")
    assert not (pack / "out").exists()
