"""Student networks: the fast networks that are distilled and exported. Images in [-1, 1] -> logits of the same size.

- "fast-unet" (default): a residual U-Net designed for CPUs. Pixel unshuffle before the stem and pixel shuffle after the
  head avoid convolutions at full resolution. Lower resolutions have more channels, skip connections are added instead
  of concatenated, and five coordinate maps are inputs, which helps with aligned objects.
- "light-ENCODER": a light decoder on an encoder of timm (nets/light_unet.py), which can start from pretrained weights.
- "regan-unet": ReGAN's published student.
- Any network of segmentation-models-pytorch by name: "unet-resnet34", "deeplabv3plus-mobilenet_v2", ...
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import nn

from partshot.errors import BadArtifact, BadRecipe, MissingExtra, nearest
from partshot.nets.light_unet import LightUNet
from partshot.nets.unet import ReganUNet
from partshot.ops.position import CHANNELS, position_map

LIGHT = "light-"
"""Prefix of the names of LightUNets; the encoder's name follows."""

STRIDE = 32
"""Divides the sides of every student's input; exported models resize their images accordingly."""


def build_student(name: str, classes: int) -> nn.Module:
    """An untrained student: float [b, 3, s, s] in [-1, 1] -> logits [b, classes, s, s].

    name: "fast-unet", "light-ENCODER" with timm's name of the encoder, "regan-unet", or "ARCHITECTURE-ENCODER" of
    segmentation-models-pytorch. Raises BadRecipe with the nearest known name for an unknown one, MissingExtra when
    segmentation-models-pytorch is needed and not installed.
    """
    if name in ("fast-unet", "swift"):  # "swift" is the name in partshot 0.1
        return FastUNet(classes)
    if name.startswith(LIGHT):
        return LightUNet(name.removeprefix(LIGHT), classes)
    if name == "regan-unet":
        return ReganUNet(classes)
    architecture, _, encoder = name.partition("-")
    try:
        import segmentation_models_pytorch as smp
    except (ImportError, RuntimeError) as error:
        raise MissingExtra(
            f"student '{name}' needs segmentation-models-pytorch ({error}); run: pip install 'partshot[train]'"
        ) from error
    known = {a.__name__.lower(): a for a in (smp.Unet, smp.UnetPlusPlus, smp.MAnet, smp.Linknet, smp.FPN, smp.PSPNet,
             smp.DeepLabV3, smp.DeepLabV3Plus, smp.PAN, smp.UPerNet, smp.Segformer, smp.DPT)}  # fmt: skip
    if architecture not in known or not encoder:
        names = [f"{LIGHT}ENCODER", "fast-unet", "regan-unet", *known]
        raise BadRecipe(f"unknown student '{name}'; {nearest(architecture, names)}; architectures of "
                        "segmentation-models-pytorch need an encoder: unet-resnet18")  # fmt: skip
    try:
        return known[architecture](encoder, encoder_weights=None, in_channels=3, classes=classes)
    except KeyError as error:
        names = smp.encoders.get_encoder_names()
        raise BadRecipe(f"unknown encoder '{encoder}' in student '{name}'; {nearest(encoder, names)}") from error


def start_from(net: nn.Module, tensors: Mapping[str, torch.Tensor], source: str) -> nn.Module:
    """Transfer learning: loads every tensor that matches the net by name and shape; other weights stay unchanged.

    tensors: another student's weights, whose classifier may have other classes; or the weights of an encoder under its
    own names, which get the prefix "encoder." in networks of segmentation-models-pytorch. source: name of the weights
    in error messages. Raises BadArtifact when tensors match less than half of the net's encoder, because they are then
    weights of another network.
    """
    own = net.state_dict()
    if isinstance(net, LightUNet) and not any(name.startswith("encoder.") for name in tensors):
        net.load_encoder(tensors, source)
        return net
    # Only convolution weights identify a network; norms of equal shape occur in many networks.
    weights = {name for name, tensor in own.items() if tensor.ndim == 4}
    named = {name if name in own else f"encoder.{name}": tensor for name, tensor in tensors.items()}
    matching = {name: tensor for name, tensor in named.items() if name in own and tensor.shape == own[name].shape}
    encoder = [name for name in weights if name.startswith("encoder.")] or list(weights)
    if 2 * sum(name in matching for name in encoder) < len(encoder):
        raise BadArtifact(
            f"{source}: {len(matching)} of its {len(tensors)} tensors fit the student; use weights of the same network"
        )
    net.load_state_dict(matching, strict=False)
    return net


class FlipTTA(nn.Module):
    """Flip test-time augmentation: averages the logits of an image and of its horizontal flip.

    mirrored_ids: for each id the id that it becomes in a flipped image, as returned by `PartSet.mirrored_ids`.
    """

    def __init__(self, net: nn.Module, mirrored_ids: list[int]):
        super().__init__()
        self.net, self.mirrored_ids = net, mirrored_ids

    def forward(self, images: Float[torch.Tensor, "b 3 h w"]) -> Float[torch.Tensor, "b k h w"]:
        """Logits at the images' size."""
        logits, flipped = self.net(images), self.net(images.flip(3))
        return (logits + flipped.flip(3)[:, self.mirrored_ids]) / 2


class Offset(nn.Module):
    """A student whose logits get a constant offset per class (see ops/decision.py)."""

    def __init__(self, net: nn.Module, offsets: Sequence[float]):
        super().__init__()
        self.net = net
        self.register_buffer("offsets", torch.tensor(offsets)[:, None, None], persistent=False)

    def forward(self, images: Float[torch.Tensor, "b 3 h w"]) -> Float[torch.Tensor, "b k h w"]:
        """Logits at the images' size, with the offsets added."""
        return self.net(images) + self.offsets


class FastUNet(nn.Module):
    """The default student; see the module's docstring. 1.3 M parameters, 0.2 G multiply-adds at 128 px.

    widths: channels at 1/2, 1/4, ... of the image's resolution.
    """

    def __init__(self, classes: int, widths: tuple[int, ...] = (16, 32, 64, 128, 192)):
        super().__init__()
        self.stem = _conv(3 * 4 + CHANNELS, widths[0])
        self.down = nn.ModuleList(
            [_Residual(widths[0], widths[0])]
            + [_Residual(a, b, stride=2) for a, b in zip(widths, widths[1:], strict=False)]
        )
        self.lateral = nn.ModuleList(nn.Conv2d(b, a, 1, bias=False) for a, b in zip(widths, widths[1:], strict=False))
        self.up = nn.ModuleList(_Residual(a, a) for a in widths[:-1])
        self.head = nn.Conv2d(widths[0], classes * 4, 1)

    def forward(self, images: Float[torch.Tensor, "b 3 h w"]) -> Float[torch.Tensor, "b k h w"]:
        """Logits at the images' size; both sides must be even."""
        kind = images.device.type
        if torch.is_autocast_enabled(kind):
            # The stem computes in this dtype anyway, and pixel unshuffle is faster with fewer bytes.
            images = images.to(torch.get_autocast_dtype(kind))
        x = F.pixel_unshuffle(images, 2)
        position = position_map(*x.shape[2:]).to(x).expand(x.shape[0], -1, -1, -1)
        x = self.stem(torch.cat([x, position], 1).contiguous(memory_format=torch.channels_last))
        skips = []
        for step in self.down:
            x = step(x)
            skips.append(x)
        for lateral, up, skip in reversed(list(zip(self.lateral, self.up, skips, strict=False))):
            # To the skip's size instead of by a factor of 2: sizes not divisible by 32, which the low-resolution phase
            # can have, lead to maps with odd sides.
            x = up(F.interpolate(lateral(x), size=skip.shape[2:], mode="bilinear", align_corners=False) + skip)
        return self._logits(x) if torch.is_grad_enabled() else F.pixel_shuffle(self.head(x), 2)

    def _logits(self, x: torch.Tensor) -> torch.Tensor:
        """Equals the head followed by pixel_shuffle, in two thirds of its time for forward and backward pass (LOG.md).

        The classes of a pixel are adjacent in memory, so whole rows are copied. The exported model uses pixel_shuffle,
        which all runtimes support.
        """
        (b, _, h, w), classes = x.shape, len(self.head.bias) // 4
        weight = self.head.weight.unflatten(0, (classes, 4)).transpose(0, 1).flatten(0, 1)
        logits = F.conv2d(x, weight, self.head.bias.view(classes, 4).T.flatten())
        four = logits.permute(0, 2, 3, 1).reshape(b, h, w, 2, 2, classes)
        return four.transpose(2, 3).reshape(b, 2 * h, 2 * w, classes).permute(0, 3, 1, 2)


class _Residual(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut (He et al. 2016, figure 2)."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__()
        self.first = _conv(inputs, outputs, stride)
        self.second = nn.Sequential(nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs))
        same = inputs == outputs and stride == 1
        self.shortcut = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.second(self.first(x)) + self.shortcut(x), inplace=True)


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )
