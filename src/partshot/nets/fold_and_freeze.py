"""Makes a pretrained convolutional network cheaper to fine-tune on a few images, especially on a CPU.

Three changes, none of which changes the network's initial outputs:

- BatchNorm is folded into the preceding convolution, because a few images give no better statistics than the stored
  ones.
- Depthwise kernels are frozen. Their weight gradient takes three quarters of a training step on a CPU, and the gradient
  of their input becomes an ordinary fast convolution.
- Early layers can be frozen, which saves the backward pass where the feature maps are largest.

Works on any torch module.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

# Zero padding at the left, right, top and bottom; symbolic during graph export.
Pads = tuple[int | torch.SymInt, ...]

_NORMS = (nn.BatchNorm2d,)
# timm's convolution with TensorFlow's SAME padding.
_SAME = "Conv2dSame"


class FrozenDepthwise(nn.Module):
    """A depthwise convolution with frozen kernel and bias.

    same: TensorFlow's SAME padding: the output has ceil(size / stride) pixels, and an odd padding pixel is at the end.
    Otherwise the convolution's own padding is used.
    """

    def __init__(self, conv: nn.Conv2d, same: bool):
        super().__init__()
        self.weight = nn.Parameter(conv.weight.detach().clone(), requires_grad=False)
        bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias.detach().clone()
        self.bias = nn.Parameter(bias, requires_grad=False)
        self.stride, self.padding, self.same = conv.stride, conv.padding, same

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight, bias = self.weight, self.bias
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
        pads = self._pads(x.shape[2:], weight.shape[2:])
        if torch.is_grad_enabled() and x.requires_grad:
            return _Depthwise.apply(x, weight, bias, self.stride, pads)
        return _padded_conv(x, weight, bias, self.stride, pads)

    def _pads(self, size, kernel) -> Pads:
        """Zero padding at the left, right, top and bottom."""
        if self.same:
            return _same_pads(size, kernel, self.stride)
        return (self.padding[1],) * 2 + (self.padding[0],) * 2


class SameConv(nn.Conv2d):
    """A convolution with TensorFlow's SAME padding, for maps of any size, also in exported graphs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(F.pad(x, _same_pads(x.shape[2:], self.kernel_size, self.stride)))


def _same_pads(size, kernel, stride) -> Pads:
    """Zero padding at the left, right, top and bottom for an output of ceil(size / stride) pixels."""
    # No comparison, because an exporter would have to decide it for all sizes.
    missing = [k - s + (-side) % s for side, k, s in zip(size, kernel, stride, strict=True)]
    (top, left), (down, across) = (m // 2 for m in missing), missing
    return left, across - left, top, down - top


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution that computes only the gradient of its input: a convolution with the flipped kernel.

    On CPUs torch's own backward pass takes 3 to 30 times as long as the forward pass; this one takes about as long.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, stride, pads):
        ctx.save_for_backward(weight)
        ctx.stride, ctx.pads, ctx.size = stride, pads, x.shape[2:]
        return _padded_conv(x, weight, bias, stride, pads)

    @staticmethod
    def backward(ctx, grad):
        (weight,) = ctx.saved_tensors
        grad = _dilate(grad, ctx.stride)
        pads: tuple[int, ...] = ()
        # The gradient of the padding is cropped; pixels that no stride reached get zeros.
        for axis, before in ((1, ctx.pads[0]), (0, ctx.pads[2])):
            kernel = weight.shape[2 + axis]
            start = kernel - 1 - before
            pads += (start, ctx.size[axis] - (grad.shape[2 + axis] + start - kernel + 1))
        return _padded_conv(grad, weight.flip(2, 3), None, (1, 1), pads), None, None, None, None


def _dilate(grad: torch.Tensor, stride: tuple[int, int]) -> torch.Tensor:
    """The gradient of a strided output with stride - 1 zeros inserted between its pixels."""
    if stride == (1, 1):
        return grad
    (b, c, h, w), (down, across) = grad.shape, stride
    dilated = grad.new_zeros(b, c, (h - 1) * down + 1, (w - 1) * across + 1)
    dilated = dilated.contiguous(memory_format=torch.channels_last)
    dilated[:, :, ::down, ::across] = grad
    return dilated


def _padded_conv(x, weight, bias, stride, pads) -> torch.Tensor:
    groups = weight.shape[0]
    if pads[0] == pads[1] >= 0 and pads[2] == pads[3] >= 0:
        return F.conv2d(x, weight, bias, stride, (pads[2], pads[0]), groups=groups)
    return F.conv2d(F.pad(x, pads), weight, bias, stride, groups=groups)


def trace_layers(net: nn.Module, run: Callable[[], object]) -> list[tuple[str, nn.Module, torch.Tensor, object]]:
    """(name, layer, input, output) of every layer without children that `run` calls, in the order of the calls."""
    calls: list[tuple[str, nn.Module, torch.Tensor, object]] = []
    handles = [
        layer.register_forward_hook(
            lambda layer, inputs, output, name=name: calls.append((name, layer, inputs[0], output))
        )
        for name, layer in net.named_modules()
        if isinstance(layer, (nn.Conv2d, *_NORMS)) or not any(layer.children())
    ]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return calls


def fold_batchnorm(net: nn.Module, run: Callable[[], object]) -> int:
    """Folds every BatchNorm that directly follows a convolution into this convolution; returns the number of them.

    run: calls the network once on any input, in evaluation mode, to find out which layer follows which. A norm with a
    built-in activation, such as timm's BatchNormAct2d, is replaced by the activation. Other norms are left unchanged.
    """
    conv_of_output: dict[int, nn.Conv2d] = {}
    pairs = []
    # Kept until the end: ids identify tensors only as long as these are alive.
    calls = trace_layers(net, run)
    for name, layer, x, output in calls:
        if isinstance(layer, nn.Conv2d):
            conv_of_output[id(output)] = layer
        elif isinstance(layer, _NORMS) and id(x) in conv_of_output:
            pairs.append((name, conv_of_output.pop(id(x)), layer))
    for name, conv, norm in pairs:
        _fold(conv, norm)
        _replace(net, name, getattr(norm, "act", None) or nn.Identity())
    return len(pairs)


def freeze_depthwise(net: nn.Module) -> int:
    """Replaces every depthwise convolution by a FrozenDepthwise; returns the number of them.

    Other convolutions with TensorFlow's SAME padding become a SameConv.
    """
    for name, layer in list(net.named_modules()):
        if type(layer).__name__ == _SAME and layer.groups == 1 and _has_pads(layer):
            _replace(net, name, _same_conv(layer))
    found = [
        (name, layer)
        for name, layer in net.named_modules()
        if isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels == layer.out_channels > 1
        if layer.dilation == (1, 1) and isinstance(layer.padding, tuple) and _has_pads(layer)
    ]
    for name, layer in found:
        _replace(net, name, FrozenDepthwise(layer, same=type(layer).__name__ == _SAME))
    return len(found)


def _has_pads(conv: nn.Conv2d) -> bool:
    """Whether `_same_pads` computes the padding of a SAME convolution: no dilation, no kernel below its stride."""
    return conv.dilation == (1, 1) and all(k >= s for k, s in zip(conv.kernel_size, conv.stride, strict=True))


def _same_conv(conv: nn.Conv2d) -> SameConv:
    biased = conv.bias is not None
    same = SameConv(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, bias=biased)
    same.weight, same.bias = conv.weight, conv.bias
    return same


@torch.no_grad()
def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    bias = 0 if conv.bias is None else conv.bias
    conv.bias = nn.Parameter(norm.bias + (bias - norm.running_mean) * scale)
    conv.weight.mul_(scale[:, None, None, None])


def _replace(net: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, attribute = name.rpartition(".")
    setattr(net.get_submodule(parent), attribute, layer)
