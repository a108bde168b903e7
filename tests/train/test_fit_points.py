"""Fitting to points: the laws of fitting, which heads can be fitted, and that unlabeled pixels are not sampled."""

import dataclasses

import numpy as np
import pytest
import torch

from partshot import laws
from partshot.errors import BadLabels, BadRecipe
from partshot.heads.cnn import cnn_s
from partshot.heads.linear import Linear
from partshot.heads.mlp import mlp_s
from partshot.ops.images import as_tensors
from partshot.parts import IGNORE
from partshot.represent.pixels import Pixels
from partshot.represent.position import Positioned
from partshot.represent.reduced import Reduced
from partshot.represent.stylegan import load_stylegan
from partshot.segmenter import Segmenter
from partshot.tasks.sample import embedded_shots, latents_of_names
from partshot.toy.dataset import toy_shots
from partshot.train.fit_points import FitPoints, fit_points

RECIPE = FitPoints(views=2, points=256, steps=40, batch=256)
SIZE = 32
FEATURES = Positioned(Pixels())


def fitted(shots, recipe=RECIPE, make=mlp_s):
    return fit_points(make(FEATURES.spec.channels, len(shots.parts)), FEATURES, shots, recipe, SIZE, quiet=True)


def scores(head, images):
    with torch.no_grad():
        return list(head(FEATURES.features(as_tensors(np.stack(images)))).numpy())


@pytest.fixture(scope="module")
def shots():
    return toy_shots("faces", SIZE, 2)


def test_the_laws_of_fitting(shots):
    def fit(given):
        head = fitted(given)
        return lambda images: scores(head, images)

    assert laws.fit_laws(fit, shots, shots.images) == []


def test_a_fitted_head_predicts_the_shots(shots):
    head = fitted(shots, RECIPE.changed(steps=200))
    found = [answer.argmax(0) for answer in scores(head, shots.images)]
    assert np.mean([(a == b).mean() for a, b in zip(found, shots.labels, strict=True)]) > 0.8


def test_precomputed_features_give_the_same_result(shots):
    features = FEATURES.features(as_tensors(shots.stack(SIZE)[0]))
    recipe = RECIPE.changed(views=0, precision="fp32")
    again = mlp_s(FEATURES.spec.channels, len(shots.parts))
    fit_points(again, FEATURES, shots, recipe, SIZE, quiet=True, read=features)
    pairs = zip(scores(fitted(shots, recipe), shots.images), scores(again, shots.images), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)


def test_unlabeled_pixels_are_not_sampled(shots):
    some = [labels.copy() for labels in shots.labels]
    for labels in some:
        labels[:, ::2] = IGNORE
    few = dataclasses.replace(shots, labels=tuple(some))
    assert len(few.present()) == len(shots.present())
    fitted(few)
    none = dataclasses.replace(shots, labels=tuple(np.full_like(labels, IGNORE) for labels in some))
    with pytest.raises(BadLabels, match="no pixel of the shots is labeled"):
        fitted(none)


def test_heads_that_are_not_per_pixel_are_refused(shots):
    with pytest.raises(BadRecipe, match="not a per-pixel head"):
        fitted(shots, make=cnn_s)


def test_a_too_high_learning_rate_is_refused(shots):
    with pytest.raises(BadRecipe, match="lower lr"):
        fitted(shots, RECIPE.changed(lr=1e30), Linear)


@pytest.mark.parametrize("head", ["mlp-pair", "mlp-s", "linear"])
def test_a_segmenter_fitted_to_points_can_be_saved_and_loaded(shots, tmp_path, head):
    first = Segmenter(FEATURES, shots.parts, head, SIZE, RECIPE).fit(shots, quiet=True)
    second = Segmenter.load(first.save(tmp_path / "saved"))
    assert second.recipe == RECIPE and second.fitted == first.fitted
    images = toy_shots("faces", 40, 1).images
    (a,), (b,) = first.predict(images), second.predict(images)
    assert a.labels.shape == (40, 40) and np.array_equal(a.probabilities, b.probabilities)
    stack = np.stack(images)
    assert torch.equal(first.soft_labels(stack).probabilities, second.soft_labels(stack).probabilities)


def test_a_head_can_be_fitted_to_principal_components_of_a_generator(tmp_path):
    generator, faces = load_stylegan(), embedded_shots().subset(range(2))
    latents = latents_of_names(generator, faces)
    reduced = Reduced(generator, 4).fit_generated(range(4))
    recipe = RECIPE.changed(steps=200)
    first = Segmenter(reduced, faces.parts, "mlp-pair", generator.size, recipe).fit(faces, quiet=True, latents=latents)
    second = Segmenter.load(first.save(tmp_path / "saved"))
    assert second.representation.spec == reduced.spec
    found, again = (one.predict(faces.images, latents) for one in (first, second))
    assert np.mean([(a.labels == b).mean() for a, b in zip(found, faces.labels, strict=True)]) > 0.8
    assert all(np.array_equal(a.probabilities, b.probabilities) for a, b in zip(found, again, strict=True))
