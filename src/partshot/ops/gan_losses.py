"""The losses of two adversaries: the non-saturating game, R1 on the discriminator, path length on the generator.

Formulas only; who computes images and verdicts is the caller's affair.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float


def discriminator_loss(real: Float[torch.Tensor, " b"], fake: Float[torch.Tensor, " b"]) -> Float[torch.Tensor, ""]:
    """How badly the discriminator tells real images (verdicts above 0) from made ones (Goodfellow et al. 2014)."""
    return F.softplus(-real.float()).mean() + F.softplus(fake.float()).mean()


def generator_loss(fake: Float[torch.Tensor, " b"]) -> Float[torch.Tensor, ""]:
    """How badly the generator deceives the discriminator: the non-saturating form (same paper, section 3)."""
    return F.softplus(-fake.float()).mean()


def r1_penalty(
    real: Float[torch.Tensor, " b"], images: Float[torch.Tensor, "b c h w"], gamma: float
) -> Float[torch.Tensor, ""]:
    """R1: gamma / 2 times the squared norm of the discriminator's gradient at real images.

    Mescheder et al. 2018, equation 9.

    real: the discriminator's verdicts, computed from `images`, which require a gradient.
    """
    (gradient,) = torch.autograd.grad(real.float().sum(), images, create_graph=True)
    return gamma / 2 * gradient.float().square().sum((1, 2, 3)).mean()


def path_lengths(
    images: Float[torch.Tensor, "b c h w"], ws: Float[torch.Tensor, "b n d"], noise: Float[torch.Tensor, "b c h w"]
) -> Float[torch.Tensor, " b"]:
    """How far an image moves for a step in its latent: |J^T y| with y a random image.

    Karras et al. 2020 (StyleGAN2), section 3.2. images: computed from `ws`, one latent per layer, which require a
    gradient; over layers the squares are averaged. noise: standard normal, as large as the images; scaled here so
    that the length does not depend on their size.
    """
    shown = (images.float() * noise).sum() / math.sqrt(images.shape[2] * images.shape[3])
    (gradient,) = torch.autograd.grad(shown, ws, create_graph=True)
    return gradient.float().square().sum(2).mean(1).sqrt()
