"""StyleGAN2's objective: phases, progressive growing, EMA, transfer learning, and reproducible resuming."""

import numpy as np
import pytest
import torch

from partshot.errors import BadArtifact, BadImage, BadRecipe
from partshot.pretext.stylegan2 import FADE, MIN_IMAGES, PRESETS, R1_EVERY, StyleGAN2
from partshot.train.journal import read_journal
from partshot.train.loop import LoopRecipe, run_loop

pytestmark = pytest.mark.usefixtures("one_thread")

NETS = {"net": "small", "batch": 8, "ema_kimg": 0.1, "noise": True}
TINY = PRESETS["small-folder"].changed(size=16, kimg=0.16, grow=((8, 0.5),), path=2.0, gamma=0.1, **NETS)


both = pytest.mark.parametrize("net", ["small", "adain-small"])


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (MIN_IMAGES, 4, 4, 3), dtype=np.uint8)
    return np.kron(coarse, np.ones((1, 4, 4, 1), np.uint8))


def train(objective, out, steps=None, seed=0):
    recipe = LoopRecipe(kimg=TINY.kimg, batch=TINY.batch, seed=seed, precision="fp32", checkpoint_seconds=0)
    if steps is None:
        run_loop(objective, recipe, out, "gan", "f", journal_every=4, quiet=True)
        return
    count = iter(range(10**6))
    batch = objective.batch

    def stopping(rng, images):
        if next(count) == steps:
            raise KeyboardInterrupt
        return batch(rng, images)

    objective.batch = stopping
    with pytest.raises(KeyboardInterrupt):
        run_loop(objective, recipe, out, "gan", "f", journal_every=4, quiet=True)


def test_a_resumed_run_gives_the_same_bits(images, tmp_path):
    whole = StyleGAN2(images, TINY)
    train(whole, tmp_path / "whole")
    train(StyleGAN2(images, TINY), tmp_path / "resumed", steps=7)
    resumed = StyleGAN2(images, TINY)
    train(resumed, tmp_path / "resumed")
    for name, module in whole.modules.items():
        for key, value in module.state_dict().items():
            assert torch.equal(value, resumed.modules[name].state_dict()[key]), (name, key)
    lines = read_journal(tmp_path / "whole" / "journal.jsonl")
    assert {"discriminator", "generator", "path", "ada", "resolution"} < set(lines[-1])
    assert (lines[0]["resolution"], lines[-1]["resolution"]) == (8, 16)
    assert "r1" in lines[0] and R1_EVERY > 4


def weights(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


@both
@pytest.mark.parametrize("noise", [True, False])
def test_noise_strengths_are_trained_only_if_enabled(images, noise, net):
    objective = StyleGAN2(images, TINY.changed(noise=noise, net=net))
    objective.prepare(0.9)
    batch = objective.batch(torch.Generator().manual_seed(0), 8)
    for phase in objective.phases():
        phase.optimizer.zero_grad(set_to_none=True)
        phase.loss(batch).backward()
        phase.optimizer.step()
    names = ("noise_strength", "noise.weight")
    strengths = {n: p for n, p in objective.modules["generator"].named_parameters() if n.endswith(names)}
    assert len(strengths) == len(objective.modules["generator"].layers)
    assert all(bool(s.any()) == noise for s in strengths.values())
    assert all(p.requires_grad for n, p in objective.modules["generator"].named_parameters() if n not in strengths)


@both
@pytest.mark.parametrize("p", [0.0, 0.6])
def test_each_phase_trains_only_its_network(images, p, net):
    objective = StyleGAN2(images, TINY.changed(net=net))
    objective.modules["ada"].p.fill_(p)
    objective.prepare(0.9)
    batch = objective.batch(torch.Generator().manual_seed(0), 8)
    for phase in objective.phases():
        trained = "discriminator" if phase.name in ("discriminator", "r1") else "generator"
        other = "generator" if trained == "discriminator" else "discriminator"
        before = weights(objective.modules[trained])
        objective.modules[other].zero_grad(set_to_none=True)
        phase.optimizer.zero_grad(set_to_none=True)
        phase.loss(batch).backward()
        # The other network gets no gradient, which would be wasted computation.
        assert all(p.grad is None for p in objective.modules[other].parameters()), phase.name
        phase.optimizer.step()
        after = weights(objective.modules[trained])
        assert any(not torch.equal(before[name], after[name]) for name in before), phase.name


@both
def test_progressive_growing_follows_the_recipe(images, net):
    objective = StyleGAN2(images, TINY.changed(grow=((4, 0.2), (8, 0.5)), net=net))
    seen = []
    for progress in (0.0, 0.19, 0.2, 0.2 + FADE / 2, 0.4, 0.5, 0.5 + 2 * FADE):
        objective.prepare(progress)
        seen.append((objective.resolution, round(objective.fade, 3)))
    assert seen == [(4, 1.0), (4, 1.0), (8, 0.0), (8, 0.5), (8, 1.0), (16, 0.0), (16, 1.0)]
    objective.prepare(0.3)
    assert objective.batch(torch.Generator().manual_seed(0), 5).shape == (5, 3, 8, 8)
    assert objective.samples(3).shape == (3, 8, 8, 3)


def test_real_images_are_faded_in_like_generated_ones(images):
    objective = StyleGAN2(images, TINY.changed(flip=False))
    found = {}
    for progress in (0.4, 0.5, 0.5 + FADE / 2, 0.9):
        objective.prepare(progress)
        found[objective.resolution, round(objective.fade, 2)] = objective.batch(torch.Generator().manual_seed(0), 4)
    small, blurred, halfway, sharp = found.values()
    assert list(found) == [(8, 1.0), (16, 0.0), (16, 0.5), (16, 1.0)]
    enlarged = torch.nn.functional.interpolate(small, scale_factor=2, mode="bilinear")
    torch.testing.assert_close(blurred, enlarged)
    torch.testing.assert_close(halfway, (blurred + sharp) / 2)


@pytest.mark.parametrize(
    "grow, message",
    [
        (((4, 0.5),), "each must be half of the next, up to half of 16"),
        (((16, 0.5),), "each must be half of the next"),
        (((4, 0.5), (8, 0.5)), "they must increase, between 0 and 1"),
        (((8, 1.0),), "they must increase, between 0 and 1"),
    ],
)
def test_invalid_growing_is_refused(grow, message):
    with pytest.raises(BadRecipe, match=message):
        TINY.changed(grow=grow)


def test_ema_half_life_in_images(images):
    objective = StyleGAN2(images, TINY)
    current, ema = objective.modules["generator"].synthesis.b4.const, objective.modules["ema"].synthesis.b4.const
    start = ema.clone()
    current.data += 1
    # The half-life is 100 images after 2,000 images; a step is 8 images.
    objective.recipe = TINY.changed(kimg=10.0)
    objective.finish(0.9)
    torch.testing.assert_close(ema - start, torch.full_like(start, 1 - 0.5 ** (8 / 100)))


@both
def test_start_from_trained_weights(images, net):
    growing = TINY.changed(net=net)
    first, further = StyleGAN2(images, growing, seed=1), growing.changed(grow=())
    kept = first.trained()
    tensors = {f"generator.{k}": v for k, v in kept.items()} | first.discriminator_state()
    objective = StyleGAN2(images, further)
    objective.start_from(tensors)
    for name in ("generator", "ema"):
        own = objective.modules[name].state_dict()
        assert all(torch.equal(own[key], value) for key, value in kept.items())
    discriminator = objective.modules["discriminator"].state_dict()
    assert all(
        torch.equal(discriminator[k.removeprefix("discriminator.")], v) for k, v in first.discriminator_state().items()
    )
    # No EMA ramp-up after a start from trained weights.
    with torch.no_grad():
        objective.modules["generator"].mapping.w_avg.zero_()
        for p in objective.modules["generator"].parameters():
            p.zero_()
    objective.finish(1e-6)
    name = next(k for k in kept if k.endswith("weight"))
    left = objective.modules["ema"].state_dict()[name] / kept[name]
    torch.testing.assert_close(left, torch.full_like(left, 0.5 ** (objective.recipe.batch / 100)))


def test_start_from_unsuitable_weights_is_refused(images):
    first = StyleGAN2(images, TINY)
    tensors = {f"generator.{k}": v for k, v in first.trained().items()} | first.discriminator_state()
    with pytest.raises(BadRecipe, match="need not grow"):
        StyleGAN2(images, TINY).start_from(tensors)
    with pytest.raises(BadArtifact, match="the generator to start from"):
        StyleGAN2(images, TINY.changed(size=8, grow=())).start_from(tensors)


def test_images_are_flipped_only_if_enabled(images):
    plain = StyleGAN2(images, TINY.changed(flip=False, grow=()))
    plain.prepare(0.9)
    batch = plain.batch(torch.Generator().manual_seed(0), 32)
    known = {p.tobytes() for p in images}
    back = ((batch + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    assert all(p.tobytes() in known for p in back)
    flipped = StyleGAN2(images, TINY.changed(grow=()))
    flipped.prepare(0.9)
    batch = flipped.batch(torch.Generator().manual_seed(0), 32)
    back = ((batch + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    assert 4 < sum(p.tobytes() in known for p in back) < 28


def test_too_few_images_are_refused(images):
    with pytest.raises(BadImage, match=f"only {MIN_IMAGES - 1} images; a StyleGAN needs {MIN_IMAGES} or more"):
        StyleGAN2(images[1:], TINY)
