"""GAN inversion: finds the latent from which a generator reproduces a given image.

Projection by optimization (Karras et al. 2020, StyleGAN2, appendix D): starting from the mean latent, a perceptual
distance is minimized with respect to the latent and the noise maps. Noise added to the latent serves exploration, and a
regularizer keeps the noise maps close to white noise. The images of a batch are optimized together but independently,
which is faster than one by one and gives the same results.
"""

import math
from collections.abc import Callable
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from pydantic import Field
from torch import nn

from partshot.nets.perceptual import Distance
from partshot.ops.precision import Precision, is_bf16
from partshot.recipe import Recipe
from partshot.represent.spec import Latents

# Number of latents from which the mean and standard deviation of w are estimated (official code).
_MAPPED = 10_000
# Smallest side at which noise maps are regularized.
_COARSEST = 8


class InvertRecipe(Recipe):
    """Settings of the inversion; most names are those of NVIDIA's projector.py.

    steps: of Adam. lr: maximum learning rate. space: "w" optimizes one latent per image, "w+" one per layer.
    lr_rampup_length, lr_rampdown_length: shares of the steps in which the learning rate rises and falls.
    initial_noise_factor: standard deviation of the noise on the latent, in standard deviations of w; it falls to zero
    within the share noise_ramp_length of the steps. regularize_noise_weight: weight of the noise regularization.
    precision: of the networks; latents, noise maps and reported errors are always float32.
    """

    renamed: ClassVar = {
        "rate": "lr",
        "up": "lr_rampup_length",
        "down": "lr_rampdown_length",
        "explore": "initial_noise_factor",
        "settle": "noise_ramp_length",
        "noise": "regularize_noise_weight",
    }

    steps: int = Field(default=1000, ge=1)
    lr: float = Field(default=0.1, gt=0)
    space: Literal["w", "w+"] = "w"
    lr_rampup_length: float = Field(default=0.05, ge=0, le=1)
    lr_rampdown_length: float = Field(default=0.25, ge=0, le=1)
    initial_noise_factor: float = Field(default=0.05, ge=0)
    noise_ramp_length: float = Field(default=0.75, gt=0, le=1)
    regularize_noise_weight: float = Field(default=1e5, ge=0)
    precision: Precision = "fp32"
    seed: int = 0


PRESETS = {
    # StyleGAN2, appendix D, and the official code.
    "stylegan2-paper": InvertRecipe(),
    # For small generators on two CPU cores: in w+, a fifth of the steps suffices.
    "fast": InvertRecipe(steps=200, space="w+", precision="auto"),
}


# An inversion counts as poor if more than this share of the initial distance remains.
_POOR = 0.5


class Inverted(NamedTuple):
    """latents: of all images, noise maps included. errors: [b], distance between each image and its reconstruction.

    initial_errors: [b], distance between each image and the image of the mean latent, from which the search starts.
    """

    latents: Latents
    errors: torch.Tensor
    initial_errors: torch.Tensor


def poorly_inverted(
    errors: Float[torch.Tensor, " b"], initial_errors: Float[torch.Tensor, " b"]
) -> Bool[torch.Tensor, " b"]:
    """Which images the generator cannot reproduce, given the errors of `Inverted`."""
    return errors > _POOR * initial_errors


@torch.enable_grad()
def invert(
    generator,
    images: Float[torch.Tensor, "b 3 s s"],
    distance: Distance,
    recipe: InvertRecipe = PRESETS["fast"],
    progress: Callable[[int], None] = lambda step: None,
) -> Inverted:
    """Latents that reproduce images in [-1, 1] of the generator's size; independent of the batch, up to rounding.

    Gradients are enabled even if the caller disabled them, and autocast is disabled: only the recipe's precision
    applies.

    generator: a represent.stylegan.StyleGAN. progress: called with the number of completed steps.
    """
    with torch.autocast(generator.device.type, enabled=False):
        return _projected(generator, images.float().to(generator.device), distance, recipe, progress)


def _projected(generator, images, distance, recipe, progress) -> Inverted:
    mean, deviation = _statistics(generator, recipe.seed)
    net, device, count = generator.generator, images.device, len(images)
    layers = 1 if recipe.space == "w" else net.num_ws
    w = mean.expand(count, layers, -1).clone().requires_grad_()
    # All images share the initial noise maps and the latent noise, so that results do not depend on the batch.
    rng = torch.Generator().manual_seed(recipe.seed)
    noise = [torch.randn(1, 1, side, side, generator=rng).to(device) for side in net.layers]
    noise = [n.repeat(count, 1, 1, 1) for n in noise]
    strengths = net.synthesis.noise_strengths()
    # A noise map with strength 0 has no effect and is not optimized.
    optimized = [maps.requires_grad_() for maps, strength in zip(noise, strengths, strict=True) if strength]
    optimizer = torch.optim.Adam([w, *optimized], lr=recipe.lr, betas=(0.9, 0.999))

    distance_to_target, bf16 = distance(images), is_bf16(recipe.precision, device)
    with torch.no_grad():
        initial_errors = distance_to_target(generator.synthesize(_latents(generator, w, noise))[0])
    for step in range(recipe.steps):
        done = step / recipe.steps
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * lr_factor(done, recipe)
        strength = deviation * recipe.initial_noise_factor * max(0.0, 1 - done / recipe.noise_ramp_length) ** 2
        moved = w + torch.randn(w.shape[1:], generator=rng).to(device) * strength
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            generated, _ = generator.synthesize(_latents(generator, moved, noise))
            loss = distance_to_target(generated).sum()
        if optimized:
            loss = loss + recipe.regularize_noise_weight * noise_regularization(optimized)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        _renormalize(optimized)
        progress(step + 1)
    with torch.no_grad():
        latents = _latents(generator, w.detach(), [n.detach() for n in noise])
        errors = distance_to_target(generator.synthesize(latents)[0])
    return Inverted(latents, errors, initial_errors)


def lr_factor(done: float, recipe: InvertRecipe) -> float:
    """Factor of the learning rate when a share `done` of the steps is completed: linear rise, cosine decay."""
    down = min(1.0, (1 - done) / recipe.lr_rampdown_length) if recipe.lr_rampdown_length else 1.0
    up = min(1.0, done / recipe.lr_rampup_length) if recipe.lr_rampup_length else 1.0
    return (0.5 - 0.5 * math.cos(down * math.pi)) * up


def noise_regularization(noise: list[Float[torch.Tensor, "b 1 _ _"]]) -> Float[torch.Tensor, ""]:
    """Autocorrelation of noise maps at a shift of one pixel, at all scales down to 8 px; 0 for white noise.

    Sum over maps, scales, both axes and images of the squared mean product of neighboring pixels.
    """
    total = torch.zeros((), device=noise[0].device)
    for maps in noise:
        scales = [maps]
        while scales[-1].shape[2] > _COARSEST:
            scales.append(F.avg_pool2d(scales[-1], 2))
        for scale in scales:
            for axis in (2, 3):
                total = total + (scale * scale.roll(1, axis)).mean((1, 2, 3)).square().sum()
    return total


def _renormalize(noise: list[torch.Tensor]) -> None:
    with torch.no_grad():
        for maps in noise:
            maps -= maps.mean((2, 3), keepdim=True)
            maps *= maps.square().mean((2, 3), keepdim=True).rsqrt()


def _latents(generator, w: torch.Tensor, noise: list[torch.Tensor]) -> Latents:
    return Latents(w.expand(-1, generator.generator.num_ws, -1), tuple(noise), generator.weights)


@torch.no_grad()
def _statistics(generator, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean latent [d] and the root mean squared distance from it (scalar)."""
    mapping: nn.Module = generator.generator.mapping
    z = torch.randn(_MAPPED, mapping.shape.z_dim, generator=torch.Generator().manual_seed(seed))
    w = mapping(z.to(mapping.w_avg.device))
    return w.mean(0), (w - w.mean(0)).square().sum(1).mean().sqrt()
