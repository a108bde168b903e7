"""Runs functions in parallel worker processes that end with the parent process.

Small networks do not use two cores fully: two trainings in parallel, on one core each, take less time than one after
the other on both cores (LOG.md).
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

from partshot.plain_warnings import show_only_own_warnings

Item = TypeVar("Item")
Result = TypeVar("Result")

_SPAWN = get_context("spawn")
# Seconds for which workers may save their state after Ctrl-C. On Windows every process of the terminal receives Ctrl-C,
# and a second interrupt would prevent saving. On other systems workers are interrupted from here, without waiting.
_PATIENCE = 10 if os.name == "nt" else 0


def workers(jobs: int) -> ProcessPoolExecutor:
    """A pool of spawned processes that end with this one, even if it is killed."""
    return ProcessPoolExecutor(jobs, _SPAWN, initializer=_init_worker)


def side_by_side(function: Callable[[Item], Result], items: Sequence[Item], jobs: int) -> list[Result]:
    """A parallel map: function(item) for each item, results in the order of items.

    jobs: number of processes at a time, a new one per item; with 1, everything runs in this process. function, items
    and results must be picklable; results must not contain tensors, whose shared memory ends with their process.

    If a call fails, the other processes are interrupted as by Ctrl-C, so that they can save their state (Windows
    terminates them immediately), and the first error is raised. Raises RuntimeError if a process dies.
    """
    if jobs == 1:
        return [function(item) for item in items]
    running: list = []
    stopping = Event()
    with ThreadPoolExecutor(jobs) as waiting:
        futures = [waiting.submit(_in_new_process, function, item, running, stopping) for item in items]
        try:
            wait(futures, return_when="FIRST_EXCEPTION")
            # Finished futures first: a failed one must raise before waiting for the others.
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


def _in_new_process(function: Callable[[Item], Result], item: Item, running: list, stopping: Event) -> Result:
    if stopping.is_set():
        raise InterruptedError
    ours, theirs = _SPAWN.Pipe(duplex=False)
    process = _SPAWN.Process(target=_run_and_send, args=(theirs, function, item))
    process.start()
    running.append(process)
    # Close this copy, so that recv() raises EOFError if the process dies.
    theirs.close()
    if stopping.is_set():
        _interrupt(process)
    try:
        result, error = ours.recv()
    except EOFError:
        process.join()
        killed = " (killed, possibly out of memory: run one job at a time)" if (process.exitcode or 0) < 0 else ""
        raise RuntimeError(f"a worker process ended with code {process.exitcode} without a result{killed}") from None
    process.join()
    if error is not None:
        raise error
    return result


def _interrupt(process) -> None:
    # It may have ended already.
    with suppress(ProcessLookupError):
        if process.is_alive():
            os.kill(process.pid, signal.SIGINT)


def _run_and_send(pipe, function: Callable, item) -> None:
    _init_worker()
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    # Processes that a shell starts with `&` ignore SIGINT, and their children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        pipe.send((function(item), None))
    except BaseException as error:
        # Pickling drops the traceback; keep it as a note.
        error.add_note(traceback.format_exc())
        try:
            pipe.send((None, error))
        except Exception:  # result or error cannot be pickled
            pipe.send((None, RuntimeError(traceback.format_exc())))


def _init_worker() -> None:
    # Progress bars of several processes would overwrite each other; without a terminal, progress is printed as lines.
    os.environ["TTY_COMPATIBLE"] = "0"
    show_only_own_warnings()
    Thread(target=_exit_with, args=(parent_process(),), daemon=True).start()


def _exit_with(parent) -> None:
    parent.join()
    os._exit(1)
