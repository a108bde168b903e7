"""Loads pretrained encoders by name, and tells which are available and which is the default.

The encoders are listed in encoder_table.py, files are located in hub.py and verified in weight_records.py.
"""

import torch
from torch import nn

from partshot.errors import BadRecipe, nearest
from partshot.nets.timm_nets import build_net, fill
from partshot.represent.encoder_table import ENCODERS, Encoder, Origin
from partshot.represent.hub import Consent, Found, find, get
from partshot.represent.timm_encoder import TimmEncoder, read_weights
from partshot.represent.weight_records import checked_sha256, recorded_revision


def is_available(name: str) -> bool:
    """Whether the encoder can be opened without a download; raises BadRecipe for an unknown name."""
    encoder = _row(name)
    return find(encoder, recorded_revision(encoder)) is not None


def default_encoder() -> str | None:
    """The first available encoder of the table, which lists installable packages first; None if there is none.

    An encoder without a permissive license is never the default and must be given by name.
    """
    return next((row.name for row in ENCODERS.values() if row.permissive and is_available(row.name)), None)


def load_encoder(name: str, download: bool | None = None) -> tuple[nn.Module, str]:
    """The pretrained timm net without its classifier, in evaluation mode, and the SHA-256 of its weights, hex.

    Its `pretrained_cfg` holds the mean and std for images in [0, 1]. download: whether missing weights may be
    downloaded; None uses PARTSHOT_DOWNLOAD. Raises BadRecipe for an unknown name, MissingWeights (with instructions) if
    the weights are missing and may not be downloaded, and BadArtifact if the file fails verification.
    """
    net, origin = _loaded(name, download)
    return net, origin.sha256


def open_encoder(name: str) -> TimmEncoder:
    """The encoder as a representation; consent to a download comes from PARTSHOT_DOWNLOAD. Errors as `load_encoder`."""
    net, origin = _loaded(name, None)
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
    # The packages use other tensor names, but the order of timm's net; the last two tensors are the classifier's.
    return dict(zip(net.state_dict(), list(tensors.values())[:-2], strict=True))


def _row(name: str) -> Encoder:
    if name not in ENCODERS:
        raise BadRecipe(f"unknown encoder '{name}'; {nearest(name, ENCODERS)}")
    return ENCODERS[name]
