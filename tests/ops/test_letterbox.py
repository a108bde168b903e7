import numpy as np
import pytest
import torch
import torch.nn.functional as F

from partshot.data.images import resize_image
from partshot.data.labels import resize_labels
from partshot.data.shots import Shots
from partshot.data.symmetry import one_sided
from partshot.export import ExportWrapper, export_onnx
from partshot.inference.exported_model import ExportedModel
from partshot.nets.student import STRIDE, build_student
from partshot.ops.letterbox import _STEP, Box, input_size, letterbox, letterbox_labels
from partshot.ops.position import position_map
from partshot.ops.uncrop import remove_letterbox
from partshot.parts import PartSet
from partshot.represent.choose import open_representation
from partshot.segmenter import Segmenter
from partshot.student import Student
from partshot.toy.dataset import draw, toy_shots
from partshot.train.fit_head import PRESETS as FIT
from partshot.train.forest import Forest

PARTS = PartSet.of("background", "left wing", "right wing")


def smooth(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth blobs, for which the interpolation method makes hardly a difference."""
    lattice = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    image = F.interpolate(lattice, size=(height, width), mode="bicubic").clamp(0, 1)
    return (image[0].permute(1, 2, 0) * 255).byte().numpy()


def wide(kind: str, index: int, width: int = 96, height: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """A synthetic image and its labels, padded to a wide image."""
    image, labels = draw(kind, height, 5, index)
    margin = (width - height) // 2
    image = np.pad(image, [(0, 0), (margin, margin), (0, 0)], "edge")
    return image, np.pad(labels, [(0, 0), (margin, margin)], "constant")


def wide_shots(count: int) -> Shots:
    pairs = [wide("faces", i) for i in range(count)]
    parts = toy_shots("faces", 32, 1).parts
    images, labels = zip(*pairs, strict=True)
    return Shots(images, labels, tuple(map(str, range(count))), parts)


@pytest.fixture(scope="module")
def student() -> Student:
    torch.manual_seed(0)
    return Student(build_student("fast-unet", 3), "fast-unet", PARTS, 128)


def test_squares_are_only_resized():
    image, labels = draw("faces", 90, 0, 0)
    for size in (64, 90, 128):
        np.testing.assert_array_equal(letterbox(image, size), resize_image(image, size))
        np.testing.assert_array_equal(letterbox_labels(labels, size), resize_labels(labels, size))
    rows = (torch.arange(24) + 0.5) / 24 * 2 - 1
    assert torch.equal(position_map(24, 24)[0, 0, 0], rows) and torch.equal(position_map(24, 24)[0, 1, :, 0], rows)


@pytest.mark.parametrize("height, width", [(90, 120), (120, 90), (10, 200), (1, 999), (37, 37)])
def test_images_are_centered_with_symmetric_padding(height, width):
    image = smooth(height, width)
    box, out = Box.of(height, width, 64), letterbox(image, 64)

    assert out.shape == (64, 64, 3)
    assert max(box.height, box.width) == 64 and min(box.height, box.width) >= 1
    # The aspect is kept up to two pixels.
    assert abs(box.height / box.width - height / width) <= 2 / 64
    assert (box.top, box.left) == ((64 - box.height) / 2, (64 - box.width) / 2)
    if box.top:
        np.testing.assert_array_equal(out[box.top - 1], out[box.top])
    np.testing.assert_array_equal(letterbox(image[:, ::-1], 64), out[:, ::-1])


def test_labels_are_aligned_with_the_image_and_255_in_the_padding():
    image, labels = wide("faces", 0)
    out, box = letterbox_labels(labels, 48), Box.of(64, 96, 48)

    assert (box.top, box.height, box.left) == (8, 32, 0)
    assert (out[:8] == 255).all() and (out[40:] == 255).all() and (out[8:40] < 255).all()
    np.testing.assert_array_equal(out[8:40], labels[1::2, 1::2])
    assert set(wide_shots(2).stack(48)[1].ravel()) <= {*range(10), 255}


def test_input_sizes_keep_the_aspect_in_multiples_of_the_stride():
    assert _STEP == STRIDE
    assert input_size(300, 400, 160) == (128, 160)
    assert input_size(400, 300, 160) == (160, 128)
    assert input_size(77, 77, 160) == (160, 160)
    assert input_size(20, 400, 160) == (32, 160)
    assert input_size(1, 10**6, 96) == (32, 96)


def test_positions_are_those_of_a_centered_letterbox():
    square, oblong = position_map(32, 32), position_map(24, 32)
    torch.testing.assert_close(oblong, square[:, :, 4:28])
    torch.testing.assert_close(position_map(32, 24), square[:, :, :, 4:28])


def test_remove_letterbox_inverts_letterbox():
    image, labels = wide("faces", 1)
    mask = torch.from_numpy(np.where(letterbox_labels(labels, 64) == 1, 1.0, 0.0))[None, None].float()
    back = remove_letterbox(mask, labels.shape, 64)[0, 0].numpy() > 0.5
    assert (back == (labels == 1)).mean() > 0.97


def test_students_keep_the_aspect_and_older_students_do_not(student, tmp_path):
    square, oblong = smooth(50, 50), smooth(60, 90)
    sizes = []
    hook = student.net.register_forward_pre_hook(lambda _, given: sizes.append(tuple(given[0].shape[2:])))
    kept = student.predict([square, oblong, smooth(90, 60)])
    squashed = Student(student.net, "fast-unet", PARTS, 128, squashed=True)
    squashed.save(tmp_path / "old")
    card = (tmp_path / "old" / "card.json").read_text()
    (tmp_path / "old" / "card.json").write_text(card.replace('"aspect"', '"unknown"'))
    old = Student.load(tmp_path / "old")
    before = old.predict([square, oblong])
    hook.remove()

    assert sizes == [(160, 160), (96, 160), (160, 96)]
    assert [one.labels.shape for one in kept] == [(50, 50), (60, 90), (90, 60)]
    np.testing.assert_array_equal(kept[0].probabilities, before[0].probabilities)
    assert old.squashed and np.abs(kept[1].probabilities - before[1].probabilities).max() > 0
    student.save(tmp_path / "new")
    again = Student.load(tmp_path / "new").predict([oblong])[0]
    np.testing.assert_array_equal(again.probabilities, kept[1].probabilities)


def test_the_exported_model_equals_torch_for_every_aspect(student, tmp_path):
    path = export_onnx(
        student.inference_net, PARTS, 64, tmp_path / "s.onnx", [smooth(60, 90)], squashed=False, native=300
    )
    exported, served = ExportedModel(path), ExportWrapper(student.inference_net, 64, squashed=False).eval()

    assert (exported.squashed, exported.native, exported.size) == (False, 300, 64)
    for shape in [(48, 64), (64, 48), (64, 64), (100, 2000), (700, 31), (1, 1), (90, 60)]:
        images = np.stack([smooth(*shape), smooth(*shape, seed=1)])
        with torch.inference_mode():
            labels, confidence = served(torch.from_numpy(images))
        found, probability = exported.predict(images)
        assert (found != labels.numpy()).mean() < 0.001
        assert np.abs(probability.astype(int) - confidence.numpy()).max() <= 2
    by_student = Student(student.net, "fast-unet", PARTS, 52)
    assert by_student.input_size == 64
    image = smooth(120, 90)
    assert (exported.predict(image[None])[0][0] == by_student.predict([image])[0].labels).mean() > 0.99


def test_segmenter_and_forest_accept_non_square_images(tmp_path):
    shots = wide_shots(3)
    fitted = Segmenter(open_representation("pixels"), shots.parts, "linear", 64, FIT["fast"].changed(images=60))
    own = fitted.fit(shots, quiet=True).predict(shots.images)
    fitted.save(tmp_path / "segmenter")
    again = Segmenter.load(tmp_path / "segmenter").predict(shots.images)

    assert [one.labels.shape for one in own] == [(64, 96)] * 3
    np.testing.assert_array_equal(own[0].probabilities, again[0].probabilities)
    by_forest = Forest(shots.parts, 64).fit(shots).predict(shots.images)
    assert np.mean([(a == b).mean() for a, b in zip(by_forest, shots.labels, strict=True)]) > 0.9


@pytest.mark.parametrize("height, width", [(48, 64), (64, 48)])
def test_one_sided_objects_are_detected_in_letterboxed_images(height, width):
    rng = np.random.default_rng(0)
    images = rng.integers(60, 120, (60, height, width, 3), dtype=np.uint8)
    for image in images:
        top, left = rng.integers(0, height // 2), rng.integers(0, width // 4)
        image[top : top + height // 2, left : left + width // 3] = 220
    two_sided = np.where(np.arange(60)[:, None, None, None] % 2, images, images[:, :, ::-1])

    assert one_sided(np.stack([letterbox(image, 64) for image in images]))
    assert not one_sided(np.stack([letterbox(image, 64) for image in two_sided]))
