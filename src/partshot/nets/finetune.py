"""Makes a pretrained convolutional network cheap to fine-tune on a few images, above all on a CPU.

Three changes, none of which changes what the network computes at first. BatchNorm's stored statistics are folded into
the convolution before it, since a handful of images estimates no better ones. Depthwise kernels stay as they were
pretrained: their gradient alone takes three quarters of a training step on a CPU, and the gradient that passes through
them becomes an ordinary fast convolution. Early layers can be fixed, which saves the backward pass where maps are
largest. Knows torch modules; refuses to know which network they make up.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

# Zeros at the left, right, top and bottom; symbols while a graph is exported.
Pads = tuple[int | torch.SymInt, ...]

_NORMS = (nn.BatchNorm2d,)
# timm's convolution with TensorFlow's padding.
_SAME = "Conv2dSame"


class FixedDepthwise(nn.Module):
    """A depthwise convolution whose kernel and bias are not trained.

    same: pad as TensorFlow does, so that the result has ceil(size / stride) pixels, the odd one at the end.
    padding: zeros on each side, (height, width); unused with `same`.
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
        """Zeros at the left, right, top and bottom."""
        if self.same:
            return _same_pads(size, kernel, self.stride)
        return (self.padding[1],) * 2 + (self.padding[0],) * 2


class SameConv(nn.Conv2d):
    """A convolution with TensorFlow's padding, for maps of any size, exported graphs included."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(F.pad(x, _same_pads(x.shape[2:], self.kernel_size, self.stride)))


def _same_pads(size, kernel, stride) -> Pads:
    """Zeros at the left, right, top and bottom, so that ceil(size / stride) pixels result."""
    # Without a comparison, which an exporter would have to decide for all sizes.
    missing = [k - s + (-side) % s for side, k, s in zip(size, kernel, stride, strict=True)]
    (top, left), (down, across) = (m // 2 for m in missing), missing
    return left, across - left, top, down - top


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution with the gradient of its input alone, which is a convolution with the turned kernel.

    torch's own backward pass takes 3 to 30 times as long as the forward one on CPUs; this one takes about as long.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, stride, pads):
        ctx.save_for_backward(weight)
        ctx.stride, ctx.pads, ctx.size = stride, pads, x.shape[2:]
        return _padded_conv(x, weight, bias, stride, pads)

    @staticmethod
    def backward(ctx, grad):
        (weight,) = ctx.saved_tensors
        grad = _spread(grad, ctx.stride)
        pads: tuple[int, ...] = ()
        # What the padding received is cut off, what a stride never reached gets zeros.
        for axis, before in ((1, ctx.pads[0]), (0, ctx.pads[2])):
            reach = weight.shape[2 + axis]
            start = reach - 1 - before
            pads += (start, ctx.size[axis] - (grad.shape[2 + axis] + start - reach + 1))
        return _padded_conv(grad, weight.flip(2, 3), None, (1, 1), pads), None, None, None, None


def _spread(grad: torch.Tensor, stride: tuple[int, int]) -> torch.Tensor:
    """A strided result's gradient at the places where it was taken, zeros between."""
    if stride == (1, 1):
        return grad
    (b, c, h, w), (down, across) = grad.shape, stride
    wide = grad.new_zeros(b, c, (h - 1) * down + 1, (w - 1) * across + 1)
    wide = wide.contiguous(memory_format=torch.channels_last)
    wide[:, :, ::down, ::across] = grad
    return wide


def _padded_conv(x, weight, bias, stride, pads) -> torch.Tensor:
    groups = weight.shape[0]
    if pads[0] == pads[1] >= 0 and pads[2] == pads[3] >= 0:
        return F.conv2d(x, weight, bias, stride, (pads[2], pads[0]), groups=groups)
    return F.conv2d(F.pad(x, pads), weight, bias, stride, groups=groups)


def order_of_layers(net: nn.Module, run: Callable[[], object]) -> list[tuple[str, nn.Module, torch.Tensor, object]]:
    """(name, layer, its input, its output) of every layer without children that `run` calls, in that order."""
    seen: list[tuple[str, nn.Module, torch.Tensor, object]] = []
    handles = [
        layer.register_forward_hook(
            lambda layer, given, result, name=name: seen.append((name, layer, given[0], result))
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
    return seen


def fold_norms(net: nn.Module, run: Callable[[], object]) -> int:
    """Folds every BatchNorm that directly follows a convolution into it; returns how many.

    run: calls the network once on some input, in evaluation mode; which layer feeds which is read off that. A norm that
    brings its activation along, as timm's do, leaves it behind. Others stay as they are.
    """
    made_by: dict[int, nn.Conv2d] = {}
    pairs = []
    layers = order_of_layers(net, run)
    for name, layer, given, result in layers:
        if isinstance(layer, nn.Conv2d):
            made_by[id(result)] = layer
        elif isinstance(layer, _NORMS) and id(given) in made_by:
            pairs.append((name, made_by.pop(id(given)), layer))
    for name, conv, norm in pairs:
        _fold(conv, norm)
        _put(net, name, getattr(norm, "act", None) or nn.Identity())
    return len(pairs)


def fix_depthwise(net: nn.Module) -> int:
    """Puts a FixedDepthwise in the place of every depthwise convolution; returns how many.

    What else has TensorFlow's padding becomes a SameConv.
    """
    for name, layer in list(net.named_modules()):
        if type(layer).__name__ == _SAME and layer.groups == 1:
            _put(net, name, _same_conv(layer))
    found = [
        (name, layer)
        for name, layer in net.named_modules()
        if isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels == layer.out_channels > 1
        if layer.dilation == (1, 1) and isinstance(layer.padding, tuple)
    ]
    for name, layer in found:
        _put(net, name, FixedDepthwise(layer, same=type(layer).__name__ == _SAME))
    return len(found)


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


def _put(net: nn.Module, name: str, layer: nn.Module) -> None:
    place, _, last = name.rpartition(".")
    setattr(net.get_submodule(place), last, layer)
