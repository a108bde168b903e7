"""GAN losses: the non-saturating loss, the R1 penalty of the discriminator, path lengths of the generator.

Formulas only; the caller computes images and logits.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float


def discriminator_loss(real: Float[torch.Tensor, " b"], fake: Float[torch.Tensor, " b"]) -> Float[torch.Tensor, ""]:
    """Logistic loss of the discriminator (Goodfellow et al. 2014).

    real, fake: discriminator logits of real and of generated images; above 0 means real.
    """
    return F.softplus(-real.float()).mean() + F.softplus(fake.float()).mean()


def generator_loss(fake: Float[torch.Tensor, " b"]) -> Float[torch.Tensor, ""]:
    """Non-saturating loss of the generator (Goodfellow et al. 2014, section 3).

    fake: discriminator logits of generated images.
    """
    return F.softplus(-fake.float()).mean()


def r1_penalty(
    real: Float[torch.Tensor, " b"], images: Float[torch.Tensor, "b c h w"], gamma: float
) -> Float[torch.Tensor, ""]:
    """R1: gamma / 2 times the squared norm of the discriminator's gradient at real images.

    Mescheder et al. 2018, equation 9.

    real: the discriminator's logits, computed from `images`, which require a gradient.
    """
    (gradient,) = torch.autograd.grad(real.float().sum(), images, create_graph=True)
    return gamma / 2 * gradient.float().square().sum((1, 2, 3)).mean()


def path_lengths(
    images: Float[torch.Tensor, "b c h w"], ws: Float[torch.Tensor, "b n d"], noise: Float[torch.Tensor, "b c h w"]
) -> Float[torch.Tensor, " b"]:
    """Path length |J^T y| of each image, where J is the Jacobian of the image by its latent and y is noise.

    Karras et al. 2020 (StyleGAN2), section 3.2. images: computed from `ws`, one latent per layer, which require a
    gradient; squared norms are averaged over layers. noise: standard normal, of the images' shape. It is scaled here so
    that the length does not depend on the image size.
    """
    projected = (images.float() * noise).sum() / math.sqrt(images.shape[2] * images.shape[3])
    (gradient,) = torch.autograd.grad(projected, ws, create_graph=True)
    return gradient.float().square().sum(2).mean(1).sqrt()
