"""LightUNet: a student with a pretrained convolutional encoder from timm and a decoder that is cheaper than it.

The encoder is prepared for cheap fine-tuning (nets/fold_and_freeze.py). The decoder adds skip connections instead of
concatenating them, has more channels at lower resolutions, and computes nothing at the image's own resolution: its last
convolution predicts a block of pixels at once (pixel shuffle). Five coordinate maps are projected and added at each
level. The caller loads the pretrained weights.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import nn

from partshot.errors import BadRecipe
from partshot.nets.fold_and_freeze import fold_batchnorm, freeze_depthwise, trace_layers
from partshot.nets.timm_nets import build_net, load_without_classifier
from partshot.ops.position import CHANNELS, position_map

# Stride of a decoder level -> its channels.
WIDTHS = {2: 16, 4: 32, 8: 48, 16: 64, 32: 96}


class LightUNet(nn.Module):
    """float [b, 3, h, w] in [-1, 1] -> logits [b, classes, h, w]; h and w are multiples of 32.

    name: a convolutional encoder of timm whose levels have strides from 2 or 4 to 32. Its weights are random until
    `load_encoder`. Raises BadRecipe for a name that timm does not know, and for an encoder with other strides.
    """

    def __init__(self, name: str, classes: int):
        super().__init__()
        self.name = name
        self.encoder, strides, channels, mean, std = _encoder(name)
        widths = [WIDTHS[stride] for stride in strides]
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)
        self.lateral = nn.ModuleList(_Lateral(c, w) for c, w in zip(channels, widths, strict=True))
        self.down = nn.ModuleList(nn.Conv2d(b, a, 1, bias=False) for a, b in zip(widths, widths[1:], strict=False))
        self.up = nn.ModuleList(_Residual(w) for w in widths)
        self.block = strides[0]
        self.head = nn.Conv2d(widths[0], classes * self.block**2, 1)

    def forward(self, images: Float[torch.Tensor, "b 3 h w"]) -> Float[torch.Tensor, "b k h w"]:
        """Logits at the images' size."""
        x = ((images + 1) / 2 - self.mean) / self.std
        levels = self.encoder.forward_intermediates(
            x.contiguous(memory_format=torch.channels_last), intermediates_only=True
        )
        y = None
        for i in reversed(range(len(levels))):
            z = self.lateral[i](levels[i])
            if y is not None:
                # Reduce channels before upsampling.
                y = self.down[i](y)
                z = z + F.interpolate(y, size=z.shape[2:], mode="bilinear", align_corners=False)
            y = self.up[i](F.relu(z))
        return F.pixel_shuffle(self.head(y), self.block)

    def load_encoder(self, tensors: Mapping[str, torch.Tensor], source: str) -> None:
        """Loads an encoder's pretrained weights, under timm's names; BadArtifact if they are those of another network.

        source: name of the weights in error messages.
        """
        net = _plain_encoder(self.name)
        load_without_classifier(net, tensors, source)
        self.encoder.load_state_dict(_prepared(net).state_dict())

    def freeze_up_to(self, stride: int) -> None:
        """Freezes the encoder's layers up to the end of the level with this stride; 0 freezes none."""
        ends = [info["module"] for info in self.encoder.feature_info if info["reduction"] <= stride]
        if not ends:
            return
        names = [name for name, *_ in trace_layers(self.encoder, lambda: _run(self.encoder))]
        last = max(i for i, name in enumerate(names) if name == ends[-1] or name.startswith(f"{ends[-1]}."))
        later = names[last + 1 :]
        # Whole blocks, since some have parameters of their own, such as ConvNeXt's layer scale.
        for name, module in self.encoder.named_modules():
            inside = [layer for layer in names if layer == name or layer.startswith(f"{name}.")]
            if inside and not set(inside) & set(later):
                module.requires_grad_(False)


class _Lateral(nn.Module):
    """Projects an encoder level to the decoder's channels and adds projected coordinates."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.level = nn.Conv2d(channels, width, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.position = nn.Conv2d(CHANNELS, width, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.level(x))
        return x + self.position(position_map(*x.shape[2:]).to(x))


class _Residual(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut (He et al. 2016, figure 2)."""

    def __init__(self, width: int):
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, 3, 1, 1, bias=False) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.norms[0](self.first(x)), inplace=True)
        return F.relu(self.norms[1](self.second(y)) + x, inplace=True)


def _encoder(name: str) -> tuple[nn.Module, list[int], list[int], torch.Tensor, torch.Tensor]:
    """A randomly initialized encoder, prepared for fine-tuning, and its properties.

    Returns encoder; strides and channels of its levels, finest first; mean and standard deviation of its input, in
    [0, 1].
    """
    net = _plain_encoder(name)
    strides = [info["reduction"] for info in net.feature_info]
    if strides not in ([2, 4, 8, 16, 32], [4, 8, 16, 32]):
        raise BadRecipe(
            f"student 'light-{name}': its encoder has levels of strides {strides}; needed are 2 or 4 to 32, "
            "as in light-tf_efficientnet_lite0, light-resnet18 or light-convnext_tiny"
        )
    channels = [info["num_chs"] for info in net.feature_info]
    mean, std = (torch.tensor(net.pretrained_cfg[key]).float().view(1, 3, 1, 1) for key in ("mean", "std"))
    return _prepared(net), strides, channels, mean, std


def _plain_encoder(name: str) -> nn.Module:
    net = build_net(name)
    # Layers after the last level belong to the classifier.
    net.prune_intermediate_layers(len(net.feature_info), prune_norm=True, prune_head=True)
    return net


def _prepared(net: nn.Module) -> nn.Module:
    net.eval()
    fold_batchnorm(net, lambda: _run(net))
    freeze_depthwise(net)
    return net


def _run(net: nn.Module) -> object:
    return net.forward_intermediates(torch.zeros(1, 3, 64, 64), intermediates_only=True)
