"""StyleGAN2's layers against their definitions, and its names and sizes against the official checkpoints."""

import math

import pytest
import torch
import torch.nn.functional as F

from partshot.errors import BadRecipe
from partshot.nets.stylegan import Shape, shape_of
from partshot.nets.stylegan2 import Discriminator, Generator, minibatch_stddev, modulated_conv
from partshot.ops.fir import downsample, smooth, upsample

TINY = Shape(resolution=16, z_dim=8, w_dim=12, mapping_layers=2, channel_base=64, channel_max=8)


@pytest.fixture
def generator():
    torch.manual_seed(0)
    return Generator(TINY).eval()


def latents(generator, count=3, seed=1):
    z = torch.randn(count, generator.shape.z_dim, generator=torch.Generator().manual_seed(seed))
    return generator.mapping.broadcast(generator.mapping(z))


def noise_of(generator, count, seed=2):
    rng = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(count, 1, side, side, generator=rng) for side in generator.layers)


@pytest.mark.parametrize("up", [False, True])
def test_demodulation_equals_its_definition(up):
    """Weights scaled per image and normalize per output, one convolution each (section 2.2, equations 1 and 3)."""
    torch.manual_seed(0)
    x, weight, styles = torch.randn(3, 5, 6, 6), torch.randn(4, 5, 3, 3), torch.randn(3, 5)
    ours = modulated_conv(x, weight, styles, up=up)
    for one, style, found in zip(x, styles, ours, strict=True):
        scaled = weight * style[None, :, None, None]
        scaled = scaled / (scaled.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        if up:
            expected = smooth(F.conv_transpose2d(one[None], scaled.transpose(0, 1), stride=2), 1, gain=4.0)
        else:
            expected = F.conv2d(one[None], scaled, padding=1)
        torch.testing.assert_close(found, expected[0], atol=1e-5, rtol=1e-5)


def test_modulation_without_demodulation():
    x, weight, styles = torch.randn(2, 5, 6, 6), torch.randn(3, 5, 1, 1), torch.randn(2, 5)
    expected = torch.einsum("oi,bi,bihw->bohw", weight[:, :, 0, 0], styles, x)
    torch.testing.assert_close(modulated_conv(x, weight, styles, demodulate=False), expected, atol=1e-5, rtol=1e-5)


def test_mapping_normalization_and_truncation(generator):
    z = torch.randn(4, 8)
    w = generator.mapping(z)
    torch.testing.assert_close(generator.mapping(z * 7), w)
    x = z / z.square().mean(1, keepdim=True).sqrt()
    for i in range(2):
        layer = getattr(generator.mapping, f"fc{i}")
        x = F.linear(x, layer.weight * 0.01 / math.sqrt(x.shape[1]), layer.bias * 0.01)
        x = F.leaky_relu(x, 0.2) * math.sqrt(2)
    torch.testing.assert_close(w, x, atol=1e-5, rtol=1e-5)
    generator.mapping.w_avg.fill_(0.25)
    ws = generator.mapping.broadcast(w, psi=0.5, cutoff=2)
    assert ws.shape == (4, generator.num_ws, 12)
    torch.testing.assert_close(ws[:, 0], 0.25 + (w - 0.25) * 0.5)
    torch.testing.assert_close(ws[:, 1], ws[:, 0])
    torch.testing.assert_close(ws[:, 2], w)


def test_results_do_not_depend_on_the_batch(generator):
    ws, noise = latents(generator), noise_of(generator, 3)
    for name in ("b4.conv1", "b16.conv1"):
        generator.synthesis.get_submodule(name).noise_strength.data.fill_(0.3)
    with torch.no_grad():
        images, maps = generator.synthesis(ws, noise)
        again, maps_again = generator.synthesis(ws, noise)
        alone, maps_alone = generator.synthesis(ws[1:2], tuple(n[1:2] for n in noise))
        other, _ = generator.synthesis(ws, noise_of(generator, 3, seed=3))
    assert torch.equal(images, again) and all(map(torch.equal, maps, maps_again))
    torch.testing.assert_close(alone[0], images[1], atol=1e-5, rtol=1e-5)
    for whole, one in zip(maps, maps_alone, strict=True):
        torch.testing.assert_close(one[0], whole[1], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(images, other)


def test_levels_are_those_of_regan(generator):
    images, maps = generator.synthesis(latents(generator))
    assert images.shape == (3, 3, 16, 16)
    assert [tuple(m.shape[1:]) for m in maps] == [(8, 4, 4), (8, 8, 8), (8, 8, 8), (4, 16, 16), (4, 16, 16)]
    assert generator.layers == (4, 8, 8, 16, 16) and generator.num_ws == 6
    # 5,056 dimensions: all convolutions from 8 to 1024 px, as in ReGAN's code.
    with torch.device("meta"):
        large = Generator(shape_of("config-f", 1024))
    assert sum(large.shape.channels(side) for side in large.layers[1:]) == 5056 and large.num_ws == 18


def test_raw_maps_are_the_outputs_of_the_convolutions(generator):
    """Before noise, bias and activation, with weights modulated and demodulated for each image."""
    ws, noise = latents(generator), noise_of(generator, 3)
    for name, parameter in generator.synthesis.named_parameters():
        if name.endswith(("noise_strength", "conv0.bias", "conv1.bias")):
            torch.nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():
        images, maps = generator.synthesis(ws, noise)
        same, found = generator.synthesis(ws, noise, raw=True)
    assert torch.equal(same, images) and len(found) == 10 and all(map(torch.equal, maps, found))
    for layer, name in ((2, "b8.conv1"), (4, "b16.conv1")):
        conv = generator.synthesis.get_submodule(name)
        for b in range(3):
            weight = conv.weight * conv.affine(ws[:, layer])[b, :, None, None]
            weight = weight / (weight.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
            plain = F.conv2d(maps[layer - 1][b], weight, padding=1)
            torch.testing.assert_close(found[5 + layer][b], plain, atol=1e-5, rtol=1e-4)
            expected = plain + conv.bias[:, None, None] + conv.noise_strength * noise[layer][b]
            torch.testing.assert_close(maps[layer][b], F.leaky_relu(expected, 0.2) * math.sqrt(2), atol=1e-5, rtol=1e-4)


def test_parameter_counts_are_the_official_ones():
    """30.0 and 24.8 million for 256 px (StyleGAN2-ADA's own summaries)."""
    with torch.device("meta"):
        counts = {
            (net, kind): sum(p.numel() for p in kind(shape_of(net, 256)).parameters())
            for net in ("config-f", "half")
            for kind in (Generator, Discriminator)
        }
    assert [round(n / 1e6, 2) for n in counts.values()] == [30.03, 28.86, 24.77, 24.0]


def test_weight_names_are_the_official_ones(generator):
    names = set(generator.state_dict())
    assert {"mapping.fc0.weight", "mapping.fc1.bias", "mapping.w_avg", "synthesis.b4.const"} < names
    for layer in ("b4.conv1", "b8.conv0", "b8.conv1", "b16.conv0"):
        for part in ("weight", "bias", "affine.weight", "affine.bias", "noise_strength", "noise_const"):
            assert f"synthesis.{layer}.{part}" in names
    assert {"synthesis.b8.torgb.weight", "synthesis.b8.torgb.bias", "synthesis.b8.torgb.affine.weight"} < names
    state = generator.state_dict()
    assert state["synthesis.b4.const"].shape == (8, 4, 4) and state["synthesis.b8.torgb.weight"].shape == (3, 8, 1, 1)
    assert state["synthesis.b4.conv1.noise_strength"].shape == ()
    discriminator = set(Discriminator(TINY).state_dict())
    assert {
        "b16.fromrgb.weight",
        "b16.conv0.bias",
        "b16.conv1.weight",
        "b16.skip.weight",
        "b4.conv.weight",
    } < discriminator
    assert {"b4.fc.weight", "b4.out.bias"} < discriminator
    assert "b8.fromrgb.weight" not in discriminator and "b16.skip.bias" not in discriminator


def test_fade_in_starts_from_the_upsampled_image(generator):
    ws = latents(generator)
    with torch.no_grad():
        coarse, maps = generator.synthesis(ws, resolution=8)
        fading, _ = generator.synthesis(ws, resolution=16, fade=0.0)
        whole, _ = generator.synthesis(ws)
        assert coarse.shape[2] == 8 and len(maps) == 3
        torch.testing.assert_close(fading, upsample(coarse))
        assert not torch.allclose(fading, whole)
        discriminator = Discriminator(TINY, entries=(8,)).eval()
        # With fade = 0 the last block is bypassed.
        torch.testing.assert_close(discriminator(whole, fade=0.0), discriminator(downsample(whole)))
        assert not torch.allclose(discriminator(whole, fade=0.5), discriminator(whole))
        assert discriminator(coarse).shape == (3,)
    with pytest.raises(AttributeError):
        Discriminator(TINY)(coarse)


def test_minibatch_stddev_is_zero_for_identical_images():
    same = torch.randn(1, 3, 4, 4).expand(8, -1, -1, -1)
    assert float(minibatch_stddev(same).max()) < 2e-4
    varied = torch.randn(8, 3, 4, 4)
    found = minibatch_stddev(varied)
    assert found.shape == (8, 1, 4, 4)
    group = varied[[0, 2, 4, 6]]
    expected = (group.var(0, unbiased=False) + 1e-8).sqrt().mean()
    torch.testing.assert_close(found[0, 0, 0, 0], expected)
    assert minibatch_stddev(varied[:7]).shape == (7, 1, 4, 4)


def test_a_resolution_that_is_not_a_power_of_two_is_refused():
    for side, near in ((100, 128), (70, 64), (48, 64), (1000, 1024)):
        with pytest.raises(BadRecipe, match=f"{side} px is not a power of two; the nearest is {near}"):
            shape_of("small", side)
    with pytest.raises(BadRecipe, match="unknown StyleGAN net 'config-g'; did you mean 'config-f'"):
        shape_of("config-g", 64)


def test_bf16_is_close_to_float32(generator):
    ws, noise = latents(generator), noise_of(generator, 3)
    with torch.no_grad():
        exact, _ = generator.synthesis(ws, noise)
        with torch.autocast("cpu", torch.bfloat16):
            rough, maps = generator.synthesis(ws, noise)
    assert maps[-1].dtype == torch.bfloat16
    assert (rough - exact).abs().mean() < 0.03 * exact.abs().mean()
