"""Any timm encoder as a representation: blocks of a vision transformer, or stages of a convolutional net.

Weights come from a local file or are randomly initialized; nothing is downloaded here (encoders.py opens pretrained
encoders by name). Files with the original authors' tensor names are converted by timm's own functions. Transformers
accept any image size: position embeddings are interpolated, and images are resized to the nearest multiple of the patch
size. Maps come from timm's `forward_intermediates`, which drops class and register tokens and arranges the patch tokens
in a grid.
"""

import dataclasses
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import nn

from partshot.errors import BadArtifact, BadRecipe
from partshot.nets.timm_nets import build_net, fill
from partshot.nets.weights import load_exactly
from partshot.pyramid import Pyramid
from partshot.represent.encoder_table import Origin
from partshot.represent.spec import Spec, check_min_size, fingerprint, resize_to_multiple

# Number of transformer blocks used, evenly spaced and including the last; as many as a convolutional net has stages.
BLOCKS = 4

# Keys under which training scripts store a state dict, and prefixes that they add to its names.
_WRAPPERS = ("state_dict", "model", "model_ema", "teacher")
_PREFIXES = ("module.", "backbone.")
# Prefixes of the trained encoder in files of MoCo v2 and v3, which also hold other networks.
_TRAINED = ("encoder_q.", "base_encoder.")


class TimmEncoder(nn.Module):
    """A Representation: the intermediate maps of a frozen timm encoder, with the normalization of its timm config.

    name: timm's model name. net: built by `build_net`. origin: provenance of the weights, for the card; it does not
    affect the fingerprint.
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
        """Does nothing: the module stays in evaluation mode, also inside of a model that is trained."""
        return super().train(False)

    @torch.no_grad()
    def features(self, images: Float[torch.Tensor, "b 3 h w"]) -> Pyramid:
        """The maps, finest first, for images in [-1, 1]; raises BadImage for images under one patch."""
        check_min_size(images, self.stride, self.name)
        normal = ((images + 1) / 2 - self.mean) / self.std
        maps = _intermediates(self.net, resize_to_multiple(normal, self.stride), self.blocks)
        return Pyramid(tuple(maps), tuple(images.shape[2:]))

    def card(self) -> dict:
        """The JSON values that `rebuild` needs besides the tensors, and the provenance of the weights."""
        return self._identity() | ({} if self.origin is None else {"origin": dataclasses.asdict(self.origin)})

    def _identity(self) -> dict:
        return {"kind": "timm", "net": self.name}

    @classmethod
    def rebuild(cls, card: dict, tensors: Mapping[str, torch.Tensor]) -> "TimmEncoder":
        """Rebuilds a representation from its `card` and `state_dict`; raises BadArtifact if they do not match."""
        net = build_net(card["net"])
        load_exactly(net, {k.removeprefix("net."): v for k, v in tensors.items()}, f"'timm:{card['net']}'")
        return cls(card["net"], net, Origin(**card["origin"]) if "origin" in card else None)


def timm_representation(name: str) -> TimmEncoder:
    """A timm encoder from "NAME@PATH", or from "NAME" with random initialization and a warning.

    PATH: a local .safetensors, .pth, .pt or .bin file, with timm's or the original authors' tensor names. Raises
    BadRecipe for an unknown name, and BadArtifact if the file cannot be read or belongs to another net.
    """
    net_name, _, path = name.partition("@")
    if path:
        net = build_net(net_name)
        fill(net, read_weights(Path(path)), path)
        return TimmEncoder(net_name, net)
    warnings.warn(
        f"timm:{net_name} is randomly initialized; nothing is downloaded, give a local file as timm:{net_name}@PATH",
        stacklevel=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return TimmEncoder(net_name, build_net(net_name))


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Name -> tensor from a local file. This is the only place where third-party torch files are loaded.

    Reads .safetensors, or torch's format with weights_only=True, which accepts only tensors and plain containers and
    executes no code. A state dict nested by a training script is unwrapped. Raises BadArtifact.
    """
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        values = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise BadArtifact(f"{path}: no such file; download the weights yourself and give their path") from error
    except (OSError, SafetensorError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise BadArtifact(f"{path}: cannot read weights ({reason[0][:120]}); a .safetensors file is safest") from error
    for wrapper in _WRAPPERS:
        if isinstance(values, dict) and isinstance(values.get(wrapper), dict):
            values = values[wrapper]
    if not isinstance(values, dict) or not all(isinstance(v, torch.Tensor) for v in values.values()):
        raise BadArtifact(f"{path}: contains no state dict; save the net's state_dict() as .safetensors")
    for prefix in _PREFIXES:
        if values and all(k.startswith(prefix) for k in values):
            values = {k.removeprefix(prefix): v for k, v in values.items()}
    for prefix in _TRAINED:
        if any(k.startswith(prefix) for k in values):
            values = {k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)}
    return values


def _levels(net: nn.Module) -> tuple[int, list[int] | None, tuple[int, ...], tuple[int, ...]]:
    """(coarsest stride, indices of the blocks or None for all, channels, strides), finest first."""
    strides = [info["reduction"] for info in net.feature_info]
    stride = max(strides)
    # Twice the stride is the smallest image side from which strides can be derived; nets with windows need a fixed
    # size.
    side = 2 * stride
    try:
        with torch.no_grad():
            image = torch.zeros(1, 3, side, side)
            levels = net.forward_intermediates(image, intermediates_only=True, output_fmt="NCHW")
    except (RuntimeError, AssertionError) as error:
        raise BadRecipe(
            f"timm's '{type(net).__name__}' accepts only one image size; choose an encoder for any size, "
            "such as vit_small_patch16_224 or a convolutional one"
        ) from error
    same_size = len({m.shape[2:] for m in levels}) == 1 and len(levels) > BLOCKS
    blocks = [len(levels) * (i + 1) // BLOCKS - 1 for i in range(BLOCKS)] if same_size else None
    kept = [levels[i] for i in blocks] if blocks else sorted(levels, key=lambda m: -m.shape[2])
    return stride, blocks, tuple(m.shape[1] for m in kept), tuple(side // m.shape[2] for m in kept)


def _intermediates(net: nn.Module, images: torch.Tensor, blocks: list[int] | None) -> list[torch.Tensor]:
    # The final norm is applied to all blocks of a transformer, as in DINOv2's code; convolutional stages have none.
    levels = net.forward_intermediates(
        images, indices=blocks, norm=blocks is not None, intermediates_only=True, output_fmt="NCHW"
    )
    return sorted(levels, key=lambda m: -m.shape[2])
