"""StyleGANs as representations: deterministic for given latents; latents of another generator are rejected."""

import math

import pytest
import torch
import torch.nn.functional as F

from partshot.artifact import Artifact
from partshot.errors import BadArtifact, BadRecipe
from partshot.nets import stylegan1, stylegan2
from partshot.nets.stylegan import Shape, shape_of
from partshot.represent.choose import open_representation, rebuild, tensors_of
from partshot.represent.invert import InvertRecipe
from partshot.represent.spec import Generator, Latents, Representation
from partshot.represent.stylegan import StyleGAN, load_stylegan, taps

SHAPE = Shape(resolution=32, z_dim=8, w_dim=8, mapping_layers=2, channel_base=128, channel_max=8)
QUICK = InvertRecipe(steps=3, space="w+")


def make(seed=0, net=stylegan2.Generator, **given) -> StyleGAN:
    torch.manual_seed(seed)
    made = net(SHAPE)
    for name, parameter in made.named_parameters():
        if name.endswith(("noise_strength", "noise.weight")):
            parameter.data.fill_(0.2)
    return StyleGAN(made, stylegan2.Discriminator(SHAPE), recipe=QUICK, **given)


@pytest.fixture(scope="module", params=[stylegan1, stylegan2], ids=["stylegan1", "stylegan2"])
def generator(request):
    return make(net=request.param.Generator)


def test_it_is_a_generator_and_a_representation(generator):
    assert isinstance(generator, Generator) and isinstance(generator, Representation)
    expected = {
        "stylegan1": ((4, 4, 8, 8, 8, 8, 8, 8), (1, 1, 2, 2, 4, 4, 8, 8)),
        "stylegan2": ((4, 4, 8, 8, 8, 8), (1, 1, 2, 2, 4, 4)),
    }
    assert (generator.spec.channels, generator.spec.strides) == expected[generator.kind]
    assert generator.spec.name == generator.kind
    assert not any(p.requires_grad for p in generator.parameters())
    generator.train()
    assert not generator.training


def test_pixels_and_features_depend_only_on_the_seed(generator):
    together, alone = generator.sample([5, 6, 7]), generator.sample([6])
    images, pyramid = generator.synthesize(together)
    image, maps = generator.synthesize(alone)
    torch.testing.assert_close(image[0], images[1], atol=1e-5, rtol=1e-5)
    for whole, one in zip(pyramid.maps, maps.maps, strict=True):
        torch.testing.assert_close(one[0], whole[1], atol=1e-5, rtol=1e-5)
    again, _ = generator.synthesize(together)
    assert torch.equal(images, again)
    # The noise changes the image.
    quiet = Latents(together.ws, tuple(torch.zeros_like(n) for n in together.noise), together.generator)
    assert not torch.allclose(generator.synthesize(quiet)[0], images)


def test_style_mixing_keeps_the_coarse_layers(generator):
    latents = generator.sample([5, 6])
    other, again = generator.mix_styles(latents, [8, 9]), generator.mix_styles(latents, [8, 9])
    fine = torch.tensor([side >= 16 for side in (*generator.generator.layers, 32)[: generator.generator.num_ws]])
    assert torch.equal(other.ws[:, ~fine], latents.ws[:, ~fine])
    assert torch.equal(other.ws[:, fine], generator.sample([8, 9]).ws[:, fine])
    assert torch.equal(other.ws, again.ws) and not torch.equal(other.noise[0], latents.noise[0])
    assert torch.equal(generator.mix_styles(latents, [8, 9], side=64).ws, latents.ws)


@pytest.mark.parametrize(
    "layers, sides", [("coarse", [8, 8, 4]), ("middle", [32, 32, 16, 16]), ("all", [32, 32, 16, 16, 8, 8, 4])]
)
def test_groups_of_layers(layers, sides):
    found = make(layers=layers)
    _, pyramid = found.synthesize(found.sample([0]))
    assert [m.shape[2] for m in pyramid.maps] == sides == [32 // s for s in found.spec.strides]
    assert pyramid.channels == found.spec.channels and layers in found.spec.name
    assert found.spec.fingerprint != make().spec.fingerprint and found.weights == make().weights


def test_datasetgan_uses_the_second_layer_and_its_convolution(generator):
    """Finest first; at each size first the layer's output (after AdaIN in StyleGAN), then the convolution's result."""
    found = StyleGAN(generator.generator, generator.discriminator, layers="datasetgan", recipe=QUICK)
    latents = found.sample([3])
    images, pyramid = found.synthesize(latents)
    assert torch.equal(images, generator.synthesize(latents)[0])
    assert [m.shape[2] for m in pyramid.maps] == [32, 32, 16, 16, 8, 8, 4, 4] == [32 // s for s in found.spec.strides]
    assert pyramid.channels == found.spec.channels
    net, layers = generator.generator, generator.generator.layers
    _, maps = net.synthesis(latents.ws, latents.noise, raw=True)
    last = [i for i in range(len(layers)) if layers[i] not in layers[i + 1 :]]
    for styled, raw, i in zip(pyramid.maps[::2], pyramid.maps[1::2], last[::-1], strict=True):
        assert torch.equal(styled, maps[i]) and torch.equal(raw, maps[len(layers) + i])
        if found.kind == "stylegan1":
            side = layers[i]
            conv = net.synthesis.blocks[f"{side}x{side}"].get_submodule("conv" if side == 4 else "conv1")
            weight = conv.weight * math.sqrt(2 / conv.weight[0].numel())
            plain = F.conv2d(maps[i - 1], weight, conv.bias, padding=1)
            torch.testing.assert_close(raw, plain, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("side, channels", [(256, 4992), (512, 5056), (1024, 5088)])
def test_datasetgan_has_the_published_number_of_channels(side, channels):
    shape = shape_of("adain", side)
    sides = [side for side in shape.resolutions for _ in range(2)]
    assert sum(shape.channels(sides[i % len(sides)]) for i in taps(sides, "datasetgan")) == channels
    # The outputs of all layers, as described in the paper, have as many channels.
    assert sum(shape.channels(sides[i]) for i in taps(sides, "all")) == channels


def test_unknown_groups_are_rejected():
    with pytest.raises(BadRecipe, match="unknown group of layers 'midle'; did you mean 'middle'"):
        make(layers="midle")
    with pytest.raises(BadRecipe, match="has no fine layers"):
        make(layers="fine")


def test_a_position_map_is_rejected():
    with pytest.raises(BadRecipe, match=r"cannot be combined, takes no \+position"):
        open_representation("stylegan2+position")


def test_a_stylegan_needs_its_folder():
    with pytest.raises(BadRecipe, match="'stylegan1' must be trained first"):
        open_representation("stylegan1:all")


def test_large_generators_can_be_inverted():
    shape = Shape(resolution=512, z_dim=4, w_dim=4, mapping_layers=2, channel_base=512, channel_max=2)
    large = StyleGAN(stylegan2.Generator(shape), stylegan2.Discriminator(shape), recipe=QUICK.changed(steps=1))
    found = large.invert(torch.zeros(1, 3, 512, 512))
    assert found.errors.shape == (1,) and torch.isfinite(found.errors).all()


def test_inversion_computes_in_float32_under_autocast(generator):
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    exact = generator.features(images).maps
    with torch.autocast("cpu", torch.bfloat16):
        rough = generator.features(images).maps
    assert all(map(torch.equal, exact, rough))


def test_truncation_reduces_the_variance_of_samples(generator):
    near, coarse = (
        StyleGAN(generator.generator, generator.discriminator, psi=0.3, cutoff=cutoff) for cutoff in (None, 3)
    )
    whole, some = ([g.sample(range(20)).ws[:, i].std(0).mean().item() for i in range(8)] for g in (generator, coarse))
    assert near.sample(range(20)).ws[:, -1].std(0).mean().item() == pytest.approx(0.3 * whole[-1], rel=1e-3)
    # With a cutoff, only the first layers are truncated.
    assert some == pytest.approx([0.3 * s for s in whole[:3]] + whole[3:], rel=1e-3)
    assert torch.equal(coarse.sample([4], psi=1.0).ws, generator.sample([4]).ws)


def test_latents_are_saved_and_rejected_by_another_generator(generator, tmp_path):
    latents = generator.sample([1, 2])
    back = Latents.load(latents.save(tmp_path / "latents", {"seeds": [1, 2]}))
    assert torch.equal(back.ws, latents.ws) and all(map(torch.equal, back.noise, latents.noise)) and len(back) == 2
    joined = Latents.join([back[:1], back[1:]])
    assert torch.equal(generator.synthesize(joined)[0], generator.synthesize(latents)[0])
    with pytest.raises(BadArtifact, match="these latents belong to generator"):
        make(seed=1, net=type(generator.generator)).synthesize(back)
    with pytest.raises(BadArtifact, match="is an artifact of kind latents, not representation"):
        load_stylegan(tmp_path / "latents")


def test_a_rebuilt_generator_generates_the_same_images(generator, tmp_path):
    again = rebuild(generator.card(), tensors_of(generator))
    assert again.spec == generator.spec
    latents = generator.sample([3])
    assert torch.equal(again.synthesize(latents)[0], generator.synthesize(latents)[0])
    card = {"title": "mine", "pretext": generator.kind, "shape": SHAPE.model_dump(mode="json")}
    Artifact("representation", card, tensors_of(generator)).save(tmp_path / "made")
    assert load_stylegan(tmp_path / "made", layers="middle").weights == generator.weights
    assert open_representation(f"{generator.kind}:datasetgan", tmp_path / "made").layers == "datasetgan"
    other = {"stylegan1": "stylegan2", "stylegan2": "stylegan1"}[generator.kind]
    with pytest.raises(BadArtifact, match=f"contains mine, not a {other}"):
        open_representation(other, tmp_path / "made")
    Artifact("representation", {"title": "a resnet"}, {}).save(tmp_path / "other")
    with pytest.raises(BadArtifact, match="contains a resnet, not a generator"):
        load_stylegan(tmp_path / "other")


def test_features_of_any_images_are_computed_by_inversion(generator):
    images = torch.rand(2, 3, 48, 40) * 2 - 1
    pyramid = generator.features(images)
    assert pyramid.image_size == (48, 40)
    assert [m.shape[2] for m in pyramid.maps] == [32 // stride for stride in generator.spec.strides]
    assert not any(m.requires_grad for m in pyramid.maps)
