import errno
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from partshot.data.images import resize_image
from partshot.data.labels import count_ids, labels_from_rgb, read_labels, read_palette, resize_labels, write_labels
from partshot.errors import BadLabels, BadParts, DiskFull
from partshot.parts import PartSet

PARTS = PartSet.of("background", "head", "thorax", "tail")
IDS = np.array([[0, 1, 2], [3, 255, 0]], np.uint8)


def colored(labels: np.ndarray, parts: PartSet = PARTS) -> np.ndarray:
    return np.frombuffer(parts.palette(), np.uint8).reshape(256, 3)[labels]


def save(path: Path, array: np.ndarray, mode: str | None = None) -> Path:
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path)
    return path


@given(seed=st.integers(0, 10_000), count=st.integers(1, 255), h=st.integers(1, 20), w=st.integers(1, 20))
def test_written_labels_are_read_back(tmp_path_factory, seed, count, h, w):
    parts = PartSet(names=tuple(f"p{i}" for i in range(count)))
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random((h, w)) < 0.1, 255, rng.integers(0, count, (h, w))).astype(np.uint8)
    path = write_labels(tmp_path_factory.mktemp("m") / "a.png", labels, parts)
    np.testing.assert_array_equal(read_labels(path, parts), labels)


def test_masks_on_disk_are_8_bit_indexed_with_the_parts_palette(tmp_path):
    path = write_labels(tmp_path / "a.png", IDS, PARTS)
    assert path.read_bytes()[24:26] == bytes((8, 3))  # PNG header: bit depth, color type
    assert read_palette(path)[: len(PARTS)] == PARTS.colors
    with Image.open(path) as mask:
        np.testing.assert_array_equal(np.array(mask.convert("RGB")), colored(IDS))


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_gray_masks_hold_ids(tmp_path, mode):
    np.testing.assert_array_equal(read_labels(save(tmp_path / "a.png", IDS, mode), PARTS), IDS)


def test_one_bit_masks_hold_0_and_1(tmp_path):
    path = save(tmp_path / "a.png", np.array([[True, False], [False, True]]))
    assert read_labels(path).tolist() == [[1, 0], [0, 1]]
    assert read_palette(path) == ()


def test_an_indexed_mask_with_few_colors_holds_ids(tmp_path):
    mask = Image.fromarray(IDS % 4).convert("L")
    mask.putpalette(PARTS.palette()[:12])
    mask.save(tmp_path / "a.png", bits=2)
    np.testing.assert_array_equal(read_labels(tmp_path / "a.png"), IDS % 4)


def test_16_bit_masks_are_read_when_their_ids_fit_and_refused_otherwise(tmp_path):
    np.testing.assert_array_equal(read_labels(save(tmp_path / "a.png", IDS.astype(np.uint16)), PARTS), IDS)
    save(tmp_path / "b.png", np.array([[0, 300]], np.uint16))
    with pytest.raises(BadLabels, match=r"b\.png is 16-bit and contains id 300"):
        read_labels(tmp_path / "b.png")


@pytest.mark.parametrize("bits", [2, 4])
def test_gray_of_fewer_bits_is_refused_since_programs_scale_it(tmp_path, write_raw_png, bits):
    path = write_raw_png(tmp_path / "a.png", [bytes([0b00011011])] * 2, width=8 // bits, bits=bits, color_type=0)
    with pytest.raises(BadLabels, match=r"a\.png is gray with less than 8 bits.*8-bit indexed"):
        read_labels(path)


def test_the_error_of_an_unknown_id_names_the_id_and_the_file(tmp_path):
    path = save(tmp_path / "ant_7.png", np.array([[0, 1, 9, 9]], np.uint8))
    with pytest.raises(BadLabels, match=r"ant_7\.png contains id 9 \(2 pixels\), but the parts have ids 0 to 3"):
        read_labels(path, PARTS)
    assert read_labels(path).max() == 9


def test_rgb_masks_in_the_parts_colors_are_converted_on_request(tmp_path):
    path = save(tmp_path / "a.png", colored(IDS))
    with pytest.raises(BadLabels, match=r"a\.png is RGB; its colors are those of classes.json: add --rgb-masks"):
        read_labels(path, PARTS)
    np.testing.assert_array_equal(read_labels(path, PARTS, rgb=True), IDS)
    np.testing.assert_array_equal(read_labels(save(tmp_path / "b.png", colored(IDS), "RGBA"), PARTS, rgb=True), IDS)


def test_errors_of_rgb_masks_in_other_colors_name_a_solution(tmp_path):
    rgb = colored(IDS).copy()
    rgb[0, 1] = (1, 2, 3)
    path = save(tmp_path / "a.png", rgb)
    with pytest.raises(BadLabels, match=r"a\.png is RGB.*such as \(1, 2, 3\).*classes\.json and add --rgb-masks"):
        read_labels(path, PARTS)
    with pytest.raises(BadLabels, match=r"a\.png contains color \(1, 2, 3\) \(1 pixel\), which no part has"):
        read_labels(path, PARTS, rgb=True)
    for rgb_masks in (False, True):
        with pytest.raises(BadLabels, match=r"a\.png is RGB.*write (a classes\.json|one)"):
            read_labels(path, None, rgb=rgb_masks)
    gray = save(tmp_path / "gray.png", np.repeat(IDS[..., None], 3, axis=-1))
    with pytest.raises(BadLabels, match=r"gray\.png is RGB with three equal channels"):
        read_labels(gray, PARTS)


def test_the_most_frequent_unknown_color_is_reported():
    rgb = np.zeros((4, 4, 3), np.uint8)
    rgb[0] = (9, 9, 9)
    rgb[1, 0] = (7, 7, 7)
    with pytest.raises(BadLabels, match=r"mask contains color \(9, 9, 9\) \(4 pixels\) and 1 other colors"):
        labels_from_rgb(rgb, PARTS)


def test_the_gray_of_ignored_pixels_is_read_as_ignore_unless_a_part_has_it():
    gray = np.full((1, 1, 3), 128, np.uint8)
    assert labels_from_rgb(gray, PARTS).tolist() == [[255]]
    parts = PartSet(names=("background", "stone"), colors=((0, 0, 0), (128, 128, 128)))
    assert labels_from_rgb(gray, parts).tolist() == [[1]]


def test_parts_with_equal_colors_are_refused():
    parts = PartSet(names=("background", "a", "b"), colors=((0, 0, 0), (5, 5, 5), (5, 5, 5)))
    with pytest.raises(BadParts, match=r"parts 'a' and 'b' share the color \(5, 5, 5\)"):
        labels_from_rgb(np.zeros((1, 1, 3), np.uint8), parts)


def test_partly_transparent_masks_are_refused(tmp_path):
    rgba = np.dstack([colored(IDS), np.uint8([[255, 0, 255], [255] * 3])])
    for path, rgb in ((save(tmp_path / "a.png", rgba), True), (save(tmp_path / "a.png", rgba, "LA"), False)):
        with pytest.raises(BadLabels, match=r"a\.png is partly transparent; fill it"):
            read_labels(path, PARTS, rgb=rgb)


def test_files_that_are_no_png_masks_are_refused(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("ids")
    Image.fromarray(IDS).save(tmp_path / "lossy.png", "JPEG")
    Image.fromarray(IDS).save(tmp_path / "other.png", "BMP")
    whole = write_labels(tmp_path / "cut.png", np.random.default_rng(0).integers(0, 3, (64, 64), np.uint8), PARTS)
    whole.write_bytes(whole.read_bytes()[:-200])
    frames = [Image.new("L", (4, 4), i) for i in range(2)]
    frames[0].save(tmp_path / "moving.png", save_all=True, append_images=frames[1:])
    for name, reason in {
        "gone.png": "no such file",
        "empty.png": r"empty \(0 bytes\); export it again",
        "text.png": "cannot be read",
        "lossy.png": "is JPEG, which changes ids; save it as an 8-bit indexed PNG",
        "other.png": "is BMP; save it as",
        "cut.png": "cannot be read",
        "moving.png": "is animated",
    }.items():
        with pytest.raises(BadLabels, match=rf"mask .*{name}.*{reason}"):
            read_labels(tmp_path / name)


def test_a_mask_over_the_bomb_limit_is_refused(tmp_path, monkeypatch):
    write_labels(tmp_path / "a.png", np.zeros((50, 50), np.uint8), PARTS)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(BadLabels, match=r"a\.png .*decompression bombs"):
        read_labels(tmp_path / "a.png")


def test_write_labels_refuses_invalid_labels(tmp_path):
    with pytest.raises(BadLabels, match=r"a\.png contains id 4 .*the parts have ids 0 to 3"):
        write_labels(tmp_path / "a.png", np.full((2, 2), 4, np.uint8), PARTS)
    with pytest.raises(BadLabels, match=r"must be uint8 \[h, w\], not int64 \[2, 2\]"):
        write_labels(tmp_path / "a.png", np.zeros((2, 2), np.int64), PARTS)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("when", ["writing", "renaming"])
def test_a_full_disk_keeps_the_previous_mask_and_leaves_no_partial_file(tmp_path, monkeypatch, when):
    path = write_labels(tmp_path / "a.png", IDS, PARTS)
    before = path.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if when == "writing":
        monkeypatch.setattr(Path, "write_bytes", full)
    else:
        monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DiskFull, match=r"a\.png: the disk is full; free some space.*no partial files were left"):
        write_labels(path, IDS[::-1], PARTS)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["a.png"]


def test_resized_labels_have_no_new_ids_and_stay_aligned_with_the_image():
    y, x = np.mgrid[0:60, 0:90]
    inside = ((y - 25) ** 2 + (x - 50) ** 2 < 400).astype(np.uint8)
    labels = inside * np.uint8(3)
    for size in (16, 33, 128):
        small = resize_labels(labels, size)
        assert small.shape == (size, size) and set(np.unique(small)) <= {0, 3}
        image = resize_image(np.repeat(inside[..., None] * np.uint8(255), 3, axis=-1), size)[..., 0]
        sure = (image < 60) | (image > 195)
        np.testing.assert_array_equal(small[sure] == 3, image[sure] > 127)


def test_count_ids():
    counts = count_ids(IDS)
    assert counts.shape == (256,) and counts[[0, 1, 2, 3, 255]].tolist() == [2, 1, 1, 1, 1] and counts.sum() == 6
