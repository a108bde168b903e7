"""StyleGAN2 training. The feature maps of a trained generator are a representation in which parts are easy to segment.

The training of Karras et al. 2020: non-saturating loss, lazy R1 and path-length regularization, style mixing, an
exponential moving average (EMA) of the generator, and adaptive discriminator augmentation for folders of hundreds to a
few thousand images (pretext/ada.py). Optional progressive growing starts at a low resolution. Networks are those of
nets/stylegan2.py; for recipes with an "adain" net, the generator is that of nets/stylegan1.py.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from pydantic import Field, model_validator
from torch import nn

from partshot.errors import BadImage, BadRecipe
from partshot.nets import stylegan1, stylegan2
from partshot.nets.stylegan import shape_of
from partshot.nets.weights import current_names, load_exactly
from partshot.objective import Phase
from partshot.ops.gan_losses import discriminator_loss, generator_loss, path_lengths, r1_penalty
from partshot.ops.images import as_tensors, as_uint8
from partshot.pretext.ada import Ada, all_reduce_sum
from partshot.recipe import Recipe

# With fewer images, the discriminator memorizes them even with augmentation.
MIN_IMAGES = 50
# Steps between regularizations (section 3.1); for path lengths, the share of the batch and the decay of the mean length
# (official code).
R1_EVERY, PATH_EVERY, PATH_SHARE, PATH_DECAY = 16, 4, 0.5, 0.99
# Probability of style mixing.
MIXING = 0.9
_W_AVG_BETA = 0.995
# Share of the run during which a new block is faded in.
FADE = 0.03
# R1 weight per pixel and 1 / batch: ADA's rule.
R1_GAMMA_FACTOR = 0.0002


class StyleGAN2Recipe(Recipe):
    """size: side of the images in pixels, a power of two. kimg: length in thousands of images. batch: images per step.

    net: a key of nets.stylegan.NETS. grow: (resolution, share of the run at which it ends) pairs for progressive
    growing. lr: Adam's learning rate. gamma: R1 weight; None means 0.0002 * resolution^2 / batch (ADA's rule) with the
    current resolution. path: weight of path-length regularization; 0 disables it. ema_kimg: half-life of the
    exponential moving average of the generator, in thousands of images. ada: target value of adaptive discriminator
    augmentation; 0 disables it. flip: flip images horizontally with probability 0.5. noise: whether noise strengths are
    trained; in short runs the generator makes speckles from noise instead of features (LOG.md).
    """

    renamed: ClassVar = {"rate": "lr", "average": "ema_kimg"}

    size: int = Field(ge=8)
    kimg: float = Field(gt=0)
    batch: int = Field(default=32, ge=2)
    net: str = "config-f"
    grow: tuple[tuple[int, float], ...] = ()
    lr: float = Field(default=2.5e-3, gt=0)
    gamma: float | None = None
    path: float = Field(default=2.0, ge=0)
    ema_kimg: float = Field(default=10.0, gt=0)
    ada: float = Field(default=0.6, ge=0, lt=1)
    flip: bool = True
    noise: bool = True

    @model_validator(mode="after")
    def _can_be_built(self):
        # Raises BadRecipe before any image is loaded.
        shape = shape_of(self.net, self.size)
        sides, shares = [side for side, _ in self.grow], [0.0, *(share for _, share in self.grow), 1.0]
        if sides != [side for side in shape.resolutions if sides and sides[0] <= side < self.size]:
            raise ValueError(f"grow has resolutions {sides}; each must be half of the next, up to half of {self.size}")
        if any(a >= b for a, b in zip(shares, shares[1:], strict=False)):
            raise ValueError(f"grow's shares of the run are {shares[1:-1]}; they must increase, between 0 and 1")
        return self


# Trains in one to three hours on two CPU cores at 64 px. R1 by ADA's rule. No path-length regularization, as in ADA's
# CIFAR configuration. Small batches at twice the usual learning rate gave the best results in the time (LOG.md).
_TWO_CORES = StyleGAN2Recipe(
    size=64, kimg=300, batch=16, net="small", grow=((16, 0.15), (32, 0.4)), lr=5e-3, path=0, ema_kimg=5.0, noise=False
)
_FURTHER = _TWO_CORES.changed(kimg=100, grow=(), lr=2.5e-3, ema_kimg=10.0)
PRESETS = {
    # FFHQ at 1024 px, config F: 25 million images (StyleGAN2, table 1).
    "stylegan2-paper": StyleGAN2Recipe(size=1024, kimg=25_000, lr=2e-3, gamma=10.0, ada=0),
    # Synthetic faces; there are enough of them to train without ADA.
    "toy-face-64": _TWO_CORES.changed(kimg=180, ada=0),
    # Hundreds to a few thousand images.
    "small-folder": _TWO_CORES,
    # Continues from a trained generator of the same or of similar images.
    "further": _FURTHER,
    "toy-face-64-further": _FURTHER.changed(ada=0),
}


class StyleGAN2:
    """Objective with phases of discriminator and generator, and lazy regularization of both.

    images: uint8 [n, s, s, 3] RGB. seed: of the initial weights. Raises BadImage for fewer than MIN_IMAGES images.
    """

    PRESETS: ClassVar[Mapping[str, StyleGAN2Recipe]] = PRESETS

    def __init__(self, images: UInt8[np.ndarray, "n s s 3"], recipe: StyleGAN2Recipe, seed: int = 0):
        check_image_count(len(images))
        self.images, self.recipe = images, recipe
        self.shape = shape = shape_of(recipe.net, recipe.size)
        sides = tuple(side for side, _ in recipe.grow)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            # Only StyleGAN needs additional ToRGB layers for the resolutions of progressive growing.
            adain = recipe.net.startswith("adain")
            generator = stylegan1.Generator(shape, sides) if adain else stylegan2.Generator(shape)
            # During progressive growing, images enter at lower blocks, too.
            discriminator = stylegan2.Discriminator(
                shape, tuple(s for s in shape.resolutions if sides and s >= min(sides))
            )
        if not recipe.noise:
            for name, strength in generator.named_parameters():
                strength.requires_grad_(not name.endswith(("noise_strength", "noise.weight")))
        ema = copy.deepcopy(generator).requires_grad_(False)
        self.path = _PathLengthPenalty()
        self.modules: dict[str, nn.Module] = {
            "generator": generator,
            "discriminator": discriminator,
            "ema": ema,
            "ada": Ada(recipe.ada),
            "path": self.path,
        }
        self.optimizers = {
            "generator": _adam(generator, recipe.lr, PATH_EVERY if recipe.path else None),
            "discriminator": _adam(discriminator, recipe.lr, R1_EVERY),
        }
        self.resolution, self.fade = recipe.size, 1.0
        self.pretrained = False

    def start_from(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Transfer learning: initializes generator and discriminator with trained weights (ADA, section 4.3).

        tensors: the results of `trained` and `discriminator_state`, under "generator." and "discriminator.". Raises
        BadArtifact for weights of another net or size, BadRecipe for a recipe with progressive growing.
        """
        if self.recipe.grow:
            raise BadRecipe("a trained generator has full resolution and need not grow; use the preset 'further'")
        tensors = current_names(tensors)
        for role, nets in {"generator": ("generator", "ema"), "discriminator": ("discriminator",)}.items():
            own = {k.removeprefix(f"{role}."): v.float() for k, v in tensors.items() if k.startswith(f"{role}.")}
            for name in nets:
                load_exactly(self.modules[name], own, f"the {role} to start from")
        self.pretrained = True

    def phases(self) -> Sequence[Phase]:
        """Discriminator and generator, and their lazy regularizations with the same optimizers."""
        phases = [
            Phase("discriminator", self.optimizers["discriminator"], self.discriminator_phase),
            Phase("r1", self.optimizers["discriminator"], self.r1_phase, every=R1_EVERY),
            Phase("generator", self.optimizers["generator"], self.generator_phase),
        ]
        if self.recipe.path:
            phases.append(Phase("path", self.optimizers["generator"], self.path_length_phase, every=PATH_EVERY))
        return phases

    def prepare(self, progress: float) -> None:
        """Sets the current resolution and the fade-in weight of its last block."""
        self.resolution, start = self.recipe.size, 0.0
        for side, until in sorted(self.recipe.grow, reverse=True):
            if progress < until:
                self.resolution = side
        for side, until in self.recipe.grow:
            if side < self.resolution:
                start = max(start, until)
        self.fade = min(1.0, (progress - start) / FADE) if start else 1.0

    def batch(self, rng: torch.Generator, images: int) -> Float[torch.Tensor, "b 3 r r"]:
        """Real images in [-1, 1], at the current resolution."""
        chosen = torch.randint(len(self.images), (images,), generator=rng)
        real = as_tensors(self.images[chosen.numpy()])
        if self.recipe.flip:
            flipped = torch.rand(images, 1, 1, 1, generator=rng) < 0.5
            real = torch.where(flipped, real.flip(3), real)
        real = F.avg_pool2d(real, self.recipe.size // self.resolution)
        if self.fade == 1:
            return real
        # Faded like generated images; otherwise the discriminator could recognize real images by their sharpness.
        coarse = F.interpolate(F.avg_pool2d(real, 2), scale_factor=2, mode="bilinear", align_corners=False)
        return coarse.lerp(real, self.fade)

    def discriminator_phase(self, real: torch.Tensor) -> torch.Tensor:
        """Discriminator loss on real and generated images."""
        discriminator, ada = self.modules["discriminator"].requires_grad_(True), self.modules["ada"]
        with torch.no_grad():
            fake, _ = self._generate(len(real))
        real_logits, fake_logits = discriminator(ada(real), self.fade), discriminator(ada(fake), self.fade)
        ada.accumulate(real_logits)
        return discriminator_loss(real_logits, fake_logits)

    def r1_phase(self, real: torch.Tensor) -> torch.Tensor:
        """R1 penalty, multiplied by its interval (lazy regularization)."""
        real = real.detach().requires_grad_(True)
        logits = self.modules["discriminator"](self.modules["ada"](real), self.fade)
        gamma = self.recipe.gamma
        if gamma is None:
            gamma = R1_GAMMA_FACTOR * self.resolution**2 / self.recipe.batch
        return R1_EVERY * r1_penalty(logits, real, gamma)

    def generator_phase(self, real: torch.Tensor) -> torch.Tensor:
        """Non-saturating generator loss."""
        fake, _ = self._generate(len(real), update_w_avg=True)
        return generator_loss(self.modules["discriminator"].requires_grad_(False)(self.modules["ada"](fake), self.fade))

    def path_length_phase(self, real: torch.Tensor) -> torch.Tensor:
        """Path-length regularization (section 3.2), multiplied by its interval."""
        fake, ws = self._generate(max(1, round(len(real) * PATH_SHARE)))
        lengths = path_lengths(fake, ws, torch.randn_like(fake))
        return PATH_EVERY * self.recipe.path * self.path(lengths)

    def finish(self, progress: float) -> dict[str, torch.Tensor | float]:
        """Updates the EMA of the generator and the augmentation probability."""
        seen = progress * self.recipe.kimg * 1000
        # EMA ramp-up (official code): the half-life is at most a twentieth of the images seen, so that random initial
        # weights are soon forgotten. A pretrained generator needs no ramp-up.
        half_life = self.recipe.ema_kimg * 1000
        if not self.pretrained:
            half_life = max(1.0, min(half_life, 0.05 * seen))
        beta = 0.5 ** (self.recipe.batch / half_life)
        with torch.no_grad():
            current = self.modules["generator"].state_dict()
            for name, value in self.modules["ema"].state_dict().items():
                value.copy_(current[name]) if name.endswith("w_avg") else value.lerp_(current[name], 1 - beta)
        if self.recipe.ada:
            self.modules["ada"].adjust()
        return {"resolution": float(self.resolution), "ada": float(self.modules["ada"].p)}

    def trained(self) -> dict[str, torch.Tensor]:
        """EMA weights of the generator, under the official names, without the ToRGB layers for progressive growing."""
        state = self.modules["ema"].state_dict()
        return {name: tensor for name, tensor in state.items() if ".exits." not in name}

    def discriminator_state(self) -> dict[str, torch.Tensor]:
        """Weights of the discriminator, without the FromRGB layers for progressive growing.

        They are kept for transfer learning and for perceptual distances in GAN inversion.
        """
        entry = f"b{self.recipe.size}.fromrgb."
        state = self.modules["discriminator"].state_dict()
        return {f"discriminator.{k}": v for k, v in state.items() if ".fromrgb." not in k or k.startswith(entry)}

    @torch.no_grad()
    def samples(self, count: int) -> UInt8[np.ndarray, "n s s 3"]:
        """Images of the EMA generator for `count` fixed latents, at the current resolution."""
        ema = self.modules["ema"]
        device = ema.mapping.w_avg.device
        z = torch.randn(count, ema.shape.z_dim, generator=torch.Generator().manual_seed(0)).to(device)
        images, _ = ema.synthesis(ema.mapping.broadcast(ema.mapping(z)), None, self.resolution, self.fade)
        return as_uint8(images)

    def _generate(self, count: int, update_w_avg: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        # Generated images and their latents, with style mixing. Random numbers are from torch's global generator.
        generator = self.modules["generator"]
        device = generator.mapping.w_avg.device
        both = generator.mapping(torch.randn(2 * count, generator.shape.z_dim, device=device))
        if update_w_avg:
            mean = both.detach().mean(0)
            generator.mapping.w_avg.copy_(mean.lerp(generator.mapping.w_avg, _W_AVG_BETA))
        first, second = both.chunk(2)
        # Index of the first layer with the second latent; num_ws means no mixing.
        cutoff = torch.randint(1, generator.num_ws, (count, 1, 1), device=device)
        cutoff = torch.where(torch.rand(count, 1, 1, device=device) < MIXING, cutoff, generator.num_ws)
        layer = torch.arange(generator.num_ws, device=device)[:, None]
        ws = torch.where(layer < cutoff, first[:, None], second[:, None])
        sides = [side for side in generator.layers if side <= self.resolution]
        noise = tuple(torch.randn(count, 1, side, side, device=device) for side in sides)
        return generator.synthesis(ws, noise, self.resolution, self.fade)[0], ws


def check_image_count(images: int) -> None:
    """Raises BadImage for fewer than MIN_IMAGES images."""
    if images < MIN_IMAGES:
        raise BadImage(
            f"only {images} images; a StyleGAN needs {MIN_IMAGES} or more, better a thousand: "
            "add images, or train an encoder: partshot pretrain simsiam"
        )


class _PathLengthPenalty(nn.Module):
    """Path-length penalty: squared deviation from the moving mean of path lengths."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, lengths: torch.Tensor) -> torch.Tensor:
        """Updates the moving mean, then returns the mean squared difference of the lengths from it."""
        total, count = lengths.detach().sum(), torch.tensor(float(len(lengths)), device=lengths.device)
        for value in (total, count):
            all_reduce_sum(value)
        self.mean.copy_((total / count).lerp(self.mean, PATH_DECAY))
        return (lengths - self.mean).square().mean()


def _adam(net: nn.Module, lr: float, every: int | None) -> torch.optim.Adam:
    # Lazy regularization adds a step every few steps; learning rate and betas are corrected for it (appendix B).
    ratio = 1.0 if every is None else every / (every + 1)
    return torch.optim.Adam(net.parameters(), lr=lr * ratio, betas=(0.0, 0.99**ratio), eps=1e-8)
