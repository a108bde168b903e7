"""StyleGAN2 as a pretext: whoever can draw a kind of thing has learned its parts.

The game of Karras et al. 2020: non-saturating loss, lazy R1 and path-length regularization, style mixing, a running
average of the generator by images seen, and adaptive augmentation for folders of hundreds to a few thousand images
(pretext/ada.py). A run may start with small images and grow. Knows the game; the networks are nets/stylegan2.py's,
or, where a recipe names it, the generator is nets/stylegan1.py's.
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
from partshot.pretext.ada import Ada, add_up
from partshot.recipe import Recipe

# Fewer images than this are learned by heart even by a discriminator that sees them changed.
FEWEST = 50
# Steps between penalties (section 3.1), images of one path-length step, its memory per step (official code).
R1_EVERY, PATH_EVERY, PATH_SHARE, PATH_MEMORY = 16, 4, 0.5, 0.99
MIXING = 0.9
_MEAN_LATENT_MEMORY = 0.995
# Share of the run in which a new, finer block comes in.
FADE = 0.03


class StyleGAN2Recipe(Recipe):
    """size: side of the images in pixels, a power of two. kimg: horizon in thousands of images. batch: per step.

    net: a name of nets.stylegan.NETS. grow: (resolution, until which share of the run) for smaller images at first. lr:
    Adam's learning rate. gamma: of R1; None takes 0.0002 * side^2 / batch (ADA's rule), side as it grows. path: weight
    of path-length regularization; 0 leaves it out. ema_kimg: half-life of the exponential moving average of the
    generator, in thousands of images. ada: target of adaptive augmentation; 0 leaves it out. flip: mirror half of the
    images. noise: whether the generator may learn to use its noise; short runs paint speckles with it and no features
    (LOG.md).
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
        # Raises BadRecipe, before any image is read.
        shape = shape_of(self.net, self.size)
        sides, shares = [side for side, _ in self.grow], [0.0, *(share for _, share in self.grow), 1.0]
        if sides != [side for side in shape.resolutions if sides and sides[0] <= side < self.size]:
            raise ValueError(f"grow names {sides} px; each is half of the next, up to half of {self.size}")
        if any(a >= b for a, b in zip(shares, shares[1:], strict=False)):
            raise ValueError(f"grow's shares of the run are {shares[1:-1]}; they rise, between 0 and 1")
        return self


# What two cores train in one to three hours at 64 px: R1 by ADA's rule; no path lengths, which small images need not
# (its CIFAR row); small batches at twice the usual rate, which learn most in the time (LOG.md).
_TWO_CORES = StyleGAN2Recipe(
    size=64, kimg=300, batch=16, net="small", grow=((16, 0.15), (32, 0.4)), lr=5e-3, path=0, ema_kimg=5.0, noise=False
)
_FURTHER = _TWO_CORES.changed(kimg=100, grow=(), lr=2.5e-3, ema_kimg=10.0)
PRESETS = {
    # FFHQ at 1024 px, config F: 25 million images (StyleGAN2, table 1).
    "stylegan2-paper": StyleGAN2Recipe(size=1024, kimg=25_000, lr=2e-3, gamma=10.0, ada=0),
    # Drawn faces, of which there are enough to leave ADA out.
    "toy-face-64": _TWO_CORES.changed(kimg=180, ada=0),
    # Hundreds to a few thousand images.
    "small-folder": _TWO_CORES,
    # Going on from a trained generator: of the same images, or of others that are somewhat like them.
    "further": _FURTHER,
    "toy-face-64-further": _FURTHER.changed(ada=0),
}


class StyleGAN2:
    """The game: the discriminator's turn and the generator's, each with a penalty now and then.

    images: uint8 [n, s, s, 3] RGB. seed: of the initial weights. Raises BadImage for fewer than FEWEST images.
    """

    PRESETS: ClassVar[Mapping[str, StyleGAN2Recipe]] = PRESETS

    def __init__(self, images: UInt8[np.ndarray, "n s s 3"], recipe: StyleGAN2Recipe, seed: int = 0):
        refuse_few(len(images))
        self.images, self.recipe = images, recipe
        self.shape = shape = shape_of(recipe.net, recipe.size)
        sides = tuple(side for side, _ in recipe.grow)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            # Of the two, only StyleGAN needs to be told at which sizes images come out while growing.
            adain = recipe.net.startswith("adain")
            generator = stylegan1.Generator(shape, sides) if adain else stylegan2.Generator(shape)
            # While growing, an image comes in one block lower, too.
            discriminator = stylegan2.Discriminator(
                shape, tuple(s for s in shape.resolutions if sides and s >= min(sides))
            )
        if not recipe.noise:
            for name, strength in generator.named_parameters():
                strength.requires_grad_(not name.endswith(("noise_strength", "noise.weight")))
        ema = copy.deepcopy(generator).requires_grad_(False)
        self.path = _PathMemory()
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
        self.started = False

    def start_from(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Begins with a trained generator and its discriminator, as `trained` and `judge` gave them, instead of chance.

        Transfer learning (ADA, section 4.3): few images go further. tensors: under "generator." and "discriminator.".
        Raises BadArtifact when they are of another net or size, BadRecipe for a recipe that grows.
        """
        if self.recipe.grow:
            raise BadRecipe("a trained generator draws at full size and need not grow; take the preset 'further'")
        tensors = current_names(tensors)
        for role, nets in {"generator": ("generator", "ema"), "discriminator": ("discriminator",)}.items():
            own = {k.removeprefix(f"{role}."): v.float() for k, v in tensors.items() if k.startswith(f"{role}.")}
            for name in nets:
                load_exactly(self.modules[name], own, f"the {role} to start from")
        self.started = True

    def phases(self) -> Sequence[Phase]:
        """Discriminator and generator, each with its penalty every few steps, by the same optimizer."""
        turns = [
            Phase("discriminator", self.optimizers["discriminator"], self.discriminator_phase),
            Phase("r1", self.optimizers["discriminator"], self.r1_phase, every=R1_EVERY),
            Phase("generator", self.optimizers["generator"], self.generator_phase),
        ]
        if self.recipe.path:
            turns.append(Phase("path", self.optimizers["generator"], self.path_length_phase, every=PATH_EVERY))
        return turns

    def prepare(self, progress: float) -> None:
        """Which resolution is played at this moment, and how far its last block has come in."""
        self.resolution, begun = self.recipe.size, 0.0
        for side, until in sorted(self.recipe.grow, reverse=True):
            if progress < until:
                self.resolution = side
        for side, until in self.recipe.grow:
            if side < self.resolution:
                begun = max(begun, until)
        self.fade = min(1.0, (progress - begun) / FADE) if begun else 1.0

    def batch(self, rng: torch.Generator, images: int) -> Float[torch.Tensor, "b 3 r r"]:
        """Real images in [-1, 1], at the resolution of the moment."""
        chosen = torch.randint(len(self.images), (images,), generator=rng)
        real = as_tensors(self.images[chosen.numpy()])
        if self.recipe.flip:
            flipped = torch.rand(images, 1, 1, 1, generator=rng) < 0.5
            real = torch.where(flipped, real.flip(3), real)
        real = F.avg_pool2d(real, self.recipe.size // self.resolution)
        if self.fade == 1:
            return real
        # As made images are while the last block comes in, or sharpness alone would give real ones away.
        coarse = F.interpolate(F.avg_pool2d(real, 2), scale_factor=2, mode="bilinear", align_corners=False)
        return coarse.lerp(real, self.fade)

    def discriminator_phase(self, real: torch.Tensor) -> torch.Tensor:
        """Tell real images from made ones."""
        discriminator, ada = self.modules["discriminator"].requires_grad_(True), self.modules["ada"]
        with torch.no_grad():
            fake, _ = self._make(len(real))
        verdicts = discriminator(ada(real), self.fade), discriminator(ada(fake), self.fade)
        ada.heed(verdicts[0])
        return discriminator_loss(*verdicts)

    def r1_phase(self, real: torch.Tensor) -> torch.Tensor:
        """Keep the discriminator flat at real images; weighed for the steps it is left out."""
        real = real.detach().requires_grad_(True)
        verdicts = self.modules["discriminator"](self.modules["ada"](real), self.fade)
        gamma = self.recipe.gamma
        if gamma is None:
            gamma = 0.0002 * self.resolution**2 / self.recipe.batch
        return R1_EVERY * r1_penalty(verdicts, real, gamma)

    def generator_phase(self, real: torch.Tensor) -> torch.Tensor:
        """Deceive the discriminator."""
        fake, _ = self._make(len(real), remember=True)
        return generator_loss(self.modules["discriminator"].requires_grad_(False)(self.modules["ada"](fake), self.fade))

    def path_length_phase(self, real: torch.Tensor) -> torch.Tensor:
        """Equal steps in the latent change images equally (section 3.2)."""
        fake, ws = self._make(max(1, round(len(real) * PATH_SHARE)))
        lengths = path_lengths(fake, ws, torch.randn_like(fake))
        return PATH_EVERY * self.recipe.path * self.path(lengths)

    def finish(self, progress: float) -> dict[str, torch.Tensor | float]:
        """The running ema, and augmentation."""
        seen = progress * self.recipe.kimg * 1000
        # At first a twentieth of what was seen, so that the first noise is soon forgotten (official code); a trained
        # generator has no such noise.
        half_life = self.recipe.ema_kimg * 1000
        if not self.started:
            half_life = max(1.0, min(half_life, 0.05 * seen))
        keep = 0.5 ** (self.recipe.batch / half_life)
        with torch.no_grad():
            now = self.modules["generator"].state_dict()
            for name, value in self.modules["ema"].state_dict().items():
                value.copy_(now[name]) if name.endswith("w_avg") else value.lerp_(now[name], 1 - keep)
        if self.recipe.ada:
            self.modules["ada"].adjust()
        return {"resolution": float(self.resolution), "ada": float(self.modules["ada"].p)}

    def trained(self) -> dict[str, torch.Tensor]:
        """The running average of the generator, under the official names, without the exits that only growing needs."""
        kept = self.modules["ema"].state_dict()
        return {name: tensor for name, tensor in kept.items() if ".exits." not in name}

    def judge(self) -> dict[str, torch.Tensor]:
        """The discriminator, without the entries that only growing needs: in its eyes images are inverted."""
        entry = f"b{self.recipe.size}.fromrgb."
        kept = self.modules["discriminator"].state_dict()
        return {f"discriminator.{k}": v for k, v in kept.items() if ".fromrgb." not in k or k.startswith(entry)}

    @torch.no_grad()
    def samples(self, count: int) -> UInt8[np.ndarray, "n s s 3"]:
        """What the running average draws of the first `count` seeds, at the resolution of the moment."""
        ema = self.modules["ema"]
        device = ema.mapping.w_avg.device
        z = torch.randn(count, ema.shape.z_dim, generator=torch.Generator().manual_seed(0)).to(device)
        images, _ = ema.synthesis(ema.mapping.spread(ema.mapping(z)), None, self.resolution, self.fade)
        return as_uint8(images)

    def _make(self, count: int, remember: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        # Made images and their latents, of which most have two styles; all chance is the loop's global one.
        generator = self.modules["generator"]
        device = generator.mapping.w_avg.device
        both = generator.mapping(torch.randn(2 * count, generator.shape.z_dim, device=device))
        if remember:
            mean = both.detach().mean(0)
            generator.mapping.w_avg.copy_(mean.lerp(generator.mapping.w_avg, _MEAN_LATENT_MEMORY))
        first, second = both.chunk(2)
        # Where the second style begins; behind the last layer there is none.
        cut = torch.randint(1, generator.num_ws, (count, 1, 1), device=device)
        cut = torch.where(torch.rand(count, 1, 1, device=device) < MIXING, cut, generator.num_ws)
        layer = torch.arange(generator.num_ws, device=device)[:, None]
        ws = torch.where(layer < cut, first[:, None], second[:, None])
        sides = [side for side in generator.layers if side <= self.resolution]
        noise = tuple(torch.randn(count, 1, side, side, device=device) for side in sides)
        return generator.synthesis(ws, noise, self.resolution, self.fade)[0], ws


def refuse_few(images: int) -> None:
    """BadImage for fewer than FEWEST images."""
    if images < FEWEST:
        raise BadImage(
            f"{images} images given; a StyleGAN learns from {FEWEST} or more, and well from a thousand: "
            "add images, or train an encoder: partshot pretrain simsiam"
        )


class _PathMemory(nn.Module):
    """The mean path length so far, which every path is held to."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, lengths: torch.Tensor) -> torch.Tensor:
        """Mean squared distance of lengths from their running mean, which is moved first."""
        total, count = lengths.detach().sum(), torch.tensor(float(len(lengths)), device=lengths.device)
        for figure in (total, count):
            add_up(figure)
        self.mean.copy_((total / count).lerp(self.mean, PATH_MEMORY))
        return (lengths - self.mean).square().mean()


def _adam(net: nn.Module, lr: float, every: int | None) -> torch.optim.Adam:
    # With a penalty every few steps there are more steps; rate and memory are stretched over them (appendix B).
    stretch = 1.0 if every is None else every / (every + 1)
    return torch.optim.Adam(net.parameters(), lr=lr * stretch, betas=(0.0, 0.99**stretch), eps=1e-8)
