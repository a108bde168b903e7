"""Lazy hypercolumn operations against the materialized hypercolumn."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from partshot.errors import BadRecipe
from partshot.ops.hypercolumn import at_pixels, project, resize, stack
from partshot.pyramid import Pyramid

SHAPES = [(3, 70, 50), (4, 48, 40), (5, 48, 40), (6, 24, 20), (7, 12, 10), (8, 12, 10), (2, 3, 3), (9, 1, 1)]


def make_pyramid(shapes=SHAPES, image_size=(48, 40), batch=2, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return Pyramid(tuple(torch.randn(batch, c, h, w, generator=rng) for c, h, w in shapes), image_size)


def make_weights(pyramid, outputs=11, seed=1):
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(outputs, c, generator=rng) * 0.3 for c in pyramid.channels]


def materialized(pyramid, weights, bias):
    return F.conv2d(stack(pyramid), torch.cat(list(weights), 1)[:, :, None, None], bias)


@pytest.mark.parametrize("image_size", [(48, 40), (96, 33), (17, 40), (1, 1)])
def test_projecting_lazily_equals_the_materialized_convolution(image_size):
    pyramid = make_pyramid(image_size=image_size)
    weights, bias = make_weights(pyramid), torch.linspace(-1, 1, 11)
    with torch.no_grad():
        lazy = project(pyramid, weights, bias)
    expected = materialized(pyramid, weights, bias)
    assert lazy.shape == expected.shape
    torch.testing.assert_close(lazy, expected, atol=1e-5, rtol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=5),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_any_shapes_agree(shapes, image_size):
    pyramid = make_pyramid(sorted(shapes, key=lambda s: -s[1] * s[2]), image_size, batch=1)
    weights = make_weights(pyramid, outputs=3)
    torch.testing.assert_close(project(pyramid, weights), materialized(pyramid, weights, None), atol=1e-5, rtol=1e-4)


def test_both_memory_formats_give_equal_results():
    pyramid = make_pyramid()
    weights = make_weights(pyramid)
    last = Pyramid(tuple(m.contiguous(memory_format=torch.channels_last) for m in pyramid.maps), pyramid.image_size)
    torch.testing.assert_close(project(pyramid, weights), project(last, weights), atol=1e-5, rtol=1e-5)


def test_gradients_equal_those_through_the_materialized_stack():
    shapes = [(3, 32, 32), (4, 32, 32), (5, 16, 16), (6, 4, 4), (2, 2, 2)]
    found = []
    for function in (project, materialized):
        pyramid = make_pyramid(shapes, (32, 32))
        weights, bias = make_weights(pyramid), torch.zeros(11)
        leaves = [*weights, bias, *pyramid.maps]
        for leaf in leaves:
            leaf.requires_grad_()
        function(pyramid, weights, bias).square().mean().backward()
        found.append([leaf.grad for leaf in leaves])
    for lazy, dense in zip(*found, strict=True):
        torch.testing.assert_close(lazy, dense, atol=1e-5, rtol=1e-4)


def test_maps_and_weights_are_not_modified():
    pyramid = make_pyramid(SHAPES[1:])
    weights, before = make_weights(pyramid), [m.clone() for m in make_pyramid(SHAPES[1:]).maps]
    with torch.no_grad():
        first, second = project(pyramid, weights), project(pyramid, weights)
    assert torch.equal(first, second)
    assert all(torch.equal(a, b) for a, b in zip(pyramid.maps, before, strict=True))


def test_autocast_gives_bfloat16_near_the_exact_result():
    pyramid = make_pyramid()
    weights = make_weights(pyramid)
    with torch.autocast("cpu", torch.bfloat16):
        low = project(pyramid.to(torch.bfloat16), weights)
    assert low.dtype == torch.bfloat16
    exact = project(pyramid, weights)
    assert (low.float() - exact).abs().max() < 0.03 * exact.abs().max()


def test_weights_of_wrong_shape_are_refused():
    pyramid = make_pyramid()
    with pytest.raises(BadRecipe, match="do not fit maps"):
        project(pyramid, make_weights(pyramid)[:-1])


@pytest.mark.parametrize("image_size", [(48, 40), (20, 90)])
def test_at_pixels_equals_indexing_the_stack(image_size):
    pyramid = make_pyramid(image_size=image_size)
    rng = torch.Generator().manual_seed(2)
    index = torch.randint(0, 2, (200,), generator=rng)
    rows = torch.randint(0, image_size[0], (200,), generator=rng)
    columns = torch.randint(0, image_size[1], (200,), generator=rng)
    torch.testing.assert_close(
        at_pixels(pyramid, index, rows, columns), stack(pyramid)[index, :, rows, columns], atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 0.01), (torch.bfloat16, 0.06)])
def test_at_pixels_in_half_precision_only_rounds(dtype, tolerance):
    pyramid = make_pyramid()
    half = pyramid.to(dtype, memory_format=torch.channels_last)
    at = torch.randint(0, 2, (50,)), torch.randint(0, 48, (50,)), torch.randint(0, 40, (50,))
    found = at_pixels(half, *at)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), at_pixels(pyramid, *at), atol=tolerance, rtol=0)


def test_resizing_averages_when_shrinking_and_interpolates_when_growing():
    level = torch.arange(16.0).view(1, 1, 4, 4)
    assert torch.equal(resize(level, (2, 2)), F.avg_pool2d(level, 2))
    assert torch.equal(resize(level, (8, 8)), F.interpolate(level, scale_factor=2, mode="bilinear"))
    tall = resize(level, (8, 2))
    assert tall.shape == (1, 1, 8, 2)
    torch.testing.assert_close(tall[0, 0, 0], torch.tensor([0.5, 2.5]))
