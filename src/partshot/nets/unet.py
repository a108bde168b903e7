"""Two published U-Nets: ReGAN's student, which takes images, and the body of GANORCON's CONV head on feature maps.

As published, both upsample bilinearly with align_corners=True and put the skip connection first when concatenating.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import nn


class ReganUNet(nn.Module):
    """Images [b, 3, h, w] -> logits [b, classes, h, w]; widths 64, 128, 256, 512, 512, two convolutions per level.

    Source: ReGAN, supplement and released code. The released code creates the last 1x1 layer but does not apply it;
    here it is applied. Images must have at least 16 px.
    """

    def __init__(self, classes: int):
        super().__init__()
        self.down = nn.ModuleList([_double(3, 64), _double(64, 128), _double(128, 256), _double(256, 512)])
        self.bottom = _double(512, 512)
        # Inputs: skip connection and the level below. The middle width is half of them, as in the bilinear variant.
        self.up = nn.ModuleList(
            [_double(1024, 256, 512), _double(512, 128, 256), _double(256, 64, 128), _double(128, 64, 64)]
        )
        self.out = nn.Conv2d(64, classes, 1)

    def forward(self, images: Float[torch.Tensor, "b 3 h w"]) -> Float[torch.Tensor, "b k h w"]:
        """Logits at the images' size."""
        skips = []
        x = images
        for block in self.down:
            x = block(x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = self.bottom(x)
        for block, skip in zip(self.up, reversed(skips), strict=True):
            x = block(_concat_skip(skip, x))
        return self.out(x)


class GanorconBody(nn.Module):
    """GANORCON's CONV head without its first convolution: [b, 1024, h, w] -> logits [b, classes, h, w].

    One convolution per level instead of U-Net's two; widths 1024, 256, 256, 256, 512, 512 down and 256, 256, 128,
    256, 256 up. Maps must have at least 32 px. Source: GANORCON's released code.
    """

    def __init__(self, classes: int):
        super().__init__()
        widths = (1024, 256, 256, 256, 512, 512)
        self.down = nn.ModuleList(_single(a, b) for a, b in zip(widths, widths[1:], strict=False))
        self.up = nn.ModuleList(
            [_single(1024, 256), _single(512, 256), _single(512, 128), _single(384, 256), _single(1280, 256)]
        )
        self.out = nn.Conv2d(256, classes, 1)

    def forward(self, x: Float[torch.Tensor, "b 1024 h w"]) -> Float[torch.Tensor, "b k h w"]:
        """Logits at the size of the map."""
        skips = []
        for block in self.down:
            skips.append(x)
            x = block(F.max_pool2d(x, 2))
        for block, skip in zip(self.up, reversed(skips), strict=True):
            x = block(_concat_skip(skip, x))
        return self.out(x)


def kaiming(module: nn.Module) -> None:
    """He initialization (fan-in) of a convolution and zeros for its bias; other modules are unchanged."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _single(inputs: int, outputs: int) -> nn.Sequential:
    # No bias, because the following BatchNorm would subtract it.
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


def _double(inputs: int, outputs: int, middle: int | None = None) -> nn.Sequential:
    middle = middle or outputs
    return nn.Sequential(*_single(inputs, middle), *_single(middle, outputs))


def _concat_skip(skip: torch.Tensor, below: torch.Tensor) -> torch.Tensor:
    """Concatenates the skip connection and the upsampled level below. Pooling drops the last pixel of odd sizes."""
    below = F.interpolate(below, size=skip.shape[2:], mode="bilinear", align_corners=True)
    return torch.cat([skip, below], dim=1)
