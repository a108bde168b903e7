"""Several processes for one benchmark, none of which outlives it."""

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from threading import Thread


def workers(jobs: int) -> ProcessPoolExecutor:
    """A pool of fresh processes that end with this one, however it ends; a killed one would leave them computing."""
    return ProcessPoolExecutor(jobs, get_context("spawn"), initializer=_follow)


def _follow() -> None:
    Thread(target=_end_with, args=(parent_process(),), daemon=True).start()


def _end_with(parent) -> None:
    parent.join()
    os._exit(1)
