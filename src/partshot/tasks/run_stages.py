"""Stages of a run: how long each took, for the terminal and the report."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from partshot.progress import print_status
from partshot.report.notes import duration
from partshot.represent.cache import Store


@dataclass
class Stages:
    """Runs stages, times them and counts the features that each took from the cache.

    store: the cache, None without one. times: (stage, seconds) in order.
    """

    store: Store | None
    quiet: bool
    times: list[tuple[str, float]] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def seconds_left(self, minutes: float | int) -> float:
        """Seconds that are left of so many minutes since the start."""
        return 60 * minutes - (time.monotonic() - self.began)

    def run(self, stage: str, work: Callable, note: Callable[[], str] = lambda: ""):
        """Runs a stage, times it and returns its result. note: called afterwards, gives a remark for the report."""
        began, before = time.monotonic(), self._counts()
        result = work()
        seconds, (found, extracted) = time.monotonic() - began, self._counts() - before
        reads = f"features: {found:,} from cache, {extracted:,} extracted" if found or extracted else ""
        notes = "; ".join(filter(None, (note(), reads)))
        self.times.append((f"{stage} ({notes})" if notes else stage, seconds))
        print_status(f"{stage}: {duration(seconds)}" + (f", {notes}" if notes else ""), self.quiet)
        return result

    def _counts(self) -> np.ndarray:
        return np.array((0, 0) if self.store is None else (self.store.found, self.store.extracted))
