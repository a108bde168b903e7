"""Progress: how far a run is, for a person: a bar with the time left on a terminal, a line now and then elsewhere.

Says nothing when it is told to be quiet. Writes to stderr, so that a command's output stays its own.
"""

import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

# Seconds between lines when there is no terminal: logs stay short, and a silent minute does not look like a hang.
EVERY = 30.0


def say(line: str, quiet: bool) -> None:
    """One line for a person, unless told to be quiet."""
    if not quiet:
        Console(stderr=True).print(line, highlight=False, markup=False)


class Ticker:
    """A context manager; `tick` after each step. total, done: images in the whole run, and seen before it began."""

    def __init__(self, title: str, total: int, done: int, quiet: bool):
        self.title, self.total, self.first, self.quiet = title, total, done, quiet
        self.console = Console(stderr=True)
        self.began = self.said = time.monotonic()
        self.figures = ""
        self.bar: Progress | None = None
        if self.console.is_terminal and not quiet:
            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}% {task.fields[figures]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self.console,
                # Redrawing costs time that the network could use, and two cores are few.
                refresh_per_second=2,
            )
            self.task = self.bar.add_task(title, total=total, completed=done, figures="")

    def __enter__(self) -> "Ticker":
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *_exception) -> None:
        if self.bar:
            self.bar.stop()

    def tick(self, images: int, figures: Mapping[str, float] | None = None) -> None:
        """images: images seen in the whole run so far. figures: the newest numbers, when there are new ones."""
        if figures:
            self.figures = " ".join(f"{name} {value:.3g}" for name, value in figures.items())
        if self.bar:
            self.bar.update(self.task, completed=images, figures=self.figures)
        elif not self.quiet and (time.monotonic() - self.said > EVERY or images >= self.total):
            self.said = time.monotonic()
            self.console.print(self._line(images), highlight=False)

    def _line(self, images: int) -> str:
        passed = self.said - self.began
        left = passed * (self.total - images) / max(images - self.first, 1)
        share = 100 * images / self.total
        line = f"{self.title}: {share:.0f} %, {passed:.0f} s, {left:.0f} s left"
        return f"{line}; {self.figures}" if self.figures else line
