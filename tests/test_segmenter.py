"""Segmenter and Student: prediction sizes and ranges, saving and loading, and error messages on misuse."""

import numpy as np
import pytest
import torch
from scipy.stats import entropy as scipy_entropy

import partshot.segmenter
from partshot.data.images import resize_image
from partshot.errors import BadArtifact, BadRecipe, NotFitted
from partshot.inference.exported_model import ExportedModel
from partshot.nets.student import build_student
from partshot.ops.images import as_tensors
from partshot.parts import PartSet
from partshot.represent.choose import open_representation
from partshot.segmenter import Segmenter
from partshot.student import Student
from partshot.tasks.export import export
from partshot.toy.dataset import toy_shots
from partshot.train.fit_ensemble import PRESETS as ENSEMBLE_PRESETS
from partshot.train.fit_head import PRESETS

RECIPE = PRESETS["fast"].changed(images=24)
ENSEMBLE = ENSEMBLE_PRESETS["fast"].changed(pixels=64 * 30)


@pytest.fixture(scope="module")
def shots():
    return toy_shots("faces", 32, 2)


@pytest.fixture(scope="module")
def fitted(shots):
    return Segmenter(open_representation("pixels+position"), shots.parts, "linear", 32, RECIPE).fit(shots, quiet=True)


@pytest.fixture(scope="module")
def ensemble(shots):
    """Fitted to one labeled image; the other heads are fitted to two."""
    unfitted = Segmenter(open_representation("pixels+position"), shots.parts, "ensemble", 32, ENSEMBLE)
    return unfitted.fit(shots.subset([0]), quiet=True)


@pytest.fixture(scope="module")
def student(shots):
    torch.manual_seed(0)
    return Student(build_student("fast-unet", len(shots.parts)), "fast-unet", shots.parts, 32, {"fingerprint": "f"})


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in [(20, 33), (32, 32), (5, 1), *[(9, 8)] * 7]]


def same(one, other):
    return all(
        np.array_equal(a.labels, b.labels) and np.array_equal(a.probabilities, b.probabilities)
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("which", ["fitted", "ensemble", "student"])
def test_predictions_have_the_images_sizes_and_ranges(which, images, request):
    found = request.getfixturevalue(which).predict(images)
    assert len(found) == len(images)
    for one, image in zip(found, images, strict=True):
        assert one.labels.shape == one.uncertainty.shape == image.shape[:2]
        assert one.labels.dtype == np.uint8 and one.labels.max() < 10
        assert one.probabilities.shape == (10, *image.shape[:2])
        np.testing.assert_allclose(one.probabilities.sum(0), 1, atol=1e-5)
        # A majority vote and the argmax of the mean may differ.
        agreement = (one.probabilities.argmax(0) == one.labels).mean()
        assert agreement == 1 or which == "ensemble" and agreement > 0.7
        assert 0 <= one.uncertainty.min() <= one.uncertainty.max() <= 1
    assert request.getfixturevalue(which).predict([]) == []


@pytest.mark.parametrize("which", ["fitted", "ensemble"])
def test_loaded_segmenter_predicts_the_same(which, images, request, tmp_path):
    fitted = request.getfixturevalue(which)
    again = Segmenter.load(fitted.save(tmp_path / "segmenter"))
    assert same(again.predict(images), fitted.predict(images))
    assert (again.recipe, again.fitted, again.head_name) == (fitted.recipe, fitted.fitted, fitted.head_name)


def test_loaded_student_predicts_the_same(student, images, tmp_path):
    again = Student.load(student.save(tmp_path / "student"), fingerprint="f")
    assert same(again.predict(images), student.predict(images))
    assert (again.name, again.size, again.parts, again.card["fingerprint"]) == ("fast-unet", 32, student.parts, "f")


def test_fitting_twice_gives_the_same_predictions(fitted, ensemble, shots, images):
    for one, given in ((fitted, shots), (ensemble, shots.subset([0]))):
        before = one.predict(images)
        assert same(one.fit(given, quiet=True).predict(images), before)


def test_ensemble_predicts_vote_mean_and_divergence_of_its_members(ensemble, shots):
    (prediction,) = ensemble.predict([shots.images[1]])
    with torch.no_grad():
        pyramid = ensemble.representation.features(as_tensors(shots.images[1][None]).to(ensemble.device))
        members = ensemble.head_.members(pyramid)[:, 0].cpu().numpy()
    votes = members.argmax(1)
    expected = [[np.bincount(votes[:, y, x], minlength=10).argmax() for x in range(32)] for y in range(32)]
    assert np.array_equal(prediction.labels, expected)
    np.testing.assert_allclose(prediction.probabilities, members.mean(0), atol=1e-6)
    # Ten members and ten parts: the divergence is largest where each member is certain of a different part.
    uncertainty = scipy_entropy(members.mean(0), axis=0) - scipy_entropy(members, axis=1).mean(0)
    np.testing.assert_allclose(prediction.uncertainty, uncertainty / np.log(10), atol=1e-5)


def test_recipe_of_another_head_raises(shots):
    for head, recipe in (("ensemble", RECIPE), ("linear", ENSEMBLE)):
        with pytest.raises(BadRecipe, match="is fitted by a Fit"):
            Segmenter(open_representation("pixels"), shots.parts, head, 32, recipe)
    assert Segmenter(open_representation("pixels"), shots.parts, "ensemble").recipe == ENSEMBLE_PRESETS["fast"]
    assert Segmenter(open_representation("pixels"), shots.parts).recipe == PRESETS["fast"]


def test_use_before_fit_raises_not_fitted(shots, images, tmp_path):
    unfitted = Segmenter(open_representation("pixels"), shots.parts, "linear", 32)
    for call in (lambda: unfitted.predict(images), lambda: unfitted.save(tmp_path / "s")):
        with pytest.raises(NotFitted, match="fit"):
            call()
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("which", ["fitted", "ensemble"])
def test_soft_labels_are_predictions_at_half_size(which, request):
    fitted = request.getfixturevalue(which)
    stack, _ = toy_shots("faces", 32, 9, seed=4).stack(64)
    ticks = []
    soft = fitted.soft_labels(stack, ticks.append)
    assert soft.ids.shape[2:] == (32, 32) and len(soft) == 9 and soft.classes == 10
    assert ticks == [8, 9]
    predicted = np.stack([p.probabilities.argmax(0) for p in fitted.predict(list(stack))])
    assert (soft.ids[:, 0].numpy() == predicted[:, ::2, ::2]).mean() > 0.9


def test_unknown_head_error_suggests_the_nearest_name(shots):
    with pytest.raises(BadRecipe, match="did you mean 'linear'"):
        Segmenter(open_representation("pixels"), shots.parts, "liner", 32).make_head()


def test_loading_other_artifacts_raises(fitted, student, tmp_path):
    student.save(tmp_path / "student")
    with pytest.raises(BadArtifact, match="is an artifact of kind student, not segmenter"):
        Segmenter.load(tmp_path / "student")
    with pytest.raises(BadArtifact, match="other settings or other data"):
        Student.load(tmp_path / "student", fingerprint="g")
    with pytest.raises(BadArtifact, match="no such folder"):
        Student.load(tmp_path / "nowhere")
    wrong = Student(build_student("fast-unet", 3), "fast-unet", student.parts, 32)
    wrong.save(tmp_path / "wrong")
    with pytest.raises(BadArtifact, match="do not fit"):
        Student.load(tmp_path / "wrong")


@pytest.mark.parametrize("size, input_size", [(32, 32), (64, 64), (128, 160), (160, 192), (256, 320)])
def test_student_input_is_a_quarter_larger_than_in_training(shots, size, input_size):
    sizes = []

    class Spy(torch.nn.Module):
        def forward(self, images):
            sizes.append(images.shape[2])
            return torch.zeros(len(images), len(shots.parts), *images.shape[2:])

    spy = Student(Spy(), "fast-unet", shots.parts, size)
    assert spy.input_size == input_size
    assert spy.predict(shots.images[:1])[0].labels.shape == shots.images[0].shape[:2]
    assert sizes == [input_size]


def test_flip_tta_makes_predictions_flip_equivariant_also_in_onnx(tmp_path):
    torch.manual_seed(0)
    parts = PartSet.of("background", "left eye", "right eye", "nose")
    net, images = (
        build_student("fast-unet", 4),
        np.random.default_rng(0).integers(0, 256, (2, 40, 48, 3), dtype=np.uint8),
    )
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.uniform_(0.1, 0.2)  # an untrained net is nearly constant otherwise
    plain, student = (Student(net, "fast-unet", parts, 32, flip_tta=flip) for flip in (False, True))
    student.save(tmp_path / "student")
    loaded = Student.load(tmp_path / "student")
    assert loaded.flip_tta and not plain.flip_tta

    def probabilities(model, batch):
        return np.stack([one.probabilities for one in model.predict(list(batch))])

    found, swapped = probabilities(loaded, images), [0, 2, 1, 3]
    np.testing.assert_allclose(probabilities(loaded, images[:, :, ::-1])[:, swapped, :, ::-1], found, atol=0.02)
    assert (
        np.abs(probabilities(plain, images[:, :, ::-1])[:, swapped, :, ::-1] - probabilities(plain, images)).max()
        > 0.05
    )
    # The softmax of the mean log probabilities of both images.
    logs = [np.log(probabilities(plain, some) + 1e-12) for some in (images, images[:, :, ::-1])]
    mean = torch.from_numpy(logs[0] + logs[1][:, swapped, :, ::-1]).div(2).softmax(1)
    np.testing.assert_allclose(found, mean.numpy(), atol=0.02)
    labels, _ = ExportedModel(export(loaded, tmp_path / "student.onnx", list(images))).predict(images)
    assert np.mean(labels == found.argmax(1)) > 0.98


def test_offsets_are_kept_on_disk_and_in_onnx(images, tmp_path):
    torch.manual_seed(0)
    net, parts = build_student("fast-unet", 3), PartSet.of("background", "head", "eye")
    stack, adjustment = np.stack([resize_image(one, 32) for one in images]), (0.0, 0.5, 1.0)
    plain, adjusted = (Student(net, "fast-unet", parts, 32) for _ in range(2))
    before = plain.predict(images)
    assert adjusted.fit_offsets(stack, adjustment, 1.5) is adjusted and adjusted.offsets[0] == 0
    # A second fit starts from the net's own logits.
    assert adjusted.fit_offsets(stack, adjustment, 1.5).offsets == pytest.approx(adjusted.offsets)
    after = adjusted.predict(images)
    shift = np.log(after[0].probabilities) - np.log(before[0].probabilities)
    shift -= shift[:1]
    np.testing.assert_allclose(shift.mean((1, 2)), adjusted.offsets, atol=0.02)
    again = Student.load(adjusted.save(tmp_path / "student"))
    assert again.offsets == pytest.approx(adjusted.offsets) and same(again.predict(images), after)
    labels, _ = ExportedModel(export(again, tmp_path / "student.onnx", images)).predict(images[0][None])
    assert np.mean(labels[0] == after[0].labels) > 0.98
    assert plain.offsets is None and same(plain.predict(images), before)


def test_student_in_segmenter_is_deprecated():
    with pytest.warns(DeprecationWarning, match="partshot.student"):
        from partshot.segmenter import Student as Old
    assert Old is Student
    with pytest.raises(AttributeError, match="no attribute 'Teacher'"):
        partshot.segmenter.Teacher  # noqa: B018
