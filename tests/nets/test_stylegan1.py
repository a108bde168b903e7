"""StyleGAN's synthesis against a simple reference, and its names and sizes against published ones."""

import math

import pytest
import torch
import torch.nn.functional as F

from partshot.nets.stylegan import Shape, shape_of
from partshot.nets.stylegan1 import Generator, adain, conv_of_doubled
from partshot.ops.fir import upsample

TINY = Shape(resolution=16, z_dim=8, w_dim=12, mapping_layers=2, channel_base=64, channel_max=8)


def make(shape=TINY, exits=()):
    """A generator in which no weight is zero."""
    torch.manual_seed(0)
    generator = Generator(shape, exits).eval()
    for name, parameter in generator.named_parameters():
        if name.endswith(("bias", "noise.weight")):
            torch.nn.init.normal_(parameter, std=0.3)
    return generator


@pytest.fixture
def generator():
    return make()


def latents(generator, count=3, seed=1):
    z = torch.randn(count, generator.shape.z_dim, generator=torch.Generator().manual_seed(seed))
    # Different in each layer, as with style mixing.
    return generator.mapping.broadcast(generator.mapping(z)) * torch.linspace(0.5, 1.5, generator.num_ws)[:, None]


def noise_of(generator, count=3, seed=2):
    rng = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(count, 1, side, side, generator=rng) for side in generator.layers)


def test_adain_by_its_definition():
    """Equation 1, map by map; a constant map becomes `shift`."""
    torch.manual_seed(0)
    x, scale, shift = torch.randn(3, 4, 5, 7) * 3 + 2, torch.randn(3, 4), torch.randn(3, 4)
    found = adain(x, scale, shift)
    for b in range(3):
        for c in range(4):
            m = x[b, c].double()
            m = (m - m.mean()) / (m.var(unbiased=False) + 1e-5).sqrt()
            torch.testing.assert_close(found[b, c].double(), m * scale[b, c] + shift[b, c], atol=1e-5, rtol=1e-5)
    styled = F.instance_norm(x, eps=1e-5) * scale[..., None, None] + shift[..., None, None]
    torch.testing.assert_close(found, styled, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(adain(torch.full_like(x, 0.7), scale, shift).mean((2, 3)), shift, atol=1e-3, rtol=0)


@pytest.mark.parametrize("images", [1, 2])
def test_adain_has_its_definitions_gradient_in_any_layout(images):
    """torch's instance norm fails for a single image if memory formats of maps and gradients differ."""
    torch.manual_seed(0)
    scale, shift = torch.randn(images, 4), torch.randn(images, 4)
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(images, 4, 6, 6).to(memory_format=torch.channels_last).requires_grad_()
        upstream = torch.randn(images, 4, 6, 6).to(memory_format=layout)
        (found,) = torch.autograd.grad(adain(x, scale, shift), x, upstream)
        variance, mean = torch.var_mean(x, (2, 3), correction=0, keepdim=True)
        expected = (x - mean) * (variance + 1e-5).rsqrt() * scale[..., None, None]
        torch.testing.assert_close(found, torch.autograd.grad(expected, x, upstream)[0], atol=1e-5, rtol=1e-5)


def test_convolution_of_doubled_pixels():
    x, weight = torch.randn(2, 3, 5, 6), torch.randn(4, 3, 3, 3)
    expected = F.conv2d(x.repeat_interleave(2, 2).repeat_interleave(2, 3), weight, padding=1)
    torch.testing.assert_close(conv_of_doubled(x, weight), expected, atol=1e-5, rtol=1e-5)


def test_mapping_is_the_papers(generator):
    """Learning-rate multiplier 0.01; the gain is applied before the bias."""
    z = torch.randn(4, 8)
    x = z / z.square().mean(1, keepdim=True).sqrt()
    for i in range(2):
        layer = getattr(generator.mapping, f"dense{i}")
        x = F.linear(x, layer.weight * (0.01 * math.sqrt(2 / x.shape[1])), layer.bias * 0.01)
        x = F.leaky_relu(x, 0.2)
    torch.testing.assert_close(generator.mapping(z), x, atol=1e-5, rtol=1e-5)
    assert float(make().mapping.dense0.weight.detach().std()) == pytest.approx(100, rel=0.2)


def reference(state, ws, noise, resolution):
    """Reference synthesis from a state dict with the published operations: image, AdaIN outputs and raw maps."""

    def conv(x, name, gain=2.0):
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight * math.sqrt(gain / weight[0].numel()), padding=weight.shape[2] // 2)

    def bias(name):
        return state[f"{name}.bias"][:, None, None]

    def upsampled(x, name):
        weight = state[f"{name}.weight"] * math.sqrt(2 / state[f"{name}.weight"][0].numel())
        if x.shape[2] < 64:
            x = F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), weight, padding=1)
        else:
            # The official fused_scale: the sum of four shifted copies of the kernel, transposed convolution.
            spread = F.pad(weight.transpose(0, 1), (1, 1, 1, 1))
            spread = spread[..., 1:, 1:] + spread[..., :-1, 1:] + spread[..., 1:, :-1] + spread[..., :-1, :-1]
            x = F.conv_transpose2d(x, spread, stride=2, padding=1)
        blur = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16
        return F.conv2d(x, blur.expand(x.shape[1], 1, 3, 3), padding=1, groups=x.shape[1]) + bias(name)

    def styled(x, name, layer):
        x = x + state[f"{name}.top_epi.noise.weight"][:, None, None] * noise[layer]
        x = F.instance_norm(F.leaky_relu(x, 0.2), eps=1e-5)
        lin = f"{name}.style_mod.lin"
        style = F.linear(ws[:, layer], state[f"{lin}.weight"] / math.sqrt(ws.shape[2]), state[f"{lin}.bias"])
        style = style.view(len(ws), 2, -1, 1, 1)
        return x * (style[:, 0] + 1) + style[:, 1]

    maps, raw, x, side = [], [], None, 4
    while side <= resolution:
        block = f"blocks.{side}x{side}"
        if side == 4:
            first = (state[f"{block}.const"] + bias(block)).repeat(len(ws), 1, 1, 1)
        else:
            first = upsampled(x, f"{block}.conv0_up")
        maps.append(styled(first, f"{block}.epi1", len(maps)))
        name = f"{block}.conv" if side == 4 else f"{block}.conv1"
        second = conv(maps[-1], name) + bias(name)
        x = styled(second, f"{block}.epi2", len(maps))
        maps.append(x)
        raw += [first, second]
        side *= 2
    return conv(x, "torgb", gain=1.0) + bias("torgb"), maps, raw


# Rounding errors grow from layer to layer; a wrong kernel, border or order gives errors of about 1.
@pytest.mark.parametrize("resolution, tolerance", [(16, 1e-4), (128, 5e-3)])
def test_synthesis_equals_the_reference(resolution, tolerance):
    generator = make(TINY.changed(resolution=resolution, channel_base=4 * resolution, channel_max=4))
    ws, noise = latents(generator, 2), noise_of(generator, 2)
    with torch.no_grad():
        image, found = generator.synthesis(ws, noise, raw=True)
        expected, maps, raw = reference(generator.synthesis.state_dict(), ws, noise, resolution)
    torch.testing.assert_close(image, expected, atol=tolerance, rtol=tolerance)
    assert len(found) == 2 * len(generator.layers)
    for ours, theirs in zip(found, [*maps, *raw], strict=True):
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)
    with torch.no_grad():
        again, fewer = generator.synthesis(ws, noise)
    assert torch.equal(again, image) and all(map(torch.equal, fewer, found))


def test_results_do_not_depend_on_the_batch(generator):
    ws, noise = latents(generator), noise_of(generator)
    with torch.no_grad():
        images, maps = generator.synthesis(ws, noise, raw=True)
        again, maps_again = generator.synthesis(ws, noise, raw=True)
        alone, maps_alone = generator.synthesis(ws[1:2], tuple(n[1:2] for n in noise), raw=True)
        other, _ = generator.synthesis(ws, noise_of(generator, seed=3))
        without_noise, _ = generator.synthesis(ws)
        zero_noise, _ = generator.synthesis(ws, tuple(torch.zeros_like(n) for n in noise))
    assert torch.equal(images, again) and all(map(torch.equal, maps, maps_again))
    torch.testing.assert_close(alone[0], images[1], atol=1e-5, rtol=1e-5)
    for whole, one in zip(maps, maps_alone, strict=True):
        torch.testing.assert_close(one[0], whole[1], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(images, other) and torch.equal(without_noise, zero_noise)


def test_noise_strengths_per_layer():
    generator = Generator(TINY)
    assert generator.synthesis.noise_strengths() == [0.0] * 6
    generator.synthesis.blocks["8x8"].epi2.top_epi["noise"].weight.data[3] = -0.5
    assert generator.synthesis.noise_strengths() == [0, 0, 0, 0.5, 0, 0]


def test_parameter_count_is_the_official_one():
    """26,219,627 at 1024 px in the official summary, which counts a ToRGB of every size; 18 latents."""
    with torch.device("meta"):
        whole = Generator(shape_of("adain", 1024), (4, 8, 16, 32, 64, 128, 256, 512))
    assert sum(p.numel() for p in whole.parameters()) == 26_219_627
    assert whole.num_ws == 18 and whole.layers[:6] == (4, 4, 8, 8, 16, 16)


def test_weight_names_are_those_of_converted_checkpoints(generator):
    expected = {"mapping.w_avg", "synthesis.blocks.4x4.const", "synthesis.blocks.4x4.bias"}
    modules = ["mapping.dense0", "mapping.dense1", "synthesis.torgb", "synthesis.blocks.4x4.conv"]
    modules += [f"synthesis.blocks.{side}x{side}.{conv}" for side in (8, 16) for conv in ("conv0_up", "conv1")]
    epilogues = [f"synthesis.blocks.{side}x{side}.{epi}" for side in (4, 8, 16) for epi in ("epi1", "epi2")]
    modules += [f"{epilogue}.style_mod.lin" for epilogue in epilogues]
    expected |= {f"{name}.{part}" for name in modules for part in ("weight", "bias")}
    state = generator.state_dict()
    assert set(state) == expected | {f"{epilogue}.top_epi.noise.weight" for epilogue in epilogues}
    assert state["synthesis.blocks.4x4.const"].shape == (1, 8, 4, 4)
    assert state["synthesis.blocks.16x16.epi1.style_mod.lin.weight"].shape == (2 * 4, 12)
    assert state["synthesis.blocks.16x16.epi1.top_epi.noise.weight"].shape == (4,)
    assert state["synthesis.blocks.16x16.conv0_up.weight"].shape == (4, 8, 3, 3)


def test_fade_in_starts_from_the_upsampled_image():
    generator = make(exits=(8,))
    ws = latents(generator)
    with torch.no_grad():
        coarse, maps = generator.synthesis(ws, resolution=8)
        fading, _ = generator.synthesis(ws, resolution=16, fade=0.0)
        halfway, _ = generator.synthesis(ws, fade=0.5)
        whole, all_maps = generator.synthesis(ws)
    assert coarse.shape == (3, 3, 8, 8) and len(maps) == 4 and len(all_maps) == 6
    torch.testing.assert_close(fading, upsample(coarse))
    torch.testing.assert_close(halfway, (fading + whole) / 2)
    assert not torch.allclose(fading, whole)
    with pytest.raises(KeyError):
        make().synthesis(ws, resolution=8)


def test_bf16_is_close_to_float32(generator):
    ws, noise = latents(generator), noise_of(generator)
    with torch.no_grad():
        exact, _ = generator.synthesis(ws, noise)
        with torch.autocast("cpu", torch.bfloat16):
            rough, maps = generator.synthesis(ws, noise)
    assert rough.dtype == torch.float32 and maps[-1].dtype == torch.bfloat16
    assert (rough - exact).abs().mean() < 0.05 * exact.abs().mean()


def test_second_derivatives():
    """Path-length regularization needs them."""
    torch.manual_seed(0)
    x, scale, shift = (torch.randn(*size, dtype=torch.float64) for size in ((2, 2, 3, 3), (2, 2), (2, 2)))
    weight = torch.randn(2, 2, 3, 3, dtype=torch.float64)
    for function, inputs in ((adain, (x, scale, shift)), (conv_of_doubled, (x, weight))):
        assert torch.autograd.gradgradcheck(function, [tensor.requires_grad_() for tensor in inputs])
