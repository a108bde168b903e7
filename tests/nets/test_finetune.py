"""Surgery for fine-tuning: nothing changes in what a network computes, nor in the gradient of its input."""

import pytest
import timm
import torch
from torch import nn

from partshot.nets.finetune import FixedDepthwise, SameConv, fix_depthwise, fold_norms


def unlike(net):
    """A net whose norms have statistics and weights that are not those of a new one."""
    torch.manual_seed(0)
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.1), norm.running_var.uniform_(0.5, 2)
            nn.init.uniform_(norm.weight, 0.5, 1.5), nn.init.normal_(norm.bias, 0, 0.1)
    return net.eval()


def levels(net, images):
    return net.forward_intermediates(images, intermediates_only=True)


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet18", "mobilenetv3_small_050"])
def test_a_cheaper_net_has_the_same_levels_and_the_same_gradient_of_its_input(name):
    given = unlike(timm.create_model(name, num_classes=0))
    cheap = unlike(timm.create_model(name, num_classes=0))
    cheap.load_state_dict(given.state_dict())
    assert fold_norms(cheap, lambda: levels(cheap, torch.zeros(1, 3, 64, 64))) > 0
    fixed = fix_depthwise(cheap)
    assert (fixed > 0) == ("resnet" not in name)
    assert sum(isinstance(layer, FixedDepthwise) for layer in cheap.modules()) == fixed
    # Sides that strides do not divide, and two that differ.
    images = torch.rand(2, 3, 71, 96)
    grads = []
    for net in (given, cheap):
        leaf = images.clone().requires_grad_()
        found = levels(net, leaf)
        sum(level.square().mean() for level in found).backward()
        grads.append((found, leaf.grad))
    for mine, theirs in zip(grads[1][0], grads[0][0], strict=True):
        assert torch.allclose(mine, theirs, atol=1e-4 * float(theirs.abs().max()))
    assert torch.allclose(grads[1][1], grads[0][1], atol=1e-4 * float(grads[0][1].abs().max()))


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("same", [True, False])
def test_a_fixed_depthwise_convolution_passes_the_gradient_that_torch_computes(kernel, stride, same):
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 6, kernel, stride, kernel // 2, groups=6)
    fixed = FixedDepthwise(conv, same)
    leaf = torch.rand(2, 6, 13, 10, requires_grad=True)
    result = fixed(leaf)
    weight = torch.rand_like(result)
    (result * weight).sum().backward()
    mine = leaf.grad.clone()
    with torch.no_grad():
        assert torch.equal(fixed(leaf), result)
    # torch's own backward pass through the same padding.
    other = leaf.detach().clone().requires_grad_()
    pads = fixed._pads(other.shape[2:], (kernel, kernel))
    expected = nn.functional.conv2d(nn.functional.pad(other, pads), conv.weight, conv.bias, stride, groups=6)
    (expected * weight).sum().backward()
    assert torch.allclose(result, expected, atol=1e-5) and torch.allclose(mine, other.grad, atol=1e-5)
    assert fixed.weight.grad is None


@pytest.mark.parametrize("size", [(8, 8), (7, 12)])
def test_padding_is_tensorflows(size):
    conv = SameConv(3, 4, 3, 2)
    assert conv(torch.zeros(1, 3, *size)).shape[2:] == tuple(-(-side // 2) for side in size)
