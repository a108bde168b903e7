"""Two published U-Nets: ReGAN's student on images, and the body of GANORCON's CONV head on feature maps.

Both enlarge bilinearly with align_corners=True, as published, and concatenate the skip first. Knows shapes only.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import nn


class ReganUNet(nn.Module):
    """Images [b, 3, h, w] -> logits [b, classes, h, w]; widths 64, 128, 256, 512, 512, two convolutions per level.

    Source: ReGAN, supplement and released code, whose file makes the last 1x1 layer and forgets to apply it; here it
    is applied. Any image of at least 16 px.
    """

    def __init__(self, classes: int):
        super().__init__()
        self.down = nn.ModuleList([_double(3, 64), _double(64, 128), _double(128, 256), _double(256, 512)])
        self.bottom = _double(512, 512)
        # Each reads the skip and what comes from below; the middle width is half of that, as in the bilinear variant.
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
            x = block(_joined(skip, x))
        return self.out(x)


class GanorconBody(nn.Module):
    """What follows the first convolution of GANORCON's CONV head: [b, 1024, h, w] -> logits [b, classes, h, w].

    One convolution per level instead of U-Net's two; widths 1024, 256, 256, 256, 512, 512 down and 256, 256, 128,
    256, 256 up. Any map of at least 32 px. Source: GANORCON's released code.
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
        """Logits at the map's size."""
        skips = []
        for block in self.down:
            skips.append(x)
            x = block(F.max_pool2d(x, 2))
        for block, skip in zip(self.up, reversed(skips), strict=True):
            x = block(_joined(skip, x))
        return self.out(x)


def kaiming(module: nn.Module) -> None:
    """He's initialization by fan-in for a convolution, zero for its bias; other modules are left alone."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _single(inputs: int, outputs: int) -> nn.Sequential:
    # Without a bias: the norm that follows subtracts it.
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


def _double(inputs: int, outputs: int, middle: int | None = None) -> nn.Sequential:
    middle = middle or outputs
    return nn.Sequential(*_single(inputs, middle), *_single(middle, outputs))


def _joined(skip: torch.Tensor, below: torch.Tensor) -> torch.Tensor:
    """The skip and, enlarged to it, what comes from the level below. Odd sizes lose their last pixel in pooling."""
    below = F.interpolate(below, size=skip.shape[2:], mode="bilinear", align_corners=True)
    return torch.cat([skip, below], dim=1)
