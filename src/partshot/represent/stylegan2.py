"""A StyleGAN2 generator read as a Pyramid: the activations from which a picture is drawn know its parts (ReGAN).

The maps are the convolutions' outputs after noise, bias and LeakyReLU. ReGAN's code taps those from 8 px on; its groups
are coarse (4-8 px), middle (16-32) and fine (64 and more), and the middle alone does better than all (its table 7). The
noise is part of the latent, so that the same latent gives the same pixels and features, always. Pictures that were not
drawn by it are inverted first (represent/invert.py), in the eyes of the critic that it was trained against.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from partshot.artifact import Artifact
from partshot.errors import BadArtifact, BadRecipe, nearest
from partshot.nets.perceptual import Distance, feature_distance
from partshot.nets.stylegan2 import Critic, Shape
from partshot.nets.stylegan2 import Generator as Net
from partshot.pyramid import Pyramid
from partshot.represent.invert import PRESETS, Inverted, InvertRecipe, invert
from partshot.represent.resnet import load_exactly
from partshot.represent.spec import Latents, Spec, fingerprint

EMBEDDED = Path(__file__).parent / "toy_face_64"
"""The generator that the package brings along, drawn faces of 64 px; its card says how it was trained."""

_LARGEST = 1 << 16
GROUPS: Mapping[str, tuple[int, int]] = {
    "regan": (8, _LARGEST),
    "coarse": (4, 8),
    "middle": (16, 32),
    "fine": (64, _LARGEST),
    "all": (4, _LARGEST),
}
"""Name -> smallest and largest side of the maps that are read. regan: every convolution but the 4 px one."""

# Weight of the pixels beside the critic's eyes, in which colors count little.
_PIXELS = 1.0


class StyleGAN2(nn.Module):
    """A frozen generator, as Generator and as Representation.

    generator: its weights. critic: what it was trained against, in whose eyes pictures are inverted. title: the name in
    reports. layers: a key of GROUPS. psi: truncation of what is sampled; 1 leaves it out. recipe: how pictures are
    inverted.
    """

    def __init__(
        self,
        generator: Net,
        critic: Critic,
        title: str = "stylegan2",
        layers: str = "regan",
        psi: float = 1.0,
        recipe: InvertRecipe = PRESETS["fast"],
    ):
        super().__init__()
        if layers not in GROUPS:
            raise BadRecipe(f"unknown group of layers '{layers}'; {nearest(layers, GROUPS)}")
        self.generator, self.critic = generator.requires_grad_(False), critic.requires_grad_(False)
        self.title, self.layers, self.psi, self.recipe = title, layers, psi, recipe
        self.to(memory_format=torch.channels_last).eval()
        shape, (low, high) = generator.shape, GROUPS[layers]
        self._read = [i for i, side in reversed(list(enumerate(shape.layers))) if low <= side <= high]
        if not self._read:
            raise BadRecipe(f"a generator of {shape.resolution} px has no {layers} layers (they begin at {low} px)")
        self.weights = fingerprint({"shape": shape.model_dump(mode="json")}, generator.state_dict())
        sides = [shape.layers[i] for i in self._read]
        self.spec = Spec(
            title if layers == "regan" else f"{title}, {layers} layers",
            tuple(shape.channels(side) for side in sides),
            tuple(shape.resolution // side for side in sides),
            fingerprint({"weights": self.weights, "layers": layers, "invert": recipe.fingerprint}, critic.state_dict()),
        )

    @property
    def size(self) -> int:
        """Side of the pictures in pixels."""
        return self.generator.shape.resolution

    def train(self, mode: bool = True) -> "StyleGAN2":
        """Stays in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def sample(self, seeds: Sequence[int], psi: float | None = None) -> Latents:
        """One latent per seed, which alone decides it; truncated by psi, or by the generator's own when None."""
        shape, drawn = self.generator.shape, []
        for seed in seeds:
            rng = torch.Generator().manual_seed(seed)
            z = torch.randn(shape.z_dim, generator=rng)
            drawn.append((z, [torch.randn(1, side, side, generator=rng) for side in shape.layers]))
        mapping = self.generator.mapping
        device = mapping.w_avg.device
        ws = mapping.spread(mapping(torch.stack([z for z, _ in drawn]).to(device)), self.psi if psi is None else psi)
        noise = tuple(torch.stack(maps).to(device) for maps in zip(*(n for _, n in drawn), strict=True))
        return Latents(ws, noise, self.weights)

    def synthesize(self, latents: Latents) -> tuple[Float[torch.Tensor, "b 3 s s"], Pyramid]:
        """Pictures, about [-1, 1], and their Pyramid. Gradients flow to latents that ask for them.

        Raises BadArtifact for latents of another generator.
        """
        if latents.generator != self.weights:
            raise BadArtifact(
                f"these latents belong to generator {latents.generator} and this one is {self.weights}; use the "
                "generator that they were sampled from, or sample anew"
            )
        images, maps = self.generator.synthesis(latents.ws, latents.noise)
        return images, Pyramid(tuple(maps[i] for i in self._read), (self.size, self.size))

    def restyled(self, latents: Latents, seeds: Sequence[int], side: int = 16) -> Latents:
        """The same things in other colors, one seed for each: the layers from `side` px on, and the noise, of others.

        Style mixing (Karras et al. 2019, section 3.1): the coarse layers decide what lies where, so that labels stay
        true. Those of the drawn faces do to a weighted IoU of .81 with 16 px, .87 with 32 and .92 with 64 (LOG.md).
        """
        other, sides = self.sample(seeds), [*self.generator.shape.layers, self.size]
        swapped = torch.tensor([at >= side for at in sides], device=latents.ws.device)
        return Latents(torch.where(swapped[:, None], other.ws, latents.ws), other.noise, latents.generator)

    def features(self, images: Float[torch.Tensor, "b 3 h w"]) -> Pyramid:
        """The Pyramid of any pictures, by inversion: seconds per picture. Resized to the generator's size."""
        height, width = images.shape[2:]
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            _, pyramid = self.synthesize(self.invert(images.detach().float()).latents)
        return Pyramid(pyramid.maps, (height, width))

    def invert(
        self,
        images: Float[torch.Tensor, "b 3 h w"],
        distance: Distance | None = None,
        progress: Callable[[int], None] = lambda step: None,
    ) -> Inverted:
        """Latents that draw these pictures. distance: None takes the critic's eyes. progress: told the steps done."""
        if tuple(images.shape[2:]) != (self.size, self.size):
            images = nn.functional.interpolate(images, (self.size, self.size), mode="bilinear", antialias=True)
        return invert(self, images, distance or self.distance(), self.recipe, progress)

    def distance(self) -> Distance:
        """How far apart two pictures look to the critic."""
        return feature_distance(self.critic.levels, _PIXELS)

    def card(self) -> dict:
        """What `rebuild` needs besides the tensors."""
        return {
            "kind": "stylegan2",
            "shape": self.generator.shape.model_dump(mode="json"),
            "title": self.title,
            "layers": self.layers,
            "psi": self.psi,
            "invert": self.recipe.model_dump(mode="json"),
        }

    @classmethod
    def rebuild(cls, card: dict, tensors: Mapping[str, torch.Tensor]) -> "StyleGAN2":
        """The one that `card` and `state_dict` were taken from; BadArtifact when they do not fit."""
        shape = Shape.parse(card["shape"], card["title"])
        nets = {"generator": Net(shape), "critic": Critic(shape)}
        for name, net in nets.items():
            own = {k.removeprefix(f"{name}."): v.float() for k, v in tensors.items() if k.startswith(f"{name}.")}
            load_exactly(net, own, f"{name} of '{card['title']}'")
        recipe = InvertRecipe.parse(card["invert"], card["title"])
        return cls(nets["generator"], nets["critic"], card["title"], card["layers"], card["psi"], recipe)


def load_stylegan2(
    folder: Path | str | None = None, layers: str = "regan", psi: float = 1.0, recipe: InvertRecipe = PRESETS["fast"]
) -> StyleGAN2:
    """A generator that `partshot pretrain stylegan2` wrote, or the embedded one; BadArtifact when the folder holds
    something else."""
    folder = folder or EMBEDDED
    stored = Artifact.load(folder, kind="representation")
    if "shape" not in stored.card:
        raise BadArtifact(f"{folder}: holds {stored.card.get('title', 'no generator')}; a StyleGAN2 is needed")
    card = {"shape": stored.card["shape"], "title": stored.card["title"], "layers": layers, "psi": psi}
    tensors = {k: torch.from_numpy(np.array(v)) for k, v in stored.tensors.items()}
    return StyleGAN2.rebuild({**card, "invert": recipe.model_dump()}, tensors)
