"""auto: which representation, which of its layers and which head read these shots best, found by leaving shots out.

Candidates come in the order in which they would be taken without any measurement. Each is fitted, shortly, to all shots
but some, and asked for those; the best wins. A handful of shots is a small sample, so what other images have shown of
a candidate counts beside them; of equals it decides, and then the order. The time that this may take is
given, and what was not tried for lack of it is told. Knows candidates by name and opener; which there are is the
caller's affair.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from partshot.data.shots import Shots
from partshot.errors import BadRecipe
from partshot.represent.spec import Representation
from partshot.tasks.fit import HEAD, leave_one_out_score
from partshot.train.fit_head import FitHead
from partshot.train.progress import say

# What needs no training, in the order in which it is tried: name and head. Random weights under a map of positions are
# hard to beat from a handful of labels (LOG.md).
READY = (
    ("random+position", HEAD),
    ("random,pixels+position", HEAD),
    ("random[4-16]+position", HEAD),
    ("random+position", "linear"),
    ("pixels+position", HEAD),
)
# What a pretext trains, tried after those. SimSiam takes as long to train and was behind MoCo wherever both were
# measured (LOG.md).
TRAINED = ("moco",)
# What left-out shots are thought to miss of an encoder that was trained on these images for long: from five labels a
# head on it was ahead of the next by .04 and .06 of mean IoU on cells and ants, and left-out shots were off by as much
# either way (LOG.md).
LONG_TRAINED_BONUS = 0.05
# Differences in mean IoU below this are chance, with a handful of shots.
_MARGIN = 0.01
# Images that a head sees in each of the fits that are compared; more would settle the same order later.
_IMAGES = 300


@dataclass(frozen=True)
class Candidate:
    """name: of the representation, its layers included. opened: gives it. head: a name of catalog.HEADS.

    seconds: about how long opening takes, as training an encoder does. bonus: mean IoU that is added to what is found
    of it, for what other images have shown.
    """

    name: str
    opened: Callable[[], Representation]
    head: str = HEAD
    seconds: float = 0.0
    bonus: float = 0.0

    def __str__(self) -> str:
        return f"{self.head} on {self.name}"


@dataclass(frozen=True)
class Choice:
    """taken: the winner. tried: with the mean IoU of its left-out shots, 0..1, each. untried: for lack of time.

    given, took: seconds.
    """

    taken: Candidate
    tried: tuple[tuple[Candidate, float], ...]
    untried: tuple[Candidate, ...]
    given: float | int
    took: float

    @property
    def why(self) -> str:
        """A sentence for people: what was taken, and what was found of all."""
        if not self.tried:
            return f"{self.taken}: one labeled image leaves none to compare on, so the first of the order is taken"
        ranking = sorted(self.tried, key=lambda one: -one[1] - one[0].bonus)
        found = ", ".join(f"{candidate} {miou:.2f}{_bonus(candidate)}" for candidate, miou in ranking)
        close = "" if ranking[0][0] is self.taken else f"; less than {_MARGIN:g} apart counts as equal"
        late = f"; too little time left for {', '.join(map(str, self.untried))}" if self.untried else ""
        alone = ", the only one there was time for" if self.untried and len(self.tried) == 1 else ""
        spent = _spent(self.took, self.given)
        return f"{self.taken}{alone}: mean IoU of left-out shots: {found}{close}{late} ({spent})"


def ready(opened: Callable[[str], Representation]) -> list[Candidate]:
    """The candidates of READY; opened: gives the representation of a name."""
    return [Candidate(name, partial(opened, name), head) for name, head in READY]


def choose(
    candidates: Sequence[Candidate],
    shots: Shots,
    fit: FitHead,
    size: int,
    seconds: float | int = 120,
    quiet: bool = True,
) -> Choice:
    """Tries the candidates in their order, each if there is time for it, as slow as the slowest so far.

    fit: how the winner will be fitted; the comparison sees fewer images. size: side of the images that are read.
    seconds: for all of it; the first candidate is tried in any case. quiet: say nothing of each. With one shot nothing
    can be left out, and the first candidate is taken. Raises BadRecipe without candidates.
    """
    if not candidates:
        raise BadRecipe("auto has no candidates to choose from; name a representation")
    began = time.monotonic()
    if len(shots) < 2:
        return Choice(candidates[0], (), tuple(candidates[1:]), seconds, 0.0)
    short = fit if fit.images is None else fit.changed(images=min(fit.images, _IMAGES))
    tried: list[tuple[Candidate, float]] = []
    untried: list[Candidate] = []
    slowest = 0.0
    for candidate in candidates:
        if tried and time.monotonic() - began + candidate.seconds + slowest > seconds:
            untried.append(candidate)
            continue
        reads, started = candidate.opened(), time.monotonic()
        miou = leave_one_out_score(reads, candidate.head, shots, short, size).miou_nan
        tried.append((candidate, miou))
        say(f"auto: {candidate}: {miou:.2f}; {_spent(time.monotonic() - began, seconds)}", quiet)
        slowest = max(slowest, time.monotonic() - started)
    best = max(miou + candidate.bonus for candidate, miou in tried)
    equals = [candidate for candidate, miou in tried if miou + candidate.bonus >= best - _MARGIN]
    taken = max(equals, key=lambda candidate: candidate.bonus)
    return Choice(taken, tuple(tried), tuple(untried), seconds, time.monotonic() - began)


def _bonus(candidate: Candidate) -> str:
    return f" (and {candidate.bonus:g} for what other images have shown)" if candidate.bonus else ""


def _spent(took: float, given: float | int) -> str:
    return f"{took:.0f} s" if math.isinf(given) else f"{took:.0f} s of {given:.0f}"
