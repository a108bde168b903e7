"""sample, and what follows: drawn images are labeled, a head reads their latents, a student learns what it draws."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from partshot.data.shots import load_shots
from partshot.errors import BadArtifact, BadRecipe
from partshot.parts import IGNORE
from partshot.represent.choose import open_representation
from partshot.represent.invert import Inverted
from partshot.represent.stylegan import StyleGAN, load_stylegan
from partshot.segmenter import Segmenter
from partshot.tasks.distill import distill
from partshot.tasks.fit import fit
from partshot.tasks.sample import latents_of, sample
from partshot.train.fit_head import PRESETS


@pytest.fixture(scope="module")
def generator(blobs):
    return blobs(32)


@pytest.fixture
def labeled(generator, tmp_path):
    """Three drawn images, whose brighter half is the part "bright"."""
    images = sample(generator, tmp_path / "samples", count=3, seed=4, quiet=True)
    masks = tmp_path / "samples" / "masks"
    masks.mkdir()
    for path in images.iterdir():
        gray = np.asarray(Image.open(path)).mean(2)
        Image.fromarray((gray > np.median(gray)).astype(np.uint8)).save(masks / path.name)
    classes = [{"id": 0, "name": "background"}, {"id": 1, "name": "bright"}]
    (masks / "classes.json").write_text(json.dumps({"classes": classes}))
    return images, masks


def test_images_and_latents_lie_side_by_side(generator, tmp_path):
    images = sample(generator, tmp_path / "s", count=5, seed=10, quiet=True)
    assert sorted(p.name for p in images.iterdir()) == [f"{s:06d}.png" for s in range(10, 15)]
    more = sample(generator, tmp_path / "more", count=1, seed=12, quiet=True)
    assert (more / "000012.png").read_bytes() == (images / "000012.png").read_bytes()
    assert sample(generator, tmp_path / "s", count=5, seed=10, quiet=True) == images
    for other in ({"seed": 11}, {"count": 4}, {"psi": 0.5}):
        with pytest.raises(BadArtifact, match="contains samples of other seeds, another psi or another generator"):
            sample(generator, tmp_path / "s", **{"count": 5, "seed": 10, "quiet": True, **other})
    with pytest.raises(BadRecipe, match="--count 0: must be 1 or more"):
        sample(generator, tmp_path / "none", count=0)
    with pytest.raises(BadRecipe, match="--psi nan: must be a finite number"):
        sample(generator, tmp_path / "none", psi=float("nan"))
    with pytest.raises(BadArtifact, match="no trained artifact in this folder"):
        sample(tmp_path, tmp_path / "none")


def test_the_out_of_pretrain_is_its_generator(generator, tmp_path):
    shutil.copytree(generator, tmp_path / "trained" / "representation")
    assert load_stylegan(tmp_path / "trained").weights == load_stylegan(generator).weights
    assert len(list(sample(tmp_path / "trained", tmp_path / "samples", count=2, quiet=True).iterdir())) == 2


def test_latents_come_from_beside_the_images(generator, labeled, monkeypatch):
    images, masks = labeled
    reads, shots = open_representation("stylegan2", generator), load_shots(masks, images)
    with monkeypatch.context() as patch:
        patch.setattr(StyleGAN, "invert", lambda *_: pytest.fail("inverted what was drawn"))
        found = latents_of(reads, shots, images)
    expected = reads.sample([4, 5, 6]).to("cpu")
    assert torch.equal(found.ws, expected.ws) and all(map(torch.equal, found.noise, expected.noise))
    # Without a folder, or without latents beside it, images are inverted.
    monkeypatch.setattr(StyleGAN, "invert", lambda self, images: Inverted(self.sample([9]), None, None))
    assert torch.equal(latents_of(reads, shots).ws, reads.sample([9]).ws)
    assert torch.equal(latents_of(reads, shots, masks / "none" / "images").ws, reads.sample([9]).ws)


def test_a_image_that_its_latent_does_not_draw_is_refused(generator, labeled):
    images, masks = labeled
    reads = open_representation("stylegan2", generator)
    image = np.asarray(Image.open(images / "000005.png")).copy()
    image[:8] = 255 - image[:8]
    Image.fromarray(image).save(images / "000005.png")
    with pytest.raises(BadArtifact, match="'000005' is not the image that its latent generates"):
        latents_of(reads, load_shots(masks, images), images)
    for folder in (images, masks):
        (folder / "000005.png").rename(folder / "000099.png")
    with pytest.raises(BadArtifact, match="contains no latent of '000099'"):
        latents_of(reads, load_shots(masks, images), images)


def test_from_samples_to_a_student_that_was_drawn_its_images(generator, labeled, tmp_path, monkeypatch):
    images, masks = labeled
    monkeypatch.setitem(PRESETS, "fast", PRESETS["fast"].changed(images=240))
    monkeypatch.setattr(StyleGAN, "invert", lambda *_: pytest.fail("inverted what was drawn"))
    # A generator's size is its own, whatever the default.
    fit(images, masks, tmp_path / "teacher", f"{generator}:regan", "linear", quiet=True)
    assert not (tmp_path / "teacher" / "leave_one_out.json").exists()
    teacher = Segmenter.load(tmp_path / "teacher" / "segmenter")
    drawn = teacher.generate([4, 5, 6, 70], min_probability=0.0)
    assert drawn.names == ("seed 4", "seed 5", "seed 6", "seed 70") and drawn.images[0].shape == (32, 32, 3)
    shots = load_shots(masks, images)
    for ours, truth in zip(drawn.labels, shots.labels, strict=False):
        assert (ours == truth).mean() > 0.75
    unsure = teacher.generate([70], min_probability=0.7)
    ignored = unsure.labels[0] == IGNORE
    assert 0 < ignored.mean() < 1 and (unsure.labels[0][~ignored] == drawn.labels[3][~ignored]).all()

    options = {"size": 32, "kimg": 0.032, "drawn": 6, "quiet": True}
    assert distill(images, masks, tmp_path / "student", teacher=tmp_path / "teacher", **options).is_dir()
    with pytest.raises(BadArtifact, match="other settings|other settings or other data"):
        distill(images, masks, tmp_path / "student", teacher=tmp_path / "teacher", **{**options, "drawn": 5})
