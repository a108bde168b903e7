"""Adaptive discriminator augmentation (ADA), for GAN training with few images.

Karras et al. 2020 ("Training GANs with limited data"): real and generated images are augmented before they enter the
discriminator. Each augmentation is applied with probability p. Enough images stay unaugmented, so that augmentations do
not leak into generated images. p is adapted to the overfitting of the discriminator, measured by the sign of its logits
for real images (section 3, appendix B).

Pixel blitting, geometric and color transformations ("bgc"), batched and differentiable. Per image, all geometric
transformations are combined into one matrix, and all color transformations into another.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import nn

from partshot.ops.sampling import grid_sample

# Parameters of the published distributions (appendix B): translations as fractions of the side, scales as powers of
# two.
_BLIT, _SHIFT, _SCALE = 0.125, 0.125, 0.2
_BRIGHTNESS, _CONTRAST, _SATURATION = 0.2, 0.5, 1.0


class Ada(nn.Module):
    """The augmentation, and the adaptation of its probability p.

    target: target value of r_t, the mean sign of the discriminator's logits for real images. kimg: thousands of images
    in which p can change from 0 to 1. Buffers: p, and sums since the last adjustment of p.
    """

    EVERY = 4

    def __init__(self, target: float = 0.6, kimg: float = 500.0):
        super().__init__()
        self.target, self.kimg = target, kimg
        for name in ("p", "signs", "images", "steps"):
            self.register_buffer(name, torch.zeros(()))

    def forward(self, images: Float[torch.Tensor, "b 3 s s"]) -> Float[torch.Tensor, "b 3 s s"]:
        """Augments images with probability p."""
        if float(self.p) == 0:
            return images
        b, device = len(images), images.device
        # In float32, because bf16 coordinates in an image of 256 px are only accurate to a pixel.
        with torch.autocast(device.type, enabled=False):
            geometric = geometric_matrix(b, images.shape[2], self.p, device)
            return transform(images.float(), geometric, color_matrix(b, self.p, device))

    def accumulate(self, logits: Float[torch.Tensor, " b"]) -> None:
        """Accumulates the signs of the discriminator's logits for real images."""
        self.signs += logits.detach().sign().sum()
        self.images += len(logits)

    def adjust(self) -> None:
        """Call after each step; adjusts p every EVERY steps by the paper's heuristic r_t."""
        self.steps += 1
        if int(self.steps) % self.EVERY:
            return
        # Over all processes, so that p is the same in each.
        for total in (self.signs, self.images):
            all_reduce_sum(total)
        if not float(self.images):
            return
        r_t = self.signs / self.images
        self.p += torch.sign(r_t - self.target) * self.images / (self.kimg * 1000)
        # Above 0.8 augmentations leak into generated images (paper, section 2.3).
        self.p.clamp_(0, 0.8)
        self.signs.zero_()
        self.images.zero_()


def transform(
    images: Float[torch.Tensor, "b 3 s s"], geometric: Float[torch.Tensor, "b 2 3"], color: Float[torch.Tensor, "b 3 4"]
) -> Float[torch.Tensor, "b 3 s s"]:
    """Applies a geometric and a color matrix to each image in [-1, 1]; reflection padding beyond the border.

    geometric: affine, from coordinates in the result to coordinates in the image, both in [-1, 1]. color: from
    (R, G, B, 1) to RGB.
    """
    # At twice the resolution, so that resampling blurs little.
    matrix, translation = geometric[:, :, :2], geometric[:, :, 2]
    lag = torch.full((2,), _LAG / images.shape[2], device=images.device)
    theta = torch.cat([matrix, (translation + lag - matrix @ lag)[:, :, None]], 2)
    grid = F.affine_grid(theta, [len(images), 3, 2 * images.shape[2], 2 * images.shape[3]], align_corners=False)
    moved = wavelet_downsample(grid_sample(wavelet_upsample(images), grid))
    # Images with an identity matrix are not resampled and stay sharp.
    identity = (geometric == torch.eye(3, device=images.device)[:2]).all(2).all(1)
    moved = torch.where(identity[:, None, None, None], images, moved)
    return torch.einsum("bij,bjhw->bihw", color[:, :, :3], moved) + color[:, :, 3, None, None]


# Low-pass filter of the orthogonal wavelet sym6, used by the paper for resampling (appendix B; PyWavelets'
# coefficients).
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
# Offset, in upsampled pixels, of the filter's center of mass from the middle of its taps; coordinates are corrected by
# it.
_LAG = sum(k * tap for k, tap in enumerate(_SYM6)) / sum(_SYM6) - (len(_SYM6) - 1) / 2
# Pixels of reflection padding for the support of the filter, for upsampling and downsampling.
_MARGIN = 6


def wavelet_upsample(images: Float[torch.Tensor, "b c h w"]) -> Float[torch.Tensor, "b c 2*h 2*w"]:
    """Upsamples by 2 with the low-pass filter of the wavelet."""
    c, taps = images.shape[1], 2**0.5 * torch.tensor(_SYM6, device=images.device)
    x = _extended(images, _MARGIN)
    for shape, stride, pad in (((12, 1), (2, 1), (_PAD, 0)), ((1, 12), (1, 2), (0, _PAD))):
        kernel = taps.view(1, 1, *shape).expand(c, 1, -1, -1)
        x = F.conv_transpose2d(x, kernel, stride=stride, padding=pad, groups=c)
    return x[:, :, 2 * _MARGIN : -2 * _MARGIN, 2 * _MARGIN : -2 * _MARGIN]


def wavelet_downsample(images: Float[torch.Tensor, "b c h w"]) -> torch.Tensor:
    """Downsamples by 2 to [b, c, h/2, w/2]; the inverse of `wavelet_upsample`, except at the border."""
    c, taps = images.shape[1], 0.5**0.5 * torch.tensor(_SYM6, device=images.device)
    x = _extended(images, 2 * _MARGIN)
    for shape, stride, pad in (((12, 1), (2, 1), (_PAD, 0)), ((1, 12), (1, 2), (0, _PAD))):
        x = F.conv2d(x, taps.view(1, 1, *shape).expand(c, 1, -1, -1), stride=stride, padding=pad, groups=c)
    return x[:, :, _MARGIN:-_MARGIN, _MARGIN:-_MARGIN]


def _extended(images: torch.Tensor, margin: int) -> torch.Tensor:
    """Extends images by reflection, in several steps where they are smaller than the margin."""
    while margin:
        step = min(margin, min(images.shape[2:]) - 1)
        images, margin = F.pad(images, [step] * 4, mode="reflect"), margin - step
    return images


def all_reduce_sum(total: torch.Tensor) -> None:
    """Sums a tensor over all processes of a distributed run, in place; otherwise does nothing."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(total)


def geometric_matrix(batch: int, size: int, p: torch.Tensor | float, device="cpu") -> Float[torch.Tensor, "b 2 3"]:
    """Random affine matrices for pixel blitting and general geometric transformations.

    Pixel blitting: x-flip, 90 degree rotations, integer translation. Then isotropic scaling, rotation, anisotropic
    scaling, rotation and fractional translation.
    """

    def maybe(matrix: torch.Tensor, probability=p) -> torch.Tensor:
        chosen = torch.rand(batch, 1, 1, device=device) < probability
        return torch.where(chosen, matrix, torch.eye(3, device=device))

    def uniform(limit: float) -> torch.Tensor:
        return (torch.rand(batch, device=device) * 2 - 1) * limit

    def normal(std: float) -> torch.Tensor:
        return torch.randn(batch, device=device) * std

    # Probability of each of the two rotations, such that at least one is applied with probability p.
    p_rotation = 1 - (1 - torch.as_tensor(p, device=device)).sqrt()
    flip = torch.where(torch.rand(batch, device=device) < 0.5, -1.0, 1.0)
    one = torch.ones(batch, device=device)
    pixels = [(uniform(_BLIT) * size).round() * 2 / size for _ in range(2)]
    isotropic, anisotropic = torch.exp2(normal(_SCALE)), torch.exp2(normal(_SCALE))
    steps = [
        maybe(_scaling(flip, one)),
        maybe(_rotation(torch.randint(4, (batch,), device=device) * (math.pi / 2))),
        maybe(_translation(*pixels)),
        maybe(_scaling(isotropic, isotropic)),
        maybe(_rotation(uniform(math.pi)), p_rotation),
        maybe(_scaling(anisotropic, 1 / anisotropic)),
        maybe(_rotation(uniform(math.pi)), p_rotation),
        maybe(_translation(normal(2 * _SHIFT), normal(2 * _SHIFT))),
    ]
    product = steps[0]
    for step in steps[1:]:
        product = product @ step
    return product[:, :2]


def color_matrix(batch: int, p: torch.Tensor | float, device="cpu") -> Float[torch.Tensor, "b 3 4"]:
    """Random color matrices, from (R, G, B, 1) to RGB: brightness, contrast, luma flip, hue rotation and saturation."""

    def maybe(matrix: torch.Tensor) -> torch.Tensor:
        chosen = torch.rand(batch, 1, 1, device=device) < p
        return torch.where(chosen, matrix, torch.eye(4, device=device))

    def normal(std: float) -> torch.Tensor:
        return torch.randn(batch, device=device) * std

    flip = (torch.rand(batch, device=device) < 0.5).float()
    angle = (torch.rand(batch, device=device) * 2 - 1) * math.pi
    steps = [
        maybe(brightness(normal(_BRIGHTNESS))),
        maybe(contrast(torch.exp2(normal(_CONTRAST)))),
        maybe(luma_flip(flip)),
        maybe(hue(angle)),
        maybe(saturation(torch.exp2(normal(_SATURATION)))),
    ]
    product = steps[0]
    for step in steps[1:]:
        product = step @ product
    return product[:, :3]


def brightness(offset: Float[torch.Tensor, " b"]) -> Float[torch.Tensor, "b 4 4"]:
    """Adds an offset to all channels; 2 is the difference between black and white."""
    matrix = torch.eye(4, device=offset.device).repeat(len(offset), 1, 1)
    matrix[:, :3, 3] = offset[:, None]
    return matrix


def contrast(factor: Float[torch.Tensor, " b"]) -> Float[torch.Tensor, "b 4 4"]:
    """Multiplies the difference from middle gray."""
    return _homogeneous(factor[:, None, None] * torch.eye(3, device=factor.device))


def luma_flip(flip: Float[torch.Tensor, " b"]) -> Float[torch.Tensor, "b 4 4"]:
    """Inverts luma and keeps hue: a reflection at the plane of zero luma. flip: 1 to apply, 0 for the identity."""
    return _homogeneous(torch.eye(3, device=flip.device) - 2 * flip[:, None, None] * _gray(flip.device))


def hue(angle: Float[torch.Tensor, " b"]) -> Float[torch.Tensor, "b 4 4"]:
    """Rotates colors about the gray axis; angle in radians (Rodrigues' formula)."""
    gray, eye = _gray(angle.device), torch.eye(3, device=angle.device)
    cross = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]], device=angle.device) / math.sqrt(3)
    cos, sin = torch.cos(angle)[:, None, None], torch.sin(angle)[:, None, None]
    return _homogeneous(gray + cos * (eye - gray) + sin * cross)


def saturation(factor: Float[torch.Tensor, " b"]) -> Float[torch.Tensor, "b 4 4"]:
    """Multiplies the difference from gray; 0 gives a grayscale image."""
    gray, eye = _gray(factor.device), torch.eye(3, device=factor.device)
    return _homogeneous(gray + factor[:, None, None] * (eye - gray))


def _gray(device) -> torch.Tensor:
    # Projection onto the gray axis.
    return torch.full((3, 3), 1 / 3, device=device)


def _homogeneous(matrix: torch.Tensor) -> torch.Tensor:
    homogeneous = torch.eye(4, device=matrix.device).repeat(len(matrix), 1, 1)
    homogeneous[:, :3, :3] = matrix
    return homogeneous


def _scaling(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.diag_embed(torch.stack([x, y, torch.ones_like(x)], 1))


def _rotation(angle: torch.Tensor) -> torch.Tensor:
    cos, sin, zero, one = torch.cos(angle), torch.sin(angle), torch.zeros_like(angle), torch.ones_like(angle)
    rows = [cos, -sin, zero, sin, cos, zero, zero, zero, one]
    return torch.stack(rows, 1).view(-1, 3, 3)


def _translation(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    matrix = torch.eye(3, device=x.device).repeat(len(x), 1, 1)
    matrix[:, 0, 2], matrix[:, 1, 2] = x, y
    return matrix
