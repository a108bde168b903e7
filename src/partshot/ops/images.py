"""Conversion between image arrays (uint8, channels last) and network inputs (float in [-1, 1], channels first)."""

import numpy as np
import torch
from jaxtyping import Float, UInt8


def as_tensors(images: UInt8[np.ndarray, "n h w 3"]) -> Float[torch.Tensor, "n 3 h w"]:
    """Float tensors in [-1, 1] from uint8 arrays."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def as_uint8(images: Float[torch.Tensor, "n 3 h w"]) -> UInt8[np.ndarray, "n h w 3"]:
    """uint8 arrays from float tensors; values outside [-1, 1] are clipped."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).contiguous().cpu().numpy()
