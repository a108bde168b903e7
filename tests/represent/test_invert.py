"""Inversion: generated images are reproduced independently of the batch; schedule and regularizer are as published."""

import math

import pytest
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import save_file

from partshot.errors import BadArtifact
from partshot.nets import stylegan1
from partshot.nets.perceptual import feature_distance, load_lpips
from partshot.nets.stylegan import Shape
from partshot.nets.stylegan2 import Discriminator, Generator
from partshot.represent.invert import PRESETS, InvertRecipe, invert, lr_factor, noise_regularization
from partshot.represent.stylegan import StyleGAN

SHAPE = Shape(resolution=16, z_dim=8, w_dim=8, mapping_layers=2, channel_base=128, channel_max=16)


def make(net):
    torch.manual_seed(0)
    made = net(SHAPE)
    for name, parameter in made.named_parameters():
        if name.endswith(("noise_strength", "noise.weight")):
            parameter.data.fill_(0.05)
    return StyleGAN(made, Discriminator(SHAPE))


@pytest.fixture(scope="module")
def generator():
    return make(Generator)


@pytest.mark.parametrize(("net", "space"), [(Generator, "w"), (Generator, "w+"), (stylegan1.Generator, "w+")])
def test_generated_images_are_reproduced(net, space):
    generator = make(net)
    truth = generator.sample([10, 11, 12])
    images, pyramid = generator.synthesize(truth)
    recipe = InvertRecipe(steps=150, space=space)
    found = invert(generator, images, generator.distance(), recipe)
    assert (found.errors < 0.35 * found.initial_errors).all()
    generated, again = generator.synthesize(found.latents)
    torch.testing.assert_close(generator.distance()(images)(generated), found.errors)
    start = images - generator.synthesize(generator.sample([0]))[0]
    assert (generated - images).square().mean() < 0.3 * start.square().mean()
    if space == "w":
        assert torch.equal(found.latents.ws[:, 0], found.latents.ws[:, -1])
    for maps in found.latents.noise:
        torch.testing.assert_close(maps.mean((2, 3)), torch.zeros(3, 1), atol=1e-4, rtol=0)
        torch.testing.assert_close(maps.square().mean((2, 3)), torch.ones(3, 1), atol=1e-4, rtol=0)


def test_results_do_not_depend_on_the_batch(generator):
    images, _ = generator.synthesize(generator.sample([1, 2, 3]))
    recipe, steps = InvertRecipe(steps=6, space="w+"), []
    together = invert(generator, images, generator.distance(), recipe, steps.append)
    alone = invert(generator, images[1:2], generator.distance(), recipe)
    torch.testing.assert_close(together.latents.ws[1:2], alone.latents.ws, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(together.errors[1:2], alone.errors, atol=1e-3, rtol=1e-3)
    assert steps == [1, 2, 3, 4, 5, 6]


def test_noise_maps_with_strength_zero_are_not_optimized():
    torch.manual_seed(0)
    net = Generator(SHAPE)
    net.synthesis.b8.conv1.noise_strength.data.fill_(0.05)
    assert net.synthesis.noise_strengths() == pytest.approx([0, 0, 0.05, 0, 0])
    generator, recipe = StyleGAN(net, Discriminator(SHAPE)), InvertRecipe(steps=3, space="w+")
    images, _ = generator.synthesize(generator.sample([1]))
    start, found = (
        invert(generator, images, generator.distance(), recipe.changed(steps=n)).latents.noise for n in (1, 3)
    )
    moved = [not torch.equal(a, b) for a, b in zip(start, found, strict=True)]
    assert moved == [False, False, True, False, False]
    net.synthesis.b8.conv1.noise_strength.data.zero_()
    without_noise = StyleGAN(net, Discriminator(SHAPE))
    assert invert(without_noise, images, without_noise.distance(), recipe).errors.isfinite().all()


def test_results_are_float32_in_bf16(generator):
    images, _ = generator.synthesize(generator.sample([10, 11]))
    rounded, exact = (
        invert(generator, images, generator.distance(), InvertRecipe(steps=60, precision=p)) for p in ("bf16", "fp32")
    )
    assert rounded.errors.dtype == rounded.latents.ws.dtype == torch.float32
    torch.testing.assert_close(rounded.initial_errors, exact.initial_errors, rtol=0, atol=0)
    assert not torch.equal(rounded.errors, exact.errors)
    torch.testing.assert_close(rounded.errors, exact.errors, rtol=0.25, atol=0)


def test_features_of_the_target_are_computed_once(generator):
    inputs = []
    distance = feature_distance(lambda x: [inputs.append(x.requires_grad) or x])
    images, _ = generator.synthesize(generator.sample([5]))
    invert(generator, images, distance, InvertRecipe(steps=4))
    # The target, the initial image, four steps, the result.
    assert len(inputs) == 1 + 1 + 4 + 1 and sum(inputs) == 4


def test_the_learning_rate_schedule_is_as_published():
    recipe = PRESETS["stylegan2-paper"]
    assert (recipe.steps, recipe.lr, recipe.space, recipe.regularize_noise_weight) == (1000, 0.1, "w", 1e5)
    assert lr_factor(0.0, recipe) == 0 and lr_factor(0.025, recipe) == pytest.approx(0.5)
    assert lr_factor(0.5, recipe) == 1
    assert lr_factor(0.875, recipe) == pytest.approx(0.5 - 0.5 * math.cos(math.pi / 2))
    assert lr_factor(1.0, recipe) == pytest.approx(0)


def test_old_names_of_settings_are_read_and_keep_their_fingerprint():
    old = InvertRecipe.parse({"rate": 0.2, "up": 0.1, "noise": 3.0})
    assert (old.lr, old.lr_rampup_length, old.regularize_noise_weight) == (0.2, 0.1, 3.0)
    assert PRESETS["fast"].fingerprint == "cbb1a9580447"


def test_the_regularizer_separates_noise_from_smooth_images():
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 1, 32, 32, generator=rng)
    smooth = F.interpolate(torch.randn(1, 1, 4, 4, generator=rng), size=32, mode="bilinear")
    smooth = (smooth - smooth.mean()) / smooth.std()
    assert noise_regularization([noise]) < 0.05 < 1 < noise_regularization([smooth])
    # By hand: products of neighbors at 8 px alone.
    small = torch.randn(2, 1, 8, 8, generator=rng)
    expected = sum((one * one.roll(1, axis)).mean() ** 2 for one in small for axis in (1, 2))
    torch.testing.assert_close(noise_regularization([small]), expected)
    assert noise_regularization([torch.ones(1, 1, 4, 4)]) == 2  # maps of at most 8 px are not downsampled


def test_the_distance_is_zero_for_the_same_and_differentiable():
    distance = feature_distance(lambda x: [x, F.avg_pool2d(x, 2)], pixels=1.0)
    a, b = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8, requires_grad=True)
    torch.testing.assert_close(distance(a)(a), torch.zeros(2), atol=1e-6, rtol=0)
    unit = F.normalize(a, dim=1) - F.normalize(b, dim=1)
    pooled = F.normalize(F.avg_pool2d(a, 2), dim=1) - F.normalize(F.avg_pool2d(b, 2), dim=1)
    expected = unit.square().sum(1).mean((1, 2)) + pooled.square().sum(1).mean((1, 2))
    torch.testing.assert_close(distance(a)(b), expected + (a - b).square().mean((1, 2, 3)), atol=1e-5, rtol=1e-5)
    distance(a)(b).sum().backward()
    assert b.grad.abs().sum() > 0


def test_lpips_is_the_weighted_distance_of_vggs_features(tmp_path):
    torch.manual_seed(0)
    vgg = torchvision.models.vgg16(weights=None)
    tensors = {f"features.{k}": v for k, v in vgg.features.state_dict().items()}
    tensors |= {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1) for i, c in enumerate((64, 128, 256, 512, 512))}
    save_file(tensors, tmp_path / "lpips.safetensors")
    distance = load_lpips(tmp_path / "lpips.safetensors")
    a, b = torch.rand(2, 3, 32, 32) * 2 - 1, torch.rand(2, 3, 32, 32) * 2 - 1
    scale = torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)
    expected, x, y = 0, (a - shift) / scale, (b - shift) / scale
    ends = {3: 0, 8: 1, 15: 2, 22: 3, 29: 4}  # relu1_2, relu2_2, relu3_3, relu4_3, relu5_3
    for i, layer in enumerate(vgg.features[:30]):
        x, y = layer(x), layer(y)
        if i in ends:
            apart = (F.normalize(x, dim=1) - F.normalize(y, dim=1)).square()
            expected = expected + (apart * tensors[f"lin{ends[i]}.model.1.weight"]).sum(1).mean((1, 2))
    torch.testing.assert_close(distance(a)(b), expected, atol=1e-5, rtol=1e-4)
    del tensors["lin3.model.1.weight"]
    save_file(tensors, tmp_path / "part.safetensors")
    with pytest.raises(BadArtifact, match="lacks 'lin3.model.1.weight'"):
        load_lpips(tmp_path / "part.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    with pytest.raises(BadArtifact, match="cannot be read as LPIPS weights"):
        load_lpips(tmp_path / "torn.safetensors")
