"""One training loop for every game: resumable, reproducible, counted in images.

A game says what is played (whose turn it is, by which loss, on which batch); the loop says how: devices, precision,
seeds, checkpoints, the journal, and what happens on Ctrl-C or when a loss stops being a number. Running again goes on
from the last checkpoint. Every step draws its chance from (seed, images seen) alone, so on a CPU a run that was
interrupted ends with the same bits as one that was not. Knows nothing of images, labels or networks.
"""

import hashlib
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn
from torch.optim import Optimizer

from partshot.errors import BadRecipe
from partshot.objective import Objective, Phase
from partshot.ops.precision import Precision, best_device, is_bf16
from partshot.recipe import Recipe
from partshot.train.checkpoint import load_checkpoint, save_checkpoint, sweep
from partshot.train.journal import Journal
from partshot.train.progress import Ticker

SHOWN = 50
"""How often a run shows how far it is."""


class LoopRecipe(Recipe):
    """kimg: horizon in thousands of images seen. batch: images per step, over all devices.

    checkpoint_seconds: what a kill may cost at most. precision: "auto" is bf16 where the device computes in it
    natively, else fp32. devices: processes, one per device.
    """

    kimg: float
    batch: int
    seed: int = 0
    checkpoint_seconds: float = 60
    precision: Precision = "auto"
    devices: int = 1

    @property
    def steps(self) -> int:
        """Steps of the whole run: the horizon, rounded up to whole batches."""
        return math.ceil(self.kimg * 1000 / self.batch)


def run_loop(
    game: Objective,
    recipe: LoopRecipe,
    out: Path,
    title: str,
    fingerprint: str,
    journal_every: int | None = None,
    quiet: bool = False,
    show: Callable[[Objective, int], None] | None = None,
) -> None:
    """Plays the game to its horizon; afterwards its modules hold the final weights.

    out: the run's folder; gets checkpoint/ and journal.jsonl. When it holds a checkpoint of the same run, goes on from
    there, and returns at once when that run is done. title: what the progress bar calls it. fingerprint: names
    everything else that decides the outcome (the game's recipe, the images). journal_every: steps between lines;
    None writes about 200 lines over the run. show: called with the game and the images seen about SHOWN times over
    the run and at its end, to show how far it is; with several devices it is sent to another process.

    Raises BadArtifact for a checkpoint that is truncated or of other settings, BadRecipe when a loss or a weight stops
    being finite (the last good checkpoint stays), KeyboardInterrupt after Ctrl-C, with a checkpoint of that moment.
    """
    if min(recipe.batch, recipe.devices) < 1 or recipe.kimg <= 0 or recipe.batch % recipe.devices:
        raise BadRecipe(
            f"{title}: batch {recipe.batch}, kimg {recipe.kimg}, devices {recipe.devices}: "
            "all must be above 0, and batch a multiple of devices"
        )
    run = _Run(
        title=title,
        folder=Path(out),
        fingerprint=f"{fingerprint}-{recipe.changed(checkpoint_seconds=60).fingerprint}",
        journal_every=journal_every or max(1, recipe.steps // 200),
        quiet=quiet,
        show=show,
    )
    sweep(run.checkpoint)
    if recipe.devices == 1:
        _fabric(recipe).launch(_play, game, recipe, run)
        return
    # Other processes play copies of the game, so it is read here too: before, to refuse a wrong checkpoint, or to find
    # the run done, without starting any; and after, for what they have learned.
    optimizers = _optimizers(game.phases())
    card = load_checkpoint(run.checkpoint, game.modules, optimizers, run.fingerprint)
    if card is None or card["step"] < recipe.steps:
        _fabric(recipe).launch(_play, game, recipe, run)
        load_checkpoint(run.checkpoint, game.modules, optimizers, run.fingerprint)


@dataclass
class _Run:
    """What one run is called and where it stands; `step` and what follows is what a checkpoint restores."""

    title: str
    folder: Path
    fingerprint: str
    journal_every: int
    quiet: bool
    show: Callable[[Objective, int], None] | None
    step: int = 0
    seconds: float = 0.0
    # name -> [sum, count] since the last line of the journal.
    tally: dict[str, list] = field(default_factory=dict)

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint"

    def count(self, figures: Mapping[str, float | torch.Tensor]) -> None:
        for name, value in figures.items():
            entry = self.tally.setdefault(name, [0.0, 0])
            entry[0] = entry[0] + value
            entry[1] += 1

    def card(self) -> dict:
        tally = {name: [float(total), count] for name, (total, count) in self.tally.items()}
        return {"fingerprint": self.fingerprint, "step": self.step, "seconds": self.seconds, "tally": tally}

    def resume(self, card: Mapping) -> None:
        self.step, self.seconds, self.tally = card["step"], card["seconds"], card["tally"]


def _play(fabric: Fabric, game: Objective, recipe: LoopRecipe, run: _Run) -> None:
    """The story of a run, in one process of it."""
    first = fabric.global_rank == 0
    turns = game.phases()
    optimizers = _optimizers(turns)

    # The networks go to the device; 4-D weights lie channels_last, which convolutions prefer.
    for module in game.modules.values():
        module.to(fabric.device).to(memory_format=torch.channels_last)
    if fabric.world_size > 1:
        _same_everywhere(fabric, game.modules)

    # Go on from the last checkpoint, if there is one.
    card = load_checkpoint(run.checkpoint, game.modules, optimizers, run.fingerprint)
    if card is not None:
        run.resume(card)
    if run.step >= recipe.steps:
        return
    journal = Journal(run.folder / "journal.jsonl")
    if first:
        journal.rewind(run.step)

    def save() -> None:
        _refuse_nonfinite(run, turns, recipe)
        if first:
            save_checkpoint(run.checkpoint, game.modules, optimizers, run.card())

    horizon = recipe.steps * recipe.batch
    devices = [fabric.device] if fabric.device.type == "cuda" else []
    began, saved = time.monotonic() - run.seconds, time.monotonic()
    with (
        torch.random.fork_rng(devices=devices),
        _deferred_interrupt() as interrupted,
        Ticker(run.title, horizon, run.step * recipe.batch, run.quiet or not first) as ticker,
    ):
        while run.step < recipe.steps:
            # All chance in a step comes from (seed, images seen, process): dropout's too.
            images = run.step * recipe.batch
            seed = _mixed(recipe.seed, images, fabric.global_rank)
            torch.manual_seed(seed)
            rng = torch.Generator().manual_seed(seed)

            # Everyone's turn.
            game.prepare(images / horizon)
            batch = fabric.to_device(game.batch(rng, recipe.batch // fabric.world_size))
            for turn in turns:
                if run.step % turn.every == 0:
                    run.count({turn.name: _take(fabric, turn, batch)})
            run.count(game.finish((images + recipe.batch) / horizon))
            run.step += 1
            run.seconds = time.monotonic() - began

            # Tell.
            means = None
            if run.step % run.journal_every == 0 or run.step == recipe.steps:
                _refuse_nonfinite(run, turns, recipe)
                means = {name: float(total) / count for name, (total, count) in run.tally.items()}
                run.tally = {}
                if first:
                    at = {"step": run.step, "images": images + recipe.batch, "seconds": round(run.seconds, 3)}
                    journal.write(at | means)
            ticker.tick(images + recipe.batch, means)

            due = run.step % max(1, recipe.steps // SHOWN) == 0 or run.step == recipe.steps
            if run.show is not None and first and due:
                run.show(game, images + recipe.batch)

            # Keep.
            if interrupted() or run.step == recipe.steps or time.monotonic() - saved > recipe.checkpoint_seconds:
                save()
                saved = time.monotonic()
            if interrupted() and run.step < recipe.steps:
                raise KeyboardInterrupt(f"{run.title}: stopped and saved in {run.folder}; run again to go on")
    fabric.barrier()


def _take(fabric: Fabric, turn: Phase, batch: Any) -> torch.Tensor:
    """One turn: loss, gradients, their mean over the processes, step. Returns the loss, detached."""
    turn.optimizer.zero_grad(set_to_none=True)
    with fabric.autocast():
        loss = turn.loss(batch)
    loss.backward()
    params = [p for group in turn.optimizer.param_groups for p in group["params"] if p.grad is not None]
    if fabric.world_size > 1:
        # One message for all gradients; averaging here instead of wrapping networks lets a loss call them as it likes.
        mean = fabric.all_reduce(torch.cat([p.grad.flatten() for p in params]), reduce_op="mean")
        for param, grad in zip(params, mean.split([p.numel() for p in params]), strict=True):
            param.grad.copy_(grad.view(param.shape))
    if turn.clip is not None:
        nn.utils.clip_grad_norm_(params, turn.clip)
    turn.optimizer.step()
    return loss.detach()


def _fabric(recipe: LoopRecipe) -> Fabric:
    # It tells the precision anew for every network, in the middle of our progress.
    logging.getLogger("lightning_fabric.utilities.rank_zero").setLevel(logging.WARNING)
    try:
        return Fabric(
            accelerator=best_device().type,
            devices=recipe.devices,
            strategy="auto" if recipe.devices == 1 else "ddp_spawn",
            precision="bf16-mixed" if is_bf16(recipe.precision, best_device()) else "32-true",
        )
    except (RuntimeError, ValueError, TypeError) as error:
        raise BadRecipe(f"devices = {recipe.devices}: {str(error).splitlines()[0]}; run: partshot doctor") from error


def _optimizers(turns: Sequence[Phase]) -> dict[str, Optimizer]:
    """Each optimizer once, under the first turn that steps it."""
    named: dict[str, Optimizer] = {}
    for turn in turns:
        if all(turn.optimizer is not other for other in named.values()):
            named[turn.name] = turn.optimizer
    return named


def _same_everywhere(fabric: Fabric, modules: Mapping[str, nn.Module]) -> None:
    """Process 0's weights in every process; on GPUs batch statistics over all of them, as in one large batch."""
    for module in modules.values():
        for tensor in module.state_dict(keep_vars=True).values():
            # Handing a game to a process puts its tensors into memory that all of them share; on a CPU they stay there.
            tensor.data = tensor.data.clone()
            torch.distributed.broadcast(tensor.data, 0)
        if fabric.device.type == "cuda":
            nn.SyncBatchNorm.convert_sync_batchnorm(module, torch.distributed.group.WORLD)


def _mixed(seed: int, images: int, rank: int) -> int:
    """A 63-bit seed in which neighboring steps have nothing in common."""
    digest = hashlib.sha256(f"{seed}/{images}/{rank}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def _refuse_nonfinite(run: _Run, turns: Sequence[Phase], recipe: LoopRecipe) -> None:
    """BadRecipe when a loss since the last line, or a weight, is NaN or infinite; nothing of it is saved then."""
    wrong = [t.name for t in turns if t.name in run.tally and not math.isfinite(run.tally[t.name][0])]
    params = [p for t in turns for group in t.optimizer.param_groups for p in group["params"]]
    if wrong or not all(bool(torch.isfinite(p).all()) for p in params):
        what = f"loss '{wrong[0]}'" if wrong else "a weight"
        raise BadRecipe(
            f"{run.title}: {what} stopped being a number before step {run.step} of {recipe.steps}; lower the learning "
            f"rate or set precision to fp32, and choose another --out ({run.checkpoint} keeps the last good state)"
        )


@contextmanager
def _deferred_interrupt():
    """Ctrl-C waits for the end of the step, whose half would not be worth saving; a second one does not wait."""
    came = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield came.is_set
        return

    def note(_number, _frame) -> None:
        came.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield came.is_set
    finally:
        signal.signal(signal.SIGINT, before)
