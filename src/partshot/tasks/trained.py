"""What an earlier command or an earlier stage of a run has trained: a student's folder, a few-shot model."""

from collections.abc import Callable
from pathlib import Path

from partshot.artifact import standing
from partshot.data.shots import Shots
from partshot.segmenter import Segmenter


def find_student(folder: Path) -> Path:
    """The student's folder in the --out of `distill` or `run`; the given folder where there is none in it."""
    places = (folder / "student", folder / "distill" / "student")
    return next((place for place in places if standing(place).exists()), folder)


def kept_segmenter(
    folder: Path, shots: Shots, fit: Callable[[], Segmenter], fingerprint: str | None = None
) -> Segmenter:
    """The few-shot model in the folder if it was fitted to these shots; else what `fit` returns, which is saved there.

    Always as loaded from the folder, so that a resumed run uses the same one. fingerprint: that of its training
    (`Segmenter.fingerprint`); None accepts any settings.
    """
    if standing(folder).exists():
        earlier = Segmenter.load(folder)
        if earlier.fitted == (fingerprint or earlier.fingerprint(shots)):
            return earlier
    fit().save(folder)
    return Segmenter.load(folder)
