"""Adaptive discriminator augmentation (ADA): a discriminator that has few images sees them augmented.

Karras et al. 2020 ("Training GANs with limited data"): real and made images pass the same random changes before the
discriminator judges them. Each change comes with probability p, so that unchanged images stay common enough for the
changes not to leak into what is made; p follows how sure the discriminator is of real images (section 3, appendix B).
Pixel blits, geometric and color changes ("bgc"), on whole batches, differentiable. Geometry is one matrix per image,
color one.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import nn

from partshot.ops.sampling import sampled

# Widths of the published distributions (appendix B): translations as shares of the side, scales as powers of two.
_BLIT, _SHIFT, _SCALE = 0.125, 0.125, 0.2
_BRIGHTNESS, _CONTRAST, _SATURATION = 0.2, 0.5, 1.0


class Ada(nn.Module):
    """The probability and what it follows.

    target: the mean sign of the discriminator's verdicts on real images that p is steered to. kimg: thousands of images
    in which p can go from 0 to 1. Buffers: p, and the signs since the last adjustment.
    """

    EVERY = 4

    def __init__(self, target: float = 0.6, kimg: float = 500.0):
        super().__init__()
        self.target, self.kimg = target, kimg
        for name in ("p", "signs", "images", "steps"):
            self.register_buffer(name, torch.zeros(()))

    def forward(self, images: Float[torch.Tensor, "b 3 s s"]) -> Float[torch.Tensor, "b 3 s s"]:
        """Images changed as p says."""
        if float(self.p) == 0:
            return images
        b, device = len(images), images.device
        # In float32: bf16 knows places in an image of 256 px to the pixel at best.
        with torch.autocast(device.type, enabled=False):
            return change(images.float(), geometry(b, images.shape[2], self.p, device), colors(b, self.p, device))

    def heed(self, verdicts: Float[torch.Tensor, " b"]) -> None:
        """Notes how sure the discriminator was of real images."""
        self.signs += verdicts.detach().sign().sum()
        self.images += len(verdicts)

    def adjust(self) -> None:
        """After a step; moves p every EVERY steps (the paper's heuristic r_t)."""
        self.steps += 1
        if int(self.steps) % self.EVERY:
            return
        # Of all processes, so that every one plays with the same p.
        for count in (self.signs, self.images):
            add_up(count)
        if not float(self.images):
            return
        sure = self.signs / self.images
        self.p += torch.sign(sure - self.target) * self.images / (self.kimg * 1000)
        # Above 0.8 changes begin to leak into what is made (paper, section 2.3).
        self.p.clamp_(0, 0.8)
        self.signs.zero_()
        self.images.zero_()


def change(
    images: Float[torch.Tensor, "b 3 s s"], where: Float[torch.Tensor, "b 2 3"], color: Float[torch.Tensor, "b 3 4"]
) -> Float[torch.Tensor, "b 3 s s"]:
    """Images in [-1, 1] sampled at other places, reflected beyond the border, and in other colors.

    where: from places in the result to places in the image, both in [-1, 1]. color: RGB1 to RGB.
    """
    # At twice the resolution, so that a turned image is hardly softer than a plain one.
    matrix, shift = where[:, :, :2], where[:, :, 2]
    lag = torch.full((2,), _LAG / images.shape[2], device=images.device)
    there = torch.cat([matrix, (shift + lag - matrix @ lag)[:, :, None]], 2)
    grid = F.affine_grid(there, [len(images), 3, 2 * images.shape[2], 2 * images.shape[3]], align_corners=False)
    moved = coarser(sampled(finer(images), grid))
    # Who stays in place stays as sharp as before.
    still = (where == torch.eye(3, device=images.device)[:2]).all(2).all(1)
    moved = torch.where(still[:, None, None, None], images, moved)
    return torch.einsum("bij,bjhw->bihw", color[:, :, :3], moved) + color[:, :, 3, None, None]


# sym6, the orthogonal wavelet that the paper resamples with (appendix B; PyWavelets' coefficients).
_SYM6 = (
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
)
_PAD = len(_SYM6) // 2 - 1
# Its center lies so many fine pixels before the middle of its taps; places are corrected by that.
_LAG = sum(k * tap for k, tap in enumerate(_SYM6)) / sum(_SYM6) - (len(_SYM6) - 1) / 2
# Pixels of reflection around an image that the filter may reach into, there and back.
_MARGIN = 6


def finer(images: Float[torch.Tensor, "b c h w"]) -> Float[torch.Tensor, "b c 2*h 2*w"]:
    """Twice the size through the wavelet's low pass."""
    c, taps = images.shape[1], 2**0.5 * torch.tensor(_SYM6, device=images.device)
    x = F.pad(images, [_MARGIN] * 4, mode="reflect")
    for shape, stride, pad in (((12, 1), (2, 1), (_PAD, 0)), ((1, 12), (1, 2), (0, _PAD))):
        kernel = taps.view(1, 1, *shape).expand(c, 1, -1, -1)
        x = F.conv_transpose2d(x, kernel, stride=stride, padding=pad, groups=c)
    return x[:, :, 2 * _MARGIN : -2 * _MARGIN, 2 * _MARGIN : -2 * _MARGIN]


def coarser(images: Float[torch.Tensor, "b c h w"]) -> torch.Tensor:
    """Half the size, [b, c, h/2, w/2]: what `finer` did is undone."""
    c, taps = images.shape[1], 0.5**0.5 * torch.tensor(_SYM6, device=images.device)
    x = F.pad(images, [2 * _MARGIN] * 4, mode="reflect")
    for shape, stride, pad in (((12, 1), (2, 1), (_PAD, 0)), ((1, 12), (1, 2), (0, _PAD))):
        x = F.conv2d(x, taps.view(1, 1, *shape).expand(c, 1, -1, -1), stride=stride, padding=pad, groups=c)
    return x[:, :, _MARGIN:-_MARGIN, _MARGIN:-_MARGIN]


def add_up(count: torch.Tensor) -> None:
    """A count of this process becomes that of all processes of a run."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(count)


def geometry(batch: int, size: int, p: torch.Tensor | float, device="cpu") -> Float[torch.Tensor, "b 2 3"]:
    """Blits (mirror, quarter turns, whole-pixel shifts), then scales, turns, stretches and shifts, as matrices."""

    def maybe(matrix: torch.Tensor, chance=p) -> torch.Tensor:
        chosen = torch.rand(batch, 1, 1, device=device) < chance
        return torch.where(chosen, matrix, torch.eye(3, device=device))

    def uniform(reach: float) -> torch.Tensor:
        return (torch.rand(batch, device=device) * 2 - 1) * reach

    def normal(deviation: float) -> torch.Tensor:
        return torch.randn(batch, device=device) * deviation

    # Two turns, each this often, so that at least one of them comes with probability p.
    turned = 1 - (1 - torch.as_tensor(p, device=device)).sqrt()
    side = torch.where(torch.rand(batch, device=device) < 0.5, -1.0, 1.0)
    one = torch.ones(batch, device=device)
    shift = [(uniform(_BLIT) * size).round() * 2 / size for _ in range(2)]
    grow, stretch = torch.exp2(normal(_SCALE)), torch.exp2(normal(_SCALE))
    steps = [
        maybe(_scaling(side, one)),
        maybe(_turn(torch.randint(4, (batch,), device=device) * (math.pi / 2))),
        maybe(_shifting(*shift)),
        maybe(_scaling(grow, grow)),
        maybe(_turn(uniform(math.pi)), turned),
        maybe(_scaling(stretch, 1 / stretch)),
        maybe(_turn(uniform(math.pi)), turned),
        maybe(_shifting(normal(2 * _SHIFT), normal(2 * _SHIFT))),
    ]
    whole = steps[0]
    for step in steps[1:]:
        whole = whole @ step
    return whole[:, :2]


def colors(batch: int, p: torch.Tensor | float, device="cpu") -> Float[torch.Tensor, "b 3 4"]:
    """Brightness, contrast, luma flip, hue and saturation, as matrices on RGB1."""

    def maybe(matrix: torch.Tensor) -> torch.Tensor:
        chosen = torch.rand(batch, 1, 1, device=device) < p
        return torch.where(chosen, matrix, torch.eye(4, device=device))

    def normal(deviation: float) -> torch.Tensor:
        return torch.randn(batch, device=device) * deviation

    flip = (torch.rand(batch, device=device) < 0.5).float()
    turn = (torch.rand(batch, device=device) * 2 - 1) * math.pi
    steps = [
        maybe(brightness(normal(_BRIGHTNESS))),
        maybe(contrast(torch.exp2(normal(_CONTRAST)))),
        maybe(luma_flip(flip)),
        maybe(hue(turn)),
        maybe(saturation(torch.exp2(normal(_SATURATION)))),
    ]
    whole = steps[0]
    for step in steps[1:]:
        whole = step @ whole
    return whole[:, :3]


def brightness(by: Float[torch.Tensor, " b"]) -> Float[torch.Tensor, "b 4 4"]:
    """Adds to all channels; 2 is from black to white."""
    matrix = torch.eye(4, device=by.device).repeat(len(by), 1, 1)
    matrix[:, :3, 3] = by[:, None]
    return matrix


def contrast(by: Float[torch.Tensor, " b"]) -> Float[torch.Tensor, "b 4 4"]:
    """Multiplies the distance to middle gray."""
    return _on_colors(by[:, None, None] * torch.eye(3, device=by.device))


def luma_flip(share: Float[torch.Tensor, " b"]) -> Float[torch.Tensor, "b 4 4"]:
    """Light becomes dark, hue stays: a reflection across the plane of no brightness; share 0 or 1."""
    return _on_colors(torch.eye(3, device=share.device) - 2 * share[:, None, None] * _gray(share.device))


def hue(angle: Float[torch.Tensor, " b"]) -> Float[torch.Tensor, "b 4 4"]:
    """Turns colors about the gray axis by radians (Rodrigues' formula)."""
    gray, eye = _gray(angle.device), torch.eye(3, device=angle.device)
    cross = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]], device=angle.device) / math.sqrt(3)
    cos, sin = torch.cos(angle)[:, None, None], torch.sin(angle)[:, None, None]
    return _on_colors(gray + cos * (eye - gray) + sin * cross)


def saturation(by: Float[torch.Tensor, " b"]) -> Float[torch.Tensor, "b 4 4"]:
    """Multiplies the distance to gray; 0 is a gray image."""
    gray, eye = _gray(by.device), torch.eye(3, device=by.device)
    return _on_colors(gray + by[:, None, None] * (eye - gray))


def _gray(device) -> torch.Tensor:
    # Projection on the gray axis.
    return torch.full((3, 3), 1 / 3, device=device)


def _on_colors(matrix: torch.Tensor) -> torch.Tensor:
    whole = torch.eye(4, device=matrix.device).repeat(len(matrix), 1, 1)
    whole[:, :3, :3] = matrix
    return whole


def _scaling(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.diag_embed(torch.stack([x, y, torch.ones_like(x)], 1))


def _turn(angle: torch.Tensor) -> torch.Tensor:
    cos, sin, zero, one = torch.cos(angle), torch.sin(angle), torch.zeros_like(angle), torch.ones_like(angle)
    rows = [cos, -sin, zero, sin, cos, zero, zero, zero, one]
    return torch.stack(rows, 1).view(-1, 3, 3)


def _shifting(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    matrix = torch.eye(3, device=x.device).repeat(len(x), 1, 1)
    matrix[:, 0, 2], matrix[:, 1, 2] = x, y
    return matrix
