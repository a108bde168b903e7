import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from partshot.errors import BadParts, nearest, size_text
from partshot.parts import COLORS, PartSet, default_color, propose_mirror_pairs

names = st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=30, unique=True)


@given(names)
def test_a_part_set_is_restored_from_json(given_names):
    parts = PartSet.of(*given_names)
    assert PartSet.from_dict(json.loads(json.dumps(parts.to_dict()))) == parts


@pytest.mark.parametrize(
    ("given_names", "pairs"),
    [
        (("bg", "left eye", "nose", "right eye"), ((1, 3),)),
        (("bg", "eye_l", "eye_r", "ear_R", "ear_L"), ((1, 2), (3, 4))),
        (("bg", "Left Ear", "Right Ear"), ((1, 2),)),
        (("bg", "left_door", "right door"), ((1, 2),)),
        (("bg", "left eye", "right ear"), ()),
        (("bg", "leftover", "rightover", "curl", "curr"), ()),
    ],
)
def test_mirror_pairs_are_derived_from_left_and_right(given_names, pairs):
    assert propose_mirror_pairs(given_names) == pairs


def test_flipping_twice_changes_nothing():
    parts = PartSet.of("bg", "left eye", "nose", "right eye")
    ids = parts.mirrored_ids()
    assert ids == [0, 3, 2, 1] and [ids[i] for i in ids] == [0, 1, 2, 3]


def test_an_unknown_part_name_suggests_the_nearest_one():
    parts = PartSet.of("background", "wheel", "window")
    assert parts.id_of("window") == 2
    with pytest.raises(BadParts, match="unknown part 'weel'; did you mean 'wheel'"):
        parts.id_of("weel")


def test_sizes_have_the_width_first():
    assert size_text((480, 640)) == "640x480" and size_text((5,)) == "5"


def test_nearest_stays_short_when_many_names_are_known():
    text = nearest("stem_77", [f"stem_{i}" for i in range(5000)])
    assert "did you mean 'stem_77'" in text and "and 4970 more" in text and len(text) < 500


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"names": ()}, "0 parts;"),
        ({"names": tuple(str(i) for i in range(256))}, "256 parts;"),
        ({"names": ("a", "b", "a")}, "'a' occurs twice"),
        ({"names": ("a", "b"), "colors": ((0, 0, 0),)}, "1 colors for 2 parts"),
        ({"names": ("a",), "colors": ((0, 0, 300),)}, r"color \[0, 0, 300\] of part 'a' is not an RGB triple"),
        ({"names": ("a",), "colors": ((0, -1, 3),)}, "not an RGB triple"),
        ({"names": ("a", "b"), "mirror": ((0, 2),)}, "mirror pairs"),
        ({"names": ("a", "b"), "mirror": ((1, 1),)}, "mirror pairs"),
        ({"names": ("a", "b", "c"), "mirror": ((0, 1), (1, 2))}, "mirror pairs"),
    ],
)
def test_invalid_part_sets_are_rejected(values, reason):
    with pytest.raises(BadParts, match=reason):
        PartSet(**values)


def test_255_parts_fit_and_have_different_colors():
    parts = PartSet(names=tuple(str(i) for i in range(255)))
    assert parts.colors[: len(COLORS)] == COLORS
    assert len({default_color(i) for i in range(len(COLORS), 255)}) == 255 - len(COLORS)


def test_the_palette_holds_the_colors_then_gray():
    palette = PartSet.of("a", "b").palette()
    assert len(palette) == 768
    assert tuple(palette[3:6]) == COLORS[1] and tuple(palette[6:9]) == tuple(palette[-3:]) == (128, 128, 128)


def test_classes_json_may_have_more_keys_and_no_colors(tmp_path):
    path = tmp_path / "classes.json"
    rows = [{"id": 1, "name": "head", "pixel_share": 0.1}, {"id": 0, "name": "background", "images": 3}]
    path.write_text(json.dumps({"ignore_index": 255, "classes": rows, "license": "none"}))
    parts = PartSet.load(path)
    assert parts.names == ("background", "head") and parts.colors == COLORS[:2]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not JSON"),
        ("[]", 'needs {"classes"'),
        ('{"classes": 3}', 'needs {"classes"'),
        ('{"classes": [{"id": 0}]}', 'needs {"classes"'),
        ('{"classes": [{"id": 1, "name": "a"}]}', r"ids are \[1\]; they must be 0, 1, 2"),
        ('{"classes": [{"id": 0, "name": "a"}, {"id": 0, "name": "b"}]}', "without gaps"),
        ('{"classes": [{"id": 0, "name": "a", "color": [0, 0]}]}', r"\[r, g, b\]"),
        ('{"classes": [{"id": 0, "name": "a", "color": [0, 0, 999]}]}', "not an RGB triple"),
        ('{"classes": [{"id": 0, "name": "a", "color": "red"}]}', r"\[r, g, b\]"),
        ('{"classes": [{"id": 0, "name": "a"}], "mirror": [[0]]}', '"mirror" a list of pairs'),
        ('{"classes": [{"id": 0, "name": "a"}], "mirror": [[0, 5]]}', "mirror pairs"),
    ],
)
def test_an_invalid_classes_json_is_named(tmp_path, text, reason):
    path = tmp_path / "classes.json"
    path.write_text(text)
    with pytest.raises(BadParts) as error:
        PartSet.load(path)
    error.match(reason)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_missing_classes_json_is_named(tmp_path):
    with pytest.raises(BadParts, match="no such file"):
        PartSet.load(tmp_path / "classes.json")
    with pytest.raises(BadParts, match="cannot be read"):
        PartSet.load(tmp_path)
