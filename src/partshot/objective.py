"""Objective: the interface between a training method and the training loop.

Pretext tasks, distillation and GANs all implement it: an objective provides batches, and one or more phases per step,
each with an optimizer and a loss. The loop (train/loop.py) trains any objective and handles devices, precision, seeds,
checkpoints and the log. This file holds only the interface.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import nn
from torch.optim import Optimizer


class Phase(NamedTuple):
    """One optimizer update within a step, such as the discriminator's.

    name: of the loss in the log. loss: batch -> scalar tensor, computed in the loop's precision. every: number of loop
    steps between updates. clip: maximum gradient norm over the optimizer's parameters; None does not clip.
    """

    name: str
    optimizer: Optimizer
    loss: Callable[[Any], torch.Tensor]
    every: int = 1
    clip: float | None = None


@runtime_checkable
class Objective(Protocol):
    """What the loop trains. Most pretext tasks and distillation have one phase, a GAN has several.

    modules: name -> module, for all modules that are moved to the device and checkpointed, EMA copies included.
    """

    modules: dict[str, nn.Module]

    def batch(self, rng: torch.Generator, images: int) -> Any:
        """A batch of that many images, sampled with `rng` alone (a CPU generator, new in every step).

        Returns tensors, or (named) tuples, lists, dicts and dataclasses of them; the loop moves them to the device.
        """

    def phases(self) -> Sequence[Phase]:
        """The phases of one step, in order. The loop calls this once in each process."""

    def prepare(self, progress: float) -> None:
        """Called before each step; sets learning rates. progress: share of the training that is done, in [0, 1)."""

    def finish(self, progress: float) -> Mapping[str, float | torch.Tensor]:
        """Called after each step, for EMA updates and the like. Returns metrics, which the log averages over steps."""

    def trained(self) -> dict[str, torch.Tensor]:
        """The tensors that are saved at the end of training."""
