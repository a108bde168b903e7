"""A StyleGAN or StyleGAN2 read as a Pyramid: the activations from which an image is drawn know its parts.

The maps are the layers' outputs: StyleGAN's after AdaIN, StyleGAN2's after LeakyReLU. ReGAN's code taps those from 8 px
on; its groups are coarse (4-8 px), middle (16-32) and fine (64 and more), and the middle alone does better than all
(its table 7). DatasetGAN's code taps, of every size, the second layer's output and the plain result of its convolution;
its paper says the outputs of all layers, which is `all`. The noise is part of the latent, so that the same latent gives
the same pixels and features, always. Images that were not drawn by it are inverted first (represent/invert.py), in
the eyes of the discriminator that it was trained against.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from partshot.artifact import Artifact
from partshot.errors import BadArtifact, BadRecipe, nearest
from partshot.nets import stylegan1, stylegan2
from partshot.nets.perceptual import Distance, feature_distance
from partshot.nets.stylegan import Shape
from partshot.nets.weights import current_names, load_exactly
from partshot.ops.precision import best_device
from partshot.pyramid import Pyramid
from partshot.represent.cache import Store, key_of
from partshot.represent.invert import PRESETS, Inverted, InvertRecipe, invert
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
    "datasetgan": (4, _LARGEST),
}
"""Name -> smallest and largest side of the maps that are read. regan: every layer but those of 4 px. datasetgan: of
every side only the last layer, but its convolution's own result, too."""

# What cards call it -> the network, and the group of layers that is read unless another is named: that of its paper.
_KINDS = {"stylegan1": (stylegan1.Generator, "datasetgan"), "stylegan2": (stylegan2.Generator, "regan")}

# Weight of the pixels beside the discriminator's eyes, in which colors count little.
_PIXELS = 1.0


class StyleGAN(nn.Module):
    """A frozen generator, as Generator and as Representation.

    generator: its weights. discriminator: what it was trained against, in whose eyes images are inverted. title: the
    name in reports. layers: a key of GROUPS; None takes the group of the generator's paper. psi: truncation of what is
    sampled; 1 leaves it out. recipe: how images are inverted. cutoff: how many of an image's latents are truncated, the
    coarsest; None truncates all. DatasetGAN's psi is 0.7, its cutoff 8 for faces and cars, 7 for cats and bedrooms.
    store: where the latents of inverted images are kept, None keeps none.
    """

    def __init__(
        self,
        generator: stylegan1.Generator | stylegan2.Generator,
        discriminator: stylegan2.Discriminator,
        title: str | None = None,
        layers: str | None = None,
        psi: float = 1.0,
        recipe: InvertRecipe = PRESETS["fast"],
        cutoff: int | None = None,
    ):
        super().__init__()
        self.kind = next(kind for kind, (net, _) in _KINDS.items() if isinstance(generator, net))
        own = _KINDS[self.kind][1]
        title, layers = title or self.kind, layers or own
        if layers not in GROUPS:
            raise BadRecipe(f"unknown group of layers '{layers}'; {nearest(layers, GROUPS)}")
        self.generator, self.discriminator = generator.requires_grad_(False), discriminator.requires_grad_(False)
        self.title, self.layers, self.psi, self.cutoff, self.recipe = title, layers, psi, cutoff, recipe
        self.store: Store | None = None
        self.to(memory_format=torch.channels_last).eval()
        shape, sides = generator.shape, generator.layers
        self._read = taps(sides, layers)
        if not self._read:
            low, _ = GROUPS[layers]
            raise BadRecipe(f"a generator of {shape.resolution} px has no {layers} layers (they begin at {low} px)")
        self.weights = fingerprint({"shape": shape.model_dump(mode="json")}, generator.state_dict())
        sides = [sides[i % len(sides)] for i in self._read]
        # What decides which latents an image is inverted to: whichever layers are read afterwards.
        eyes = {"weights": self.weights, "invert": recipe.fingerprint}
        self.searched = fingerprint(eyes, discriminator.state_dict())
        self.spec = Spec(
            title if layers == own else f"{title}, {layers} layers",
            tuple(shape.channels(side) for side in sides),
            tuple(shape.resolution // side for side in sides),
            fingerprint(
                {"weights": self.weights, "layers": layers, "invert": recipe.fingerprint}, discriminator.state_dict()
            ),
        )

    @property
    def size(self) -> int:
        """Side of the images in pixels."""
        return self.generator.shape.resolution

    @property
    def device(self) -> torch.device:
        """Where it draws; latents and images are brought there."""
        return self.generator.mapping.w_avg.device

    def train(self, mode: bool = True) -> "StyleGAN":
        """Stays in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def sample(self, seeds: Sequence[int], psi: float | None = None) -> Latents:
        """One latent per seed, which alone decides it; truncated by psi, or by the generator's own when None."""
        shape, drawn = self.generator.shape, []
        for seed in seeds:
            rng = torch.Generator().manual_seed(seed)
            z = torch.randn(shape.z_dim, generator=rng)
            drawn.append((z, [torch.randn(1, side, side, generator=rng) for side in self.generator.layers]))
        mapping, device = self.generator.mapping, self.device
        w = mapping(torch.stack([z for z, _ in drawn]).to(device))
        ws = mapping.broadcast(w, self.psi if psi is None else psi, self.cutoff)
        noise = tuple(torch.stack(maps).to(device) for maps in zip(*(n for _, n in drawn), strict=True))
        return Latents(ws, noise, self.weights)

    def synthesize(self, latents: Latents) -> tuple[Float[torch.Tensor, "b 3 s s"], Pyramid]:
        """Images, about [-1, 1], and their Pyramid. Gradients flow to latents that ask for them.

        Raises BadArtifact for latents of another generator.
        """
        if latents.generator != self.weights:
            raise BadArtifact(
                f"these latents belong to generator {latents.generator} and this one is {self.weights}; use the "
                "generator that they were sampled from, or sample anew"
            )
        latents = latents.to(self.device)
        raw = max(self._read) >= len(self.generator.layers)
        images, maps = self.generator.synthesis(latents.ws, latents.noise, raw=raw)
        return images, Pyramid(tuple(maps[i] for i in self._read), (self.size, self.size))

    def restyled(self, latents: Latents, seeds: Sequence[int], side: int = 16) -> Latents:
        """The same things in other colors, one seed for each: the layers from `side` px on, and the noise, of others.

        Style mixing (Karras et al. 2019, section 3.1): the coarse layers decide what lies where, so that labels stay
        true. Those of the drawn faces do to a weighted IoU of .81 with 16 px, .87 with 32 and .92 with 64 (LOG.md).
        """
        # The size behind the layers' is that of StyleGAN2's last latent, its ToRGB's.
        latents, other = latents.to(self.device), self.sample(seeds)
        sides = [*self.generator.layers, self.size][: self.generator.num_ws]
        swapped = torch.tensor([at >= side for at in sides], device=self.device)
        return Latents(torch.where(swapped[:, None], other.ws, latents.ws), other.noise, latents.generator)

    def features(self, images: Float[torch.Tensor, "b 3 h w"]) -> Pyramid:
        """The Pyramid of any images, by inversion: seconds per image. Resized to the generator's size."""
        height, width = images.shape[2:]
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            _, pyramid = self.synthesize(self.latents(images.detach().float()))
        return Pyramid(pyramid.maps, (height, width))

    def latents(self, images: Float[torch.Tensor, "b 3 h w"]) -> Latents:
        """Latents that draw these images: those that the store holds, and the others by inversion, all together."""
        images = images.to(self.device)
        if self.store is None:
            return self.invert(images).latents
        keys = [key_of(f"latents-{self.searched}", image) for image in images.split(1)]
        kept = [self.store.get(key) for key in keys]
        new = [i for i, found in enumerate(kept) if found is None]
        if new:
            inverted = self.invert(images[new]).latents
            for i, (ws, *noise) in zip(new, zip(inverted.ws, *inverted.noise, strict=True), strict=True):
                kept[i] = [tensor.cpu().numpy() for tensor in (ws, *noise)]
                self.store.put(keys[i], kept[i])
        ws, *noise = (torch.from_numpy(np.stack(several)).to(self.device) for several in zip(*kept, strict=True))
        return Latents(ws, tuple(noise), self.weights)

    def invert(
        self,
        images: Float[torch.Tensor, "b 3 h w"],
        distance: Distance | None = None,
        progress: Callable[[int], None] = lambda step: None,
    ) -> Inverted:
        """Latents that generate these images.

        distance: None takes the discriminator's features. progress: called with the steps done.
        """
        if tuple(images.shape[2:]) != (self.size, self.size):
            images = nn.functional.interpolate(images, (self.size, self.size), mode="bilinear", antialias=True)
        return invert(self, images, distance or self.distance(), self.recipe, progress)

    def distance(self) -> Distance:
        """How far apart two images look to the discriminator."""
        return feature_distance(self.discriminator.levels, _PIXELS)

    def card(self) -> dict:
        """What `rebuild` needs besides the tensors."""
        return {
            "kind": self.kind,
            "shape": self.generator.shape.model_dump(mode="json"),
            "title": self.title,
            "layers": self.layers,
            "psi": self.psi,
            "cutoff": self.cutoff,
            "invert": self.recipe.model_dump(mode="json"),
        }

    @classmethod
    def rebuild(cls, card: dict, tensors: Mapping[str, torch.Tensor]) -> "StyleGAN":
        """The one that `card` and `state_dict` were taken from; BadArtifact when they do not fit."""
        shape, (net, _) = Shape.parse(card["shape"], card["title"]), _KINDS[card["kind"]]
        tensors = current_names(tensors)
        nets = {"generator": net(shape), "discriminator": stylegan2.Discriminator(shape)}
        for name, net in nets.items():
            own = {k.removeprefix(f"{name}."): v.float() for k, v in tensors.items() if k.startswith(f"{name}.")}
            load_exactly(net, own, f"{name} of '{card['title']}'")
        recipe = InvertRecipe.parse(card["invert"], card["title"])
        given = (nets["generator"], nets["discriminator"], card["title"], card["layers"], card["psi"], recipe)
        # Cards of earlier versions know of no cutoff.
        return cls(*given, card.get("cutoff"))


def taps(sides: Sequence[int], group: str) -> list[int]:
    """Which of the maps a group of layers reads, finest first, as indices into what a synthesis returns with `raw`.

    sides: of its layers, coarsest first. group: a key of GROUPS.
    """
    if group == "datasetgan":
        last = {side: i for i, side in enumerate(sides)}
        return [tap for i in reversed(last.values()) for tap in (i, len(sides) + i)]
    low, high = GROUPS[group]
    return [i for i, side in reversed(list(enumerate(sides))) if low <= side <= high]


def load_stylegan(
    folder: Path | str | None = None,
    layers: str | None = None,
    psi: float = 1.0,
    recipe: InvertRecipe = PRESETS["fast"],
    kind: str | None = None,
    cutoff: int | None = None,
) -> StyleGAN:
    """A generator that `partshot pretrain` wrote, or the embedded one, where this machine computes best.

    kind: "stylegan1" or "stylegan2", None either; the rest as in the class. BadArtifact when the folder holds something
    else.
    """
    folder = folder or EMBEDDED
    stored = Artifact.load(folder, kind="representation")
    found = stored.card.get("pretext", "stylegan2")
    if "shape" not in stored.card or kind not in (None, found):
        needed = kind or "generator"
        raise BadArtifact(f"{folder}: holds {stored.card.get('title', 'no generator')}; a {needed} is needed")
    card = {"shape": stored.card["shape"], "title": stored.card["title"], "layers": layers, "psi": psi}
    tensors = {k: torch.from_numpy(np.array(v)) for k, v in stored.tensors.items()}
    card |= {"kind": found, "invert": recipe.model_dump(), "cutoff": cutoff}
    return StyleGAN.rebuild(card, tensors).to(best_device())
