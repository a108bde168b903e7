"""How a command finds its task, and how results, errors and interruptions are shown on a terminal.

Exit codes: 0 done, 1 the doctor found something broken, 2 an error that the user can fix, 130 interrupted. A task is
imported only when its command is called. The commands and their options are in cli.py.
"""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

import typer
from typer.core import TyperGroup

from partshot.errors import BadRecipe, MissingExtra, PartshotError

# Verbs whose task is not partshot.tasks.VERB.
_ELSEWHERE = {"bench": "partshot.benchmark.runner", "folds": "partshot.benchmark.folds"}
_TRAIN_LINE = "pip install 'partshot[train]'"


class Commands(TyperGroup):
    """Turns what a user can cause into one line and an exit code; bugs keep their traceback."""

    def invoke(self, ctx):
        """Runs the command."""
        try:
            return super().invoke(ctx)
        except PartshotError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            typer.echo("stopped; run the same command again to resume", err=True)
            raise typer.Exit(130) from None


def numbers(name: str, text: str) -> tuple[int, ...]:
    """Those of an option with commas between; BadRecipe for what is none. name: the option's."""
    try:
        return tuple(int(number) for number in text.split(",") if number)
    except ValueError:
        raise BadRecipe(f"--{name} {text}: must be whole numbers separated by commas, such as 1,5,10") from None


def module_of(verb: str) -> str:
    """Where the task of that name is."""
    return _ELSEWHERE.get(verb, f"partshot.tasks.{verb}")


def task_of(verb: str) -> Callable:
    """The task of that name; MissingExtra where a training library that it needs is missing or broken."""
    try:
        return getattr(import_module(module_of(verb)), verb)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("partshot"):
            raise
        raise MissingExtra(f"'{verb}' needs {error.name}, which is not installed; run: {_TRAIN_LINE}") from error
    except (ImportError, OSError, RuntimeError) as error:
        # A torchvision of another torch fails with a RuntimeError, a missing CUDA library with an OSError.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise MissingExtra(f"'{verb}' needs a library that is broken ({reason}); run: partshot doctor") from error


def show(result: object) -> None:
    """A line on what a task returned: a folder, a summary, a resolved recipe; None is worth none."""
    if result is not None:
        typer.echo(f"written: {result}" if isinstance(result, Path) else str(result))


def asker() -> Callable[[str], bool] | None:
    """Puts a question with a yes or no to whoever sits at the terminal; None when nobody does."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return None
    return lambda question: typer.confirm(question, default=False, err=True)


def fetch_weights(wanted: Sequence[str], download: bool, accept_license: Sequence[str] | None) -> None:
    """Gets the weights that names of representations and students ask for, before any work; MissingWeights without
    consent.

    Everything behind it finds them on this machine, and needs no network.
    """
    # Imported here: it is not worth a millisecond of help.
    from partshot.represent.encoder_table import encoders_in

    # A student's encoder stands behind "light-" (nets/student.py, which would load torch).
    names = [encoder.name for name in wanted for encoder in encoders_in(name.removeprefix("light-"))]
    if names:
        task_of("encoders")(names, fetch=True, download=download, accept_license=accept_license or (), ask=asker())
