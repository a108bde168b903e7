"""A StyleGAN or StyleGAN2 as a representation: the Pyramid of the activations from which an image is generated.

The maps are the layers' outputs: after AdaIN for StyleGAN, after LeakyReLU for StyleGAN2. ReGAN's code uses the layers
from 8 px on; its groups are coarse (4-8 px), middle (16-32) and fine (64 and more), and the middle group alone gives
better results than all layers (its table 7). DatasetGAN's code uses, at each size, the output of the second layer and
the result of its convolution before noise and activation; the outputs of all layers, as its paper describes, are the
group `all`. Noise maps are part of the latents, so that the same latents always give the same pixels and features. Real
images are inverted first (represent/invert.py), with a perceptual distance based on the generator's discriminator.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from partshot.artifact import Artifact, inside
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
"""The generator included in the package, for toy faces of 64 px; its card holds its training settings."""

_LARGEST = 1 << 16
GROUPS: Mapping[str, tuple[int, int]] = {
    "regan": (8, _LARGEST),
    "coarse": (4, 8),
    "middle": (16, 32),
    "fine": (64, _LARGEST),
    "all": (4, _LARGEST),
    "datasetgan": (4, _LARGEST),
}
"""Group of layers -> smallest and largest side of its maps. regan: all layers except those of 4 px. datasetgan: at each
size only the last layer, and additionally the result of its convolution."""

# Kind in the card -> the network and its default group of layers, which follows the respective paper.
_KINDS = {"stylegan1": (stylegan1.Generator, "datasetgan"), "stylegan2": (stylegan2.Generator, "regan")}

# Weight of the pixel distance; the discriminator's features depend little on color.
_PIXELS = 1.0


class StyleGAN(nn.Module):
    """A frozen generator that implements Generator and Representation.

    discriminator: from the same training; its features give the perceptual distance for inversion. title: name in
    reports. layers: a key of GROUPS; None uses the group of the generator's paper. psi: truncation of sampled latents;
    1 disables it. recipe: of the inversion. cutoff: number of layers, coarsest first, to which truncation applies; None
    means all. DatasetGAN uses psi 0.7, with a cutoff of 8 for faces and cars and 7 for cats and bedrooms. store: cache
    for the latents of inverted images; None disables it.
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
        self._taps = taps(sides, layers)
        if not self._taps:
            low, _ = GROUPS[layers]
            raise BadRecipe(f"a generator of {shape.resolution} px has no {layers} layers (they start at {low} px)")
        self.weights = fingerprint({"shape": shape.model_dump(mode="json")}, generator.state_dict())
        sides = [sides[i % len(sides)] for i in self._taps]
        # Identifies the result of the inversion, which does not depend on the selected layers.
        inversion = {"weights": self.weights, "invert": recipe.fingerprint}
        self.inversion_fingerprint = fingerprint(inversion, discriminator.state_dict())
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
        """Side of the generated images in pixels."""
        return self.generator.shape.resolution

    @property
    def device(self) -> torch.device:
        """Device of the networks; inputs are moved to it."""
        return self.generator.mapping.w_avg.device

    def train(self, mode: bool = True) -> "StyleGAN":
        """Does nothing: the module stays in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def sample(self, seeds: Sequence[int], psi: float | None = None) -> Latents:
        """One latent per seed, which alone determines it. psi: truncation; None uses the generator's own."""
        shape, samples = self.generator.shape, []
        for seed in seeds:
            rng = torch.Generator().manual_seed(seed)
            z = torch.randn(shape.z_dim, generator=rng)
            samples.append((z, [torch.randn(1, side, side, generator=rng) for side in self.generator.layers]))
        mapping, device = self.generator.mapping, self.device
        w = mapping(torch.stack([z for z, _ in samples]).to(device))
        ws = mapping.broadcast(w, self.psi if psi is None else psi, self.cutoff)
        noise = tuple(torch.stack(maps).to(device) for maps in zip(*(n for _, n in samples), strict=True))
        return Latents(ws, noise, self.weights)

    def synthesize(self, latents: Latents) -> tuple[Float[torch.Tensor, "b 3 s s"], Pyramid]:
        """Images, approximately in [-1, 1], and their Pyramid. Gradients flow to latents that require them.

        Raises BadArtifact for latents of another generator.
        """
        if latents.generator != self.weights:
            raise BadArtifact(
                f"these latents belong to generator {latents.generator}, but this is {self.weights}; use the generator "
                "that they were sampled from, or sample again"
            )
        latents = latents.to(self.device)
        raw = max(self._taps) >= len(self.generator.layers)
        images, maps = self.generator.synthesis(latents.ws, latents.noise, raw=raw)
        return images, Pyramid(tuple(maps[i] for i in self._taps), (self.size, self.size))

    def mix_styles(self, latents: Latents, seeds: Sequence[int], side: int = 16) -> Latents:
        """Style mixing: the same layout, with the latents of layers from `side` px on, and the noise, from other seeds.

        Karras et al. 2019, section 3.1. The coarse layers determine the layout, so that labels stay valid: on the toy
        faces their weighted IoU is .81 with side 16, .87 with 32 and .92 with 64 (LOG.md). seeds: one per image.
        """
        # The additional last entry is for StyleGAN2's last latent, that of ToRGB.
        latents, other = latents.to(self.device), self.sample(seeds)
        sides = [*self.generator.layers, self.size][: self.generator.num_ws]
        swapped = torch.tensor([at >= side for at in sides], device=self.device)
        return Latents(torch.where(swapped[:, None], other.ws, latents.ws), other.noise, latents.generator)

    def features(self, images: Float[torch.Tensor, "b 3 h w"]) -> Pyramid:
        """The Pyramid of any images, resized to the generator's size and inverted; takes seconds per image."""
        height, width = images.shape[2:]
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            _, pyramid = self.synthesize(self.latents(images.detach().float()))
        return Pyramid(pyramid.maps, (height, width))

    def latents(self, images: Float[torch.Tensor, "b 3 h w"]) -> Latents:
        """Latents that reproduce images: from the store if available, the others by inversion in one batch."""
        images = images.to(self.device)
        if self.store is None:
            return self.invert(images).latents
        keys = [key_of(f"latents-{self.inversion_fingerprint}", image) for image in images.split(1)]
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
        """Latents that reproduce images, by optimization.

        distance: None uses that of the discriminator's features. progress: called with the number of completed steps.
        """
        if tuple(images.shape[2:]) != (self.size, self.size):
            images = nn.functional.interpolate(images, (self.size, self.size), mode="bilinear", antialias=True)
        return invert(self, images, distance or self.distance(), self.recipe, progress)

    def distance(self) -> Distance:
        """Perceptual distance of the discriminator's features, plus a pixel distance."""
        return feature_distance(self.discriminator.levels, _PIXELS)

    def card(self) -> dict:
        """The JSON values that `rebuild` needs besides the tensors."""
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
        """Rebuilds a generator from its `card` and `state_dict`; raises BadArtifact if they do not match."""
        shape, (net, _) = Shape.parse(card["shape"], card["title"]), _KINDS[card["kind"]]
        tensors = current_names(tensors)
        nets = {"generator": net(shape), "discriminator": stylegan2.Discriminator(shape)}
        for name, net in nets.items():
            own = {k.removeprefix(f"{name}."): v.float() for k, v in tensors.items() if k.startswith(f"{name}.")}
            load_exactly(net, own, f"{name} of '{card['title']}'")
        recipe = InvertRecipe.parse(card["invert"], card["title"])
        given = (nets["generator"], nets["discriminator"], card["title"], card["layers"], card["psi"], recipe)
        # Cards of earlier versions have no cutoff.
        return cls(*given, card.get("cutoff"))


def taps(sides: Sequence[int], group: str) -> list[int]:
    """Indices of a group's maps, finest first, in the list that the synthesis network returns with `raw`.

    sides: of the network's layers, coarsest first. group: a key of GROUPS.
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
    """A generator trained by `partshot pretrain`, or the embedded one if folder is None, on the best device.

    folder: the --out of `pretrain`, or the representation/ in it. kind: "stylegan1" or "stylegan2"; None accepts both.
    Other arguments as in `StyleGAN`. Raises BadArtifact if the folder holds something else.
    """
    folder = EMBEDDED if folder is None else inside(Path(folder), "representation")
    stored = Artifact.load(folder, kind="representation")
    found = stored.card.get("pretext", "stylegan2")
    if "shape" not in stored.card or kind not in (None, found):
        needed = kind or "generator"
        raise BadArtifact(f"{folder}: contains {stored.card.get('title', 'another model')}, not a {needed}")
    card = {"shape": stored.card["shape"], "title": stored.card["title"], "layers": layers, "psi": psi}
    tensors = {k: torch.from_numpy(np.array(v)) for k, v in stored.tensors.items()}
    card |= {"kind": found, "invert": recipe.model_dump(), "cutoff": cutoff}
    return StyleGAN.rebuild(card, tensors).to(best_device())
