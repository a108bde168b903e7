import errno
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from partshot.data.images import (
    exif_swaps_axes,
    list_images,
    overlay,
    read_image,
    read_stack,
    resize_image,
    write_overlay,
)
from partshot.errors import BadImage, BadLabels, DiskFull
from partshot.ops.letterbox import letterbox
from partshot.parts import PartSet

PARTS = PartSet.of("background", "head", "tail")


def orientation(value: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif.tobytes()


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "webp", "ppm"])
def test_lossless_formats_are_read_exactly(tmp_path, photo, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(photo).save(path, **({"lossless": True} if suffix == "webp" else {}))
    np.testing.assert_array_equal(read_image(path), photo)


def test_the_format_is_detected_by_content_not_by_suffix(tmp_path, photo):
    Image.fromarray(photo).save(tmp_path / "a.jpg", "PNG")
    np.testing.assert_array_equal(read_image(tmp_path / "a.jpg"), photo)


@pytest.mark.parametrize("mode", ["L", "P", "1"])
def test_gray_palette_and_one_bit_become_rgb(tmp_path, photo, mode):
    stored = Image.fromarray(photo).convert(mode)
    stored.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.array(stored.convert("RGB")))


def test_cmyk_jpeg_is_not_inverted(tmp_path):
    red = np.zeros((16, 16, 3), np.uint8) + np.uint8([200, 30, 40])
    Image.fromarray(red).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - red).max() <= 6


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_composited_on_white(tmp_path, mode):
    stored = Image.new(mode, (8, 6), 0)  # black, fully transparent
    stored.putpixel((3, 2), (0, 0, 0, 255) if mode == "RGBA" else (0, 255))
    stored.save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image[2, 3].tolist() == [0, 0, 0]
    assert (np.delete(image.reshape(-1, 3), 2 * 8 + 3, axis=0) == 255).all()


def test_a_transparent_palette_entry_is_white(tmp_path):
    stored = Image.new("P", (4, 4), 1)
    stored.putpalette([10, 20, 30, 40, 50, 60])
    stored.putpixel((0, 0), 0)
    stored.save(tmp_path / "a.png", transparency=1)
    image = read_image(tmp_path / "a.png")
    assert image[0, 0].tolist() == [10, 20, 30] and image[3, 3].tolist() == [255, 255, 255]


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize(("top", "half"), [(65535, 32768), (4095, 2048), (1023, 512), (200, 100)])
def test_16_bit_gray_is_scaled_from_its_bit_depth(tmp_path, suffix, top, half):
    stored = np.array([[0, half], [top, top]], np.uint16)
    Image.fromarray(stored).save(tmp_path / f"a.{suffix}")
    full = 255 if top > 255 else 200  # 8-bit values in a 16-bit file stay what they are
    gray = read_image(tmp_path / f"a.{suffix}")[..., 0]
    assert gray[0, 0] == 0 and abs(int(gray[0, 1]) - full / 2) <= 1 and gray[1, 1] == full


def test_16_bit_rgb_keeps_its_range(tmp_path, write_raw_png):
    row = np.array([[65535, 32896, 0], [0, 257, 65535]], ">u2").tobytes()
    image = read_image(write_raw_png(tmp_path / "a.png", [row], width=2, bits=16, color_type=2))
    assert image.tolist() == [[[255, 128, 0], [0, 1, 255]]]


def test_32_bit_integers_beyond_16_bits_are_refused(tmp_path):
    for bad in ([0, 70_000], [-1, 5]):
        Image.fromarray(np.array([bad], np.int32)).save(tmp_path / "a.tif")
        with pytest.raises(BadImage, match=rf"a\.tif: contains values from {min(bad)} to {max(bad)}; export it with 8"):
            read_image(tmp_path / "a.tif")


def test_floats_in_0_1_and_0_255_are_read_and_others_refused(tmp_path):
    for values, want in (([0, 0.5, 1], [0, 128, 255]), ([0, 100, 255], [0, 100, 255])):
        Image.fromarray(np.array([values], np.float32)).save(tmp_path / "a.tif")
        assert read_image(tmp_path / "a.tif")[0, :, 0].tolist() == want
    for bad in ([-3.0, 1.0], [0.0, 1000.0], [0.0, np.nan]):
        Image.fromarray(np.array([bad], np.float32)).save(tmp_path / "b.tif")
        with pytest.raises(BadImage, match=r"b\.tif: contains values from .* scale them"):
            read_image(tmp_path / "b.tif")


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize(
    ("value", "undo"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.swapaxes(0, 1)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: np.rot90(a.swapaxes(0, 1), 2)),
        (8, lambda a: np.rot90(a, 1)),
    ],
)
def test_exif_orientation_is_applied_once(tmp_path, photo, suffix, value, undo):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(photo).save(path, exif=orientation(value), quality=95)
    want = undo(photo)
    image = read_image(path)
    assert image.shape == want.shape
    assert np.abs(image.astype(int) - want).mean() < 4
    assert exif_swaps_axes(path) == (value >= 5)


def test_damaged_exif_leaves_the_image_as_stored(tmp_path, photo):
    Image.fromarray(photo).save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f", quality=95)
    assert read_image(tmp_path / "a.jpg").shape == photo.shape


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_the_first_frame_of_an_animation_is_read_with_one_warning(tmp_path, suffix):
    frames = [Image.new("RGB", (12, 10), color) for color in ("red", "blue", "lime")]
    path = tmp_path / f"a.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:], **({"lossless": True} if suffix == "webp" else {}))
    with pytest.warns(UserWarning, match=rf"a\.{suffix}: contains several frames") as warned:
        image = read_image(path)
    assert len(warned) == 1 and (image == np.uint8([255, 0, 0])).all()
    with pytest.warns(UserWarning, match=rf"2 images contain several frames.*a\.{suffix}") as warned:
        read_stack([path, path], 8)
    assert len(warned) == 1


def test_a_camera_jpeg_with_an_appended_preview_is_no_animation(tmp_path):
    big, small = Image.new("RGB", (12, 10), "red"), Image.new("RGB", (6, 5), "blue")
    big.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[small])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(tmp_path / "a.jpg").shape == (10, 12, 3)


def test_decompression_bombs_are_refused_with_a_hint(tmp_path, monkeypatch):
    Image.new("L", (50, 40)).save(tmp_path / "a.png")
    for limit in (1500, 500):  # Pillow itself warns above the limit and raises above twice the limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(BadImage, match=r"a\.png: .* decompression bombs.*scale it down"):
            read_image(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    assert read_image(tmp_path / "a.png").shape == (40, 50, 3)


def test_missing_empty_and_foreign_files_are_bad_images(tmp_path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "drawing.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    for name, reason in {
        "gone.jpg": "no such file",
        "empty.jpg": r"empty \(0 bytes\)",
        "text.png": "no known image format",
        "drawing.jpg": "no known image format",
    }.items():
        with pytest.raises(BadImage, match=rf"{name}: .*{reason}"):
            read_image(tmp_path / name)


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "tif", "webp", "bmp"])
def test_any_damage_raises_only_bad_image(tmp_path, photo, suffix, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(photo).save(path)
    whole, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
    for trial in range(60):
        damaged = bytearray(whole[: rng.integers(len(whole))] if trial % 2 else whole)
        for place in rng.integers(len(damaged) or 1, size=5 if damaged else 0):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            assert read_image(path).shape[2] == 3
        except BadImage as error:
            refused += 1
            assert f"a.{suffix}" in str(error) and "\n" not in str(error)
    assert refused > 10


def test_list_images_sorts_and_skips_other_files(tmp_path):
    for name in ("b.JPG", "a.png", ".hidden.png", "readme.txt", "classes.json"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [p.name for p in list_images(tmp_path)] == ["a.png", "b.JPG"]
    assert [p.name for p in list_images(tmp_path, leave_out=[tmp_path / "a.png"])] == ["b.JPG"]


def test_list_images_leaves_out_files_of_the_same_folder_in_another_spelling(tmp_path, monkeypatch):
    (tmp_path / "x").mkdir()
    for name in ("cat.jpg", "cat.png"):
        (tmp_path / "x" / name).touch()
    (tmp_path / "link").symlink_to(tmp_path / "x")
    monkeypatch.chdir(tmp_path)
    spellings = [Path("x"), Path("x/../x"), tmp_path / "x", tmp_path / "link"]
    for folder in spellings:
        for other in spellings:
            assert list_images(folder, leave_out=[other / "cat.png"]) == [folder / "cat.jpg"]
    with pytest.raises(BadImage, match="share a name"):
        list_images("x", leave_out=[tmp_path / "y" / "cat.png"])


def test_list_images_refuses_missing_and_empty_folders_and_equal_stems(tmp_path):
    with pytest.raises(BadImage, match="nowhere: no such folder"):
        list_images(tmp_path / "nowhere")
    with pytest.raises(BadImage, match="contains no image"):
        list_images(tmp_path)
    (tmp_path / "cat.jpg").touch()
    (tmp_path / "cat.png").touch()
    with pytest.raises(BadImage, match=r"cat\.jpg and cat\.png share a name; rename one"):
        list_images(tmp_path)


def test_resize_image_is_torchs_antialiased_bilinear(photo):
    torch = pytest.importorskip("torch")
    for size in (7, 16, 64):
        tensor = torch.from_numpy(photo).permute(2, 0, 1)[None].float()
        want = torch.nn.functional.interpolate(tensor, (size, size), mode="bilinear", antialias=True)
        got = resize_image(photo, size)
        assert got.shape == (size, size, 3) and got.dtype == np.uint8
        assert np.abs(got - want[0].permute(1, 2, 0).numpy()).max() <= 1.01


def test_read_stack_reads_mixed_sizes_in_order(tmp_path):
    rng, paths = np.random.default_rng(0), []
    for i in range(20):
        path = tmp_path / f"{i}.png"
        Image.fromarray(rng.integers(0, 256, (rng.integers(1, 40), rng.integers(1, 40), 3), np.uint8)).save(path)
        paths.append(path)
    stack = read_stack(paths[::-1], 16)
    assert stack.paths == tuple(paths[::-1]) and stack.skipped == () and stack.images.shape == (20, 16, 16, 3)
    for image, path in zip(stack.images, stack.paths, strict=True):
        np.testing.assert_array_equal(image, letterbox(read_image(path), 16))


def test_read_stack_decodes_large_jpegs_at_reduced_size_with_nearly_the_same_result(tmp_path):
    y, x = np.mgrid[0:600, 0:800]
    smooth = np.stack([x * 255 / 800, y * 255 / 600, 127 + 100 * np.sin(x / 5)], axis=-1).astype(np.uint8)
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=95, exif=orientation(6))
    whole = read_image(tmp_path / "a.jpg")
    for size in (32, 64, 150, 256):  # decoded at 1/8, 1/4, 1/2 and whole
        got = read_stack([tmp_path / "a.jpg"], size).images[0]
        assert np.abs(got.astype(int) - letterbox(whole, size)).mean() < 0.7


def test_corrupt_images_are_skipped_or_raise_by_option(tmp_path, photo):
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for i, path in enumerate(paths):
        Image.fromarray(photo // np.uint8(i + 1)).save(path)
    whole = read_stack(paths, 8).images
    paths[1].write_bytes(paths[1].read_bytes()[:60])
    paths[3].write_bytes(b"")
    stack = read_stack(paths, 8, skip_corrupt=True)
    assert stack.paths == (paths[0], paths[2], paths[4])
    assert [p for p, _ in stack.skipped] == [paths[1], paths[3]] and "0 bytes" in stack.skipped[1][1]
    np.testing.assert_array_equal(stack.images, whole[[0, 2, 4]])
    with pytest.raises(BadImage, match=r"1\.png"):
        read_stack(paths, 8)
    with pytest.raises(BadImage, match=r"none of 2 images can be read; first: .*1\.png"):
        read_stack([paths[1], paths[3]], 8, skip_corrupt=True)


def test_overlay_tints_parts_and_outlines_them_opaquely():
    image = np.full((20, 20, 3), 100, np.uint8)
    labels = np.zeros((20, 20), np.uint8)
    labels[5:15, 5:15] = 1
    labels[0, 19] = 255
    rendered = overlay(image, labels, PARTS)
    color = np.array(PARTS.colors[1])
    assert rendered[2, 2].tolist() == [100, 100, 100]  # the background is not tinted
    assert rendered[10, 10].tolist() == np.rint(50 + 0.5 * color).tolist()
    for edge in (rendered[5, 10], rendered[14, 10], rendered[10, 5], rendered[10, 14]):
        assert edge.tolist() == color.tolist()
    assert rendered[0, 19].tolist() == [128, 128, 128]
    assert image.max() == 100


def test_write_overlay_writes_both_formats_and_refuses_invalid_input(tmp_path, photo):
    labels = np.zeros(photo.shape[:2], np.uint8)
    labels[8:16, 8:16] = 2
    np.testing.assert_array_equal(
        read_image(write_overlay(tmp_path / "new" / "a.png", photo, labels, PARTS)), overlay(photo, labels, PARTS)
    )
    outlined = read_image(write_overlay(tmp_path / "a.jpg", photo, labels, PARTS))[8, 10].astype(int)
    assert np.abs(outlined - PARTS.colors[2]).max() < 60  # chroma subsampling would blend it with the image
    with pytest.raises(BadImage, match=r"a\.gif: overlays are written as"):
        write_overlay(tmp_path / "a.gif", photo, labels, PARTS)
    with pytest.raises(BadLabels, match="labels are 24x40 but their image is 40x24"):
        write_overlay(tmp_path / "a.png", photo, labels.T, PARTS)
    with pytest.raises(BadLabels, match="contain id 2, but the parts have ids 0 to 1"):
        write_overlay(tmp_path / "a.png", photo, labels, PartSet.of("background", "head"))


def test_a_full_disk_keeps_the_previous_overlay_and_leaves_no_partial_file(tmp_path, photo, monkeypatch):
    path = write_overlay(tmp_path / "a.png", photo, np.zeros(photo.shape[:2], np.uint8), PARTS)
    before = path.read_bytes()

    def half(self, blob):
        with open(self, "wb") as file:
            file.write(blob[: len(blob) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(DiskFull, match=r"a\.png: the disk is full; free some space"):
        write_overlay(path, photo, np.ones(photo.shape[:2], np.uint8), PARTS)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["a.png"]


def test_reading_shots_imports_no_torch():
    code = "import partshot.data.shots, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
