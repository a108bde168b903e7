"""Exceptions for errors that the user can cause and fix.

Each message is one line: what was given (with the file), what is needed, and how to fix it. The command line prints it
and exits with code 2; Python callers catch `PartshotError` or a subclass. Bugs raise other exceptions and keep their
tracebacks.
"""

import difflib
from collections.abc import Iterable, Sequence


class PartshotError(Exception):
    """Base class of all errors that the user can fix."""


class BadImage(PartshotError):
    """An image that cannot be read or used."""


class BadLabels(PartshotError):
    """A mask, an image-mask pair, or a set of shots that cannot be used."""


class BadParts(PartshotError):
    """A part name, id, color or mirror pair that cannot be used."""


class BadRecipe(PartshotError):
    """A setting, preset or name that does not exist, or that conflicts with another."""


class BadArtifact(PartshotError):
    """A saved artifact that is truncated, of another kind, or of another recipe."""


class NotFitted(PartshotError):
    """`predict` was called before `fit`."""


class MissingExtra(PartshotError):
    """A required library is not installed, or two installed libraries have incompatible versions."""


class MissingWeights(PartshotError):
    """Pretrained weights are not on this machine, and their download was not permitted or failed."""


class DiskFull(PartshotError):
    """Writing to disk failed; existing files are unchanged."""


def size_text(shape: Sequence[int]) -> str:
    """A size for messages, width first: "640x480" for the shape (480, 640)."""
    return "x".join(str(side) for side in reversed(shape))


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """A question with the nearest known name; empty if none is near."""
    close = difflib.get_close_matches(given, sorted(known), n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else ""


def nearest(given: str, known: Iterable[str]) -> str:
    """End of an error message about an unknown name: the nearest known name, and up to 30 known names."""
    known = sorted(known)
    rest = f" and {len(known) - 30} more" if len(known) > 30 else ""
    return f"{did_you_mean(given, known)} known: {', '.join(known[:30])}{rest}".strip()
