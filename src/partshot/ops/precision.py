"""In which numbers to compute. Knows devices; refuses to know what is computed."""

from typing import Literal

import torch

Precision = Literal["auto", "bf16", "fp32"]
"""A recipe's setting. auto: bf16 where the device computes in it by its own instructions."""


def best_device() -> torch.device:
    """Where networks compute best on this machine: a GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def is_bf16(precision: Precision, device: torch.device) -> bool:
    """Whether that setting means bf16 on that device."""
    return precision == "bf16" or (precision == "auto" and native_bf16(device))


def native_bf16(device: torch.device) -> bool:
    """Whether a device computes in bf16 by its own instructions."""
    # Emulated bf16 is slower than fp32; in hardware a ResNet-18's step took 0.55 of fp32's time on one core.
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
