"""Strict loading of state dicts: no missing names, no unexpected names, equal shapes."""

import re
from collections.abc import Mapping

import torch
from torch import nn

from partshot.errors import BadArtifact


def load_exactly(net: nn.Module, tensors: Mapping[str, torch.Tensor], source: str) -> None:
    """Loads a state dict whose names and shapes are those of the net; BadArtifact names the first difference."""
    expected = net.state_dict()
    # num_batches_tracked is missing in older files and not used here.
    missing = sorted(k for k in expected.keys() - tensors.keys() if not k.endswith("num_batches_tracked"))
    unknown = sorted(tensors.keys() - expected.keys())
    if missing or unknown:
        what = f"lacks '{missing[0]}'" if missing else f"has '{unknown[0]}', which the net does not have"
        raise BadArtifact(
            f"{source}: {what} ({len(missing)} missing, {len(unknown)} unknown); are these weights of another network?"
        )
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise BadArtifact(f"{source}: '{name}' is {list(tensor.shape)}, the net has {list(expected[name].shape)}")
    net.load_state_dict(dict(tensors), strict=False)


def current_names(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A generator's tensors under current names; partshot 0.1 called the discriminator "critic"."""
    return {re.sub(r"^critic\.", "discriminator.", name): tensor for name, tensor in tensors.items()}
