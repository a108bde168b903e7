"""On a GPU all that learns does, and what it made is read on the CPU alike, up to rounding. Skipped without one."""

import numpy as np
import pytest
import torch
from PIL import Image

from partshot.data.augment import PRESETS as AUGMENTS
from partshot.data.augment import augment, transfer_colors
from partshot.represent.choose import open_representation
from partshot.represent.invert import PRESETS as INVERT
from partshot.represent.stylegan import load_stylegan
from partshot.segmenter import Segmenter
from partshot.student import Student
from partshot.tasks.pretrain import pretrain
from partshot.tasks.sample import embedded_shots, latents_of_names
from partshot.tasks.train_student import Teachers, train_student
from partshot.toy.dataset import toy_shots
from partshot.train.distill_recipe import PRESETS as DISTILL
from partshot.train.fit_head import PRESETS as FIT
from partshot.train.fitting import fit_presets

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
SHORT = FIT["fast"].changed(images=80, precision="fp32")


def agreement(some: list, others: list) -> float:
    """Share of pixels with the same label."""
    return float(np.mean([(a.labels == b.labels).mean() for a, b in zip(some, others, strict=True)]))


def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on this machine computes on its CPU."""
    for module in ("segmenter", "represent.stylegan"):
        monkeypatch.setattr(f"partshot.{module}.best_device", lambda: torch.device("cpu"))


def test_images_are_changed_alike():
    shots = toy_shots("faces", 64, 4, 1)
    stack, ids = shots.stack(64)
    images = torch.from_numpy(stack).permute(0, 3, 1, 2).float() / 127.5 - 1
    found = []
    for device in ("cpu", "cuda"):
        rng, x = torch.Generator().manual_seed(3), images.to(device)
        x = transfer_colors(x, x.flip(0), 0.5, rng)
        moved = augment(
            x, torch.from_numpy(ids).long().to(device), AUGMENTS["strong"].changed(noise=0), rng, [*range(99)]
        )
        assert moved[0].device.type == device
        found.append([tensor.cpu() for tensor in moved])
    (image, label), (other, other_label) = found
    assert (image - other).abs().mean() < 1e-3
    assert (label == other_label).float().mean() > 0.999
    assert torch.isfinite(augment(images.cuda(), None, AUGMENTS["strong"], torch.Generator(), [])[0]).all()


@pytest.mark.parametrize("head", ["cnn-s", "mlp-1", "ensemble"])
@pytest.mark.parametrize("name", ["random+position", "pixels+position", "random,pixels+position"])
def test_a_head_is_fitted_kept_and_read(name, head, tmp_path, monkeypatch):
    shots, test = toy_shots("faces", 64, 3, 1), toy_shots("faces", 64, 4, 2).images
    recipe = fit_presets("ensemble")["fast"].changed(precision="fp32") if head == "ensemble" else SHORT
    there = Segmenter(open_representation(name), shots.parts, head, 64, recipe).fit(shots, quiet=True)
    seen, kept = there.predict(test), there.save(tmp_path / "kept")
    assert agreement(seen, Segmenter.load(kept).predict(test)) > 0.999
    on_cpu(monkeypatch)
    here = Segmenter.load(kept)
    assert here.device.type == "cpu" and agreement(seen, here.predict(test)) > 0.97
    assert len(there.soft_labels(np.stack(test))) == 4


def test_a_generator_draws_and_inverts(monkeypatch, tmp_path):
    faces, recipe = embedded_shots().subset(range(2)), INVERT["fast"].changed(steps=20, precision="fp32")
    found, fit = {}, SHORT.changed(augment=None)
    for where in ("cuda", "cpu"):
        if where == "cpu":
            on_cpu(monkeypatch)
        generator = load_stylegan(recipe=recipe)
        assert generator.device.type == where
        teacher = Segmenter(generator, faces.parts, "cnn-s", 64, fit)
        teacher.fit(faces, True, latents_of_names(generator, faces))
        drawn = teacher.generate(range(5_000, 5_004))
        latents = generator.latents(torch.from_numpy(np.stack(faces.images)).permute(0, 3, 1, 2) / 127.5 - 1)
        latents.save(tmp_path / where)
        found[where] = drawn, teacher.predict(faces.images, latents)
    (drawn, _), (others, _) = found["cuda"], found["cpu"]
    assert (np.stack(drawn.labels) == np.stack(others.labels)).mean() > 0.9
    assert np.abs(np.stack(drawn.images).astype(int) - np.stack(others.images)).mean() < 2
    assert agreement(found["cuda"][1], found["cpu"][1]) > 0.8


@pytest.mark.parametrize("preset", ["default", "auto-shot-consistent"])
def test_a_student_learns(preset, tmp_path):
    shots = toy_shots("faces", 64, 4, 1)
    plain = np.stack(toy_shots("faces", 64, 32, 5).images)
    recipe = DISTILL[preset].changed(size=64, kimg=0.2)
    if preset == "default":
        teacher = Segmenter(open_representation("random+position"), shots.parts, "cnn-s", 32, SHORT).fit(shots, True)
        recipe = recipe.changed(consistency=None)
    else:
        faces, generator = embedded_shots().subset(range(2)), load_stylegan()
        teacher = Segmenter(generator, faces.parts, "cnn-s", 64, SHORT)
        teacher.fit(faces, True, latents_of_names(generator, faces))
        shots = faces
    teachers = Teachers(teacher, generated=32)
    trained = train_student(shots, recipe, tmp_path / "out", plain, teachers=teachers, quiet=True)
    again = Student.load(tmp_path / "out" / "student")
    assert agreement(trained.predict(shots.images), again.predict(shots.images)) == 1


@pytest.mark.parametrize("pretext", ["moco", "simsiam", "stylegan2", "stylegan1"])
def test_a_pretext_is_played(pretext, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i, image in enumerate(toy_shots("faces", 64, 60, 5).images):
        Image.fromarray(image).save(folder / f"{i}.png")
    trained = pretrain(pretext, folder, tmp_path / "out", size=64, kimg=0.3, quiet=True)
    kind = pretext if pretext.startswith("style") else "resnet"
    reads = open_representation(kind, trained)
    assert all(torch.isfinite(m).all() for m in reads.features(torch.zeros(1, 3, 64, 64)).maps)
