"""Inversion: which latent draws a given image? The road from a real image to a generator's features.

Projection by optimization (Karras et al. 2020, StyleGAN2, appendix D): from the mean latent downhill in a perceptual
distance, with exploration noise on the latent and the synthesis' noise maps optimized beside it, kept noise-like by a
regularizer. All images of a batch are projected together and none knows of the others, so that a batch costs less
than its images one by one and gives the same. Knows generators by their mapping and what they synthesize.
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

# Latents whose mean and deviation the search starts from and explores by (official code).
_MAPPED = 10_000
# Noise maps down to this side are held to be noise.
_COARSEST = 8


class InvertRecipe(Recipe):
    """steps: of Adam. lr: its largest learning rate. space: "w" one latent per image, "w+" one per layer.

    up, down: shares of the steps in which the rate rises and falls. explore: deviation of the noise on the latent, in
    deviations of w; it is gone after `settle` of the steps. noise: weight of what keeps noise maps noise.
    precision: of the networks; what is searched for, and the errors that are told, are float32 in any.
    """

    renamed: ClassVar = {"rate": "lr"}

    steps: int = Field(default=1000, ge=1)
    lr: float = Field(default=0.1, gt=0)
    space: Literal["w", "w+"] = "w"
    up: float = Field(default=0.05, ge=0, le=1)
    down: float = Field(default=0.25, ge=0, le=1)
    explore: float = Field(default=0.05, ge=0)
    settle: float = Field(default=0.75, gt=0, le=1)
    noise: float = Field(default=1e5, ge=0)
    precision: Precision = "fp32"
    seed: int = 0


PRESETS = {
    # StyleGAN2, appendix D, and the official code.
    "stylegan2-paper": InvertRecipe(),
    # Small generators on two cores: a latent per layer finds an image in a fifth of the steps.
    "fast": InvertRecipe(steps=200, space="w+", precision="auto"),
}


# An image that keeps more than this share of its distance from the mean image was not found.
_ASTRAY = 0.5


class Inverted(NamedTuple):
    """latents: of each image, noise included. errors: [b], the distance between image and what its latent draws.

    worst: [b], the distance between the image and what the mean latent draws, where the search began.
    """

    latents: Latents
    errors: torch.Tensor
    worst: torch.Tensor


def astray(errors: Float[torch.Tensor, " b"], worst: Float[torch.Tensor, " b"]) -> Bool[torch.Tensor, " b"]:
    """Which images do not invert, by the figures of `Inverted`: the generator cannot draw them."""
    return errors > _ASTRAY * worst


@torch.enable_grad()
def invert(
    generator,
    images: Float[torch.Tensor, "b 3 s s"],
    distance: Distance,
    recipe: InvertRecipe = PRESETS["fast"],
    progress: Callable[[int], None] = lambda step: None,
) -> Inverted:
    """Latents that draw these images, in [-1, 1] and of the generator's size; in any batch the same, up to rounding.

    Also where the caller has gradients switched off; the recipe alone says where bf16 is used.

    generator: a represent.stylegan.StyleGAN. progress: told the steps done.
    """
    with torch.autocast(generator.device.type, enabled=False):
        return _projected(generator, images.float().to(generator.device), distance, recipe, progress)


def _projected(generator, images, distance, recipe, progress) -> Inverted:
    mean, deviation = _statistics(generator, recipe.seed)
    net, device, count = generator.generator, images.device, len(images)
    layers = 1 if recipe.space == "w" else net.num_ws
    w = mean.expand(count, layers, -1).clone().requires_grad_()
    # The same start and the same exploration for every image, so that none depends on its neighbors.
    rng = torch.Generator().manual_seed(recipe.seed)
    noise = [torch.randn(1, 1, side, side, generator=rng).to(device) for side in net.layers]
    noise = [n.repeat(count, 1, 1, 1) for n in noise]
    strengths = net.synthesis.noise_strengths()
    heard = [maps.requires_grad_() for maps, strength in zip(noise, strengths, strict=True) if strength]
    optimizer = torch.optim.Adam([w, *heard], lr=recipe.lr, betas=(0.9, 0.999))

    apart, bf16 = distance(images), is_bf16(recipe.precision, device)
    with torch.no_grad():
        worst = apart(generator.synthesize(_latents(generator, w, noise))[0])
    for step in range(recipe.steps):
        done = step / recipe.steps
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * rate_at(done, recipe)
        strength = deviation * recipe.explore * max(0.0, 1 - done / recipe.settle) ** 2
        moved = w + torch.randn(w.shape[1:], generator=rng).to(device) * strength
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            drawn, _ = generator.synthesize(_latents(generator, moved, noise))
            loss = apart(drawn).sum()
        if heard:
            loss = loss + recipe.noise * noise_likeness(heard)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        _renormalize(heard)
        progress(step + 1)
    with torch.no_grad():
        latents = _latents(generator, w.detach(), [n.detach() for n in noise])
        errors = apart(generator.synthesize(latents)[0])
    return Inverted(latents, errors, worst)


def rate_at(done: float, recipe: InvertRecipe) -> float:
    """What the learning rate is multiplied by: up in a line, later down along a cosine."""
    down = min(1.0, (1 - done) / recipe.down) if recipe.down else 1.0
    up = min(1.0, done / recipe.up) if recipe.up else 1.0
    return (0.5 - 0.5 * math.cos(down * math.pi)) * up


def noise_likeness(noise: list[Float[torch.Tensor, "b 1 _ _"]]) -> Float[torch.Tensor, ""]:
    """How much noise maps resemble themselves one pixel on, at every scale down to 8 px; 0 is noise.

    The sum over maps, scales and images of the squared mean products of neighbors.
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
    """Mean latent [d], and the root of the mean squared distance from it."""
    mapping: nn.Module = generator.generator.mapping
    z = torch.randn(_MAPPED, mapping.shape.z_dim, generator=torch.Generator().manual_seed(seed))
    w = mapping(z.to(mapping.w_avg.device))
    return w.mean(0), (w - w.mean(0)).square().sum(1).mean().sqrt()
