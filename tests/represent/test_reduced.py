"""Principal components of any maps: fitted to images, with a shared scale, and combined with other wrappers."""

import numpy as np
import pytest
import torch

from partshot.errors import BadRecipe
from partshot.represent.cache import Store
from partshot.represent.choose import cached, open_representation, reduced_on, working_size
from partshot.represent.concatenated import Several
from partshot.represent.levels import Levels
from partshot.represent.pixels import Pixels
from partshot.represent.position import Positioned
from partshot.represent.reduced import PrincipalComponents, Reduced
from partshot.represent.stylegan import load_stylegan


def images(count=4, side=32):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_components_are_those_of_the_covariance_matrix():
    points = torch.randn(500, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([5, 3, 1, 1, 0.5, 0.1])
    found = PrincipalComponents(6, 2)
    found.fit(points, standardized=False)
    given = found(points.T[None, :, :, None])[0, :, :, 0].T
    centered = (points - points.mean(0)).double()
    u, s, _ = torch.linalg.svd(centered, full_matrices=False)
    expected = u[:, :2] * s[:2] / s[0] * len(points) ** 0.5
    torch.testing.assert_close(given.double().abs(), expected.abs(), atol=1e-4, rtol=1e-4)


def test_the_fingerprint_depends_on_the_images():
    whole = open_representation("random[4-8]+position")
    one, other = reduced_on(whole, images()), reduced_on(whole, images().flip(0) * 0.5)
    assert one.spec.shared_scale == (False, True, True) and one.spec.channels == (5, 64, 64)
    assert one.spec.fingerprint == reduced_on(whole, images()).spec.fingerprint != other.spec.fingerprint
    assert reduced_on(one.representation, images(2)) is one.representation


def test_the_store_holds_features_before_the_reduction(tmp_path):
    plain = reduced_on(open_representation("random"), images(), 4)
    store = Store(tmp_path / "store")
    kept = cached(plain, store)
    assert kept.spec == plain.spec
    for a, b in zip(plain.features(images()).maps, kept.features(images()).maps, strict=True):
        torch.testing.assert_close(a, b, atol=1e-2, rtol=1e-2)
    cached(reduced_on(open_representation("random"), images(2), 3), store).features(images())
    assert store.extracted == store.found == 4


def test_the_order_of_wrappers_is_checked():
    with pytest.raises(BadRecipe, match="then add positions"):
        Reduced(Positioned(Pixels()))
    with pytest.raises(BadRecipe, match="select levels before"):
        Levels(Reduced(Pixels()), 1, 4)
    with pytest.raises(BadRecipe, match="must not be wrapped"):
        Several([Reduced(Pixels()), Pixels()])


def test_a_reduced_generator_is_a_generator():
    generator = load_stylegan()
    found = reduced_on(generator, images(3), 4)
    latents = found.sample([5])
    generated, pyramid = found.synthesize(latents)
    assert torch.equal(generated, generator.synthesize(generator.sample([5]))[0])
    assert pyramid.channels == found.spec.channels and set(pyramid.channels) == {4}


@pytest.mark.parametrize(("name", "side"), [("random", 128), ("random[2-4]+position", 128), ("pixels", 128)])
def test_the_working_size_gives_a_coarsest_map_of_eight_pixels(name, side):
    found = open_representation(name)
    assert working_size(found) == working_size(reduced_on(found, images())) == side


def test_the_working_size_of_a_transformer_gives_32_tokens():
    tokens = open_representation("timm:test_vit")
    assert np.unique(tokens.spec.strides).tolist() == [16] and working_size(tokens) == 512
