"""LightUNet: size of the logits, frozen layers and pretrained weights."""

import pytest
import timm
import torch

from partshot.errors import BadArtifact, BadRecipe
from partshot.nets.light_unet import LightUNet
from partshot.nets.student import build_student, start_from


@pytest.fixture(scope="module")
def student():
    torch.manual_seed(0)
    return build_student("light-tf_efficientnet_lite0", 4).eval()


def test_logits_have_the_size_of_the_images(student):
    with torch.no_grad():
        assert student(torch.zeros(2, 3, 64, 96)).shape == (2, 4, 64, 96)


def test_an_encoder_without_stride_2_predicts_blocks_of_4_pixels():
    net = LightUNet("convnext_atto", 3).eval()
    assert net.block == 4
    with torch.no_grad():
        assert net(torch.zeros(1, 3, 64, 32)).shape == (1, 3, 64, 32)


def test_start_from_pretrained_encoder(student):
    torch.manual_seed(1)
    encoder = timm.create_model("tf_efficientnet_lite0", num_classes=10).eval()
    start_from(student, encoder.state_dict(), "weights.pth")
    images = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        expected = encoder.forward_intermediates(images, intermediates_only=True)
        found = student.encoder.forward_intermediates(images, intermediates_only=True)
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-4 * float(theirs.abs().max()))


def test_start_from_student_with_other_classes(student):
    torch.manual_seed(2)
    other = build_student("light-tf_efficientnet_lite0", 7)
    start_from(other, student.state_dict(), "student")
    mine, theirs = other.state_dict(), student.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs if not name.startswith("head."))


def test_weights_of_another_net_are_refused(student):
    with pytest.raises(BadArtifact, match="other.pth"):
        start_from(student, timm.create_model("resnet18").state_dict(), "other.pth")


@pytest.mark.parametrize(("stride", "first"), [(0, "conv_stem"), (4, "blocks.2")])
def test_early_layers_are_frozen_up_to_a_stride(stride, first):
    net = build_student("light-tf_efficientnet_lite0", 2)
    net.freeze_up_to(stride)
    trained = [name for name, param in net.encoder.named_parameters() if param.requires_grad]
    assert trained[0].startswith(first)
    assert not any("conv_dw" in name for name in trained)


def test_parameters_outside_of_layers_are_frozen_with_their_block():
    net = build_student("light-convnext_atto", 2)
    net.freeze_up_to(4)
    trained = [name for name, param in net.encoder.named_parameters() if param.requires_grad]
    assert not any(name.startswith(("stem", "stages.0", "stages_0")) for name in trained)
    assert any(name.endswith("gamma") for name in trained)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("light-resnet81", "no model 'resnet81'"), ("light-vit_tiny_patch16_224", "strides")],
)
def test_unsuitable_encoders_are_refused(name, hint):
    with pytest.raises(BadRecipe, match=hint):
        build_student(name, 2)
