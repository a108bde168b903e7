"""plan: what `run` will do, decided before anything is trained, so that it can be shown.

Knows the usual settings and what the images change about them. Refuses to know how any of it is done.
"""

from partshot.data.images import Stack
from partshot.data.shots import Shots
from partshot.data.symmetry import one_sided
from partshot.recipe import Recipe
from partshot.represent.choose import POSITION
from partshot.tasks.fit import HEAD, facing_fit
from partshot.train.distill_recipe import Distill
from partshot.train.fit_head import PRESETS as FIT_PRESETS
from partshot.train.fit_head import FitHead
from partshot.train.student_choice import Choice

# Without it, nothing is trained but the student.
NO_TEACHER = "none"


class Plan(Recipe):
    """What `run` will do, as `--dry-run` prints it.

    representation, head: of the few-shot teacher, "none" without one; auto_minutes: how long others may be tried in
    their place, 0 keeps these. mirror: whether images may be mirrored. student: the network, and why it is that one.
    checks: how many masks are kept apart to check the result.
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
    def taught(self) -> bool:
        """Whether there is a few-shot teacher."""
        return self.representation != NO_TEACHER

    def lasting(self, kimg: float) -> "Plan":
        """The same with another horizon of the student, in thousands of images."""
        return self.changed(distill=self.distill.changed(kimg=kimg))

    def __str__(self) -> str:
        checks = f", {self.checks} with a check mask that is never trained on" if self.checks else ""
        lines = [f"{self.images} images, {self.shots} of them labeled{checks}; parts: {', '.join(self.parts)}"]
        pairs = ", ".join(self.mirror_pairs) or "none"
        lines.append(f"mirrored: {'yes' if self.mirror else 'no, the things face one way'}; pairs that swap: {pairs}")
        auto = f", or what reads left-out shots better in {self.auto_minutes:g} min" if self.auto_minutes else ""
        if self.taught:
            lines.append(f"teacher: {self.head} on {self.representation}{auto}\n[fit]\n{self.fit.to_toml()}")
        lines.append(f"student: {self.student}, {self.why}\n[distill]\n{self.distill.to_toml()}")
        return "\n".join(lines)


def make_plan(
    shots: Shots,
    stack: Stack,
    images: int,
    representation: str,
    drawn: bool,
    recipe: Distill,
    student: Choice,
    seed: int,
    auto_minutes: float,
    checks: int = 0,
) -> Plan:
    """What these shots and images call for.

    stack: the images, read, by which is told whether things face one way; images: how many the folder holds. drawn:
    whether the representation is a generator. recipe: the student's, before that is known. checks: see Plan.
    """
    faces_one_way = one_sided(stack.images)
    # What is taken without a comparison was measured on real images, see LOG.md: a contrastive encoder of minutes on
    # two cores is no better than random weights, and the map of positions is worth more than either.
    name = "random" if representation == "auto" else representation
    fit = facing_fit(FIT_PRESETS["fast"].changed(seed=seed), faces_one_way)
    return Plan(
        images=images,
        shots=len(shots),
        parts=shots.parts.names,
        mirror_pairs=tuple(f"{shots.parts.names[a]} / {shots.parts.names[b]}" for a, b in shots.parts.mirror),
        mirror=not faces_one_way,
        # A generator draws features and image alike; it has no map to add. What is inverted is read once.
        representation=name if drawn or name == NO_TEACHER else name.removesuffix(POSITION) + POSITION,
        head=HEAD,
        auto_minutes=auto_minutes if representation == "auto" and len(shots) > 1 else 0.0,
        fit=fit.changed(augment=None) if drawn else fit,
        student=student.student,
        why=student.why,
        distill=recipe.one_sided() if faces_one_way else recipe,
        seed=seed,
        checks=checks,
    )
