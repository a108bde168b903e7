"""Several processes for one job, none of which outlives it.

Small networks leave much of two cores idle: two trainings beside each other, on one core each, take less time than one
after the other on both (LOG.md). Knows nothing of what the processes do.
"""

import os
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, wait
from contextlib import suppress
from multiprocessing import get_context, parent_process
from threading import Event, Thread
from typing import TypeVar

from partshot.plain_warnings import own_warnings_alone

Item = TypeVar("Item")
Result = TypeVar("Result")

_SPAWN = get_context("spawn")
# Seconds in which processes that heard the same Ctrl-C save where they are, for a second one would not let them; only
# Windows tells all processes of a terminal, elsewhere they hear of it from here.
_PATIENCE = 10 if os.name == "nt" else 0


def workers(jobs: int) -> ProcessPoolExecutor:
    """A pool of fresh processes that end with this one, however it ends; a killed one would leave them computing."""
    return ProcessPoolExecutor(jobs, _SPAWN, initializer=_follow)


def side_by_side(function: Callable[[Item], Result], items: Sequence[Item], jobs: int) -> list[Result]:
    """function of each item, in their order, `jobs` of them at a time, in a process each; in this one where jobs is 1.

    function, items and results go from process to process: they must be picklable, and results hold no tensors, whose
    memory ends with their process. Raises what the first that fails raises, once the others were interrupted as by
    Ctrl-C, so that they save where they are (Windows ends them at once); RuntimeError for one that dies.
    """
    if jobs == 1:
        return [function(item) for item in items]
    running: list = []
    stopping = Event()
    with ThreadPoolExecutor(jobs) as waiting:
        futures = [waiting.submit(_elsewhere, function, item, running, stopping) for item in items]
        try:
            wait(futures, return_when="FIRST_EXCEPTION")
            # A failed one first: the others would be waited for.
            for future in sorted(futures, key=lambda one: not one.done()):
                future.result()
        except BaseException:
            stopping.set()
            until = time.monotonic() + _PATIENCE
            for process in running:
                process.join(max(0.0, until - time.monotonic()))
            for process in running:
                _interrupt(process)
            raise
        return [future.result() for future in futures]


def _elsewhere(function: Callable[[Item], Result], item: Item, running: list, stopping: Event) -> Result:
    if stopping.is_set():
        raise InterruptedError
    ours, theirs = _SPAWN.Pipe(duplex=False)
    process = _SPAWN.Process(target=_answer, args=(theirs, function, item))
    process.start()
    running.append(process)
    # Or a process that dies would leave the pipe open.
    theirs.close()
    if stopping.is_set():
        _interrupt(process)
    try:
        result, error = ours.recv()
    except EOFError:
        process.join()
        killed = " (killed, perhaps for memory: let one run at a time)" if (process.exitcode or 0) < 0 else ""
        raise RuntimeError(f"a process ended with code {process.exitcode} and no answer{killed}") from None
    process.join()
    if error is not None:
        raise error
    return result


def _interrupt(process) -> None:
    # It may have ended by itself.
    with suppress(ProcessLookupError):
        if process.is_alive():
            os.kill(process.pid, signal.SIGINT)


def _answer(pipe, function: Callable, item) -> None:
    _follow()
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    try:
        pipe.send((function(item), None))
    except BaseException as error:
        # The line where it happened would stay behind.
        error.add_note(traceback.format_exc())
        try:
            pipe.send((None, error))
        except Exception:  # it cannot be sent as it is
            pipe.send((None, RuntimeError(traceback.format_exc())))


def _follow() -> None:
    # Bars of several processes would overwrite each other; each tells its progress in lines.
    os.environ["TTY_COMPATIBLE"] = "0"
    own_warnings_alone()
    Thread(target=_end_with, args=(parent_process(),), daemon=True).start()


def _end_with(parent) -> None:
    parent.join()
    os._exit(1)
