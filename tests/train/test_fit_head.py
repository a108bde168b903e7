"""Fitting a head, on synthetic images that a linear head on pixels can segment."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from partshot.data.augment import PRESETS as AUGMENTS
from partshot.data.shots import Shots
from partshot.errors import BadLabels, BadRecipe
from partshot.heads.cnn import Cnn
from partshot.heads.linear import Linear
from partshot.parts import IGNORE, PartSet
from partshot.represent.pixels import Pixels
from partshot.segmenter import Segmenter
from partshot.train.fit_head import (
    PRESETS,
    SCHEDULES,
    FitHead,
    as_tensors,
    class_weights,
    cross_validate,
    fit_head,
    pixel_loss,
)

PARTS = PartSet.of("background", "left disk", "right disk", "never seen")
COLORS = np.array([[20, 20, 20], [230, 40, 40], [40, 40, 230], [0, 255, 0]], np.uint8)
QUICK = FitHead(epochs=40, lr=0.05, standardize=True)


def disks(count=3, size=24, seed=0):
    """Dark noisy images with a red disk on the left and a blue one on the right."""
    rng = np.random.default_rng(seed)
    images, labels = [], []
    y, x = np.mgrid[:size, :size]
    for _ in range(count):
        mask = np.zeros((size, size), np.uint8)
        for part, left in ((1, 2), (2, 14)):
            cx, cy = rng.integers(left + 3, left + 6), rng.integers(6, 18)
            mask[(x - cx) ** 2 + (y - cy) ** 2 < 12] = part
        images.append(np.clip(COLORS[mask] + rng.normal(0, 8, (size, size, 3)), 0, 255).astype(np.uint8))
        labels.append(mask)
    return Shots(tuple(images), tuple(labels), tuple(f"disks-{i}" for i in range(count)), PARTS)


def linear():
    return Linear(Pixels().spec.channels, len(PARTS))


def small_cnn():
    return Cnn(Pixels().spec.channels, len(PARTS), (1, 1), (8, 8))


def accuracy(head, shots):
    with torch.no_grad():
        found = head(Pixels().features(as_tensors(np.stack(shots.images)))).argmax(1).numpy()
    return float((found == np.stack(shots.labels)).mean())


def weights_of(head):
    return torch.cat([p.detach().flatten() for p in head.parameters()])


@pytest.mark.parametrize("make", [linear, small_cnn])
def test_a_fitted_head_segments_new_images(make):
    head = fit_head(make(), Pixels(), disks(), QUICK, 24)
    assert not head.training
    assert accuracy(head, disks(5, seed=9)) > 0.97


def test_fitting_with_augmentation_segments_new_images():
    recipe = QUICK.changed(epochs=None, images=120, batch=4, augment=AUGMENTS["weak"].changed(flip=False))
    assert accuracy(fit_head(small_cnn(), Pixels(), disks(), recipe, 24), disks(5, seed=9)) > 0.95


@pytest.mark.parametrize("augment", [None, AUGMENTS["strong"]])
def test_fitting_again_gives_the_same_weights(augment):
    recipe = QUICK.changed(epochs=3, augment=augment)
    head = fit_head(small_cnn(), Pixels(), disks(), recipe, 24)
    once = weights_of(head)
    torch.manual_seed(5)
    assert torch.equal(weights_of(fit_head(head, Pixels(), disks(), recipe, 24)), once)
    assert torch.equal(weights_of(fit_head(small_cnn(), Pixels(), disks(), recipe, 24)), once)
    other = fit_head(head, Pixels(), disks(), recipe.changed(seed=1), 24)
    assert not torch.equal(weights_of(other), once)


def test_the_global_random_state_is_not_changed():
    head, state = linear(), torch.get_rng_state()
    fit_head(head, Pixels(), disks(1), QUICK.changed(epochs=1), 24)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("recipe", "shots", "steps"),
    [
        (FitHead(epochs=5), 3, 15),
        (FitHead(epochs=5, batch=2), 3, 8),
        (FitHead(images=12, batch=4), 3, 4),
        (FitHead(images=12, batch=4, augment=AUGMENTS["none"]), 1, 3),
    ],
)
def test_the_horizon_counts_images(recipe, shots, steps):
    head, calls = linear(), []
    forward = head.forward
    head.forward = lambda pyramid: calls.append(pyramid.batch) or forward(pyramid)
    fit_head(head, Pixels(), disks(shots), recipe, 24)
    assert len(calls) == steps
    assert steps * max(calls) >= recipe.horizon(shots) > (steps - 1) * max(calls)


def test_exactly_one_of_images_and_epochs_is_required():
    for settings in ({}, {"images": 5, "epochs": 5}):
        with pytest.raises(BadRecipe, match="either images or epochs"):
            FitHead.parse(settings)


def test_published_schedules():
    assert PRESETS["regan-paper"].horizon(3) == 3000
    tenth, ninth = SCHEDULES["tenth-every-50-epochs"], SCHEDULES["0.9-every-50-epochs"]
    assert [tenth(e, 0) for e in (49, 50, 100)] == pytest.approx([1, 0.1, 0.01])
    assert [ninth(e, 0) for e in (49, 50, 100)] == pytest.approx([1, 0.9, 0.81])
    # GANORCON: the final rate is lr * 0.2^3 * 0.1.
    assert SCHEDULES["cosine-ganorcon"](800, 1) == pytest.approx(0.2**3 * 0.1)
    assert (PRESETS["ganorcon-mlp"].beta1, PRESETS["ganorcon-conv"].lr) == (0.5, 5e-4)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_can_be_written_and_read_as_toml(name, tmp_path):
    path = tmp_path / "fit.toml"
    path.write_text(PRESETS[name].to_toml())
    assert FitHead.from_toml(path) == PRESETS[name]


def test_class_weights_follow_the_power_of_the_counts():
    labels = torch.tensor([[[0] * 16 + [1] * 4 + [IGNORE] * 5]])
    weights = class_weights(labels, 3, 0.5)
    assert float(weights[1] / weights[0]) == pytest.approx(2)
    assert float(weights[2]) == 0
    assert float(16 * weights[0] + 4 * weights[1]) == pytest.approx(20)
    assert torch.equal(class_weights(labels, 3, 0.0)[:2], torch.ones(2))


def test_pixel_loss_is_the_weighted_cross_entropy():
    rng = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(2, 3, 6, 6, generator=rng), torch.randint(0, 3, (2, 6, 6), generator=rng)
    labels[0, 0] = IGNORE
    weights = torch.tensor([0.5, 1.0, 2.0])
    expected = nn.functional.cross_entropy(logits, labels, weights, ignore_index=IGNORE)
    torch.testing.assert_close(pixel_loss(logits, labels, weights), expected)


def test_shots_without_a_labeled_pixel_are_refused():
    shots = disks(1)
    blank = Shots(shots.images, (np.full((24, 24), IGNORE, np.uint8),), shots.names, PARTS)
    with pytest.raises(BadLabels, match="all are 255"):
        fit_head(linear(), Pixels(), blank, QUICK, 24)


def test_a_nonfinite_loss_is_refused_with_a_hint():
    with pytest.raises(BadRecipe, match="lower lr"):
        fit_head(linear(), Pixels(), disks(), QUICK.changed(lr=1e30), 24)


def fit_linear(shots):
    return Segmenter(Pixels(), PARTS, "linear", 24, QUICK).fit(shots, quiet=True)


def test_leave_one_out_counts_every_pixel_of_every_shot_once():
    shots = disks(4)
    pooled = cross_validate(fit_linear, shots)
    assert pooled.sum() == 4 * 24 * 24
    assert np.trace(pooled) > 0.97 * pooled.sum()
    assert cross_validate(fit_linear, shots, folds=2).sum() == pooled.sum()


def test_leave_one_out_never_fits_on_the_shot_it_predicts():
    # In the last of four images red and blue are exchanged: a head fitted to the others must predict it wrongly.
    shots = disks(4)
    odd = np.ascontiguousarray(shots.images[3][..., ::-1])
    shots = Shots((*shots.images[:3], odd), shots.labels, shots.names, PARTS)
    pooled = cross_validate(fit_linear, shots)
    odd_disk = int((shots.labels[3] == 1).sum())
    assert pooled[1, 2] >= odd_disk - 2
    assert pooled[1, 1] >= pooled[1].sum() - odd_disk - 5


def test_leave_one_out_scores_what_the_models_predict():
    class Constant:
        """Predicts part 2 everywhere; fitted to the names of the other shots."""

        def __init__(self, shots):
            seen.append(shots.names)

        def predict(self, images):
            return [SimpleNamespace(labels=np.full(image.shape[:2], 2, np.uint8)) for image in images]

    seen, shots = [], disks(2)
    pooled = cross_validate(Constant, shots)
    assert seen == [("disks-1",), ("disks-0",)]
    assert pooled[:, 2].sum() == pooled.sum() == 2 * 24 * 24


def test_leave_one_out_needs_two_shots():
    with pytest.raises(BadLabels, match="label another"):
        cross_validate(fit_linear, disks(1))
