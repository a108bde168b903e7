import json

import numpy as np
import pytest
from PIL import Image

from partshot.data.labels import write_labels
from partshot.data.shots import Shots, find_pairs, load_shots, mask_files
from partshot.errors import BadImage, BadLabels, BadParts
from partshot.ops.letterbox import letterbox, letterbox_labels
from partshot.parts import COLORS, PartSet

PARTS = PartSet.of("background", "head", "tail")


def labels_of(height: int, width: int, seed: int = 0) -> np.ndarray:
    labels = np.random.default_rng(seed).integers(0, 3, (height, width), np.uint8)
    labels[0, :4] = (0, 1, 2, 255)
    return labels


def image_of(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def write_pack(folder, names=("cat", "dog", "eel"), classes=True, size=(12, 16)):
    """Writes images/NAME.png and masks/NAME.png, each one pixel higher than the previous."""
    (folder / "images").mkdir(parents=True)
    for i, name in enumerate(names):
        Image.fromarray(image_of(size[0] + i, size[1], i)).save(folder / "images" / f"{name}.png")
        write_labels(folder / "masks" / f"{name}.png", labels_of(size[0] + i, size[1], i), PARTS)
    if classes:
        (folder / "classes.json").write_text(json.dumps(PARTS.to_dict()))
    return folder


def check_pack(shots: Shots, names=("cat", "dog", "eel")):
    assert shots.names == tuple(names) and shots.parts == PARTS
    for i, (image, labels) in enumerate(zip(shots.images, shots.labels, strict=True)):
        np.testing.assert_array_equal(image, image_of(12 + i, 16, i))
        np.testing.assert_array_equal(labels, labels_of(12 + i, 16, i))


def test_all_layouts_give_the_same_shots(tmp_path):
    pack = write_pack(tmp_path / "pack")
    check_pack(load_shots(pack))
    check_pack(load_shots(pack / "masks", pack / "images"))
    check_pack(load_shots(str(pack), str(pack)))

    beside = tmp_path / "beside"
    beside.mkdir()
    for name in ("cat", "dog", "eel"):
        (beside / f"{name}.png").write_bytes((pack / "masks" / f"{name}.png").read_bytes())
        Image.open(pack / "images" / f"{name}.png").save(beside / f"{name}.bmp")
    (beside / "classes.json").write_text(json.dumps(PARTS.to_dict()))
    (beside / "notes.txt").touch()
    check_pack(load_shots(beside))
    check_pack(load_shots(beside, beside))

    others = tmp_path / "others"  # labeled pairs in one folder, other images in another
    others.mkdir()
    Image.new("RGB", (8, 8)).save(others / "fox.jpg")
    check_pack(load_shots(beside, others))


def test_names_select_and_order_the_shots(tmp_path):
    shots = load_shots(write_pack(tmp_path), names=["eel", "cat"])
    assert shots.names == ("eel", "cat") and shots.images[0].shape[0] == 14


def test_unlabeled_images_are_allowed_in_a_separate_folder(tmp_path):
    pack = write_pack(tmp_path)
    Image.new("RGB", (16, 16)).save(pack / "images" / "fox.png")
    assert len(load_shots(pack / "masks", pack / "images")) == 3
    with pytest.raises(BadLabels, match=r"fox\.png has no mask in .*masks; label it, or move unlabeled"):
        load_shots(pack)


def test_the_error_of_a_missing_image_or_mask_names_the_nearest_stem(tmp_path):
    pack = write_pack(tmp_path)
    (pack / "images" / "cat.png").rename(pack / "images" / "cat_1.png")
    with pytest.raises(BadLabels, match=r"cat\.png has no image in .*images; nearest: cat_1\.png; add"):
        load_shots(pack / "masks", pack / "images")
    with pytest.raises(BadLabels, match=r"'cat_1' has no mask in .*masks; nearest: cat\.png; add cat_1\.png"):
        load_shots(pack / "masks", pack / "images", names=["cat_1"])
    (pack / "masks" / "cat.png").rename(pack / "masks" / "cat_2.png")
    with pytest.raises(BadLabels, match=r"cat_2\.png has no image in .*nearest: cat_1\.png"):
        load_shots(pack)
    (pack / "masks" / "cat_2.png").unlink()
    with pytest.raises(BadLabels, match=r"cat_1\.png has no mask"):
        load_shots(pack)


def test_two_images_with_the_same_stem_are_refused(tmp_path):
    pack = write_pack(tmp_path)
    Image.new("RGB", (16, 12)).save(pack / "images" / "cat.jpg")
    with pytest.raises(BadImage, match=r"cat\.jpg and cat\.png share a name"):
        load_shots(pack)
    beside = tmp_path / "beside"
    beside.mkdir()
    for name in ("cat.jpg", "cat.bmp", "cat.png"):
        Image.new("RGB" if name != "cat.png" else "L", (16, 12)).save(beside / name)
    with pytest.raises(BadImage, match=r"cat\.bmp and cat\.jpg share a name"):
        load_shots(beside)


def test_other_masks_in_the_image_folder_can_be_excluded(tmp_path):
    pack = write_pack(tmp_path / "pack")
    images = tmp_path / "images"
    images.mkdir()
    for name in ("cat", "dog", "eel"):
        Image.open(pack / "images" / f"{name}.png").save(images / f"{name}.bmp")
    others = [(pack / "masks" / "eel.png").rename(images / "eel.png")]
    with pytest.raises(BadImage, match="share a name"):
        load_shots(pack / "masks", images)
    assert load_shots(pack / "masks", images, leave_out=others).names == ("cat", "dog")
    assert mask_files(pack) == {name: pack / "masks" / f"{name}.png" for name in ("cat", "dog")}


def test_files_can_be_excluded_from_a_folder_of_pairs(tmp_path):
    pack, pairs = write_pack(tmp_path / "pack"), tmp_path / "pairs"
    pairs.mkdir()
    for name in ("cat", "dog", "eel"):
        (pack / "masks" / f"{name}.png").rename(pairs / f"{name}.png")
        Image.open(pack / "images" / f"{name}.png").save(pairs / f"{name}.bmp")
    others = [pairs / "cat.tif", pairs / "fox.bmp"]
    for path in others:
        Image.new("RGB", (8, 8)).save(path)
    with pytest.raises(BadImage, match="share a name"):
        find_pairs(pairs)
    for images in (None, pairs):
        assert [pair.image.name for pair in find_pairs(pairs, images, leave_out=others)] == [
            *("cat.bmp", "dog.bmp", "eel.bmp")
        ]


def test_missing_and_empty_folders_are_refused(tmp_path):
    pack = write_pack(tmp_path / "pack")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadLabels, match="nowhere: no such folder"):
        load_shots(tmp_path / "nowhere")
    with pytest.raises(BadLabels, match=r"empty: contains no mask \(\*\.png\)"):
        load_shots(tmp_path / "empty")
    with pytest.raises(BadImage, match="empty: contains no image"):
        load_shots(pack / "masks", tmp_path / "empty")
    with pytest.raises(BadImage, match="nowhere: no such folder"):
        load_shots(pack / "masks", tmp_path / "nowhere")
    with pytest.raises(BadLabels, match="masks: contains no mask beside an image"):
        load_shots(tmp_path / "pack" / "masks")


def test_jpeg_masks_are_refused(tmp_path):
    pack = write_pack(tmp_path)
    Image.open(pack / "masks" / "dog.png").convert("L").save(pack / "masks" / "dog.jpg")
    (pack / "masks" / "dog.png").unlink()
    with pytest.raises(BadLabels, match=r"dog\.jpg is in the folder of masks but has no mask dog\.png.*JPEG"):
        load_shots(pack)


def test_the_error_of_a_size_mismatch_names_the_mask(tmp_path):
    pack = write_pack(tmp_path)
    write_labels(pack / "masks" / "dog.png", labels_of(10, 20), PARTS)
    with pytest.raises(BadLabels) as error:
        load_shots(pack)
    mask, image = pack / "masks" / "dog.png", pack / "images" / "dog.png"
    reason = f"mask {mask} is 20x10 pixels, but its image {image} is 16x13"
    assert str(error.value) == f"{reason}; export it at the image's size"


def test_a_mask_without_the_exif_rotation_is_recognized(tmp_path):
    pack = write_pack(tmp_path, names=("cat",))
    exif = Image.Exif()
    exif[0x0112] = 6
    (pack / "images" / "cat.png").unlink()
    Image.fromarray(image_of(12, 16)).save(pack / "images" / "cat.jpg", exif=exif.tobytes())
    with pytest.raises(BadLabels, match=r"cat\.png is 16x12 pixels, but .* is 12x16; .*EXIF: rotate the mask"):
        load_shots(pack)
    write_labels(pack / "masks" / "cat.png", np.rot90(labels_of(12, 16), -1), PARTS)
    shots = load_shots(pack)
    assert shots.images[0].shape == (16, 12, 3) and shots.labels[0].shape == (16, 12)


@pytest.mark.parametrize("damage", [lambda whole: b"", lambda whole: whole[: len(whole) // 2], lambda whole: b"GIF"])
def test_a_corrupt_shot_is_an_error(tmp_path, damage):
    pack = write_pack(tmp_path)
    for path, kind in ((pack / "images" / "dog.png", BadImage), (pack / "masks" / "dog.png", BadLabels)):
        whole = path.read_bytes()
        path.write_bytes(damage(whole))
        with pytest.raises(kind, match=r"dog\.png"):
            load_shots(pack)
        path.write_bytes(whole)
    check_pack(load_shots(pack))


def test_the_error_of_an_unknown_id_names_the_mask(tmp_path):
    pack = write_pack(tmp_path)
    with pytest.raises(BadLabels, match=r"cat\.png contains id 2 \(\d+ pixels\), but the parts have ids 0 to 1"):
        load_shots(pack, parts=PartSet.of("background", "head"))


def test_masks_with_a_single_class_are_refused(tmp_path):
    pack = write_pack(tmp_path, names=("cat",))
    blank = np.zeros((12, 16), np.uint8)
    for labels, reason in (
        (blank, "contain only 'background'; label at least two classes"),
        (blank + np.uint8(2), "contain only 'tail'"),
        (blank + np.uint8(255), r"contain only ignored pixels \(255\)"),
        (np.where(labels_of(12, 16) == 1, 255, 0).astype(np.uint8), "255 means ignore; write the part as 1"),
    ):
        write_labels(pack / "masks" / "cat.png", labels, PARTS)
        with pytest.raises(BadLabels, match=reason):
            load_shots(pack)


def test_rgb_masks_are_converted_on_request(tmp_path):
    pack = write_pack(tmp_path)
    for path in (pack / "masks").glob("*.png"):
        Image.open(path).convert("RGB").save(path)
    with pytest.raises(BadLabels, match=r"cat\.png is RGB.*add --rgb-masks"):
        load_shots(pack)
    check_pack(load_shots(pack, rgb_masks=True))
    (pack / "classes.json").unlink()
    with pytest.raises(BadLabels, match=r"cat\.png is RGB, but no classes\.json"):
        load_shots(pack, rgb_masks=True)


def test_parts_come_from_the_argument_then_classes_json_then_the_masks(tmp_path):
    pack = write_pack(tmp_path)
    given = PartSet.of("ground", "a", "b", "c")
    assert load_shots(pack, parts=given).parts == given
    nearer = PartSet.of("background", "front", "back")
    (pack / "masks" / "classes.json").write_text(json.dumps({**nearer.to_dict(), "license": "none"}))
    assert load_shots(pack).parts == nearer
    (pack / "masks" / "classes.json").write_text("{")
    with pytest.raises(BadParts, match=r"classes\.json: not JSON"):
        load_shots(pack)
    (pack / "masks" / "classes.json").unlink()
    (pack / "classes.json").unlink()
    with pytest.warns(UserWarning, match="no classes.json, so the parts are called part 1 to part 2"):
        found = load_shots(pack).parts
    assert found.names == ("background", "part 1", "part 2") and found.colors == PARTS.colors


def test_without_classes_json_gray_masks_get_default_colors_and_gaps_are_refused(tmp_path):
    pack = write_pack(tmp_path, names=("cat",), classes=False)
    Image.fromarray(labels_of(12, 16)).save(pack / "masks" / "cat.png")
    assert load_shots(pack).parts.colors == COLORS[:3]
    Image.fromarray(labels_of(12, 16) // 2 * 2).save(pack / "masks" / "cat.png")
    with pytest.raises(BadLabels, match=r"contain ids 0, 2, 254, and no classes\.json names id 1; write one"):
        load_shots(pack)


@pytest.fixture
def ten() -> Shots:
    sizes = [(20 + i, 30 - i) for i in range(10)]
    return Shots(
        images=tuple(image_of(*size) for size in sizes),
        labels=tuple(labels_of(*size) for size in sizes),
        names=tuple(f"s{i}" for i in range(10)),
        parts=PARTS,
    )


def test_samples_of_a_seed_are_nested_and_seeds_differ(ten):
    full = ten.sample(10, seed=3).names
    assert sorted(full) == sorted(ten.names)
    for k in range(1, 10):
        assert ten.sample(k, seed=3).names == full[:k]
    assert len({ten.sample(5, seed=seed).names for seed in range(8)}) == 8


def test_a_sample_keeps_images_masks_and_names_together(ten):
    sample = ten.sample(4, seed=0)
    assert len(sample) == 4 and sample.parts is ten.parts
    for name, image, labels in zip(sample.names, sample.images, sample.labels, strict=True):
        i = ten.names.index(name)
        assert image is ten.images[i] and labels is ten.labels[i]


def test_a_sample_larger_than_the_shots_is_refused(ten):
    for k in (0, 11):
        with pytest.raises(BadLabels, match=f"k = {k}, but there are 10 labeled images; choose 1 to 10"):
            ten.sample(k, seed=0)


def test_present_counts_parts_and_not_ignore(ten):
    assert ten.present() == (0, 1, 2)
    only = Shots(ten.images[:1], (np.where(ten.labels[0] == 2, 2, 255).astype(np.uint8),), ("a",), PARTS)
    assert only.present() == (2,)


def test_stack_letterboxes_mixed_sizes(ten):
    images, labels = ten.stack(16)
    assert images.shape == (10, 16, 16, 3) and labels.shape == (10, 16, 16)
    np.testing.assert_array_equal(images[3], letterbox(ten.images[3], 16))
    np.testing.assert_array_equal(labels[3], letterbox_labels(ten.labels[3], 16))


def test_shots_validate_their_arrays():
    image, labels = image_of(4, 6), labels_of(4, 6)
    with pytest.raises(BadLabels, match="labels of 'a' are 4x6 but its image is 6x4"):
        Shots((image,), (labels.T,), ("a",), PARTS)
    with pytest.raises(BadLabels, match="labels of 'a' contain id 2, but the parts have ids 0 to 1"):
        Shots((image,), (labels,), ("a",), PartSet.of("background", "head"))
    with pytest.raises(BadLabels, match="1 images, 1 labels and 2 names"):
        Shots((image,), (labels,), ("a", "b"), PARTS)


def test_find_pairs_returns_names_and_paths(tmp_path):
    pack = write_pack(tmp_path)
    pairs = find_pairs(pack / "masks", pack / "images", names=["dog"])
    assert pairs == [("dog", pack / "images" / "dog.png", pack / "masks" / "dog.png")]


def test_every_shot_is_left_out_by_one_fold(ten):
    two, five = ten.subset([0, 1]), ten.subset(range(5))
    assert ten.subset([0]).folds(3) == [] and two.folds(3) == [[0], [1]]
    assert five.folds(3) == [[0, 3], [1, 4], [2]]
    assert five.without([0, 3]).names == tuple(five.names[i] for i in (1, 2, 4))
