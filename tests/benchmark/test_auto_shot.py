"""auto-shot: heads are fitted to generated images, students are trained on them, each image is inverted once."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import entropy as scipy_entropy

from partshot.benchmark.auto_shot import AutoShot, AutoShotConfig
from partshot.benchmark.kshot import kshot
from partshot.data.shots import Shots
from partshot.errors import BadArtifact
from partshot.nets.stylegan2 import Discriminator, Generator, Shape
from partshot.ops.images import as_uint8
from partshot.parts import IGNORE, PartSet
from partshot.represent.invert import InvertRecipe
from partshot.represent.spec import Latents
from partshot.represent.stylegan import EMBEDDED, StyleGAN, load_stylegan
from partshot.segmenter import Segmenter
from partshot.tasks import train_student
from partshot.tasks.sample import embedded_shots, latents_of_names, sample_name
from partshot.train.distill_recipe import PRESETS
from partshot.train.fit_ensemble import PRESETS as ENSEMBLE_PRESETS
from partshot.train.fit_head import PRESETS as FIT_PRESETS

SHAPE = Shape(resolution=32, z_dim=8, w_dim=8, mapping_layers=2, channel_base=256, channel_max=16)
PARTS = PartSet.of("background", "bright")


@pytest.fixture(scope="module")
def generator():
    torch.manual_seed(0)
    return StyleGAN(Generator(SHAPE), Discriminator(SHAPE), recipe=InvertRecipe(steps=2, space="w+"))


def generated(generator, seeds) -> Shots:
    """Images of these seeds, with the brighter half of the pixels as a part."""
    images = as_uint8(generator.synthesize(generator.sample(seeds))[0])
    gray = images.mean(3)
    labels = (gray > np.median(gray, (1, 2), keepdims=True)).astype(np.uint8)
    return Shots(tuple(images), tuple(labels), tuple(f"{seed:06d}" for seed in seeds), PARTS)


@pytest.fixture
def auto(generator, tmp_path):
    recipe = PRESETS["auto-shot"].changed(size=32, kimg=0.032)
    config = AutoShotConfig(recipe, FIT_PRESETS["fast"].changed(images=200), generated=6)
    return AutoShot(tmp_path, generator, config, quiet=True)


def test_both_methods_are_fitted_to_generated_images(auto, generator, monkeypatch):
    shots, test = generated(generator, [3, 4, 5]), generated(generator, [100, 101])
    rows = kshot({"auto_shot": auto.auto_shot, "few_shot": auto.few_shot}, shots, test, [1, 3], [0])
    assert [(row.method, row.k) for row in rows] == [(m, k) for k in (1, 3) for m in ("auto_shot", "few_shot")]
    assert all(0 < row.score.miou <= 1 for row in rows)
    # The head fits its shots, on features that need no inversion.
    seen = auto.teacher(shots).predict(shots.images, latents_of_names(generator, shots))
    assert np.mean([(a.labels == b).mean() for a, b in zip(seen, shots.labels, strict=True)]) > 0.9
    monkeypatch.setattr("partshot.tasks.train_student.run_loop", lambda *_, **__: pytest.fail("trained again"))
    auto.auto_shot(shots.sample(3, 0))(test.images)


def test_an_ensemble_drops_images_on_which_its_members_disagree(auto, generator, tmp_path, monkeypatch):
    shots = generated(generator, [3, 4])
    recipe = ENSEMBLE_PRESETS["fast"].changed(pixels=64 * 40)
    config = AutoShotConfig(auto.config.recipe, recipe, generated=12, head="ensemble")
    ensemble = AutoShot(tmp_path, generator, config, quiet=True)
    teacher = ensemble.teacher(shots)
    everything = teacher.generate(range(50, 62), discard=0.0)
    with torch.no_grad():
        members = teacher.head_.members(generator.synthesize(generator.sample(range(50, 62)))[1]).double()
    maps = scipy_entropy(members.mean(0), axis=1) - scipy_entropy(members, axis=2).mean(0)
    scores = np.sort(maps.reshape(12, -1), axis=1)[:, -103:].mean(1)
    certain = sorted(np.argsort(scores)[:9])
    # Images are generated in bf16 if the machine supports it, so images with close scores may change order.
    left = teacher.generate(range(50, 62), discard=0.25)
    kept = [everything.names.index(name) for name in left.names]
    assert len(kept) == 9 and kept == sorted(kept) and len(set(kept) & set(certain)) >= 8
    assert np.array_equal(left.labels[0], everything.labels[kept[0]])
    # The student is trained on the others: a tenth of twelve is one.
    seen = []
    monkeypatch.setattr(
        "partshot.tasks.train_student.Distillation",
        lambda *given: seen.append(given[1].generated) or pytest.fail("seen"),
    )
    with pytest.raises(pytest.fail.Exception, match="seen"):
        ensemble.student(shots)
    assert len(seen[0][0]) == 11


def test_a_second_model_has_the_same_weight_as_the_head(auto, generator):
    teacher, seeds = auto.teacher(generated(generator, [3, 4])), [50, 51, 52]
    alone = teacher.generate(seeds)
    given = list(alone.images)
    latents = generator.sample(seeds)
    head = np.stack([one.probabilities for one in teacher.predict(given, latents)])

    class Contrary:
        def predict(self, images):
            assert all(np.array_equal(a, b) for a, b in zip(images, given, strict=True))
            return [SimpleNamespace(probabilities=1 - shares) for shares in head]

    class Sure:
        def predict(self, images):
            return [SimpleNamespace(probabilities=np.stack([0 * shares[0], 0 * shares[0] + 1])) for shares in head]

    # Opposite predictions leave no confident pixel; more confident predictions than the head's decide.
    ignored = teacher.generate(seeds, min_probability=0.6, second=Contrary())
    assert all((labels == IGNORE).all() for labels in ignored.labels)
    followed = np.stack(teacher.generate(seeds, min_probability=0.6, second=Sure()).labels)
    assert (followed[head[:, 1] > 0.25] == 1).all() and (followed[head[:, 1] < 0.15] == IGNORE).all()


def test_self_training_labels_with_the_first_student_and_starts_from_its_weights(auto, generator, monkeypatch, capsys):
    shots = generated(generator, [3, 4])
    auto.quiet = False
    auto.config = replace(auto.config, recipe=auto.config.recipe.changed(size=64, self_training=2.0))
    trained, used = [], []
    loop, generate = train_student.run_loop, Segmenter.generate

    def spy_loop(objective, recipe, out, *given, **named):
        weight = objective.modules["student"].state_dict()["stem.0.weight"].clone()
        trained.append((out.name, recipe.kimg, objective.recipe.size, weight))
        loop(objective, recipe, out, *given, **named)

    def spy_generate(self, *given, second=None):
        used.append(second)
        return generate(self, *given, second=second)

    monkeypatch.setattr(train_student, "run_loop", spy_loop)
    monkeypatch.setattr(Segmenter, "generate", spy_generate)
    student = auto.student(shots)
    (first, *small), (second, *large) = trained
    assert (first, small[:2]) == ("first", [0.064, 32]) and (second != "first", large[:2]) == (True, [0.032, 64])
    messages = capsys.readouterr().err
    assert messages.index("first of two rounds, at 32 px") < messages.index("second of two rounds, at 64 px")
    assert used[0] is None and used[1].size == 32 and student.size == 64
    assert torch.equal(large[2], used[1].net.state_dict()["stem.0.weight"]) and not torch.equal(large[2], small[2])
    # Finished students are loaded.
    monkeypatch.setattr(train_student, "run_loop", lambda *_, **__: pytest.fail("trained again"))
    auto.student(shots)


def test_an_image_is_inverted_once(auto, generator, monkeypatch):
    seen, invert = [], StyleGAN.invert
    monkeypatch.setattr(StyleGAN, "invert", lambda self, images: seen.append(len(images)) or invert(self, images))
    images = generated(generator, [1, 2, 3]).images
    whole, again = auto.inverted(images), auto.inverted(images[::-1])
    assert seen == [3] and len(whole) == 3
    assert torch.equal(whole.ws.flip(0), again.ws)


def test_other_images_are_inverted_and_wrong_seeds_refused(auto, generator, tmp_path):
    shots = generated(generator, [3, 4])
    foreign = Shots(shots.images, shots.labels, ("000003", "000005"), PARTS)
    with pytest.raises(BadArtifact, match="'000005' is not the image"):
        auto.teacher(foreign)
    named = Shots(shots.images, shots.labels, ("a", "b"), PARTS)
    other = AutoShot(tmp_path, generator, replace(auto.config, generated_shots=False), quiet=True)
    assert len(other.teacher(named).predict(shots.images[:1])) == 1


def test_names_contain_seed_and_truncation(generator):
    assert (sample_name(7), sample_name(0, 0.0), sample_name(3, 0.123456789)) == (
        "000007",
        "000000-psi0",
        "000003-psi0.123456789",
    )
    wanted = Latents.join([generator.sample([3], 0.5), generator.sample([4])])
    with torch.no_grad():
        images = tuple(as_uint8(generator.synthesize(wanted)[0]))
    labels = tuple(np.zeros((generator.size,) * 2, np.uint8) for _ in images)
    found = latents_of_names(generator, Shots(images, labels, (sample_name(3, 0.5), sample_name(4)), PARTS))
    torch.testing.assert_close(found.ws, wanted.ws)
    for names in (("photo", "000004"), ("000003-psix", "000004")):
        with pytest.raises(BadArtifact, match="is not the name of a sample"):
            latents_of_names(generator, Shots(images, labels, names, PARTS))
    with pytest.raises(BadArtifact, match="'000003' is not the image"):
        latents_of_names(generator, Shots(images, labels, ("000003", "000004"), PARTS))


def test_the_embedded_faces_are_those_of_their_seeds():
    generator, shots = load_stylegan(), embedded_shots()
    assert len(shots) == 10 and generator.size == 64
    assert all(len(np.unique(labels)) >= 8 for labels in shots.labels)
    assert len(np.unique(np.stack(shots.labels))) == len(shots.parts) == 10
    # The first face is the mean face; the others are samples without truncation.
    latents, mean = latents_of_names(generator, shots), generator.generator.mapping.w_avg
    torch.testing.assert_close(latents.ws[0], mean.expand_as(latents.ws[0]))
    torch.testing.assert_close(latents.ws[1:], generator.sample([int(name) for name in shots.names[1:]]).ws)
    assert sum(path.stat().st_size for path in EMBEDDED.rglob("*") if path.is_file()) < 5_000_000
