"""auto-shot: heads are fitted to what seeds draw, students learn what is drawn, images are inverted once."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import entropy as scipy_entropy

from partshot.benchmark.auto_shot import AutoShot
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
from partshot.tasks import distill
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


def drawn(generator, seeds) -> Shots:
    """Images of these seeds, whose brighter half is a part."""
    images = as_uint8(generator.synthesize(generator.sample(seeds))[0])
    gray = images.mean(3)
    labels = (gray > np.median(gray, (1, 2), keepdims=True)).astype(np.uint8)
    return Shots(tuple(images), tuple(labels), tuple(f"{seed:06d}" for seed in seeds), PARTS)


@pytest.fixture
def road(generator, tmp_path):
    recipe = PRESETS["auto-shot"].changed(size=32, kimg=0.032)
    return AutoShot(tmp_path, generator, recipe, FIT_PRESETS["fast"].changed(images=200), drawn=6, quiet=True)


def test_both_rows_learn_from_what_was_drawn(road, generator, monkeypatch):
    shots, test = drawn(generator, [3, 4, 5]), drawn(generator, [100, 101])
    rows = kshot({"auto_shot": road.auto_shot, "few_shot": road.few_shot}, shots, test, [1, 3], [0])
    assert [(row.method, row.k) for row in rows] == [(m, k) for k in (1, 3) for m in ("auto_shot", "few_shot")]
    assert all(0 < row.score.miou <= 1 for row in rows)
    # The head has learned what it was shown, on features that need no inversion.
    seen = road.teacher(shots).predict(shots.images, latents_of_names(generator, shots))
    assert np.mean([(a.labels == b).mean() for a, b in zip(seen, shots.labels, strict=True)]) > 0.9
    monkeypatch.setattr("partshot.tasks.distill.run_loop", lambda *_, **__: pytest.fail("trained again"))
    road.auto_shot(shots.sample(3, 0))(test.images)


def test_an_ensemble_leaves_out_what_its_members_disagree_on(road, generator, tmp_path, monkeypatch):
    shots = drawn(generator, [3, 4])
    recipe = ENSEMBLE_PRESETS["fast"].changed(pixels=64 * 40)
    auto = AutoShot(tmp_path, generator, road.recipe, recipe, drawn=12, quiet=True, head="ensemble")
    teacher = auto.teacher(shots)
    everything = teacher.generate(range(50, 62), doubted=0.0)
    with torch.no_grad():
        members = teacher.head_.members(generator.synthesize(generator.sample(range(50, 62)))[1]).double()
    maps = scipy_entropy(members.mean(0), axis=1) - scipy_entropy(members, axis=2).mean(0)
    scores = np.sort(maps.reshape(12, -1), axis=1)[:, -103:].mean(1)
    certain = sorted(np.argsort(scores)[:9])
    # Images are drawn in bf16 where the machine has it, so that scores that lie close may change places.
    left = teacher.generate(range(50, 62), doubted=0.25)
    kept = [everything.names.index(name) for name in left.names]
    assert len(kept) == 9 and kept == sorted(kept) and len(set(kept) & set(certain)) >= 8
    assert np.array_equal(left.labels[0], everything.labels[kept[0]])
    # The student learns from what is left: a tenth of twelve is one.
    seen = []
    monkeypatch.setattr(
        "partshot.tasks.distill.Distillation", lambda *given: seen.append(given[1].generated) or pytest.fail("seen")
    )
    with pytest.raises(pytest.fail.Exception, match="seen"):
        auto.student(shots)
    assert len(seen[0][0]) == 11


def test_a_second_opinion_counts_as_much_as_the_heads(road, generator):
    teacher, seeds = road.teacher(drawn(generator, [3, 4])), [50, 51, 52]
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

    # Who says the opposite leaves nothing that is sure; who is surer than the head is followed.
    assert all((labels == IGNORE).all() for labels in teacher.generate(seeds, sure=0.6, second=Contrary()).labels)
    followed = np.stack(teacher.generate(seeds, sure=0.6, second=Sure()).labels)
    assert (followed[head[:, 1] > 0.25] == 1).all() and (followed[head[:, 1] < 0.15] == IGNORE).all()


def test_a_first_student_helps_to_label_and_leaves_its_weights(road, generator, monkeypatch, capsys):
    shots = drawn(generator, [3, 4])
    road.quiet = False
    road.recipe = road.recipe.changed(size=64, self_training=2.0)
    trained, asked = [], []
    loop, draw = distill.run_loop, Segmenter.draw

    def play(game, recipe, out, *given, **named):
        trained.append(
            (out.name, recipe.kimg, game.recipe.size, game.modules["student"].state_dict()["stem.0.weight"].clone())
        )
        loop(game, recipe, out, *given, **named)

    monkeypatch.setattr(distill, "run_loop", play)
    monkeypatch.setattr(
        Segmenter, "draw", lambda self, *given, second=None: asked.append(second) or draw(self, *given, second=second)
    )
    student = road.student(shots)
    (first, *small), (second, *large) = trained
    assert (first, small[:2]) == ("first", [0.064, 32]) and (second != "first", large[:2]) == (True, [0.032, 64])
    told = capsys.readouterr().err
    assert told.index("first of two rounds, at 32 px") < told.index("second of two rounds, at 64 px")
    assert asked[0] is None and asked[1].size == 32 and student.size == 64
    assert torch.equal(large[2], asked[1].net.state_dict()["stem.0.weight"]) and not torch.equal(large[2], small[2])
    # Finished ones are read.
    monkeypatch.setattr(distill, "run_loop", lambda *_, **__: pytest.fail("trained again"))
    road.student(shots)


def test_a_image_is_inverted_once(road, generator, monkeypatch):
    seen, plain = [], StyleGAN.invert
    monkeypatch.setattr(StyleGAN, "invert", lambda self, images: seen.append(len(images)) or plain(self, images))
    images = drawn(generator, [1, 2, 3]).images
    whole, again = road.inverted(images), road.inverted(images[::-1])
    assert seen == [3] and len(whole) == 3
    assert torch.equal(whole.ws.flip(0), again.ws)


def test_images_of_elsewhere_are_inverted_and_of_other_seeds_refused(road, generator, tmp_path):
    shots = drawn(generator, [3, 4])
    foreign = Shots(shots.images, shots.labels, ("000003", "000005"), PARTS)
    with pytest.raises(BadArtifact, match="'000005' is not the image that its latent splits"):
        road.teacher(foreign)
    named = Shots(shots.images, shots.labels, ("a", "b"), PARTS)
    other = AutoShot(tmp_path, generator, road.recipe, road.fit, own=False, quiet=True)
    assert len(other.teacher(named).predict(shots.images[:1])) == 1


def test_names_tell_seed_and_truncation(generator):
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


def test_the_embedded_faces_are_what_their_seeds_draw():
    generator, shots = load_stylegan(), embedded_shots()
    assert len(shots) == 10 and generator.size == 64
    assert all(len(np.unique(labels)) >= 8 for labels in shots.labels)
    assert len(np.unique(np.stack(shots.labels))) == len(shots.parts) == 10
    # The mean face is labeled first; the others are drawn as they come.
    latents, mean = latents_of_names(generator, shots), generator.generator.mapping.w_avg
    torch.testing.assert_close(latents.ws[0], mean.expand_as(latents.ws[0]))
    torch.testing.assert_close(latents.ws[1:], generator.sample([int(name) for name in shots.names[1:]]).ws)
    assert sum(path.stat().st_size for path in EMBEDDED.rglob("*") if path.is_file()) < 5_000_000
