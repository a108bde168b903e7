"""The errors a user can cause, and nothing else.

Every message is one line: what was given (with the file), what is needed, and the cure. The command line prints it
and exits with code 2; Python callers catch `PartshotError` or one of its kinds. Bugs are not of this family: they
keep their tracebacks.
"""

import difflib
from collections.abc import Iterable


class PartshotError(Exception):
    """Base of every error whose cure is in the user's hands."""


class BadImage(PartshotError):
    """An image that cannot be read or used."""


class BadLabels(PartshotError):
    """A mask, a pair of image and mask, or a set of shots that cannot be used."""


class BadParts(PartshotError):
    """A part name, id, color or mirror pair that cannot be used."""


class BadRecipe(PartshotError):
    """A setting, preset or name that does not exist or contradicts another."""


class BadArtifact(PartshotError):
    """Something trained, on disk, that is truncated, of another kind, or of another recipe."""


class NotFitted(PartshotError):
    """A prediction was asked of something that has not been fitted."""


class MissingExtra(PartshotError):
    """A library that this step needs is not installed, or is installed as a broken pair."""


class MissingWeights(PartshotError):
    """Pretrained weights that are not on this machine, and whose download was not agreed to, or failed."""


class DiskFull(PartshotError):
    """The disk could not take what was to be written; what stood there before is untouched."""


def nearest(given: str, known: Iterable[str]) -> str:
    """The tail of a message about an unknown name: the nearest known one, and all of them unless they are many."""
    known = sorted(known)
    close = difflib.get_close_matches(given, known, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'? " if close else ""
    rest = f" and {len(known) - 20} more" if len(known) > 20 else ""
    return f"{hint}known: {', '.join(known[:20])}{rest}"
