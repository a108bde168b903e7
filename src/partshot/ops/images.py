"""Images as files hold them, bytes with channels last, and as networks take them, [-1, 1] with channels first."""

import numpy as np
import torch
from jaxtyping import Float, UInt8


def as_tensors(images: UInt8[np.ndarray, "n h w 3"]) -> Float[torch.Tensor, "n 3 h w"]:
    """Images as networks here take them."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def as_uint8(images: Float[torch.Tensor, "n 3 h w"]) -> UInt8[np.ndarray, "n h w 3"]:
    """Images as files hold them; what lies beyond [-1, 1] is cut off."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).contiguous().cpu().numpy()
