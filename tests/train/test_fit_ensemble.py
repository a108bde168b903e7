"""Fitting an ensemble: the same as plain torch for each member, on stripes that differ in color."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from partshot import laws
from partshot.data.shots import Shots
from partshot.errors import BadLabels, BadRecipe
from partshot.heads.ensemble import Ensemble
from partshot.ops.hypercolumn import stack
from partshot.ops.images import as_tensors
from partshot.parts import IGNORE, PartSet
from partshot.pyramid import Pyramid
from partshot.represent.pixels import Pixels
from partshot.train.fit_ensemble import PRESETS, EarlyStopping, FitEnsemble, PixelSampler, fit_ensemble, member_seeds
from partshot.train.fit_head import reset_parameters

PARTS = PartSet.of("background", "red", "blue", "never seen")
COLORS = np.array([[20, 20, 20], [230, 40, 40], [40, 40, 230], [0, 255, 0]], np.uint8)
SIZE = 16
QUICK = FitEnsemble(pixels=64 * 60, patience=None, precision="fp32")


def stripes(count=2, seed=0):
    """Dark noisy images with a red and a blue stripe."""
    rng = np.random.default_rng(seed)
    images, labels = [], []
    for _ in range(count):
        mask = np.zeros((SIZE, SIZE), np.uint8)
        mask[:, rng.integers(0, 4) :][:, :4] = 1
        mask[rng.integers(0, 12) :, :][:4] = 2
        images.append(np.clip(COLORS[mask] + rng.normal(0, 8, (SIZE, SIZE, 3)), 0, 255).astype(np.uint8))
        labels.append(mask)
    return Shots(tuple(images), tuple(labels), tuple(f"stripes-{i}" for i in range(count)), PARTS)


def ensemble(members=3):
    return Ensemble(Pixels().spec.channels, len(PARTS), members)


def fitted(shots=None, recipe=QUICK, head=None, read=None):
    return fit_ensemble(head or ensemble(), Pixels(), shots or stripes(), recipe, SIZE, quiet=True, read=read)


def state_of(head):
    return torch.cat([t.detach().flatten().double() for name, t in head.state_dict().items() if "tracked" not in name])


def accuracy(head, shots):
    with torch.no_grad():
        found = head(Pixels().features(as_tensors(np.stack(shots.images)))).argmax(1).numpy()
    return float((found == np.stack(shots.labels)).mean())


def features_of(shots):
    """[pixels, channels], as in published code."""
    pyramid = Pixels().features(as_tensors(np.stack(shots.images)))
    return stack(pyramid).permute(0, 2, 3, 1).flatten(0, 2)


def plain_training(member, rows, ids, sampler, recipe, steps):
    """The published loop for one member, in plain torch; returns its probabilities for all rows."""
    head = ensemble()
    reset_parameters(head, recipe.seed)
    dense = torch.cat(list(head.first.weights), 1)
    weights = [t.detach().unflatten(0, (3, -1))[member].squeeze().clone() for t in (dense, *head.weights)]
    net = nn.Sequential()
    for place, weight in enumerate(weights):
        layer = nn.Linear(*reversed(weight.shape))
        layer.weight.data, layer.bias.data = weight, torch.zeros(len(weight))
        net.append(layer)
        if place < 2:
            net.append(nn.ReLU()).append(nn.BatchNorm1d(len(weight)))
    optimizer = torch.optim.Adam(net.parameters(), recipe.lr)
    for _ in range(steps):
        chosen = sampler.take(recipe.batch)
        loss = F.cross_entropy(net(rows[chosen]), ids[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return net.eval()(rows).softmax(1)


def test_fitting_all_members_at_once_equals_fitting_each_alone():
    shots, steps = stripes(), 12
    rows, ids = features_of(shots), torch.from_numpy(np.stack(shots.labels)).long().flatten()
    recipe = QUICK.changed(pixels=64 * steps)
    head = fitted(shots, recipe)
    with torch.no_grad():
        found = head.members(Pixels().features(as_tensors(np.stack(shots.images))))
    for member, seed in enumerate(member_seeds(recipe.seed, 3)):
        sampler = PixelSampler(torch.arange(len(ids)), seed)
        expected = plain_training(member, rows, ids, sampler, recipe, steps)
        torch.testing.assert_close(found[member].permute(0, 2, 3, 1).flatten(0, 2), expected, atol=2e-4, rtol=1e-2)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("count", [1, 2])
def test_a_fitted_ensemble_segments_new_images(count, precision):
    head = fitted(stripes(count), QUICK.changed(precision=precision))
    assert not head.training
    assert accuracy(head, stripes(4, seed=9)) > 0.97


def test_fitting_again_gives_the_same_weights():
    head = fitted()
    once = state_of(head)
    torch.manual_seed(5)
    assert torch.equal(state_of(fitted(head=head)), once)
    assert torch.equal(state_of(fitted()), once)
    assert not torch.equal(state_of(fitted(recipe=QUICK.changed(seed=1))), once)


def test_the_laws_of_fitting():
    head = ensemble()

    def fit(shots):
        fitted(shots, head=head)
        return lambda images: list(head(Pixels().features(as_tensors(np.stack(images)))).detach().numpy())

    assert laws.fit_laws(fit, stripes(), stripes(3, seed=9).images) == []


def test_the_number_of_steps_per_chunk_has_no_effect(monkeypatch):
    once = state_of(fitted())
    monkeypatch.setattr("partshot.train.fit_ensemble._CHUNK_BYTES", 1)
    assert torch.equal(state_of(fitted()), once)


def test_the_global_random_state_is_not_changed():
    head, state = ensemble(), torch.get_rng_state()
    fitted(recipe=QUICK.changed(pixels=64), head=head)
    assert torch.equal(torch.get_rng_state(), state)


def test_members_differ():
    members = fitted().members(Pixels().features(as_tensors(np.stack(stripes().images))))
    assert all(not torch.allclose(members[a], members[b], atol=1e-3) for a, b in ((0, 1), (1, 2), (0, 2)))


def test_ignored_pixels_have_no_effect():
    shots = stripes()
    labels = tuple(np.where(np.arange(SIZE) < 8, mask, IGNORE).astype(np.uint8) for mask in shots.labels)
    given = Shots(shots.images, labels, shots.names, PARTS)
    level = torch.randn(2, 5, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    other = level.clone()
    other[..., 8:] = 1e3
    heads = [
        fitted(given, head=Ensemble((5,), len(PARTS), 3), read=Pyramid((m,), (SIZE, SIZE))) for m in (level, other)
    ]
    assert torch.equal(*map(state_of, heads))


def test_precomputed_features_are_not_computed_again(monkeypatch):
    shots = stripes()
    read = Pixels().features(as_tensors(np.stack(shots.images)))
    once = state_of(fitted(shots))
    monkeypatch.setattr(Pixels, "features", lambda *_: pytest.fail("computed"))
    assert torch.equal(state_of(fitted(shots, read=read)), once)
    half = Pyramid(tuple(m.half() for m in read.maps), read.image_size)
    assert torch.isfinite(state_of(fitted(shots, read=half))).all()


def test_one_labeled_pixel_is_enough():
    shots = stripes(1)
    labels = np.full((SIZE, SIZE), IGNORE, np.uint8)
    labels[3, 4] = 2
    head = fitted(Shots(shots.images, (labels,), shots.names, PARTS), QUICK.changed(pixels=640))
    assert torch.isfinite(state_of(head)).all()
    with torch.no_grad():
        assert head(Pixels().features(as_tensors(np.stack(shots.images)))).shape == (1, len(PARTS), SIZE, SIZE)


def test_shots_without_a_labeled_pixel_are_refused():
    shots = stripes(1)
    with pytest.raises(BadLabels, match="all are 255"):
        fitted(Shots(shots.images, (np.full((SIZE, SIZE), IGNORE, np.uint8),), shots.names, PARTS))


def test_a_nonfinite_loss_is_refused_with_a_hint():
    with pytest.raises(BadRecipe, match="lower lr"):
        fitted(recipe=QUICK.changed(lr=1e38))


def published_stop(losses, patience):
    """The published rule for one member, literally: the step after which it stops, or None."""
    best, waited = 1e7, 0
    for step, loss in enumerate(losses):
        if loss < best:
            best, waited = loss, 0
        else:
            waited += 1
        if waited > patience:
            return step
    return None


@pytest.mark.parametrize("patience", [0, 3, 50])
def test_every_member_stops_when_the_published_rule_stops_it(patience):
    rng = np.random.default_rng(0)
    losses = rng.exponential(size=(400, 5)) * np.linspace(1, [1, 0.5, 0.2, 0.02, 0], 400)
    stopping, stopped = EarlyStopping(5, patience), {}
    for step, row in enumerate(losses):
        stopped |= {member: step for member in stopping(row.tolist())}
    expected = {i: published_stop(losses[:, i], patience) for i in range(5)}
    assert stopped == {i: step for i, step in expected.items() if step is not None}
    assert stopping.all_stopped == (len(stopped) == 5)
    assert stopped or patience == 50


def test_without_patience_no_member_stops():
    stopping = EarlyStopping(2, None)
    assert not any(stopping([1.0, 1.0]) for _ in range(100))


def test_the_weights_of_a_stopped_member_do_not_change(monkeypatch):
    # Member 1 stops after the fifth step; the others go on.
    steps, recipe = [], QUICK.changed(min_epochs=0, patience=50, pixels=64 * 20)

    class FifthStep(EarlyStopping):
        def __call__(self, losses):
            steps.append(losses)
            return [1] if len(steps) == 5 else []

    monkeypatch.setattr("partshot.train.fit_ensemble.EarlyStopping", FifthStep)
    whole = fitted(recipe=recipe)
    assert len(steps) == 20
    monkeypatch.undo()
    short, long = fitted(recipe=QUICK.changed(pixels=64 * 5)), fitted(recipe=QUICK.changed(pixels=64 * 20))
    for one, then, now in zip(*(owned(head) for head in (whole, short, long)), strict=True):
        assert torch.equal(one[1], then[1]) and not torch.equal(one[1], now[1])
        assert torch.equal(one[0], now[0]) and torch.equal(one[2], now[2])


def owned(head):
    """Weights and statistics with the members first."""
    state = {k: v for k, v in head.state_dict().items() if not k.startswith(("first.s",)) and "tracked" not in k}
    return [tensor.unflatten(0, (3, -1)) for tensor in state.values()]


def test_a_fit_ends_when_all_members_have_stopped_but_not_before_min_epochs(monkeypatch):
    seen = []
    monkeypatch.setattr(
        EarlyStopping, "__call__", lambda self, losses: seen.append(1) or self.running.clear() or [0, 1, 2]
    )
    # Two images of 256 pixels: an epoch has eight steps, and members may stop in the third epoch.
    head = fitted(recipe=QUICK.changed(min_epochs=2, patience=0))
    monkeypatch.undo()
    assert len(seen) == 1
    assert torch.equal(state_of(head), state_of(fitted(recipe=QUICK.changed(pixels=64 * 17))))


def test_every_pixel_is_sampled_once_per_epoch():
    pixels = torch.arange(10) * 7
    sampler, again = PixelSampler(pixels, 3), PixelSampler(pixels, 3)
    taken = torch.cat([sampler.take(4) for _ in range(5)])
    assert sorted(taken[:10].tolist()) == sorted(taken[10:].tolist()) == pixels.tolist()
    assert torch.equal(again.take(20), taken) and not torch.equal(taken[:10], taken[10:])
    assert not torch.equal(PixelSampler(pixels, 4).take(10), taken[:10])


def test_the_horizon_is_the_smaller_of_epochs_and_pixels():
    assert PRESETS["datasetgan"].horizon(1000) == 100_000
    assert FitEnsemble(epochs=2, pixels=500).horizon(1000) == 500
    assert FitEnsemble(epochs=2, pixels=5000).horizon(1000) == 2000


@pytest.mark.parametrize("name", PRESETS)
def test_presets_can_be_written_and_read_as_toml(name, tmp_path):
    path = tmp_path / "fit.toml"
    path.write_text(PRESETS[name].to_toml())
    assert FitEnsemble.from_toml(path) == PRESETS[name]
