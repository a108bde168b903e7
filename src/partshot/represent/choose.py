"""Opens representations by name, and saves and rebuilds them.

Names:
  "pixels"
  "random" or "random:NET"                 a ResNet with random initialization
  "resnet"                                 a trained ResNet, from a folder
  "stylegan1" or "stylegan1:LAYERS"        a generator, from a folder
  "stylegan2" or "stylegan2:LAYERS"        a generator, from a folder or the embedded one
  "timm:NAME" or "timm:NAME@PATH"          a timm encoder, optionally with local weights
  "dinov2-small" etc.                      a pretrained encoder; `partshot encoders` lists them
  FOLDER or FOLDER:LAYERS                  a trained ResNet or generator

Names joined by commas concatenate the maps of several representations. A suffix "[LOW-HIGH]" selects the maps with
strides in this range, and a final "+position" adds position channels. Neither is available for generators.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from partshot.artifact import inside, read_card, strip_prefix
from partshot.catalog import PRETEXTS, REPRESENTATIONS, lookup
from partshot.errors import BadArtifact, BadRecipe, nearest
from partshot.represent.cache import Cached, Store
from partshot.represent.concatenated import Several
from partshot.represent.encoder_table import ENCODERS
from partshot.represent.levels import Levels
from partshot.represent.position import Positioned
from partshot.represent.reduced import COMPONENTS, Reduced
from partshot.represent.spec import Representation
from partshot.represent.stylegan import StyleGAN

POSITION = "+position"
# Kinds whose name alone names a representation.
_PLAIN = ("pixels", "random", "stylegan2")
# Prefix of the principal components of `Reduced` in an artifact's tensors.
_REDUCED = "reduced."
# Target side of the coarsest map of a convolutional net, and of the token grid of a vision transformer.
_COARSEST, _TOKENS = 8, 32

# "kind" in a representation's card -> the class that rebuilds it.
_KINDS = {
    "pixels": "partshot.represent.pixels:Pixels",
    "resnet": "partshot.represent.resnet:ResNet",
    "stylegan1": "partshot.represent.stylegan:StyleGAN",
    "stylegan2": "partshot.represent.stylegan:StyleGAN",
    "timm": "partshot.represent.timm_encoder:TimmEncoder",
}


def open_representation(name: str, folder: Path | None = None) -> Representation:
    """The representation of that name.

    folder: of a trained representation, if it is not part of the name. "resnet" and "stylegan1" need it; "stylegan2"
    uses the embedded generator without it. Raises BadRecipe for an unknown name, BadArtifact if the folder or file
    cannot be read, MissingExtra if timm is not installed, and MissingWeights if the weights of a pretrained encoder are
    not on this machine. Nothing is downloaded unless PARTSHOT_DOWNLOAD permits it.
    """
    plain, levels = _split_levels(name.removesuffix(POSITION))
    members = [plain] if Path(plain).is_dir() else plain.split(",")
    opened = [_open_one(member, folder) for member in members]
    found = opened[0] if len(opened) == 1 else Several(opened)
    if name != members[0] and any(isinstance(one, StyleGAN) for one in opened):
        raise BadRecipe(
            f"representation '{name}': a generator cannot be combined, takes no {POSITION}, since its features encode "
            "position, and its layers are selected by name, as in stylegan2:middle"
        )
    if levels is not None:
        found = Levels(found, *levels)
    return Positioned(found) if name.endswith(POSITION) else found


def _split_levels(name: str) -> tuple[str, tuple[int, int] | None]:
    """Splits "A[4-16]" into ("A", (4, 16)); a name without strides gives (name, None)."""
    plain, bracket, strides = name.partition("[")
    if not bracket:
        return name, None
    low, _, high = strides.removesuffix("]").partition("-")
    if not (strides.endswith("]") and low.isdecimal() and high.isdecimal()):
        raise BadRecipe(f"representation '{name}': strides are given as [LOW-HIGH], such as [4-16]")
    return plain, (int(low), int(high))


def _open_one(name: str, folder: Path | None) -> Representation:
    name, folder = (f"encoder:{name}", None) if name in ENCODERS else _in_folder(name, folder)
    kind, _, detail = name.partition(":")
    if kind not in REPRESENTATIONS:
        raise BadRecipe(_unknown_name(name))
    build = lookup(REPRESENTATIONS, kind, "representation")
    if kind in ("resnet", "stylegan1") and folder is None:
        raise BadRecipe(
            f"representation '{kind}' must be trained first: run partshot pretrain, and give its --out folder as the "
            "representation"
        )
    if kind in ("stylegan1", "stylegan2"):
        return build(folder, detail or None, kind=kind)
    if kind in ("resnet", "pixels") and detail:
        raise BadRecipe(f"representation '{kind}' takes no '{detail}'; write {kind} or {kind}{POSITION}")
    if kind == "resnet":
        return build(folder)
    if kind in ("timm", "encoder") and not detail:
        how = "timm:NAME or timm:NAME@PATH" if kind == "timm" else "a name that partshot encoders lists"
        raise BadRecipe(f"representation '{kind}' needs an encoder name; write {how}")
    return build(detail) if detail else build()


def _unknown_name(name: str) -> str:
    """The error message for an unknown representation."""
    if "/" in name or "\\" in name:
        return f"representation '{name}': no such folder; give the folder that partshot pretrain wrote"
    kind = name.partition(":")[0]
    if kind in PRETEXTS:
        return (
            f"representation '{kind}' must be trained first: run partshot pretrain {kind} --images ... --out FOLDER, "
            "and give that FOLDER as the representation"
        )
    if "+" in kind:
        return f"representation '{kind}': after a + only '{POSITION[1:]}' is allowed, as in random{POSITION}"
    return f"unknown representation '{kind}'; {nearest(kind, {*_PLAIN, *PRETEXTS, *ENCODERS})}"


def _in_folder(name: str, folder: Path | None) -> tuple[str, Path | None]:
    """For FOLDER or FOLDER:LAYERS, the (kind:LAYERS, folder) of the trained model; other names stay as they are."""
    place, _, layers = (name, "", "") if Path(name).is_dir() else name.rpartition(":")
    # Names of representations take precedence; a folder named "random" can be given as ./random.
    if name.partition(":")[0] in REPRESENTATIONS or not place or not Path(place).is_dir():
        return name, folder
    trained = inside(Path(place), "representation")
    pretext = read_card(trained).get("pretext")
    kind = pretext if pretext in ("stylegan1", "stylegan2") else "resnet"
    return f"{kind}:{layers}" if layers else kind, trained


def working_size(representation: Representation) -> int:
    """Default side of the square input images of a representation; for a generator, its resolution.

    A convolutional net's coarsest map is then 8 x 8: 256 px for stride 32, 128 px for a ResNet whose first stride was
    set to 1. A vision transformer has 32 x 32 tokens, so that each token covers 8 px of an image of 256 px.
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
    """A representation reduced to the principal components of its maps, fitted to about a hundred images in [-1, 1].

    Position channels are kept, and an already reduced representation is returned unchanged. A generator's components
    are fitted to as many generated images instead.
    """
    if isinstance(representation, Positioned):
        return Positioned(reduced_on(representation.representation, images, components))
    if all(representation.spec.shared_scale):
        return representation
    found = Reduced(representation, components)
    return found.fit_generated(range(len(images))) if isinstance(representation, StyleGAN) else found.fit(images)


def cached(representation: Representation, store: Store | None) -> Representation:
    """The representation with a feature cache; unchanged if there is no store, or if it has no weights.

    A generator caches the latents of inverted images, from which features are computed quickly. Position channels are
    not cached. `Levels` and `Reduced` wrap the cached maps, so that different selections share the same entries.
    """
    if store is None or next(representation.parameters(), None) is None:
        return representation
    if isinstance(representation, Positioned):
        return Positioned(cached(representation.representation, store))
    if isinstance(representation, Levels):
        return Levels(cached(representation.representation, store), representation.low, representation.high)
    if isinstance(representation, Reduced):
        inner = Reduced(cached(representation.representation, store), representation.components)
        return inner.load_components(representation.maps.state_dict())
    if isinstance(representation, StyleGAN):
        representation.store = store
        return representation
    return Cached(representation, store)


def tensors_of(representation: Representation) -> dict[str, np.ndarray]:
    """All weights of a representation by name, for an Artifact; the input of `rebuild` together with `card()`."""
    if isinstance(representation, Positioned | Cached | Levels):
        return tensors_of(representation.representation)
    if isinstance(representation, Reduced):
        bases = representation.maps.state_dict(prefix=_REDUCED)
        return tensors_of(representation.representation) | {k: v.cpu().numpy() for k, v in bases.items()}
    return {k: v.detach().cpu().numpy() for k, v in representation.state_dict().items()}


def rebuild(card: Mapping, tensors: Mapping[str, np.ndarray]) -> Representation:
    """Rebuilds a representation from `card()` and `tensors_of`; its features are bit-identical.

    Raises BadArtifact if this version does not know the card's kind, or if the tensors do not match it.
    """
    bases = {k: torch.from_numpy(np.array(v)) for k, v in strip_prefix(tensors, _REDUCED).items()}
    tensors = {k: v for k, v in tensors.items() if not k.startswith(_REDUCED)}
    if card.get("kind") == "several":
        found = Several([rebuild(one, strip_prefix(tensors, f"members.{i}.")) for i, one in enumerate(card["members"])])
    elif card.get("kind") in _KINDS:
        kind = lookup(_KINDS, card["kind"], "representation")
        found = kind.rebuild(dict(card), {k: torch.from_numpy(np.array(v)) for k, v in tensors.items()})
    else:
        raise BadArtifact(f"a representation of kind '{card.get('kind')}' is unknown to this version; upgrade partshot")
    if "levels" in card:
        found = Levels(found, *card["levels"])
    if "reduced" in card:
        found = Reduced(found, card["reduced"]).load_components(bases)
    return Positioned(found) if card.get("position") else found
