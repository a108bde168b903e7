"""Which representation a name means, and how one is made again from what was saved of it.

Names: "pixels", "random" or "random:NET", "resnet" (trained, from a folder), "stylegan1" or "stylegan1:LAYERS" (from a
folder), "stylegan2" or "stylegan2:LAYERS" (from a folder, or the embedded one), "timm:NAME" or "timm:NAME@PATH"; a
pretrained encoder, such as "dinov2-small", which `partshot encoders` lists; or the folder of a trained one itself,
FOLDER or FOLDER:LAYERS. Several with commas between stand side by side. Behind all of it "[LOW-HIGH]" keeps the maps
of those strides alone, and "+position" adds a map of positions, but to a generator. Knows the names; how each is read
stands in its own file.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from partshot.artifact import below, inside, read_card
from partshot.catalog import PRETEXTS, REPRESENTATIONS, lookup
from partshot.errors import BadArtifact, BadRecipe, nearest
from partshot.represent.cache import Cached, Store
from partshot.represent.encoder_table import ENCODERS
from partshot.represent.levels import Levels
from partshot.represent.position import Positioned
from partshot.represent.reduced import COMPONENTS, Reduced
from partshot.represent.several import Several
from partshot.represent.spec import Representation
from partshot.represent.stylegan import StyleGAN

POSITION = "+position"
# Where an artifact keeps principal components that were taken of any representation's maps.
_REDUCED = "reduced."
# Pixels of the coarsest map of a pyramid, and tokens of a transformer, whose maps have all one size, along a side.
_COARSEST, _TOKENS = 8, 32

# The kind on a representation's card -> the class that rebuilds it.
_KINDS = {
    "pixels": "partshot.represent.pixels:Pixels",
    "resnet": "partshot.represent.resnet:ResNet",
    "stylegan1": "partshot.represent.stylegan:StyleGAN",
    "stylegan2": "partshot.represent.stylegan:StyleGAN",
    "timm": "partshot.represent.vit:TimmEncoder",
}


def open_representation(name: str, folder: Path | None = None) -> Representation:
    """The representation of that name.

    folder: where a trained one lies, if the name does not say; "resnet" and "stylegan1" need it, "stylegan2" takes the
    embedded generator without it. Raises BadRecipe for an unknown name, BadArtifact when what the name points to cannot
    be read, MissingExtra without timm, MissingWeights when a pretrained encoder's are not here: nothing is downloaded
    unless PARTSHOT_DOWNLOAD says so.
    """
    plain, levels = _split_levels(name.removesuffix(POSITION))
    members = [plain] if Path(plain).is_dir() else plain.split(",")
    opened = [_open_one(member, folder) for member in members]
    found = opened[0] if len(opened) == 1 else Several(opened)
    if name != members[0] and any(isinstance(one, StyleGAN) for one in opened):
        raise BadRecipe(
            f"representation '{name}': a generator stands alone, takes no {POSITION}, since its features know their "
            "places, and its layers are named, as in stylegan2:middle"
        )
    if levels is not None:
        found = Levels(found, *levels)
    return Positioned(found) if name.endswith(POSITION) else found


def _split_levels(name: str) -> tuple[str, tuple[int, int] | None]:
    """ "A[4-16]" as ("A", (4, 16)), and a name without strides as it is."""
    plain, bracket, strides = name.partition("[")
    if not bracket:
        return name, None
    low, _, high = strides.removesuffix("]").partition("-")
    if not (strides.endswith("]") and low.isdecimal() and high.isdecimal()):
        raise BadRecipe(f"representation '{name}': the strides to keep are written [LOW-HIGH], such as [4-16]")
    return plain, (int(low), int(high))


def _open_one(name: str, folder: Path | None) -> Representation:
    name, folder = (f"encoder:{name}", None) if name in ENCODERS else _in_folder(name, folder)
    kind, _, detail = name.partition(":")
    if kind not in REPRESENTATIONS:
        raise BadRecipe(_why_none(kind))
    build = lookup(REPRESENTATIONS, kind, "representation")
    if kind in ("resnet", "stylegan1") and folder is None:
        raise BadRecipe(f"representation '{kind}' is a trained one and needs its folder; run: partshot pretrain")
    if kind in ("stylegan1", "stylegan2"):
        return build(folder, detail or None, kind=kind)
    if kind in ("resnet", "pixels") and detail:
        raise BadRecipe(f"representation '{kind}' takes no '{detail}'; write {kind} or {kind}{POSITION}")
    if kind == "resnet":
        return build(folder)
    if kind in ("timm", "encoder") and not detail:
        how = "timm:NAME or timm:NAME@PATH" if kind == "timm" else "a name that partshot encoders lists"
        raise BadRecipe(f"representation '{kind}' needs the encoder's name; write {how}")
    return build(detail) if detail else build()


def _why_none(kind: str) -> str:
    """What to do about a word that names no representation."""
    if kind in PRETEXTS:
        return (
            f"representation '{kind}' is trained first: run partshot pretrain {kind} --images ... --out FOLDER, and "
            "give that FOLDER as the representation"
        )
    if "+" in kind:
        return f"representation '{kind}': behind a + goes '{POSITION[1:]}' alone, as in random{POSITION}"
    return f"unknown representation '{kind}'; {nearest(kind, {*REPRESENTATIONS, *PRETEXTS, *ENCODERS})}"


def _in_folder(name: str, folder: Path | None) -> tuple[str, Path | None]:
    """A trained one's folder as the name of its kind, layers included, and the folder; other names as they are."""
    place, _, layers = (name, "", "") if Path(name).is_dir() else name.rpartition(":")
    # A folder that happens to be called "random" is meant as ./random.
    if name.partition(":")[0] in REPRESENTATIONS or not place or not Path(place).is_dir():
        return name, folder
    trained = inside(Path(place), "representation")
    pretext = read_card(trained).get("pretext")
    kind = pretext if pretext in ("stylegan1", "stylegan2") else "resnet"
    return f"{kind}:{layers}" if layers else kind, trained


def working_size(representation: Representation) -> int:
    """Side of the square at which a representation reads images well, a generator at its own size.

    A convolutional net's coarsest map is then 8 x 8: 256 px for one of stride 32, 128 px for a ResNet whose first
    stride was set to 1. A vision transformer has 32 x 32 tokens, so that each covers 8 px of an image of 256 px.
    """
    while isinstance(representation, Positioned | Cached | Levels | Reduced):
        representation = representation.representation
    if isinstance(representation, StyleGAN):
        return representation.size
    strides = representation.spec.strides
    return strides[-1] * (_TOKENS if len(set(strides)) == 1 else _COARSEST)


def reduced_on(
    representation: Representation, images: Float[torch.Tensor, "n 3 h w"], components: int = COMPONENTS
) -> Representation:
    """The principal components of its maps, taken from some hundred images in [-1, 1]; what has them stays as it is.

    A map of positions is left alone. Of a generator they are taken from what it draws.
    """
    if isinstance(representation, Positioned):
        return Positioned(reduced_on(representation.representation, images, components))
    if all(representation.spec.proportional):
        return representation
    found = Reduced(representation, components)
    return found.take_generated(range(len(images))) if isinstance(representation, StyleGAN) else found.take(images)


def cached(representation: Representation, store: Store | None) -> Representation:
    """The same reading, which asks a store first; without a store, or without weights, it stays as it is.

    A generator keeps the latents that it finds, from which features follow at once. A map of positions is not kept, and
    choices of levels and principal components share what is.
    """
    if store is None or next(representation.parameters(), None) is None:
        return representation
    if isinstance(representation, Positioned):
        return Positioned(cached(representation.representation, store))
    if isinstance(representation, Levels):
        return Levels(cached(representation.representation, store), representation.low, representation.high)
    if isinstance(representation, Reduced):
        inner = Reduced(cached(representation.representation, store), representation.components)
        return inner.load_bases(representation.maps.state_dict())
    if isinstance(representation, StyleGAN):
        representation.store = store
        return representation
    return Cached(representation, store)


def tensors_of(representation: Representation) -> dict[str, np.ndarray]:
    """All weights of a representation by name, for an Artifact; with its `card()`, what `rebuild` needs."""
    if isinstance(representation, Positioned | Cached | Levels):
        return tensors_of(representation.representation)
    if isinstance(representation, Reduced):
        bases = representation.maps.state_dict(prefix=_REDUCED)
        return tensors_of(representation.representation) | {k: v.cpu().numpy() for k, v in bases.items()}
    return {k: v.detach().cpu().numpy() for k, v in representation.state_dict().items()}


def rebuild(card: Mapping, tensors: Mapping[str, np.ndarray]) -> Representation:
    """The representation that `card()` and `tensors_of` were taken from; its features are equal to the last bit.

    Raises BadArtifact when the card is of a kind that this version does not read, or the tensors do not fit it.
    """
    bases = {k: torch.from_numpy(np.array(v)) for k, v in below(tensors, _REDUCED).items()}
    tensors = {k: v for k, v in tensors.items() if not k.startswith(_REDUCED)}
    if card.get("kind") == "several":
        found = Several([rebuild(one, below(tensors, f"members.{i}.")) for i, one in enumerate(card["members"])])
    elif card.get("kind") in _KINDS:
        kind = lookup(_KINDS, card["kind"], "representation")
        found = kind.rebuild(dict(card), {k: torch.from_numpy(np.array(v)) for k, v in tensors.items()})
    else:
        raise BadArtifact(f"a representation of kind '{card.get('kind')}' cannot be read; upgrade partshot")
    if "levels" in card:
        found = Levels(found, *card["levels"])
    if "reduced" in card:
        found = Reduced(found, card["reduced"]).load_bases(bases)
    return Positioned(found) if card.get("position") else found
