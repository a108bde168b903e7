"""Students: size of the logits, pretrained weights, and error messages for unknown names."""

import pytest
import torch

from partshot.errors import BadArtifact, BadRecipe
from partshot.nets.resnet import ResNetTrunk
from partshot.nets.student import STRIDE, build_student, start_from
from partshot.ops.position import CHANNELS, position_map


def parameters(net):
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(
    "name",
    ["fast-unet", "regan-unet", "unet-resnet18", "fpn-mobilenet_v2", "deeplabv3plus-resnet18", "linknet-resnet18"],
)
def test_logits_have_the_size_of_the_images(name):
    net = build_student(name, 5).eval()
    with torch.no_grad():
        logits = net(torch.zeros(1, 3, 2 * STRIDE, 2 * STRIDE))
    assert logits.shape == (1, 5, 64, 64) and logits.dtype == torch.float32


def test_fast_unet_is_small_and_accepts_non_square_images():
    net = build_student("fast-unet", 10).eval()
    assert parameters(net) < 2_000_000
    with torch.no_grad():
        assert net(torch.zeros(2, 3, 32, 96)).shape == (2, 10, 32, 96)


@pytest.mark.parametrize("name", ["fast-unet", "regan-unet", "unet-resnet18"])
def test_sizes_of_the_low_resolution_phase_are_accepted(name):
    net = build_student(name, 3)
    for size in (16, 48):
        assert net(torch.zeros(2, 3, size, size)).shape == (2, 3, size, size)


def test_fast_unet_depends_on_pixel_positions_and_all_weights_get_gradients():
    torch.manual_seed(0)
    net = build_student("fast-unet", 3)
    logits = net(torch.rand(4, 3, 64, 64))
    logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
    with torch.no_grad():
        constant = net.eval()(torch.zeros(1, 3, 64, 64))
    # The image is constant, but the position is not.
    assert constant[..., 16:48, 16:48].std() > 1e-4


def test_pixel_unshuffle_and_shuffle_keep_positions():
    # A net can only learn to copy the image if neighboring pixels are not mixed up.
    torch.manual_seed(0)
    net = build_student("fast-unet", 2)
    images = torch.rand(2, 3, 32, 32).round() * 2 - 1
    labels = (images[:, 0] > 0).long()
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(40):
        loss = torch.nn.functional.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (net(images).argmax(1) == labels).float().mean() > 0.9


def test_logits_are_equal_with_and_without_gradients():
    """With gradients another implementation of pixel shuffle is used."""
    net, images = build_student("fast-unet", 3).eval(), torch.randn(2, 3, 32, 64)
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            trained = net(images)
            with torch.no_grad():
                assert torch.equal(net(images), trained)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("fast-unte", "did you mean 'fast-unet'"),
        ("regan_unet", "did you mean 'regan-unet'"),
        ("unett-resnet18", "did you mean 'unet'"),
        ("unet", "unet-resnet18"),
        ("unet-resnet81", "did you mean 'resnet18'"),
        ("", "fast-unet"),
    ],
)
def test_messages_for_unknown_names_suggest_the_nearest(name, hint):
    with pytest.raises(BadRecipe, match=hint) as error:
        build_student(name, 3)
    assert "\n" not in str(error.value)


def test_positions_run_from_minus_one_to_one_along_the_long_side():
    x, y, xx, yy, xy = position_map(4, 8)[0]
    assert position_map(4, 8).shape == (1, CHANNELS, 4, 8)
    assert x[0].tolist() == [-0.875, -0.625, -0.375, -0.125, 0.125, 0.375, 0.625, 0.875]
    # As in a centered letterbox.
    assert y[:, 0].tolist() == [-0.375, -0.125, 0.125, 0.375]
    assert position_map(4, 4)[0][1][:, 0].tolist() == [-0.75, -0.25, 0.25, 0.75]
    assert torch.equal(xx, x * x) and torch.equal(yy, y * y) and torch.equal(xy, x * y)
    assert torch.equal(x, -x.flip(1)) and torch.equal(y, -y.flip(0))


def test_start_from_loads_all_but_the_classifier():
    torch.manual_seed(0)
    source, net = build_student("fast-unet", 6), build_student("fast-unet", 4)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    start_from(net, source.state_dict(), "cars")
    for name, tensor in net.state_dict().items():
        expected = before[name] if name.startswith("head.") else source.state_dict()[name]
        assert torch.equal(tensor, expected), name


def test_start_from_accepts_an_encoders_own_names():
    trunk, net = ResNetTrunk("resnet18"), build_student("unet-resnet18", 3)
    start_from(net, trunk.state_dict(), "resnet18.pth")
    assert torch.equal(net.encoder.layer3[0].conv1.weight, trunk.layer3[0].conv1.weight)


def test_weights_of_another_net_are_refused():
    with pytest.raises(BadArtifact, match=r"resnet18.pth: 0 of its \d+ tensors fit"):
        start_from(build_student("fast-unet", 3), ResNetTrunk("resnet18").state_dict(), "resnet18.pth")
