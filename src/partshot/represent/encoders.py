"""Pretrained encoders by name, opened: which are here, which is the default, and the net with its weights.

Knows how a row of the table becomes a net; the rows stand in encoder_table.py, where files lie in hub.py, and how they
are checked in weight_records.py.
"""

import torch
from torch import nn

from partshot.errors import BadRecipe, nearest
from partshot.represent.encoder_table import ENCODERS, Encoder, Origin
from partshot.represent.hub import Consent, Found, find, get
from partshot.represent.vit import TimmEncoder, build_net, fill, read_weights
from partshot.represent.weight_records import checked_sha256, recorded_revision


def is_here(name: str) -> bool:
    """Whether the encoder of that name opens without a download; BadRecipe for an unknown one."""
    encoder = _row(name)
    return find(encoder, recorded_revision(encoder)) is not None


def default_encoder() -> str | None:
    """The best encoder that is here: an installed package's, else the first of the table; None when none is.

    One whose license asks for more than a permissive one does is never a default: who wants it names it.
    """
    return next((row.name for row in ENCODERS.values() if row.permissive and is_here(row.name)), None)


def load_encoder(name: str, download: bool | None = None) -> tuple[nn.Module, str]:
    """The timm net of that name with its weights, without a classifier, in evaluation mode; and their SHA-256, hex.

    Its `pretrained_cfg` holds the mean and std that it was trained with, of images in [0, 1]. download: whether weights
    that are not here may be fetched; None asks PARTSHOT_DOWNLOAD. Raises BadRecipe for an unknown name, MissingWeights
    with the cure when they are not here and may not be fetched, BadArtifact when the file is not the right one.
    """
    net, origin = _loaded(name, download)
    return net, origin.sha256


def open_encoder(name: str, download: bool | None = None) -> TimmEncoder:
    """The representation that reads this encoder; arguments and errors as of `load_encoder`."""
    net, origin = _loaded(name, download)
    return TimmEncoder(ENCODERS[name].net, net, origin)


def _loaded(name: str, download: bool | None) -> tuple[nn.Module, Origin]:
    encoder = _row(name)
    found = get(encoder, Consent.from_environment(download), recorded_revision(encoder))
    origin = Origin(name, found.source, found.revision, checked_sha256(encoder, found), encoder.license)
    net = build_net(encoder.net)
    fill(net, _tensors(found, net), str(found.path))
    return net.eval(), origin


def _tensors(found: Found, net: nn.Module) -> dict[str, torch.Tensor]:
    tensors = read_weights(found.path)
    if not found.packaged:
        return tensors
    # Packages name tensors in their own way, but hold them in the order of timm's net, the classifier's two at the end.
    return dict(zip(net.state_dict(), list(tensors.values())[:-2], strict=True))


def _row(name: str) -> Encoder:
    if name not in ENCODERS:
        raise BadRecipe(f"unknown encoder '{name}'; {nearest(name, ENCODERS)}")
    return ENCODERS[name]
