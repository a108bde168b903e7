"""The training loop of every objective: resumable, reproducible, counted in images.

An objective (partshot.objective) defines batches, losses and optimizers. The loop handles devices, precision, seeds,
checkpoints, the journal, Ctrl-C and losses that become NaN. Running it again resumes from the last checkpoint. The
random numbers of a step depend on (seed, images seen) alone, so on a CPU an interrupted and resumed training ends with
the same bits as an uninterrupted one. The loop is independent of images, labels and networks.
"""

import hashlib
import logging
import math
import multiprocessing
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning_fabric import Fabric
from torch import nn
from torch.multiprocessing.spawn import ProcessException
from torch.optim import Optimizer

from partshot.errors import BadRecipe, PartshotError
from partshot.objective import Objective, Phase
from partshot.ops.precision import Precision, best_device, is_bf16
from partshot.progress import Ticker, print_status
from partshot.recipe import Recipe
from partshot.train.checkpoint import load_checkpoint, remove_leftovers, save_checkpoint
from partshot.train.journal import Journal

SHOWN = 50
"""How many times a training calls `show`."""


class LoopRecipe(Recipe):
    """kimg: length of the training in thousands of images. batch: images per step, over all devices.

    checkpoint_seconds: interval between checkpoints, in seconds. precision: "auto" is bf16 where the device computes in
    it natively, else fp32. devices: number of processes, one per device.
    """

    kimg: float
    batch: int
    seed: int = 0
    checkpoint_seconds: float = 60
    precision: Precision = "auto"
    devices: int = 1

    @property
    def steps(self) -> int:
        """Steps of the whole training: kimg, rounded up to whole batches."""
        return math.ceil(self.kimg * 1000 / self.batch)


def run_loop(
    objective: Objective,
    recipe: LoopRecipe,
    out: Path,
    title: str,
    fingerprint: str,
    journal_every: int | None = None,
    quiet: bool = False,
    show: Callable[[Objective, int], None] | None = None,
) -> None:
    """Trains the objective; afterwards its modules hold the final weights.

    out: the run's folder; gets checkpoint/ and journal.jsonl. If it holds a checkpoint of the same run, training
    resumes from there; a finished run returns at once. title: for the progress bar. fingerprint: identifies everything
    else that determines the result (the objective's recipe, the images). journal_every: steps between journal lines;
    None writes about 200 lines. show: for previews, called with the objective and the images seen, about SHOWN times at
    equal intervals and at the end; with several devices it is pickled and sent to another process.

    Raises BadArtifact for a checkpoint that is truncated or of other settings, BadRecipe when a loss or a weight
    becomes NaN or infinite (the last good checkpoint stays), KeyboardInterrupt after Ctrl-C, once a checkpoint of that
    step is saved.
    """
    for setting in ("batch", "kimg", "devices"):
        if getattr(recipe, setting) <= 0:
            raise BadRecipe(f"{title}: {setting} {getattr(recipe, setting)}: must be above 0")
    if recipe.batch % recipe.devices:
        raise BadRecipe(f"{title}: batch {recipe.batch}: must be a multiple of devices ({recipe.devices})")
    run = _Run(
        title=title,
        folder=Path(out),
        fingerprint=f"{fingerprint}-{recipe.changed(checkpoint_seconds=60).fingerprint}",
        journal_every=journal_every or max(1, recipe.steps // 200),
        quiet=quiet,
        show=show,
    )
    remove_leftovers(run.checkpoint)
    if recipe.devices > 1:
        finished = _train_in_processes(objective, recipe, run)
    else:
        finished = _fabric(recipe).launch(_train, objective, recipe, run)
    if not finished:
        raise KeyboardInterrupt(f"{run.title}: stopped and saved in {run.folder}; run again to go on")


def _train_in_processes(objective: Objective, recipe: LoopRecipe, run: "_Run") -> bool:
    """The training with a process for each device; returns and raises what `_train` does.

    A Ctrl-C in this process stops the others, which send it the errors that its caller must get.
    """
    # Other processes train copies of the objective, so this process loads checkpoints, too: first, without starting any
    # processes, to refuse a wrong checkpoint and to see whether the run is finished; at the end, to get the trained
    # weights.
    optimizers = _optimizers(objective.phases())
    card = load_checkpoint(run.checkpoint, objective.modules, optimizers, run.fingerprint)
    if card is not None and card["step"] >= recipe.steps:
        return True
    context = multiprocessing.get_context("spawn")
    link = _Link(context.RawValue("b", False), context.SimpleQueue())
    with _deferred_interrupt(link.stop_all) as interrupted:
        try:
            finished = _fabric(recipe).launch(_train_in_process, objective, recipe, run, link)
        except ProcessException:
            if not link.errors.empty():
                raise link.errors.get() from None
            if interrupted():
                raise KeyboardInterrupt(f"{run.title}: stopped; run again to go on") from None
            raise
    if finished:
        load_checkpoint(run.checkpoint, objective.modules, optimizers, run.fingerprint)
    return finished


class _Link(NamedTuple):
    """What the process of `run_loop` shares with those that train. stop: whether they have to. errors: from them."""

    stop: Any
    errors: Any

    def stop_all(self) -> None:
        """Makes the processes stop after their step."""
        self.stop.value = True


def _train_in_process(fabric: Fabric, objective: Objective, recipe: LoopRecipe, run: "_Run", link: _Link) -> bool:
    """`_train` in one of several processes."""
    try:
        finished = _train(fabric, objective, recipe, run, link)
    except (PartshotError, KeyboardInterrupt) as error:
        # The exit code makes the first process end the others. It would get any exception as text only.
        link.errors.put(error)
        raise SystemExit(1) from None
    finally:
        # Threads of the process group can abort a process that ends while they still run. After an error, NCCL would
        # wait here for the other processes.
        failed = sys.exc_info()[0] is not None
        if torch.distributed.is_initialized() and not (failed and torch.distributed.get_backend() == "nccl"):
            torch.distributed.destroy_process_group()
    return finished


@dataclass
class _Run:
    """Settings and state of one run. Checkpoints restore the state: step, seconds and sums."""

    title: str
    folder: Path
    fingerprint: str
    journal_every: int
    quiet: bool
    show: Callable[[Objective, int], None] | None
    step: int = 0
    seconds: float = 0.0
    # name -> [sum, count] since the last line of the journal.
    sums: dict[str, list] = field(default_factory=dict)

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint"

    def add(self, values: Mapping[str, float | torch.Tensor]) -> None:
        for name, value in values.items():
            entry = self.sums.setdefault(name, [0.0, 0])
            entry[0] = entry[0] + value
            entry[1] += 1

    def card(self) -> dict:
        sums = {name: [float(total), count] for name, (total, count) in self.sums.items()}
        return {"fingerprint": self.fingerprint, "step": self.step, "seconds": self.seconds, "tally": sums}

    def resume(self, card: Mapping) -> None:
        self.step, self.seconds, self.sums = card["step"], card["seconds"], card["tally"]


def _train(fabric: Fabric, objective: Objective, recipe: LoopRecipe, run: _Run, link: _Link | None = None) -> bool:
    """The whole training, in one process. Returns False if it was stopped by Ctrl-C, after a checkpoint."""
    phases = objective.phases()
    optimizers = _optimizers(phases)
    _move_to_device(fabric, objective.modules)
    card = load_checkpoint(run.checkpoint, objective.modules, optimizers, run.fingerprint)
    if card is not None:
        run.resume(card)
    if run.step >= recipe.steps:
        return True
    # Process 0 alone writes files and shows progress.
    first = fabric.global_rank == 0
    if run.step:
        seen = f"{run.step * recipe.batch:,} of {recipe.steps * recipe.batch:,} image views"
        print_status(f"{run.title}: resuming from the checkpoint at {seen}", run.quiet or not first)
    journal = Journal(run.folder / "journal.jsonl") if first else None
    if journal is not None:
        journal.rewind(run.step)

    total = recipe.steps * recipe.batch
    devices = [fabric.device] if fabric.device.type == "cuda" else []
    began, saved = time.monotonic() - run.seconds, time.monotonic()
    with (
        torch.random.fork_rng(devices=devices),
        _deferred_interrupt() as interrupted,
        Ticker(run.title, total, run.step * recipe.batch, run.quiet or not first) as ticker,
    ):
        while run.step < recipe.steps:
            _step(fabric, objective, phases, recipe, run)
            run.seconds = time.monotonic() - began
            last = run.step == recipe.steps

            means = None
            if run.step % run.journal_every == 0 or last:
                means = _log(run, phases, recipe, journal)
            ticker.tick(run.step * recipe.batch, means)
            if run.show is not None and first and (run.step % max(1, recipe.steps // SHOWN) == 0 or last):
                run.show(objective, run.step * recipe.batch)

            stop = _in_any_process(fabric, interrupted() or (link is not None and bool(link.stop.value)))
            if stop or last or time.monotonic() - saved > recipe.checkpoint_seconds:
                _check_finite(run, phases, recipe)
                if first:
                    save_checkpoint(run.checkpoint, objective.modules, optimizers, run.card())
                saved = time.monotonic()
            if stop:
                break
    # Process 0 has saved.
    fabric.barrier()
    return run.step == recipe.steps


def _in_any_process(fabric: Fabric, flag: bool) -> bool:
    """Whether the flag is set in any process: all of them must stop after the same step."""
    if fabric.world_size == 1:
        return flag
    flags = torch.tensor(float(flag), device=fabric.device)
    torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
    return bool(flags)


def _move_to_device(fabric: Fabric, modules: Mapping[str, nn.Module]) -> None:
    """Moves modules to the process's device, in channels_last, which convolutions prefer; same weights everywhere."""
    for module in modules.values():
        module.to(fabric.device).to(memory_format=torch.channels_last)
    if fabric.world_size > 1:
        _synchronize(fabric, modules)


def _step(fabric: Fabric, objective: Objective, phases: Sequence[Phase], recipe: LoopRecipe, run: _Run) -> None:
    """One step of the loop: a batch, and every phase that is due."""
    # (seed, images seen, process) determine all random numbers of a step, those of dropout included.
    images, total = run.step * recipe.batch, recipe.steps * recipe.batch
    seed = _step_seed(recipe.seed, images, fabric.global_rank)
    torch.manual_seed(seed)
    rng = torch.Generator().manual_seed(seed)

    objective.prepare(images / total)
    batch = fabric.to_device(objective.batch(rng, recipe.batch // fabric.world_size))
    for phase in phases:
        if run.step % phase.every == 0:
            run.add({phase.name: _optimize(fabric, phase, batch)})
    run.add(objective.finish((images + recipe.batch) / total))
    run.step += 1


def _optimize(fabric: Fabric, phase: Phase, batch: Any) -> torch.Tensor:
    """One optimizer step: loss, gradients, their mean over processes, clipping, update. Returns the detached loss."""
    phase.optimizer.zero_grad(set_to_none=True)
    with fabric.autocast():
        loss = phase.loss(batch)
    loss.backward()
    params = [p for group in phase.optimizer.param_groups for p in group["params"] if p.grad is not None]
    if fabric.world_size > 1:
        # One all-reduce for all gradients. Averaging here, instead of wrapping networks in DDP, lets a loss call the
        # networks in any way.
        mean = fabric.all_reduce(torch.cat([p.grad.flatten() for p in params]), reduce_op="mean")
        for param, grad in zip(params, mean.split([p.numel() for p in params]), strict=True):
            param.grad.copy_(grad.view(param.shape))
    if phase.clip is not None:
        nn.utils.clip_grad_norm_(params, phase.clip)
    phase.optimizer.step()
    return loss.detach()


def _log(run: _Run, phases: Sequence[Phase], recipe: LoopRecipe, journal: Journal | None) -> dict[str, float]:
    """The means since the last journal line, which also go to the journal; resets them."""
    _check_finite(run, phases, recipe)
    means = {name: float(total) / count for name, (total, count) in run.sums.items()}
    run.sums = {}
    if journal is not None:
        journal.write({"step": run.step, "images": run.step * recipe.batch, "seconds": round(run.seconds, 3)} | means)
    return means


def _fabric(recipe: LoopRecipe) -> Fabric:
    # Fabric logs the precision for every network, which would break the progress bar.
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


def _optimizers(phases: Sequence[Phase]) -> dict[str, Optimizer]:
    """Each optimizer once, under the name of the first phase that uses it."""
    named: dict[str, Optimizer] = {}
    for phase in phases:
        if all(phase.optimizer is not other for other in named.values()):
            named[phase.name] = phase.optimizer
    return named


def _synchronize(fabric: Fabric, modules: Mapping[str, nn.Module]) -> None:
    """Copies process 0's weights to every process; on GPUs also converts to SyncBatchNorm."""
    for module in modules.values():
        for tensor in module.state_dict(keep_vars=True).values():
            # Pickling an objective for another process moves its tensors to shared memory. On a CPU they would stay
            # shared.
            tensor.data = tensor.data.clone()
            torch.distributed.broadcast(tensor.data, 0)
        if fabric.device.type == "cuda":
            nn.SyncBatchNorm.convert_sync_batchnorm(module, torch.distributed.group.WORLD)


def _step_seed(seed: int, images: int, rank: int) -> int:
    """A 63-bit seed; hashed, so that the seeds of consecutive steps are unrelated."""
    digest = hashlib.sha256(f"{seed}/{images}/{rank}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def _check_finite(run: _Run, phases: Sequence[Phase], recipe: LoopRecipe) -> None:
    """Raises BadRecipe when a loss since the last journal line, or a weight, is NaN or infinite; nothing is saved."""
    wrong = [p.name for p in phases if p.name in run.sums and not math.isfinite(run.sums[p.name][0])]
    params = [param for p in phases for group in p.optimizer.param_groups for param in group["params"]]
    if wrong or not all(bool(torch.isfinite(param).all()) for param in params):
        what = f"loss '{wrong[0]}'" if wrong else "a weight"
        raise BadRecipe(
            f"{run.title}: {what} became NaN or infinite before step {run.step} of {recipe.steps}; lower the learning "
            f"rate or set precision to fp32, and choose another --out ({run.checkpoint} keeps the last good state)"
        )


@contextmanager
def _deferred_interrupt(notify: Callable[[], None] = lambda: None):
    """Defers Ctrl-C to the end of the step, so that a whole step is saved; a second Ctrl-C interrupts at once.

    notify: called at the first Ctrl-C. Yields a function that tells whether there was one.
    """
    received = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield received.is_set
        return

    def handler(_number, _frame) -> None:
        received.set()
        notify()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, handler)
    try:
        yield received.is_set
    finally:
        signal.signal(signal.SIGINT, before)
