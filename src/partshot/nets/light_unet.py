"""A pretrained encoder of timm's under a decoder that costs less than it: students that begin with what it knows.

The encoder is made cheap to fine-tune (nets/finetune.py). The decoder adds where others concatenate, is wide where the
maps are small, and computes nothing at the image's own size: its last convolution predicts a block of pixels at
once. Five maps of position tell each level where in the image it is. Knows timm's convolutional encoders by name;
where their weights come from is its caller's affair.
"""

from collections.abc import Mapping

import timm
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import nn

from partshot.errors import BadRecipe
from partshot.nets.finetune import fix_depthwise, fold_norms, order_of_layers
from partshot.nets.weights import load_exactly
from partshot.ops.position import CHANNELS, position_map

# Channels of the decoder's level of each stride.
WIDTHS = {2: 16, 4: 32, 8: 48, 16: 64, 32: 96}
# A classifier is no part of an encoder.
_CLASSIFIERS = ("head.", "fc.", "classifier.", "conv_head.", "bn2.")


class LightUNet(nn.Module):
    """float [b, 3, h, w] in [-1, 1] -> logits [b, classes, h, w]; h and w are multiples of 32.

    name: of a convolutional encoder of timm whose levels have strides from 2 or 4 to 32; randomly initialized until
    `begin`. Raises BadRecipe for a name that timm does not know, and for an encoder of other strides.
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
                # Fewer channels first, then more pixels.
                y = self.down[i](y)
                z = z + F.interpolate(y, size=z.shape[2:], mode="bilinear", align_corners=False)
            y = self.up[i](F.relu(z))
        return F.pixel_shuffle(self.head(y), self.block)

    def begin(self, tensors: Mapping[str, torch.Tensor], source: str) -> None:
        """Takes over an encoder's pretrained weights under timm's names; BadArtifact when they are of another net.

        source: for messages.
        """
        net = _plain_encoder(self.name)
        wanted = net.state_dict().keys()
        kept = {k: v for k, v in tensors.items() if k in wanted or not k.startswith(_CLASSIFIERS)}
        load_exactly(net, kept, source)
        self.encoder.load_state_dict(_cheap(net).state_dict())

    def fix_up_to(self, stride: int) -> None:
        """Fixes the encoder's layers up to the end of the level of that stride; 0 fixes none."""
        ends = [info["module"] for info in self.encoder.feature_info if info["reduction"] <= stride]
        if not ends:
            return
        names = [name for name, *_ in order_of_layers(self.encoder, lambda: _run(self.encoder))]
        last = max(i for i, name in enumerate(names) if name == ends[-1] or name.startswith(f"{ends[-1]}."))
        for name in names[: last + 1]:
            self.encoder.get_submodule(name).requires_grad_(False)


class _Lateral(nn.Module):
    """An encoder's level, and where in the image it is, in the decoder's channels."""

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
    """A cheap encoder, randomly initialized, with the strides and channels of its levels, finest first, and the colors'
    mean and deviation in [0, 1]."""
    net = _plain_encoder(name)
    strides = [info["reduction"] for info in net.feature_info]
    if strides not in ([2, 4, 8, 16, 32], [4, 8, 16, 32]):
        raise BadRecipe(
            f"student 'light-{name}': its encoder has levels of strides {strides}; 2 or 4 to 32 are needed, as those "
            "of light-tf_efficientnet_lite0, light-resnet18 or light-convnext_tiny"
        )
    channels = [info["num_chs"] for info in net.feature_info]
    mean, std = (torch.tensor(net.pretrained_cfg[key]).float().view(1, 3, 1, 1) for key in ("mean", "std"))
    return _cheap(net), strides, channels, mean, std


def _plain_encoder(name: str) -> nn.Module:
    if not timm.is_model(name):
        raise BadRecipe(f"timm {timm.__version__} knows no encoder '{name}' for a student; see timm.list_models()")
    net = timm.create_model(name, pretrained=False, num_classes=0)
    if not hasattr(net, "forward_intermediates"):
        raise BadRecipe(f"timm's '{name}' gives no intermediate maps; choose another encoder, such as resnet18")
    # What comes behind the last level is a classifier's.
    net.prune_intermediate_layers(len(net.feature_info), prune_norm=True, prune_head=True)
    return net


def _cheap(net: nn.Module) -> nn.Module:
    net.eval()
    fold_norms(net, lambda: _run(net))
    fix_depthwise(net)
    return net


def _run(net: nn.Module) -> object:
    return net.forward_intermediates(torch.zeros(1, 3, 64, 64), intermediates_only=True)
