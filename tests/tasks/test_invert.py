"""invert: each image of a folder gets latent and distance, what cannot be drawn is named, a stop loses little."""

import csv
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from partshot.errors import BadArtifact, BadImage, BadRecipe
from partshot.represent.invert import poorly_inverted
from partshot.represent.spec import Latents
from partshot.represent.stylegan import StyleGAN, load_stylegan
from partshot.tasks import invert as task
from partshot.tasks.invert import invert
from partshot.tasks.sample import sample


@pytest.fixture(scope="module")
def generator(blobs):
    return blobs(16)


@pytest.fixture
def images(generator, tmp_path):
    """Four blobs that it drew, and a checkerboard that it cannot draw."""
    folder = sample(generator, tmp_path / "samples", count=4, quiet=True)
    board = np.indices((16, 16)).sum(0) % 2 * 255
    Image.fromarray(np.repeat(board[..., None], 3, 2).astype(np.uint8)).save(folder / "board.png")
    (folder / "torn.png").write_bytes(b"\x89PNG")
    return folder


def test_every_image_is_found_or_named(generator, images, tmp_path):
    found = invert(generator, images, tmp_path / "out", steps=120, batch=2, quiet=True)
    assert list(found.errors) == ["000000", "000001", "000002", "000003", "board"]
    assert found.failed == ("board",) and [name for name, _ in found.skipped] == ["torn.png"]
    assert "1 of 5 do not invert: board" in str(found) and "torn.png skipped" in str(found)
    with open(tmp_path / "out" / "inversion.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["inverts"] for row in rows] == ["yes"] * 4 + ["no"]
    assert float(rows[0]["distance"]) == pytest.approx(found.errors["000000"], abs=1e-5)

    latents = Latents.load(tmp_path / "out" / "latents")
    with torch.no_grad():
        drawn, _ = load_stylegan(generator).synthesize(latents)
    kept = np.asarray(Image.open(tmp_path / "out" / "images" / "000002.png"))
    assert np.abs(kept - ((drawn[2].permute(1, 2, 0).numpy() + 1) * 127.5).clip(0, 255)).max() <= 1
    assert Image.open(tmp_path / "out" / "inversion.png").width > 5 * 128
    assert not (tmp_path / "out" / "batches").exists()


def test_a_stopped_inversion_goes_on(generator, images, tmp_path, monkeypatch):
    whole = invert(generator, images, tmp_path / "whole", steps=5, batch=2, quiet=True)
    with monkeypatch.context() as patch:
        batches, plain = [], StyleGAN.invert

        def stop(self, batch, *rest):
            if len(batches) == 2:
                raise KeyboardInterrupt
            batches.append(batch)
            return plain(self, batch, *rest)

        patch.setattr(StyleGAN, "invert", stop)
        with pytest.raises(KeyboardInterrupt):
            invert(generator, images, tmp_path / "out", steps=5, batch=2, quiet=True)
    seen, plain = [], StyleGAN.invert
    monkeypatch.setattr(StyleGAN, "invert", lambda self, batch, *rest: seen.append(batch) or plain(self, batch, *rest))
    again = invert(generator, images, tmp_path / "out", steps=5, batch=2, quiet=True)
    assert [len(batch) for batch in seen] == [1]
    assert again.errors == whole.errors

    # The same command on a finished folder inverts nothing.
    done = invert(generator, images, tmp_path / "out", steps=5, batch=2, quiet=True)
    assert len(seen) == 1 and done == again


def test_other_settings_are_not_taken_for_these(generator, images, tmp_path):
    few = invert(generator, images, tmp_path / "out", steps=1, quiet=True)
    more = invert(generator, images, tmp_path / "out", steps=40, quiet=True)
    assert more.errors["000000"] < few.errors["000000"]


def test_bad_settings_are_refused(generator, images, tmp_path):
    with pytest.raises(BadRecipe, match="--batch 0: must be 1 or more"):
        invert(generator, images, tmp_path / "out", batch=0)
    with pytest.raises(BadRecipe, match="did you mean 'fast'"):
        invert(generator, images, tmp_path / "out", preset="fats")
    (tmp_path / "lpips.safetensors").write_bytes(b"none")
    with pytest.raises(BadArtifact, match="cannot be read as LPIPS weights"):
        invert(generator, images, tmp_path / "out", lpips=tmp_path / "lpips.safetensors")
    assert task.PRESETS["fast"].space == "w+"


def test_images_and_samples_are_not_overwritten(generator, images, tmp_path):
    before = {path.name: path.read_bytes() for path in images.iterdir()}
    with pytest.raises(BadImage, match="would replace the images in .*choose another --out"):
        invert(generator, images, images.parent, steps=1, quiet=True)
    assert {path.name: path.read_bytes() for path in images.iterdir()} == before
    copy = shutil.copytree(images, tmp_path / "copy")
    with pytest.raises(BadArtifact, match="contains what `partshot sample` wrote"):
        invert(generator, copy, images.parent, steps=1, quiet=True)
    assert {path.name: path.read_bytes() for path in images.iterdir()} == before


def test_astray_is_measured_against_the_mean_image():
    errors, worst = torch.tensor([0.1, 0.6, 0.3]), torch.tensor([1.0, 1.0, 0.5])
    assert poorly_inverted(errors, worst).tolist() == [False, True, True]
