"""StyleGAN uses StyleGAN2's objective with another generator: settings, resuming, and trained weights."""

import numpy as np
import pytest
import torch

from partshot.catalog import PRETEXTS, lookup
from partshot.nets.stylegan1 import Generator
from partshot.pretext.stylegan1 import PRESETS, stylegan1
from partshot.pretext.stylegan2 import FADE, MIN_IMAGES
from partshot.train.loop import LoopRecipe, run_loop

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = PRESETS["small-folder"].changed(size=16, kimg=0.016, batch=4, grow=((8, 0.5),), noise=True)


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (MIN_IMAGES, 16, 16, 3), dtype=np.uint8)


def train(objective, out):
    recipe = LoopRecipe(kimg=TINY.kimg, batch=TINY.batch, precision="fp32", checkpoint_seconds=0)
    run_loop(objective, recipe, out, "gan", "f", quiet=True)


def test_the_catalog_has_it_with_its_own_presets():
    assert lookup(PRETEXTS, "stylegan1", "pretext") is stylegan1 and stylegan1.PRESETS is PRESETS
    assert all(row.net.startswith("adain") for row in PRESETS.values())


def test_progressive_growing_is_that_of_the_official_code():
    """600 thousand images at 8 px, then per resolution 600 during fade-in and 600 afterwards, 25 million in all."""
    row = PRESETS["stylegan1-paper"]
    assert [side for side, _ in row.grow] == [8, 16, 32, 64, 128, 256, 512]
    assert [until * row.kimg for _, until in row.grow] == pytest.approx([600 + 1200 * i for i in range(7)])
    # Here the fade-in takes a share of the run.
    assert row.kimg * FADE == pytest.approx(600, rel=0.3)


def test_trained_weights_are_those_of_the_published_network(images):
    objective = stylegan1(images, TINY)
    assert [phase.name for phase in objective.phases()] == ["discriminator", "r1", "generator"]
    assert any(".exits." in name for name in objective.modules["generator"].state_dict())
    Generator(objective.shape).load_state_dict(objective.trained())


def test_a_resumed_run_gives_the_same_bits(images, tmp_path, monkeypatch):
    whole, resumed, interrupted = (stylegan1(images, TINY) for _ in range(3))
    train(whole, tmp_path / "whole")
    batches = iter([interrupted.batch] * 3)
    with monkeypatch.context() as patch, pytest.raises(StopIteration):
        patch.setattr(interrupted, "batch", lambda rng, count: next(batches)(rng, count))
        train(interrupted, tmp_path / "resumed")
    train(resumed, tmp_path / "resumed")
    generator, synthesis = whole.modules["generator"], whole.modules["generator"].synthesis
    for name, tensor in generator.state_dict().items():
        assert tensor.isfinite().all() and torch.equal(tensor, resumed.modules["generator"].state_dict()[name])
    # The ToRGB layer for 8 px was trained at that resolution, the other one afterwards.
    before = stylegan1(images, TINY).modules["generator"].synthesis
    assert not torch.equal(before.exits["8"].weight, synthesis.exits["8"].weight)
    assert not torch.equal(before.torgb.weight, synthesis.torgb.weight)
