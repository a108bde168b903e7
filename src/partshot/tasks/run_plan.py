"""The plan of a run: everything that `run` decides before it trains anything, as `--dry-run` prints it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from partshot.data.images import Stack
from partshot.data.shots import Pair, Shots
from partshot.data.symmetry import one_sided
from partshot.recipe import Recipe
from partshot.represent.choose import POSITION
from partshot.tasks.fit import HEAD, facing_fit
from partshot.train.distill_recipe import Distill
from partshot.train.fit_head import PRESETS as FIT_PRESETS
from partshot.train.fit_head import FitHead
from partshot.train.student_choice import Choice

# No few-shot teacher is fitted.
NO_TEACHER = "none"


class Plan(Recipe):
    """What `run` will do, as `--dry-run` prints it.

    representation, head: of the few-shot teacher, "none" without one. auto_minutes: how long alternatives are compared,
    0 compares none. mirror: whether images may be mirrored. student, why: the network, and the reason. checks: how many
    masks are held out to measure the result.
    """

    images: int
    shots: int
    parts: tuple[str, ...]
    mirror_pairs: tuple[str, ...]
    mirror: bool
    representation: str
    head: str
    auto_minutes: float
    fit: FitHead
    student: str
    why: str
    distill: Distill
    seed: int
    checks: int = 0

    @property
    def has_teacher(self) -> bool:
        """Whether there is a few-shot teacher."""
        return self.representation != NO_TEACHER

    def lasting(self, kimg: float) -> "Plan":
        """The same with another training horizon of the student, in thousands of images."""
        return self.changed(distill=self.distill.changed(kimg=kimg))

    def __str__(self) -> str:
        checks = f", {self.checks} with a held-out mask" if self.checks else ""
        lines = [f"{self.images} images, {self.shots} of them labeled{checks}; parts: {', '.join(self.parts)}"]
        pairs = ", ".join(self.mirror_pairs) or "none"
        lines.append(f"mirrored: {'yes' if self.mirror else 'no, the objects face one way'}; pairs that swap: {pairs}")
        auto = f", or what is better in cross-validation ({self.auto_minutes:g} min)" if self.auto_minutes else ""
        if self.has_teacher:
            lines.append(f"teacher: {self.head} on {self.representation}{auto}\n[fit]\n{self.fit.to_toml()}")
        lines.append(f"student: {self.student}, {self.why}\n[distill]\n{self.distill.to_toml()}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Wishes:
    """What the user asked for.

    generates: whether the representation is a generator. recipe: the student's, before it is known whether objects face
    one way. auto_minutes: for representation "auto".
    """

    representation: str
    generates: bool
    student: Choice
    recipe: Distill
    seed: int
    auto_minutes: float


@dataclass(frozen=True)
class Inputs:
    """images: the folder. out: the run's folder. shots: the labeled images. checks: held-out masks and their images.
    masks: all mask files. paths: of all images. stack: those that are trained on, read."""

    images: Path
    out: Path
    shots: Shots
    checks: Sequence[Pair]
    masks: Sequence[Path]
    paths: Sequence[Path]
    stack: Stack
    wishes: Wishes


def make_plan(inputs: Inputs) -> Plan:
    """The plan for these images, labels and wishes."""
    shots, wishes = inputs.shots, inputs.wishes
    faces_one_way = one_sided(inputs.stack.images)
    # Measured on real images, see LOG.md: a contrastive encoder of minutes on two cores is no better than random
    # initialization, and position channels gain more than either.
    name = "random" if wishes.representation == "auto" else wishes.representation
    fit = facing_fit(FIT_PRESETS["fast"].changed(seed=wishes.seed), faces_one_way)
    return Plan(
        images=len(inputs.paths) - len(inputs.stack.skipped),
        shots=len(shots),
        parts=shots.parts.names,
        mirror_pairs=tuple(f"{shots.parts.names[a]} / {shots.parts.names[b]}" for a, b in shots.parts.mirror),
        mirror=not faces_one_way,
        # A generator has no position channels to add.
        representation=name if wishes.generates or name == NO_TEACHER else name.removesuffix(POSITION) + POSITION,
        head=HEAD,
        auto_minutes=wishes.auto_minutes if wishes.representation == "auto" and len(shots) > 1 else 0.0,
        # Inverted images cannot be augmented.
        fit=fit.changed(augment=None) if wishes.generates else fit,
        student=wishes.student.student,
        why=wishes.student.why,
        distill=wishes.recipe.one_sided() if faces_one_way else wishes.recipe,
        seed=wishes.seed,
        checks=len(inputs.checks),
    )
