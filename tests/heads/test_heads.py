"""Compares heads with the same heads implemented on the materialized hypercolumn."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from partshot.catalog import HEADS, lookup
from partshot.errors import BadImage
from partshot.heads import mlp
from partshot.heads.cnn import cnn_l, cnn_m, cnn_s
from partshot.heads.linear import Linear
from partshot.heads.mlp import Mlp, NormedMlp
from partshot.heads.unet import ConvHead
from partshot.nets.unet import ReganUNet
from partshot.ops.hypercolumn import stack
from partshot.pyramid import Pyramid

SHAPES = [(5, 32, 32), (3, 16, 16), (7, 16, 16), (4, 8, 8), (6, 2, 2)]
CHANNELS = tuple(c for c, _, _ in SHAPES)


def make_pyramid(batch=1, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return Pyramid(tuple(torch.randn(batch, c, h, w, generator=rng) * 2 + 0.5 for c, h, w in SHAPES), (32, 32))


def dense(layer: Linear) -> torch.Tensor:
    weights, _ = layer.folded()
    return torch.cat([w for w in weights], 1)[:, :, None, None]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def test_linear_equals_a_convolution_of_the_stack():
    head, pyramid = Linear(CHANNELS, 4), make_pyramid(2)
    torch.testing.assert_close(head(pyramid), F.conv2d(stack(pyramid), dense(head), head.bias), atol=1e-5, rtol=1e-5)


def test_standardization_is_folded_into_the_weights_exactly():
    head, pyramid = Linear(CHANNELS, 4), make_pyramid(2)
    head.standardize(pyramid)
    normal = Pyramid(
        tuple((m - m.mean((0, 2, 3), True)) / m.std((0, 2, 3), keepdim=True, correction=0) for m in pyramid.maps),
        pyramid.image_size,
    )
    plain = torch.cat(list(head.weights), 1)[:, :, None, None]
    torch.testing.assert_close(head(pyramid), F.conv2d(stack(normal), plain, head.bias), atol=1e-4, rtol=1e-4)


def test_channels_with_a_shared_scale_keep_their_relative_deviations():
    wide = (
        torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        * torch.tensor([4.0, 1.0, 0.1])[:, None, None]
    )
    pyramid = Pyramid((wide, wide), (8, 8))
    head = Linear((3, 3), 2)
    head.standardize(pyramid, (True, False))
    shared, separate = (
        ((level - getattr(head, f"shift_{i}")[:, None, None]) * getattr(head, f"scale_{i}")[:, None, None])
        for i, level in enumerate(pyramid.maps)
    )
    own = wide.std((0, 2, 3), correction=0)
    torch.testing.assert_close(shared.std((0, 2, 3), correction=0), own / own.max())
    torch.testing.assert_close(separate.std((0, 2, 3), correction=0), torch.ones(3))
    torch.testing.assert_close(shared.mean((0, 2, 3)), torch.zeros(3), atol=1e-6, rtol=0)


def test_standardizing_constant_channels_stays_finite():
    maps = torch.cat([torch.randn(1, 2, 8, 8), torch.full((1, 1, 8, 8), 3.0)], 1)
    head = Linear((3,), 2)
    head.standardize(Pyramid((maps,), (8, 8)))
    assert float(head.scale_0[2]) <= 100 / float(maps[:, :2].std() * 0.5)
    assert torch.isfinite(head(Pyramid((maps,), (8, 8)))).all()


@pytest.mark.parametrize("hidden", [(7,), (600, 9)])
def test_sliced_mlp_equals_the_unsliced_one(hidden):
    head, pyramid = Mlp(CHANNELS, 4, hidden), make_pyramid()
    x = F.conv2d(stack(pyramid), dense(head.first), head.first.bias)
    for layer in head.rest:
        x = layer(F.relu(x))
    torch.testing.assert_close(head(pyramid), x, atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(head(pyramid), x.detach(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kept", [mlp.KEPT, 0])
def test_gradients_of_the_sliced_mlp_are_correct(kept, monkeypatch):
    monkeypatch.setattr(mlp, "KEPT", kept)
    head, pyramid = Mlp(CHANNELS, 4, (600, 9)), make_pyramid()
    head(pyramid).square().mean().backward()
    sliced = [p.grad.clone() for p in head.parameters()]
    head.zero_grad()
    x = F.conv2d(stack(pyramid), dense(head.first), head.first.bias)
    for layer in head.rest:
        x = layer(F.relu(x))
    x.square().mean().backward()
    for a, b in zip(sliced, head.parameters(), strict=True):
        torch.testing.assert_close(a, b.grad, atol=1e-5, rtol=1e-3)


def test_the_published_mlps_have_the_published_widths():
    assert [p.shape[0] for p in NormedMlp(CHANNELS, 34).parameters() if p.ndim > 1][-2:] == [256, 34]
    regan = lookup(HEADS, "mlp-2", "head")(CHANNELS, 10)
    assert [m.weight.shape[:2] for m in regan.rest] == [(200, 2000), (10, 200)]
    assert all(p.ndim > 1 or "norm" in n or n.startswith("rest.") for n, p in NormedMlp((3,), 2).named_parameters())


def test_cnn_l_is_regans():
    head = cnn_l(CHANNELS, 10)
    assert head.first.weights[0].shape[0] == 128
    assert [m.dilation[0] for m in head.rest] == [2, 4, 8, 1, 2, 4, 8, 1]
    assert [m.out_channels for m in head.rest] == [64] * 6 + [32, 10]
    x = F.conv2d(stack(make_pyramid()), dense(head.first), head.first.bias)
    for layer in head.rest:
        x = F.conv2d(F.leaky_relu(x, 0.01), layer.weight, layer.bias, padding=layer.dilation, dilation=layer.dilation)
    torch.testing.assert_close(head(make_pyramid()), x, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("make", "reach"), [(cnn_s, 6), (cnn_m, 14), (cnn_l, 30), (Linear, 0)])
def test_reach_is_the_receptive_field_of_a_head(make, reach):
    head = make((2,), 3)
    assert head.reach == reach
    images = torch.zeros(1, 2, 1, 71, requires_grad=True)
    head(Pyramid((images,), (1, 71)))[0, :, 0, 35].sum().backward()
    used = images.grad[0].abs().sum((0, 1)).nonzero()[:, 0]
    assert (int(used.min()), int(used.max())) == (35 - reach, 35 + reach)


def test_convs_first_layer_is_a_3x3_convolution_of_the_hypercolumn():
    head, pyramid = ConvHead(CHANNELS, 3).eval(), make_pyramid()
    head.body = nn.Identity()
    kernel = torch.cat([torch.stack([t.weights[i] for t in head.taps], -1) for i in range(len(CHANNELS))], 1)
    x = F.conv2d(stack(pyramid), kernel.unflatten(-1, (3, 3)), padding=1)
    with torch.no_grad():
        torch.testing.assert_close(head(pyramid), F.relu(head.norm(x)), atol=1e-4, rtol=1e-4)


def test_convs_body_has_the_published_widths():
    body = ConvHead((3,), 34).body
    assert [b[0].out_channels for b in body.down] == [256, 256, 256, 512, 512]
    assert [(b[0].in_channels, b[0].out_channels) for b in body.up] == [
        (1024, 256), (512, 256), (512, 128), (384, 256), (1280, 256)
    ]  # fmt: skip
    # He by fan-in: deviation sqrt(2 / (9 * 1024)).
    assert float(body.down[0][0].weight.std()) == pytest.approx((2 / (9 * 1024)) ** 0.5, rel=0.02)


def test_conv_rejects_images_too_small_for_five_downsampling_steps():
    with pytest.raises(BadImage, match="use 32 or more"):
        ConvHead((3,), 2)(Pyramid((torch.zeros(1, 3, 16, 16),), (16, 16)))


@pytest.mark.parametrize("size", [(16, 16), (37, 50)])
def test_regans_unet_applies_its_last_layer_at_any_size(size):
    net = ReganUNet(7).eval()
    with torch.no_grad():
        logits = net(torch.randn(1, 3, *size))
    assert logits.shape == (1, 7, *size)


def test_regans_unet_has_the_published_widths():
    net = ReganUNet(7)
    assert [b[-2].num_features for b in net.down] + [net.bottom[-2].num_features] == [64, 128, 256, 512, 512]
    assert [b[-2].num_features for b in net.up] == [256, 128, 64, 64]
    # 17.3 million parameters, as known for the bilinear variant.
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(17.27e6, rel=0.01)
