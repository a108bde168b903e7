"""Preparation for fine-tuning changes neither the outputs of a network nor the gradient of its input."""

import pytest
import timm
import torch
from timm.layers import Conv2dSame
from torch import nn

from partshot.nets.fold_and_freeze import FrozenDepthwise, SameConv, fold_batchnorm, freeze_depthwise


def with_random_norms(net):
    """A net whose norms have random statistics and weights."""
    torch.manual_seed(0)
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.1), norm.running_var.uniform_(0.5, 2)
            nn.init.uniform_(norm.weight, 0.5, 1.5), nn.init.normal_(norm.bias, 0, 0.1)
    return net.eval()


def levels(net, images):
    return net.forward_intermediates(images, intermediates_only=True)


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet18", "mobilenetv3_small_050"])
def test_a_prepared_net_has_equal_outputs_and_an_equal_input_gradient(name):
    net = with_random_norms(timm.create_model(name, num_classes=0))
    cheap = with_random_norms(timm.create_model(name, num_classes=0))
    cheap.load_state_dict(net.state_dict())
    assert fold_batchnorm(cheap, lambda: levels(cheap, torch.zeros(1, 3, 64, 64))) > 0
    frozen = freeze_depthwise(cheap)
    assert (frozen > 0) == ("resnet" not in name)
    assert sum(isinstance(layer, FrozenDepthwise) for layer in cheap.modules()) == frozen
    # Different sides, one of them not divisible by the strides.
    images = torch.rand(2, 3, 71, 96)
    results = []
    for one in (net, cheap):
        leaf = images.clone().requires_grad_()
        outputs = levels(one, leaf)
        sum(level.square().mean() for level in outputs).backward()
        results.append((outputs, leaf.grad))
    (expected, expected_grad), (found, grad) = results
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-4 * float(theirs.abs().max()))
    assert torch.allclose(grad, expected_grad, atol=1e-4 * float(expected_grad.abs().max()))


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("same", [True, False])
def test_frozen_depthwise_has_torchs_input_gradient(kernel, stride, same):
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 6, kernel, stride, kernel // 2, groups=6)
    frozen = FrozenDepthwise(conv, same)
    leaf = torch.rand(2, 6, 13, 10, requires_grad=True)
    result = frozen(leaf)
    weight = torch.rand_like(result)
    (result * weight).sum().backward()
    mine = leaf.grad.clone()
    with torch.no_grad():
        assert torch.equal(frozen(leaf), result)
    # torch's backward pass with the same padding.
    other = leaf.detach().clone().requires_grad_()
    pads = frozen._pads(other.shape[2:], (kernel, kernel))
    expected = nn.functional.conv2d(nn.functional.pad(other, pads), conv.weight, conv.bias, stride, groups=6)
    (expected * weight).sum().backward()
    assert torch.allclose(result, expected, atol=1e-5) and torch.allclose(mine, other.grad, atol=1e-5)
    assert frozen.weight.grad is None


@pytest.mark.parametrize("size", [(8, 8), (7, 12)])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 2), (1, 1)])
def test_same_padding_is_tensorflows(size, kernel, stride):
    reference, conv = Conv2dSame(3, 4, kernel, stride), SameConv(3, 4, kernel, stride)
    conv.load_state_dict(reference.state_dict())
    x = torch.randn(1, 3, *size)
    torch.testing.assert_close(conv(x), reference(x))


def test_same_convolutions_whose_padding_would_be_negative_are_kept():
    net = nn.Sequential(Conv2dSame(3, 4, 1, 2), Conv2dSame(4, 4, 3, 1, dilation=2), Conv2dSame(4, 4, 3, 2))
    freeze_depthwise(net)
    assert [type(layer) for layer in net] == [Conv2dSame, Conv2dSame, SameConv]
