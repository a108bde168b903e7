"""Any timm encoder read as a Pyramid: a vision transformer's blocks, or a convolutional net's stages.

Weights come from a local file or are random; nothing is downloaded here (encoders.py opens pretrained ones by name).
Files in the names of the nets' authors are brought to timm's by timm's own conversions. Transformers take any image
size (their position embeddings are interpolated), and images are brought to the nearest size that the patches divide.
Knows timm's one call for intermediate maps (`forward_intermediates`, which drops class and register tokens and puts the
others back into a grid); refuses to know how the weights were trained.
"""

import dataclasses
import pickle
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import timm
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import nn

from partshot.errors import BadArtifact, BadRecipe, nearest
from partshot.nets.weights import load_exactly
from partshot.pyramid import Pyramid
from partshot.represent.encoder_table import Origin
from partshot.represent.spec import Spec, fingerprint, refuse_small, to_multiple

# Blocks of a transformer that are read: as many as a convolutional net has stages, evenly spaced, the last included.
BLOCKS = 4

# Wrappers that training scripts put around a state dict, and prefixes they put before its names.
_WRAPPERS = ("state_dict", "model", "model_ema", "teacher")
_PREFIXES = ("module.", "backbone.")
# What MoCo v2 and v3 put before the encoder that is meant, beside others that are not.
_TRAINED = ("encoder_q.", "base_encoder.")


class TimmEncoder(nn.Module):
    """A Representation: a timm encoder's levels, frozen, with the normalization that its card in timm names.

    name: timm's name of the net. net: built by `build_net`. origin: where its weights came from, for the card; the
    fingerprint is of the weights, wherever they came from.
    """

    def __init__(self, name: str, net: nn.Module, origin: Origin | None = None):
        super().__init__()
        self.origin = origin
        self.name, self.net = name, net.requires_grad_(False).eval()
        for key in ("mean", "std"):
            value = torch.tensor(net.pretrained_cfg[key], dtype=torch.float32).view(1, 3, 1, 1)
            self.register_buffer(key, value, persistent=False)
        self.stride, self.blocks, channels, strides = _levels(net)
        title = f"timm {name}" if origin is None else origin.encoder
        self.spec = Spec(title, channels, strides, fingerprint(self._identity(), net.state_dict()))

    def train(self, mode: bool = True) -> "TimmEncoder":
        """Stays in evaluation mode, also as a part of something that trains."""
        return super().train(False)

    @torch.no_grad()
    def features(self, images: Float[torch.Tensor, "b 3 h w"]) -> Pyramid:
        """The levels, finest first, for images in [-1, 1]; BadImage for images under one patch."""
        refuse_small(images, self.stride, self.name)
        normal = ((images + 1) / 2 - self.mean) / self.std
        maps = _read(self.net, to_multiple(normal, self.stride), self.blocks)
        return Pyramid(tuple(maps), tuple(images.shape[2:]))

    def card(self) -> dict:
        """What `rebuild` needs besides the tensors, and where those came from."""
        return self._identity() | ({} if self.origin is None else {"origin": dataclasses.asdict(self.origin)})

    def _identity(self) -> dict:
        return {"kind": "timm", "net": self.name}

    @classmethod
    def rebuild(cls, card: dict, tensors: Mapping[str, torch.Tensor]) -> "TimmEncoder":
        """The representation that `card` and `state_dict` were taken from; BadArtifact when they do not fit."""
        net = build_net(card["net"])
        load_exactly(net, {k.removeprefix("net."): v for k, v in tensors.items()}, f"'timm:{card['net']}'")
        return cls(card["net"], net, Origin(**card["origin"]) if "origin" in card else None)


def timm_representation(name: str) -> TimmEncoder:
    """A timm encoder by "NAME@PATH", or "NAME" alone for random weights, which is said in a warning.

    PATH: a local .safetensors, .pth, .pt or .bin file with timm's names. Raises BadRecipe for an unknown name and
    BadArtifact when the file cannot be read or is of another net.
    """
    net_name, _, path = name.partition("@")
    if path:
        net = build_net(net_name)
        fill(net, read_weights(Path(path)), path)
        return TimmEncoder(net_name, net)
    warnings.warn(
        f"timm:{net_name} has random weights; nothing is downloaded, give a local file as timm:{net_name}@PATH",
        stacklevel=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return TimmEncoder(net_name, build_net(net_name))


def build_net(name: str) -> nn.Module:
    """A timm net without its classifier, of random weights, for any image size where the net can do that."""
    if not timm.is_model(name):
        raise BadRecipe(f"timm {timm.__version__} knows no encoder '{name}'; {_nearest_models(name)}")
    try:
        net = timm.create_model(name, pretrained=False, num_classes=0, dynamic_img_size=True)
    except TypeError:
        net = timm.create_model(name, pretrained=False, num_classes=0)
    if not hasattr(net, "forward_intermediates"):
        raise BadRecipe(
            f"timm's '{name}' gives no intermediate maps; choose another encoder, such as vit_small_patch16_224"
        )
    return net


def fill(net: nn.Module, tensors: Mapping[str, torch.Tensor], source: str) -> None:
    """Loads weights in timm's names, or in those of the net's authors, which timm converts; a classifier is left out.

    source: for messages. Raises BadArtifact when they are another net's.
    """
    # By timm's convention a family's file converts what was published of it: names, QKV, sizes of position embeddings.
    convert = getattr(sys.modules[type(net).__module__], "checkpoint_filter_fn", None)
    try:
        tensors = convert(dict(tensors), net) if convert else tensors
    except Exception as error:  # a conversion of another net's weights fails at whatever it misses first
        raise BadArtifact(f"{source}: timm cannot convert it ({error}); weights of another net?") from error
    wanted, head = net.state_dict().keys(), ("head.", "fc.", "classifier.")
    load_exactly(net, {k: v for k, v in tensors.items() if k in wanted or not k.startswith(head)}, source)


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Tensors by name from a local file; the only place where a foreign torch file is opened, and without its code.

    .safetensors, or torch's own format through its restricted reader, which refuses anything but tensors and plain
    containers. Unwraps what training scripts wrap a state dict in. Raises BadArtifact.
    """
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        values = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise BadArtifact(f"{path}: no such file; download the weights yourself and name their path") from error
    except (OSError, SafetensorError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise BadArtifact(f"{path}: no readable weights ({reason[0][:120]}); a .safetensors file is safest") from error
    for wrapper in _WRAPPERS:
        if isinstance(values, dict) and isinstance(values.get(wrapper), dict):
            values = values[wrapper]
    if not isinstance(values, dict) or not all(isinstance(v, torch.Tensor) for v in values.values()):
        raise BadArtifact(f"{path}: holds no state dict; save the net's state_dict() as .safetensors")
    for prefix in _PREFIXES:
        if values and all(k.startswith(prefix) for k in values):
            values = {k.removeprefix(prefix): v for k, v in values.items()}
    for prefix in _TRAINED:
        if any(k.startswith(prefix) for k in values):
            values = {k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)}
    return values


def _levels(net: nn.Module) -> tuple[int, list[int] | None, tuple[int, ...], tuple[int, ...]]:
    """(coarsest stride, blocks to read or None for all, channels, strides), finest first."""
    strides = [info["reduction"] for info in net.feature_info]
    stride = max(strides)
    # Twice the stride is the smallest image at which every net tells its strides; windows need their own size.
    side = 2 * stride
    try:
        with torch.no_grad():
            image = torch.zeros(1, 3, side, side)
            levels = net.forward_intermediates(image, intermediates_only=True, output_fmt="NCHW")
    except (RuntimeError, AssertionError) as error:
        raise BadRecipe(
            f"timm's '{type(net).__name__}' reads images of one size only; choose an encoder that takes any size, "
            "such as vit_small_patch16_224 or a convolutional one"
        ) from error
    alike = len({m.shape[2:] for m in levels}) == 1 and len(levels) > BLOCKS
    blocks = [len(levels) * (i + 1) // BLOCKS - 1 for i in range(BLOCKS)] if alike else None
    kept = [levels[i] for i in blocks] if blocks else sorted(levels, key=lambda m: -m.shape[2])
    return stride, blocks, tuple(m.shape[1] for m in kept), tuple(side // m.shape[2] for m in kept)


def _read(net: nn.Module, images: torch.Tensor, blocks: list[int] | None) -> list[torch.Tensor]:
    # Transformers' inner blocks are read through the last norm, as DINOv2's code does; conv stages have none.
    levels = net.forward_intermediates(
        images, indices=blocks, norm=blocks is not None, intermediates_only=True, output_fmt="NCHW"
    )
    return sorted(levels, key=lambda m: -m.shape[2])


def _nearest_models(name: str) -> str:
    found = timm.list_models(f"*{name.partition('_')[0]}*")
    return nearest(name, found[:2000]).split("known:")[0].strip() or "see timm.list_models()"
