"""StyleGAN's objective is StyleGAN2's with another generator: its settings, how it goes on, and what is kept of it."""

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


def play(objective, out):
    recipe = LoopRecipe(kimg=TINY.kimg, batch=TINY.batch, precision="fp32", checkpoint_seconds=0)
    run_loop(objective, recipe, out, "gan", "f", quiet=True)


def test_the_catalog_names_it_with_its_own_presets():
    assert lookup(PRETEXTS, "stylegan1", "pretext") is stylegan1 and stylegan1.PRESETS is PRESETS
    assert all(row.net.startswith("adain") for row in PRESETS.values())


def test_growing_is_the_official_codes():
    """600 thousand images of 8 px, then 600 while each size comes in and 600 of it alone, 25 million in all."""
    row = PRESETS["stylegan1-paper"]
    assert [side for side, _ in row.grow] == [8, 16, 32, 64, 128, 256, 512]
    assert [until * row.kimg for _, until in row.grow] == pytest.approx([600 + 1200 * i for i in range(7)])
    # A block comes in over a share of the run here.
    assert row.kimg * FADE == pytest.approx(600, rel=0.3)


def test_what_is_kept_is_the_published_network(images):
    objective = stylegan1(images, TINY)
    assert [phase.name for phase in objective.phases()] == ["discriminator", "r1", "generator"]
    assert any(".exits." in name for name in objective.modules["generator"].state_dict())
    Generator(objective.shape).load_state_dict(objective.trained())


def test_a_cut_run_ends_with_the_same_bits(images, tmp_path, monkeypatch):
    whole, cut, start = (stylegan1(images, TINY) for _ in range(3))
    play(whole, tmp_path / "whole")
    batches = iter([start.batch] * 3)
    with monkeypatch.context() as patch, pytest.raises(StopIteration):
        patch.setattr(start, "batch", lambda rng, count: next(batches)(rng, count))
        play(start, tmp_path / "cut")
    play(cut, tmp_path / "cut")
    generator, synthesis = whole.modules["generator"], whole.modules["generator"].synthesis
    for name, tensor in generator.state_dict().items():
        assert tensor.isfinite().all() and torch.equal(tensor, cut.modules["generator"].state_dict()[name])
    # The exit of 8 px was trained while images had that size, the other afterwards.
    before = stylegan1(images, TINY).modules["generator"].synthesis
    assert not torch.equal(before.exits["8"].weight, synthesis.exits["8"].weight)
    assert not torch.equal(before.torgb.weight, synthesis.torgb.weight)
