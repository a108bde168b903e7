"""Progress of a run: a bar with the remaining time on a terminal, a line every 30 s elsewhere, nothing when quiet.

Everything goes to stderr, so that stdout holds a command's output only.
"""

import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SHOW_AFTER = 2.0
"""For `Ticker`, where work is often done sooner: progress appears after this many seconds."""

# Seconds between lines without a terminal: logs stay short, and no run is silent for so long that it seems to hang.
EVERY = 30.0


def print_status(line: str, quiet: bool) -> None:
    """Prints a line to stderr, unless quiet."""
    if not quiet:
        Console(stderr=True).print(line, highlight=False, markup=False, soft_wrap=True)


class Ticker:
    """A context manager; call `tick` after each step.

    total: images in the whole run. done: images of earlier runs. after: seconds until progress is shown; shorter work
    shows none.
    """

    def __init__(self, title: str, total: int, done: int, quiet: bool, after: float = 0.0):
        self.title, self.total, self.done, self.quiet, self.after = title, total, done, quiet, after
        self.console = Console(stderr=True)
        self.began = self.printed = time.monotonic()
        self.figures, self.shown = "", False
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
                # Refreshing takes CPU time from the training.
                refresh_per_second=2,
            )
            self.task = self.bar.add_task(title, total=total, completed=done, figures="")

    def __enter__(self) -> "Ticker":
        if not self.after:
            self._show()
        return self

    def __exit__(self, *_exception) -> None:
        if self.bar and self.shown:
            self.bar.stop()

    def tick(self, images: int, figures: Mapping[str, float] | None = None) -> None:
        """images: images seen in the whole run so far. figures: new values to show; None shows the last ones."""
        if figures:
            self.figures = " ".join(f"{name} {value:.3g}" for name, value in figures.items())
        if not self.shown:
            if time.monotonic() - self.began < self.after:
                return
            self._show()
        if self.bar:
            self.bar.update(self.task, completed=images, figures=self.figures)
        elif not self.quiet and (time.monotonic() - self.printed > EVERY or images >= self.total):
            self.printed = time.monotonic()
            self.console.print(self._line(images), highlight=False, soft_wrap=True)

    def _show(self) -> None:
        self.shown = True
        if self.bar:
            self.bar.start()

    def _line(self, images: int) -> str:
        elapsed = self.printed - self.began
        left = elapsed * (self.total - images) / max(images - self.done, 1)
        percent = 100 * images / self.total
        line = f"{self.title}: {percent:.0f} %, {elapsed:.0f} s, {left:.0f} s left"
        return f"{line}; {self.figures}" if self.figures else line
