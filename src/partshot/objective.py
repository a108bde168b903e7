"""Objective: what a training run plays, told apart from how it is run.

A pretext, a distillation and a GAN are all games: batches, and players who take turns, each with an optimizer and a
loss. One loop (train/loop.py) plays them all and owns devices, precision, seeds, checkpoints and the journal; a game
knows none of these. Only the words are here.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import nn
from torch.optim import Optimizer


class Phase(NamedTuple):
    """One player's move: which optimizer steps, on which loss, every how many steps of the loop.

    loss: batch -> scalar tensor, computed under the loop's precision; the journal calls it by `name`.
    clip: largest norm of the gradient over the optimizer's parameters; None leaves it.
    """

    name: str
    optimizer: Optimizer
    loss: Callable[[Any], torch.Tensor]
    every: int = 1
    clip: float | None = None


@runtime_checkable
class Objective(Protocol):
    """What the loop plays. One turn for most pretexts and for distillation, three for a GAN.

    modules: everything that is moved to the device and checkpointed, averaged copies included, by name.
    """

    modules: dict[str, nn.Module]

    def batch(self, rng: torch.Generator, images: int) -> Any:
        """A batch of that many images, drawn by `rng` (a CPU generator, new in every step) and nothing else.

        Tensors, or (named) tuples, lists, dicts and dataclasses of them; the loop moves them to the device.
        """

    def phases(self) -> Sequence[Phase]:
        """The moves of one step, in order; asked for once."""

    def prepare(self, progress: float) -> None:
        """Before each step: sets learning rates. progress: share of the horizon that is done, in [0, 1)."""

    def finish(self, progress: float) -> Mapping[str, float | torch.Tensor]:
        """After each step: moving averages and the like. Returns figures that the journal averages."""

    def trained(self) -> dict[str, torch.Tensor]:
        """What is kept when the run is over."""
