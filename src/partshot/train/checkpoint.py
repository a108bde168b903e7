"""Checkpoint: the state of modules and optimizers, as an Artifact, for a training that resumes bit for bit.

Tensors are stored under "module/NAME/..." and "optimizer/NAME/INDEX/...", plain numbers in card.json; nothing is
pickled. The loop (train/loop.py) decides when to save, and stores its own state in the card.
"""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from partshot.artifact import Artifact, standing, strip_prefix
from partshot.errors import BadArtifact

# Names in checkpoints of older versions -> current names, of modules and optimizers and of single tensors.
_RENAMED = {"average": "ema", "critic": "discriminator"}
_RENAMED_TENSORS = {
    "module/balance/wanted": "module/alignment/target",
    "module/balance/heard": "module/alignment/predicted",
    "module/limits/usual": "module/thresholds/mean_confidence",
}


def save_checkpoint(
    folder: Path,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, Optimizer],
    card: Mapping,
) -> None:
    """Writes the folder atomically. card: further plain values, "fingerprint" among them."""
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
    """Loads the state of modules and optimizers and returns the card; None when there is no checkpoint.

    Raises BadArtifact when the checkpoint is truncated, of another recipe, or does not fit the modules.
    """
    if not standing(folder).exists():
        return None
    artifact = Artifact.load(folder, kind="checkpoint", fingerprint=fingerprint)
    tensors = {_current(key): torch.from_numpy(array) for key, array in artifact.tensors.items()}
    plain = {_current(name): state for name, state in artifact.card["optimizers"].items()}
    try:
        for name, module in modules.items():
            module.load_state_dict(strip_prefix(tensors, f"module/{name}/"))
        for name, optimizer in optimizers.items():
            _fill_optimizer(optimizer, plain[name], strip_prefix(tensors, f"optimizer/{name}/"))
    except (RuntimeError, KeyError, ValueError) as error:
        what = str(error).splitlines()[0]
        raise BadArtifact(f"{folder}: does not fit this run's networks ({what}); delete it and run again") from error
    return artifact.card


def remove_leftovers(folder: Path) -> None:
    """Removes temporary folders of killed writes beside the checkpoint; call it before any process writes."""
    for path in folder.parent.glob(f".{folder.name}-*"):
        if path != standing(folder):
            shutil.rmtree(path, ignore_errors=True)


def _fill_optimizer(optimizer: Optimizer, plain: Mapping, tensors: Mapping[str, torch.Tensor]) -> None:
    params = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict] = {int(index): dict(values) for index, values in plain["state"].items()}
    for key, tensor in tensors.items():
        index, _, name = key.partition("/")
        state.setdefault(int(index), {})[name] = _with_layout_of(params[int(index)], tensor)
    current = optimizer.state_dict()["param_groups"]
    groups = [
        {k: tuple(v) if isinstance(group.get(k), tuple) else v for k, v in saved.items()} | {"params": group["params"]}
        for group, saved in zip(current, plain["groups"], strict=True)
    ]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _with_layout_of(param: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    # Optimizer state needs the memory format of its parameter (such as channels_last): the same order of additions
    # gives the same bits.
    if tensor.shape != param.shape:
        return tensor
    return torch.empty_like(param, dtype=tensor.dtype, device="cpu", requires_grad=False).copy_(tensor)


def _without_params(group: Mapping) -> dict:
    # Learning rates may be tensors (capturable optimizers); JSON needs numbers.
    return {k: v.item() if isinstance(v, torch.Tensor) else v for k, v in group.items() if k != "params"}


def _current(name: str) -> str:
    name = _RENAMED_TENSORS.get(name, name)
    return re.sub(r"^((?:module|optimizer)/)?(critic|average)(?=/|$)", lambda m: f"{m[1] or ''}{_RENAMED[m[2]]}", name)


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    # numpy has no bfloat16. float32 represents all of its values, so the way back is exact.
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
