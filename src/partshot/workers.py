"""Several processes for one job, none of which outlives it.

Small networks leave much of two cores idle: two trainings beside each other, on one core each, take about two thirds
of the time that they take one after the other on both. Knows nothing of what the processes do.
"""

import os
import pickle
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, wait
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_SPAWN = get_context("spawn")
# Seconds in which processes that heard the same Ctrl-C save where they are; a second one would not let them.
_PATIENCE = 10


def workers(jobs: int) -> ProcessPoolExecutor:
    """A pool of fresh processes that end with this one, however it ends; a killed one would leave them computing."""
    return ProcessPoolExecutor(jobs, _SPAWN, initializer=_follow)


def side_by_side(function: Callable[[Item], Result], items: Sequence[Item], jobs: int) -> list[Result]:
    """function of each item, in their order, `jobs` of them at a time, in a process each; in this one where jobs is 1.

    Raises what the first that fails raises, once the others were interrupted as by Ctrl-C, so that they save where they
    are; and RuntimeError for one that dies. function and items go to other processes, so both must be picklable.
    """
    if jobs == 1:
        return [function(item) for item in items]
    running: list = []
    with ThreadPoolExecutor(jobs) as waiting:
        futures = [waiting.submit(_elsewhere, function, item, running) for item in items]
        try:
            wait(futures, return_when="FIRST_EXCEPTION")
            # A failed one first: the others would be waited for.
            for future in sorted(futures, key=lambda one: not one.done()):
                future.result()
        except BaseException:
            for future in futures:
                future.cancel()
            for process in running:
                process.join(_PATIENCE)
                if process.is_alive():
                    os.kill(process.pid, signal.SIGINT)
            raise
        return [future.result() for future in futures]


def _elsewhere(function: Callable[[Item], Result], item: Item, running: list) -> Result:
    ours, theirs = _SPAWN.Pipe(duplex=False)
    process = _SPAWN.Process(target=_answer, args=(theirs, function, item))
    process.start()
    running.append(process)
    # Or a process that dies would leave the pipe open.
    theirs.close()
    try:
        result, error = pickle.loads(ours.recv_bytes())
    except EOFError:
        process.join()
        raise RuntimeError(f"a process ended with code {process.exitcode} and no answer; out of memory?") from None
    process.join()
    if error is not None:
        raise error
    return result


def _answer(pipe, function: Callable, item) -> None:
    _follow()
    try:
        answer = function(item), None
    except BaseException as error:
        answer = None, error
    # As bytes: torch would send handles of tensors' memory, which ends with this process.
    pipe.send_bytes(pickle.dumps(answer))


def _follow() -> None:
    # Bars of several processes would overwrite each other; each tells its progress in lines.
    os.environ["TTY_COMPATIBLE"] = "0"
    Thread(target=_end_with, args=(parent_process(),), daemon=True).start()


def _end_with(parent) -> None:
    parent.join()
    os._exit(1)
