"""Checkpoint: everything a run needs to go on as if it had never stopped, as an Artifact.

Modules and optimizers are laid out flat: tensors under "module/NAME/..." and "optimizer/NAME/INDEX/...", plain numbers
in the card. No pickle. Knows tensors and names; which step is due, and when to save, is the loop's affair.
"""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from partshot.artifact import Artifact, standing
from partshot.errors import BadArtifact

# Modules and optimizers of runs that partshot 0.1 began, under today's names.
_RENAMED = {"average": "ema", "critic": "discriminator"}


def save_checkpoint(
    folder: Path,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, Optimizer],
    card: Mapping,
) -> None:
    """Writes the folder in one move; `card` holds further plain values ("fingerprint" among them)."""
    tensors = {
        f"module/{name}/{key}": _to_numpy(tensor)
        for name, module in modules.items()
        for key, tensor in module.state_dict().items()
    }
    plain = {}
    for name, optimizer in optimizers.items():
        state = optimizer.state_dict()
        plain[name] = {"groups": [_without_params(g) for g in state["param_groups"]], "state": {}}
        for index, values in state["state"].items():
            for key, value in values.items():
                if isinstance(value, torch.Tensor):
                    tensors[f"optimizer/{name}/{index}/{key}"] = _to_numpy(value)
                else:
                    plain[name]["state"].setdefault(str(index), {})[key] = value
    Artifact("checkpoint", {**card, "optimizers": plain}, tensors).save(folder)


def load_checkpoint(
    folder: Path,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, Optimizer],
    fingerprint: str,
) -> dict | None:
    """Fills modules and optimizers from the folder and returns its card; None when there is nothing to go on from.

    Raises BadArtifact when the folder is truncated, of another recipe, or does not fit the modules.
    """
    if not standing(folder).exists():
        return None
    artifact = Artifact.load(folder, kind="checkpoint", fingerprint=fingerprint)
    tensors = {_current(key): torch.from_numpy(array) for key, array in artifact.tensors.items()}
    plain = {_current(name): state for name, state in artifact.card["optimizers"].items()}
    try:
        for name, module in modules.items():
            module.load_state_dict(_below(tensors, f"module/{name}/"))
        for name, optimizer in optimizers.items():
            _fill_optimizer(optimizer, plain[name], _below(tensors, f"optimizer/{name}/"))
    except (RuntimeError, KeyError, ValueError) as error:
        what = str(error).splitlines()[0]
        raise BadArtifact(f"{folder}: does not fit this run's networks ({what}); delete it and run again") from error
    return artifact.card


def sweep(folder: Path) -> None:
    """Removes what writes that were killed left beside the folder; to be called before anyone writes."""
    for path in folder.parent.glob(f".{folder.name}-*"):
        if path != standing(folder):
            shutil.rmtree(path, ignore_errors=True)


def _fill_optimizer(optimizer: Optimizer, plain: Mapping, tensors: Mapping[str, torch.Tensor]) -> None:
    params = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict] = {int(index): dict(values) for index, values in plain["state"].items()}
    for key, tensor in tensors.items():
        index, _, name = key.partition("/")
        state.setdefault(int(index), {})[name] = _laid_out_like(params[int(index)], tensor)
    now = optimizer.state_dict()["param_groups"]
    groups = [
        {k: tuple(v) if isinstance(mine.get(k), tuple) else v for k, v in saved.items()} | {"params": mine["params"]}
        for mine, saved in zip(now, plain["groups"], strict=True)
    ]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _laid_out_like(param: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    # A momentum lies in memory as its parameter does (channels_last too): the same order of additions, the same bits.
    if tensor.shape != param.shape:
        return tensor
    return torch.empty_like(param, dtype=tensor.dtype, device="cpu", requires_grad=False).copy_(tensor)


def _without_params(group: Mapping) -> dict:
    # A learning rate may be a tensor (capturable optimizers); JSON takes numbers.
    return {k: v.item() if isinstance(v, torch.Tensor) else v for k, v in group.items() if k != "params"}


def _current(name: str) -> str:
    # Runs that partshot 0.1 began go on.
    return re.sub(r"^((?:module|optimizer)/)?(critic|average)(?=/|$)", lambda m: f"{m[1] or ''}{_RENAMED[m[2]]}", name)


def _below(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    # numpy has no bfloat16; float32 holds every one of its values, so loading narrows it back exactly.
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
