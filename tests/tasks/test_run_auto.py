"""Which candidate auto takes, and what it says of the others."""

from types import SimpleNamespace

import numpy as np
import pytest

from partshot.data.shots import Shots
from partshot.errors import BadRecipe
from partshot.parts import PartSet
from partshot.represent.choose import open_representation
from partshot.represent.pixels import Pixels
from partshot.represent.position import Positioned
from partshot.tasks import run_auto as auto
from partshot.tasks.run_auto import Candidate, choose
from partshot.train.fit_head import FitHead

FIT = FitHead(images=60, batch=2, lr=0.05, standardize=True)


def halves(count, by_place):
    """Noise whose left half is the part (only its place tells), or whose red half is (only its color tells)."""
    rng, images, labels = np.random.default_rng(0), [], []
    for _ in range(count):
        mask = np.zeros((32, 32), np.uint8)
        if by_place:
            mask[:, :16] = 1
            image = rng.integers(0, 255, (32, 32, 3), np.uint8)
        else:
            mask[rng.integers(0, 2, (8, 8)).repeat(4, 0).repeat(4, 1) > 0] = 1
            image = np.full((32, 32, 3), 60, np.uint8)
            image[mask > 0, 0] = 200
        images.append(image)
        labels.append(mask)
    names = tuple(f"{i}" for i in range(count))
    return Shots(tuple(images), tuple(labels), names, PartSet.of("background", "part"))


def candidates():
    return [Candidate("pixels", Pixels, "linear"), Candidate("placed", lambda: Positioned(Pixels()), "linear")]


def test_what_reads_left_out_shots_better_is_taken():
    found = choose(candidates(), halves(3, by_place=True), FIT, 32)
    assert found.taken.name == "placed"
    (_, plain), (_, placed) = found.tried
    assert placed > plain + 0.2
    assert found.why.startswith("linear on placed: ") and "linear on pixels" in found.why


def test_of_equals_the_first_is_taken():
    assert choose(candidates(), halves(3, by_place=False), FIT, 32).taken.name == "pixels"


def test_one_shot_takes_the_first_unmeasured():
    found = choose(candidates(), halves(1, by_place=True), FIT, 32)
    assert found.taken.name == "pixels" and not found.tried
    assert "one labeled image" in found.why


def test_time_ends_it_and_is_told(monkeypatch):
    now = [0.0]

    def estimated(*_):
        now[0] += 40
        return type("Score", (), {"miou_nan": 0.5})

    monkeypatch.setattr(auto.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(auto, "cross_validated_score", estimated)
    first, second = candidates()
    slow = Candidate("slow", lambda: pytest.fail("no time for it"), "linear", seconds=30.0)
    late = Candidate("late", lambda: pytest.fail("no time for it"), "linear")
    found = choose([first, slow, second, late], halves(2, by_place=True), FIT, 32, seconds=100)
    assert [one.name for one, _ in found.tried] == ["pixels", "placed"]
    assert found.untried == (slow, late) and (found.given, found.took) == (100, 80)
    assert "too little time left for linear on slow, linear on late (80 s of 100)" in found.why


def test_why_tells_a_lead_that_counts_as_none_and_a_choice_of_one():
    first, second = candidates()
    near = auto.Choice(first, ((first, 0.140), (second, 0.149)), (), 30, 20.0)
    assert "differences below 0.01 count as equal" in near.why
    assert "equal" not in auto.Choice(second, ((first, 0.14), (second, 0.2)), (), 30, 20.0).why
    assert "the only one there was time for" in auto.Choice(first, ((first, 0.14),), (second,), 30, 20.0).why


def test_what_other_images_have_shown_counts_beside_the_shots(monkeypatch):
    found = {"pixels": 0.40, "placed": 0.36}

    def score(representation, *_):
        return SimpleNamespace(miou_nan=found[names[id(representation)]])

    monkeypatch.setattr(auto, "cross_validated_score", score)
    names = {}

    def one(name, favor):
        reads = Pixels()
        names[id(reads)] = name
        return Candidate(name, lambda: reads, "linear", bonus=favor)

    # With .04 they are equal, and of equals the favored one is taken.
    for favor, taken in ((0.0, "pixels"), (0.025, "pixels"), (0.04, "placed"), (0.06, "placed")):
        choice = choose([one("pixels", 0.0), one("placed", favor)], halves(2, by_place=True), FIT, 32)
        assert choice.taken.name == taken
    assert choice.why.startswith("linear on placed: ")
    assert "linear on placed 0.36 (plus a bonus of 0.06, measured on other images), linear on pixels 0.40" in choice.why


def test_the_ready_ones_open():
    opened = [one.opened() for one in auto.ready(open_representation)]
    assert len({(one.spec.fingerprint, head) for one, (_, head) in zip(opened, auto.READY, strict=True)}) == len(opened)


def test_nobody_to_choose():
    with pytest.raises(BadRecipe, match="no candidates"):
        choose([], halves(2, by_place=True), FIT, 32)
