"""Weights into nets, exactly: nothing missing, nothing left over, every shape as the net has it."""

import re
from collections.abc import Mapping

import torch
from torch import nn

from partshot.errors import BadArtifact


def load_exactly(net: nn.Module, tensors: Mapping[str, torch.Tensor], source: str) -> None:
    """Loads a state dict with every name and shape as the net has them; BadArtifact names the first that differs."""
    wanted = net.state_dict()
    # Counters of batches seen: older files lack them, and nothing here reads them.
    missing = sorted(k for k in wanted.keys() - tensors.keys() if not k.endswith("num_batches_tracked"))
    unknown = sorted(tensors.keys() - wanted.keys())
    if missing or unknown:
        what = f"lacks '{missing[0]}'" if missing else f"holds '{unknown[0]}', which the net has not"
        raise BadArtifact(f"{source}: {what} ({len(missing)} missing, {len(unknown)} unknown); weights of another net?")
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            raise BadArtifact(f"{source}: '{name}' is {list(tensor.shape)}, the net has {list(wanted[name].shape)}")
    net.load_state_dict(dict(tensors), strict=False)


def current_names(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A generator's tensors, whose discriminator partshot 0.1 named "critic", under today's names."""
    return {re.sub(r"^critic\.", "discriminator.", name): tensor for name, tensor in tensors.items()}
