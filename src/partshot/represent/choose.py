"""Which representation a name means, and how one is made again from what was saved of it.

Names: "pixels", "random" or "random:NET", "resnet" (trained, from a folder), "stylegan2" or "stylegan2:LAYERS" (from a
folder, or the embedded one), "timm:NAME" or "timm:NAME@PATH"; each but a generator with "+position" behind it for a map
of positions. Knows the names; how each is read stands in its own file.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from partshot.catalog import REPRESENTATIONS, lookup
from partshot.errors import BadArtifact, BadRecipe
from partshot.represent.position import Positioned
from partshot.represent.spec import Representation

POSITION = "+position"

# The kind on a representation's card -> the class that rebuilds it.
_KINDS = {
    "pixels": "partshot.represent.pixels:Pixels",
    "resnet": "partshot.represent.resnet:ResNet",
    "stylegan2": "partshot.represent.stylegan2:StyleGAN2",
    "timm": "partshot.represent.vit:TimmEncoder",
}


def open_representation(name: str, folder: Path | None = None) -> Representation:
    """The representation of that name.

    folder: where a trained one lies; "resnet" needs it, "stylegan2" takes the embedded generator without it. Raises
    BadRecipe for an unknown name, BadArtifact when what the name points to cannot be read, MissingExtra without timm.
    """
    plain = name.removesuffix(POSITION)
    kind, _, detail = plain.partition(":")
    build = lookup(REPRESENTATIONS, kind, "representation")
    if kind == "resnet":
        if folder is None:
            raise BadRecipe(f"representation '{kind}' is a trained one and needs its folder; run: partshot pretrain")
        if detail:
            raise BadRecipe(f"representation 'resnet' takes no '{detail}'; write resnet or resnet{POSITION}")
        found = build(folder)
    elif kind == "stylegan2":
        if name.endswith(POSITION):
            raise BadRecipe(f"representation 'stylegan2' takes no {POSITION}: a generator's features know their places")
        found = build(folder, detail) if detail else build(folder)
    elif kind == "timm" and not detail:
        raise BadRecipe("representation 'timm' needs the encoder's name; write timm:NAME or timm:NAME@PATH")
    elif kind == "pixels" and detail:
        raise BadRecipe(f"representation 'pixels' takes no '{detail}'; write pixels or pixels{POSITION}")
    else:
        found = build(detail) if detail else build()
    return Positioned(found) if name.endswith(POSITION) else found


def tensors_of(representation: Representation) -> dict[str, np.ndarray]:
    """All weights of a representation by name, for an Artifact; with its `card()`, what `rebuild` needs."""
    inner = representation.representation if isinstance(representation, Positioned) else representation
    return {k: v.detach().cpu().numpy() for k, v in inner.state_dict().items()}


def rebuild(card: Mapping, tensors: Mapping[str, np.ndarray]) -> Representation:
    """The representation that `card()` and `tensors_of` were taken from; its features are equal to the last bit.

    Raises BadArtifact when the card is of a kind that this version does not read, or the tensors do not fit it.
    """
    if card.get("kind") not in _KINDS:
        raise BadArtifact(f"a representation of kind '{card.get('kind')}' cannot be read; upgrade partshot")
    kind = lookup(_KINDS, card["kind"], "representation")
    found = kind.rebuild(dict(card), {k: torch.from_numpy(np.array(v)) for k, v in tensors.items()})
    return Positioned(found) if card.get("position") else found
