"""Scores, k-shot benchmarks and folds, on images small enough to compute by hand."""

import json

import numpy as np
import pytest

from partshot.benchmark.folds import places_of_folds, score_folds
from partshot.benchmark.kshot import Row, kshot, table_to_dict, table_to_markdown, tabulate
from partshot.data.shots import Shots
from partshot.errors import BadLabels, BadRecipe
from partshot.metrics import Score, Summary, score, score_confusion, summarize
from partshot.parts import PartSet

PARTS = PartSet.of("background", "body", "tail")


def ids(*rows):
    return np.array(rows, np.uint8)


def shots(count: int, size: int = 4) -> Shots:
    """Image i is gray level i; its left half is background, its right half body."""
    labels = np.zeros((size, size), np.uint8)
    labels[:, size // 2 :] = 1
    images = tuple(np.full((size, size, 3), i, np.uint8) for i in range(count))
    return Shots(images, (labels,) * count, tuple(f"p{i:02}" for i in range(count)), PARTS)


def constant(part: int):
    """A method that predicts one part everywhere."""
    return lambda _: lambda images: [np.full(image.shape[:2], part, np.uint8) for image in images]


def test_images_are_pooled_not_averaged():
    truths = [ids([0, 0, 0, 0]), ids([1, 1])]
    guesses = [ids([0, 0, 0, 1]), ids([1, 0])]
    result = score(truths, guesses, PARTS, ["a", "b"])
    # background: 3 of 4 found, 1 false positive; body: 1 of 2 found, 1 false positive; tail: absent
    assert result.per_part == pytest.approx({"background": 3 / 5, "body": 1 / 3, "tail": 0})
    assert result.miou == pytest.approx((3 / 5 + 1 / 3) / 3)
    assert result.miou_nan == pytest.approx((3 / 5 + 1 / 3) / 2)
    assert result.wiou == pytest.approx(4 / 6 * 3 / 5 + 2 / 6 / 3)
    assert result.absent == ("tail",)
    assert dict(result.per_image) == pytest.approx({"a": (3 / 4 + 0) / 2, "b": (1 / 2 + 0) / 2})
    assert [name for name, _ in result.worst(1)] == ["b"]


def test_mask_and_prediction_sizes_must_match_per_image():
    score([ids([0, 1]), ids([0], [1])], [ids([0, 1]), ids([0], [1])], PARTS)
    with pytest.raises(BadLabels, match="cat: prediction is 1x1 but its mask is 2x1"):
        score([ids([0, 1])], [ids([0])], PARTS, ["cat"])
    with pytest.raises(BadLabels, match="1 predictions given and more masks"):
        score([ids([0]), ids([0])], [ids([0])], PARTS)
    with pytest.raises(BadLabels, match="1 masks and 2 names"):
        score([ids([0])], [ids([0])], PARTS, ["a", "b"])
    assert score(iter([ids([0])]), iter([ids([0])]), PARTS).per_image == (("0", 1.0),)


def test_image_without_labeled_pixels_has_no_per_image_score():
    result = score([ids([255]), ids([1])], [ids([0]), ids([1])], PARTS, ["blank", "full"])
    assert result.per_image == (("full", 1.0),)
    with pytest.raises(BadLabels, match="no labeled pixel"):
        score([ids([255])], [ids([0])], PARTS)


def test_score_json_round_trip():
    result = score([ids([0, 1, 1])], [ids([0, 1, 0])], PARTS, ["a"])
    loaded = Score.from_dict(json.loads(json.dumps(result.to_dict())))
    assert np.array_equal(loaded.confusion, result.confusion)
    assert loaded.to_dict() == result.to_dict()


def test_summary_is_mean_and_population_standard_deviation():
    scores = [score([ids([0, 0, 1, 1])], [guess], PARTS) for guess in (ids([0, 0, 1, 1]), ids([0, 0, 0, 0]))]
    summary = summarize(scores)
    assert (scores[0].miou, scores[1].miou) == pytest.approx((2 / 3, 0.5 / 3))
    assert summary.miou == pytest.approx((2 / 3 + 1 / 6) / 2)
    assert summary.miou_std == pytest.approx((2 / 3 - 1 / 6) / 2)  # half the distance, not divided by n - 1
    assert summary.per_part["body"] == pytest.approx(0.5) and summary.per_part_std["body"] == pytest.approx(0.5)
    assert summary.seeds == 2
    assert Summary(**json.loads(json.dumps(summary.to_dict()))) == summary
    with pytest.raises(BadLabels):
        summarize([])


def test_kshot_gives_every_method_the_same_splits():
    splits = {"a": [], "b": []}

    def spy(name):
        def method(few):
            splits[name].append(few.names)
            return constant(0)(few)

        return method

    pool, test = shots(6), shots(3)
    rows = kshot({"a": spy("a"), "b": spy("b")}, pool, test, ks=(1, 3), seeds=(0, 1))
    assert len(rows) == 8 and splits["a"] == splits["b"]
    assert [len(names) for names in splits["a"]] == [1, 1, 3, 3]
    assert splits["a"][0] == pool.sample(1, 0).names
    assert rows[0].score.per_part["background"] == pytest.approx(0.5)


def test_kshot_takes_explicit_splits_and_refuses_unknown_names():
    splits = {2: {7: ("p03", "p01")}}
    rows = kshot({"zero": constant(0)}, shots(4), shots(1), ks=(2,), seeds=(7,), splits=splits)
    assert rows[0].shots == ("p03", "p01")
    with pytest.raises(BadRecipe, match="no k = 5"):
        kshot({"zero": constant(0)}, shots(4), shots(1), ks=(5,), seeds=(7,), splits=splits)
    with pytest.raises(BadLabels, match="names 'p3'.*did you mean 'p03'"):
        kshot({"zero": constant(0)}, shots(4), shots(1), ks=(2,), seeds=(7,), splits={2: {7: ("p3", "p01")}})


def test_kshot_refuses_test_images_with_other_parts():
    test = shots(1)
    other = Shots(test.images, test.labels, test.names, PartSet.of("background", "body", "wing"))
    with pytest.raises(BadLabels, match="'tail', the test .*'wing'"):
        kshot({"zero": constant(0)}, shots(2), other, (1,), (0,))


def test_kshot_resumes_from_earlier_rows():
    fits, journal = [], []

    def method(few):
        fits.append(few.names)
        if len(fits) == 3:
            raise KeyboardInterrupt
        return constant(1)(few)

    pool, test = shots(5), shots(2)
    with pytest.raises(KeyboardInterrupt):
        kshot({"m": method}, pool, test, (1,), (0, 1, 2), on_result=lambda row: journal.append(row.to_dict()))
    assert len(journal) == 2
    done = [Row.from_dict(json.loads(json.dumps(values))) for values in journal]
    rows = kshot({"m": method}, pool, test, (1,), (0, 1, 2), done=done)
    assert len(fits) == 4 and [row.seed for row in rows] == [0, 1, 2]
    # A row with other shots is not reused.
    other = [Row(**{**vars(done[0]), "shots": ("p99",)})]
    kshot({"m": method}, pool, test, (1,), (0,), done=other)
    assert len(fits) == 5


def test_tabulate_and_markdown():
    methods = {"half": constant(0), "none": constant(2)}
    table = tabulate(kshot(methods, shots(4), shots(2), ks=(1, 2), seeds=(0, 1)))
    assert list(table) == ["half", "none"] and list(table["half"]) == [1, 2]
    assert table_to_dict(table)["half"]["1"]["miou"] == pytest.approx(0.5 / 3)
    assert table_to_markdown(table).splitlines()[2:] == [
        "| half | **0.167 ± 0.000** | **0.167 ± 0.000** |",
        "| none | 0.000 ± 0.000 | 0.000 ± 0.000 |",
    ]


def test_score_of_a_confusion_matrix():
    result = score_confusion(np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]]), PARTS)
    assert result.per_part["body"] == pytest.approx(4 / 5) and result.per_image == ()


def test_folds_are_fifths_of_the_sorted_names_and_the_remainder_is_always_in_the_test_part():
    names = ["face_10", "face_2", "face_0", "face_1", "face_3", "face_4"]
    made = places_of_folds(names)
    # Lexicographic: face_0, face_1, face_10, face_2, face_3, face_4; 6 // 5 = 1 image each
    assert [[names[i] for i in validation] for validation, _ in made] == [
        ["face_0"], ["face_1"], ["face_10"], ["face_2"], ["face_3"],
    ]  # fmt: skip
    for validation, rest in made:
        assert sorted(validation + rest) == list(range(6))
        assert names.index("face_4") in rest
    with pytest.raises(BadLabels, match="4 images cannot make 5 folds"):
        places_of_folds(names[:4])


def test_each_fold_tests_the_best_candidate_on_its_validation_part():
    names = list("abcde")
    truths = [ids([0, 1])] * 5
    right, wrong = ids([0, 1]), ids([1, 0])
    candidates = {"early": [right, wrong, wrong, wrong, wrong], "late": [wrong, right, right, right, wrong]}
    results = score_folds(candidates, truths, PARTS, names)
    # On "e" both are equally wrong: the first one is chosen.
    assert [fold.chosen for fold in results] == ["early", "late", "late", "late", "early"]
    assert results[0].score.miou == 0 and results[0].candidates[results[0].chosen] == pytest.approx(2 / 3)
    assert [name for name, _ in results[1].score.per_image] == ["a", "c", "d", "e"]
    assert results[1].score.confusion.sum() == 8
