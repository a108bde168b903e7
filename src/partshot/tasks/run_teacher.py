"""The few-shot teacher of a run: its representation, trained first where needed, and its head."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from partshot.artifact import write_json
from partshot.data.shots import Shots
from partshot.ops.precision import best_device
from partshot.progress import print_status
from partshot.represent.cache import Store, cache_folder
from partshot.represent.choose import POSITION, cached, open_representation
from partshot.represent.spec import Representation
from partshot.represent.stylegan import StyleGAN
from partshot.segmenter import Segmenter
from partshot.tasks.pretrain import DEFAULT, LONG, pretrain, resolve
from partshot.tasks.run_auto import LONG_TRAINED_BONUS, TRAINED, Candidate, choose, ready
from partshot.tasks.run_plan import Plan
from partshot.tasks.run_stages import Stages
from partshot.tasks.sample import latents_of
from partshot.tasks.teacher_rules import teacher_size
from partshot.tasks.trained import kept_segmenter

PRETEXTS = {"moco": "resnet", "simsiam": "resnet", "stylegan1": "stylegan1", "stylegan2": "stylegan2"}
"""Representations that a run trains on the folder, and the kind that each is opened as."""

# Thousands of images that an encoder sees in a minute on two cores and on a GPU: whether "auto" has time to train one.
_KIMG_PER_MINUTE = {"cpu": 2.0, "cuda": 190.0}
# Side in pixels. Larger generators take days without a GPU; the student works at its own size.
_LARGEST_GENERATED = 64


@dataclass(frozen=True)
class Folder:
    """images: the folder. masks: files in it that are no images. out: the run's folder."""

    images: Path
    masks: Sequence[Path]
    out: Path
    began: float = field(default_factory=time.time)

    @property
    def choice(self) -> Path:
        """What "auto" chose."""
        return self.out / "auto.json"


def fit_teacher(plan: Plan, folder: Folder, shots: Shots, stages: Stages) -> tuple[Plan, Segmenter]:
    """The fitted few-shot teacher, and the plan with the representation and head that were chosen."""
    store = stages.store
    shelf = None if store is None else cache_folder() / "trained"
    if plan.auto_minutes:
        candidates = _candidates(plan, folder, stages.quiet, store, shelf)
        plan = stages.run(
            "choose the teacher", lambda: _chosen(plan, candidates, shots, folder, stages.quiet), partial(_why, folder)
        )
    representation = stages.run(
        "representation",
        lambda: cached(_representation(plan, folder, stages.quiet, shelf), store),
        lambda: _when_trained(plan, folder),
    )
    return plan, stages.run("fit the teacher", lambda: _fitted(plan, representation, shots, folder.out, stages.quiet))


def _representation(plan: Plan, folder: Folder, quiet: bool, shelf: Path | None) -> Representation:
    name = plan.representation.removesuffix(POSITION)
    if name not in PRETEXTS:
        return open_representation(plan.representation)
    given = {**_pretraining(name, plan), "seed": plan.seed, "leave_out": tuple(folder.masks), "shelf": shelf}
    trained = pretrain(name, folder.images, folder.out / "representation" / name, quiet=quiet, **given)
    return open_representation(plan.representation.replace(name, PRETEXTS[name], 1), trained)


def _pretraining(name: str, plan: Plan) -> dict:
    """How a pretext is trained in a run: preset, size and kimg, as `pretrain` takes them."""
    preset, size = DEFAULT, plan.distill.size
    if name.startswith("stylegan"):
        side = min(_LARGEST_GENERATED, 1 << size.bit_length() - 1)
        return {"preset": preset, "size": side, "kimg": resolve(name).kimg}
    if best_device().type == "cuda" and name == "moco":
        return {"preset": LONG, "size": size, "kimg": resolve(name, LONG).kimg}
    return {"preset": preset, "size": size, "kimg": min(resolve(name).kimg, 4 * plan.distill.kimg)}


def _candidates(plan: Plan, folder: Folder, quiet: bool, store: Store | None, shelf: Path | None) -> list[Candidate]:
    """Representations that "auto" compares: those that need no training first, then trained encoders."""

    def trained(name: str) -> Representation:
        return cached(_representation(plan.changed(representation=name), folder, quiet, shelf), store)

    pace = _KIMG_PER_MINUTE.get(best_device().type, _KIMG_PER_MINUTE["cpu"]) / 60
    encoders = []
    for name in TRAINED:
        how, title = _pretraining(name, plan), f"{name}{POSITION}"
        bonus = LONG_TRAINED_BONUS if how["preset"] == LONG else 0.0
        encoders.append(Candidate(title, partial(trained, title), seconds=how["kimg"] / pace, bonus=bonus))
    return [*ready(lambda name: cached(open_representation(name), store)), *encoders]


def _chosen(plan: Plan, candidates: Sequence[Candidate], shots: Shots, folder: Folder, quiet: bool) -> Plan:
    """The plan with the best candidate's representation and head; a resumed run keeps its earlier choice."""
    state = f"{shots.fingerprint}/{plan.fit.fingerprint}/{plan.distill.size}/{plan.auto_minutes}"
    if folder.choice.exists():
        before = json.loads(folder.choice.read_text(encoding="utf-8"))
        if before["state"] == state:
            return plan.changed(representation=before["representation"], head=before["head"])
    print_status(
        f"auto: compares up to {len(candidates)} candidates by cross-validation, {plan.auto_minutes:g} min", quiet
    )
    choice = choose(candidates, shots, plan.fit, teacher_size(plan.distill), 60 * plan.auto_minutes, quiet)
    taken = {"representation": choice.taken.name, "head": choice.taken.head}
    write_json(folder.choice, {"state": state, **taken, "why": choice.why})
    return plan.changed(**taken)


def _why(folder: Folder) -> str:
    return json.loads(folder.choice.read_text(encoding="utf-8"))["why"]


def _when_trained(plan: Plan, folder: Folder) -> str:
    """Whether the representation was trained in this run or earlier; "" for those that are not trained."""
    name = plan.representation.removesuffix(POSITION)
    if name not in PRETEXTS:
        return ""
    journal = folder.out / "representation" / name / "journal.jsonl"
    return "trained now" if journal.exists() and journal.stat().st_mtime >= folder.began else "trained earlier"


def _fitted(plan: Plan, representation: Representation, shots: Shots, out: Path, quiet: bool) -> Segmenter:
    generates = isinstance(representation, StyleGAN)
    size = representation.size if generates else teacher_size(plan.distill)
    teacher = Segmenter(representation, shots.parts, plan.head, size, plan.fit)

    def fit() -> Segmenter:
        return teacher.fit(shots, quiet, latents_of(representation, shots) if generates else None)

    found = kept_segmenter(out / "segmenter", shots, fit, teacher.fingerprint(shots))
    # Of the same fingerprint as a loaded one's, but it uses the cache.
    found.representation = representation
    return found
