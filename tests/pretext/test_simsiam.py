"""SimSiam: its loss, its schedule, and that it does not collapse."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision

from partshot.errors import BadRecipe
from partshot.pretext.simsiam import PRESETS, SimSiam, SimSiamRecipe
from partshot.pretext.view_pairs import normalize
from partshot.train.journal import read_journal
from partshot.train.loop import LoopRecipe, run_loop

TINY = PRESETS["small-folder"].changed(size=32, view=1.0, kimg=0.04, batch=8, width=32)


@pytest.fixture(scope="module")
def images():
    """Random color blocks."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (10, 4, 4, 3), dtype=np.uint8)
    return np.kron(coarse, np.ones((1, 8, 8, 1), np.uint8))


def batch_of(objective, seed=0):
    return objective.batch(torch.Generator().manual_seed(seed), 8)


@pytest.mark.parametrize("dense", [0.0, 0.5])
def test_a_short_training_lowers_the_loss_and_does_not_collapse(images, tmp_path, dense):
    objective = SimSiam(images, TINY.changed(dense=dense, lr=0.5))
    before = {name: tensor.clone() for name, tensor in objective.trained().items()}

    run_loop(objective, LoopRecipe(kimg=TINY.kimg, batch=8), tmp_path, "tiny", "f", journal_every=1, quiet=True)

    lines = read_journal(tmp_path / "journal.jsonl")
    assert len(lines) == 5
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert all(line["spread"] > 0.3 for line in lines)
    assert not torch.equal(before["layer1.0.conv1.weight"], objective.trained()["layer1.0.conv1.weight"])


def test_the_loss_is_equation_one_with_stopped_gradients(images):
    objective = SimSiam(images, TINY.changed(dense=0))
    views = batch_of(objective)
    nets = objective.modules
    z1, z2 = (nets["projector"](nets["trunk"](normalize(v))[-1].mean((2, 3))) for v in (views.first, views.second))
    p1, p2 = nets["predictor"](z1), nets["predictor"](z2)
    agreement = (F.normalize(p1) * F.normalize(z2) + F.normalize(p2) * F.normalize(z1)).sum(1).mean()

    torch.testing.assert_close(objective.loss(views), -agreement / 2)

    # With a zero predictor the trunk gets no gradient, because the other branch has a stop-gradient.
    for parameter in nets["predictor"].parameters():
        parameter.data.zero_()
    objective.loss(views).backward()
    assert all(p.grad is None or not p.grad.any() for p in nets["trunk"].parameters())


def test_the_dense_loss_is_added_with_its_weight(images):
    plain, dense, denser = (SimSiam(images, TINY.changed(dense=weight)) for weight in (0, 0.5, 1.5))
    views = batch_of(plain)
    at_0, at_half, at_1_5 = (objective.loss(views).item() for objective in (plain, dense, denser))
    assert at_0 != at_half
    assert at_1_5 - at_0 == pytest.approx(3 * (at_half - at_0), abs=1e-4)
    assert not any(name.startswith("dense") for name in plain.modules)


def test_the_learning_rate_of_predictors_is_constant(images):
    objective = SimSiam(images, TINY)
    objective.prepare(0.5)
    others, predictors = (group["lr"] for group in objective.optimizer.param_groups)
    assert predictors == pytest.approx(0.05 * 8 / 256)
    assert others == pytest.approx(predictors / 2)
    counted = sum(p.numel() for g in objective.optimizer.param_groups for p in g["params"])
    assert counted == sum(p.numel() for m in objective.modules.values() for p in m.parameters())


def test_trained_weights_have_torchvisions_names(images):
    names = set(torchvision.models.resnet18().state_dict())
    assert set(SimSiam(images, TINY).trained()) == {n for n in names if not n.startswith("fc.")}


def test_initial_weights_depend_on_the_seed(images):
    one, same, other = (SimSiam(images, TINY, seed).trained()["conv1.weight"] for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_can_be_written_and_read(name, tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(PRESETS[name].to_toml())
    assert type(PRESETS[name]).from_toml(path) == PRESETS[name]
    assert math.isclose(PRESETS["simsiam-paper"].view * PRESETS["simsiam-paper"].size, 224)


@pytest.mark.parametrize("wrong", [{"batch": 1}, {"size": 8}, {"kimg": 0}, {"min_scale": 0}, {"wide": 3}])
def test_invalid_settings_are_refused(wrong):
    with pytest.raises(BadRecipe, match=next(iter(wrong))):
        TINY.changed(**wrong)


def test_old_names_of_settings_are_read():
    old = {"size": 128, "view": 0.75, "kimg": 40, "batch": 32, "rate": 0.1, "decay": 1e-3, "smallest": 0.3}
    recipe = SimSiamRecipe.parse(old)
    assert (recipe.lr, recipe.weight_decay, recipe.min_scale) == (0.1, 1e-3, 0.3)
    assert PRESETS["small-folder"].fingerprint == "68c893886808"
