"""auto: chooses representation, layers and head by cross-validation on the labeled images.

Candidates are ordered by preference. Each is fitted briefly, without some of the shots, and scored on those; the best
is taken, and of equal ones the first.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from partshot.data.shots import Shots
from partshot.errors import BadRecipe
from partshot.progress import print_status
from partshot.represent.spec import Representation
from partshot.tasks.fit import HEAD, cross_validated_score
from partshot.train.fit_head import FitHead

# Representations that need no training, and heads, in the order in which they are tried. Random initialization with
# position channels is hard to beat with a handful of labels (LOG.md).
READY = (
    ("random+position", HEAD),
    ("random,pixels+position", HEAD),
    ("random[4-16]+position", HEAD),
    ("random+position", "linear"),
    ("pixels+position", HEAD),
)
# Representations that a pretext trains, tried after those. SimSiam takes as long to train and was worse than MoCo
# wherever both were measured (LOG.md).
TRAINED = ("moco",)
# Bonus in mIoU for encoders that were trained for long. Cross-validation with five shots is off by about 0.05 either
# way, and such encoders were better than the next by 0.04 and 0.06 on cells and ants (LOG.md, 2026-11-26).
LONG_TRAINED_BONUS = 0.05
# Smaller differences in mean IoU are not significant with a handful of shots.
_MARGIN = 0.01
# Images that a head is trained on in each compared fit; more give the same order.
_IMAGES = 300


@dataclass(frozen=True)
class Candidate:
    """name: of the representation, with its layers. opened: returns it. head: a name of catalog.HEADS.

    seconds: about how long opening takes, for encoders that are trained first. bonus: added to its mean IoU, from
    measurements on other images.
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
    """taken: the best. tried: candidates with their cross-validated mean IoU, 0..1. untried: for lack of time.

    given, took: seconds.
    """

    taken: Candidate
    tried: tuple[tuple[Candidate, float], ...]
    untried: tuple[Candidate, ...]
    given: float | int
    took: float

    @property
    def why(self) -> str:
        """A sentence for the report: what was chosen, and the scores of all."""
        if not self.tried:
            return f"{self.taken}: with one labeled image nothing can be compared, so the first is taken"
        ranking = sorted(self.tried, key=lambda one: -one[1] - one[0].bonus)
        found = ", ".join(f"{candidate} {miou:.2f}{_bonus(candidate)}" for candidate, miou in ranking)
        close = "" if ranking[0][0] is self.taken else f"; differences below {_MARGIN:g} count as equal"
        late = f"; too little time left for {', '.join(map(str, self.untried))}" if self.untried else ""
        alone = ", the only one there was time for" if self.untried and len(self.tried) == 1 else ""
        spent = _spent(self.took, self.given)
        return f"{self.taken}{alone}: mean IoU in cross-validation: {found}{close}{late} ({spent})"


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
    """Cross-validates the candidates in their order, as long as there is time for one as slow as the slowest so far.

    fit: how the best will be fitted; the comparison uses fewer images. size: side of the images in pixels. seconds: for
    all candidates; the first is tried in any case. quiet: print nothing about each. With one shot the first candidate
    is taken. Raises BadRecipe without candidates.
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
        miou = cross_validated_score(reads, candidate.head, shots, short, size).miou_nan
        tried.append((candidate, miou))
        print_status(f"auto: {candidate}: {miou:.2f}; {_spent(time.monotonic() - began, seconds)}", quiet)
        slowest = max(slowest, time.monotonic() - started)
    best = max(miou + candidate.bonus for candidate, miou in tried)
    equals = [candidate for candidate, miou in tried if miou + candidate.bonus >= best - _MARGIN]
    taken = max(equals, key=lambda candidate: candidate.bonus)
    return Choice(taken, tuple(tried), tuple(untried), seconds, time.monotonic() - began)


def _bonus(candidate: Candidate) -> str:
    return f" (plus a bonus of {candidate.bonus:g}, measured on other images)" if candidate.bonus else ""


def _spent(took: float, given: float | int) -> str:
    return f"{took:.0f} s" if math.isinf(given) else f"{took:.0f} s of {given:.0f}"
