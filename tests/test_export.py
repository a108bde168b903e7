import numpy as np
import onnx
import pytest
import torch
from torch import nn

from partshot.data.images import resize_image
from partshot.errors import BadArtifact
from partshot.export import ExportWrapper, check_batches, export_onnx
from partshot.inference.exported_model import FORMAT, ExportedModel
from partshot.nets.student import Offset
from partshot.parts import PartSet

PARTS = PartSet.of("background", "left wing", "right wing")
SIZE = 32


class Strided(nn.Module):
    """Position-dependent, with stride 8, like real students; returns logits at 1/8 of the size."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(5, 8, 5, 4, 2), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 3, 3, 2, 1))

    def forward(self, x):
        ramp = torch.linspace(-1, 1, SIZE)
        position = torch.stack(torch.meshgrid(ramp, ramp, indexing="ij")).expand(x.shape[0], -1, -1, -1)
        return 20 * self.layers(torch.cat([x, position], dim=1))


def some_images(*shape, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def net() -> Strided:
    return Strided().eval()


@pytest.fixture(scope="module")
def exported(net, tmp_path_factory):
    return export_onnx(net, PARTS, SIZE, tmp_path_factory.mktemp("export") / "student.onnx", [some_images(50, 41)])


@pytest.mark.parametrize("shape", [(1, 32, 32), (5, 32, 32), (1, 1, 1), (3, 5, 2), (2, 101, 77), (1, 300, 17)])
def test_onnxruntime_matches_torch_at_any_image_and_batch_size(net, exported, shape):
    batch = some_images(*shape, seed=1)
    with torch.inference_mode():
        labels, confidence = ExportWrapper(net, SIZE).eval()(torch.from_numpy(batch))

    found_labels, found_confidence = ExportedModel(exported).predict(batch)

    assert found_labels.shape == found_confidence.shape == shape
    assert found_labels.dtype == found_confidence.dtype == np.uint8
    np.testing.assert_array_equal(found_labels, labels.numpy())
    assert np.abs(found_confidence.astype(int) - confidence.numpy()).max() <= 1
    assert len(np.unique(found_labels)) > 1 or labels.numel() < 100


def test_squashes_images_as_training_does(net, exported):
    image = some_images(90, 130)
    smooth = np.repeat(np.repeat(image[::10, ::10], 10, 0), 10, 1)

    by_onnx, _ = ExportedModel(exported).predict(smooth[None])
    with torch.inference_mode():
        square = torch.from_numpy(resize_image(smooth, SIZE)).permute(2, 0, 1)[None].float()
        logits = net(square / 127.5 - 1)
        logits = nn.functional.interpolate(logits, size=smooth.shape[:2], mode="bilinear")

    assert (by_onnx[0] == logits.argmax(1)[0].numpy()).mean() > 0.99


def test_confidence_is_the_probability_of_the_label(net):
    wrapper, batch = ExportWrapper(net, SIZE).eval(), torch.from_numpy(some_images(1, SIZE, SIZE))
    with torch.inference_mode():
        _, confidence = wrapper(batch)
        logits = wrapper.net(batch.permute(0, 3, 1, 2).float() / 127.5 - 1)
        probability = nn.functional.interpolate(logits, size=(SIZE, SIZE), mode="bilinear").softmax(1).amax(1)

    np.testing.assert_allclose(confidence / 255, probability, atol=0.51 / 255)


def test_file_has_parts_and_size(exported):
    model = ExportedModel(exported)

    assert (model.parts, model.size) == (PARTS, SIZE)
    assert [p.name for p in exported.parent.iterdir()] == ["student.onnx"]


def test_file_that_disagrees_with_torch_is_not_written(exported, tmp_path, monkeypatch):
    monkeypatch.setattr("partshot.export._to_onnx", lambda *_: exported.read_bytes())
    same, other = Strided(), Strided()
    with torch.no_grad():
        other.layers[0].bias += 0.1

    export_onnx(same, PARTS, SIZE, tmp_path / "same.onnx", [some_images(40, 40)])
    with pytest.raises(BadArtifact, match="onnxruntime disagrees with torch on"):
        export_onnx(other, PARTS, SIZE, tmp_path / "other.onnx", [some_images(40, 40)])

    assert [p.name for p in tmp_path.iterdir()] == ["same.onnx"]
    assert same.training and all(p.requires_grad for p in same.parameters())


def test_failed_export_keeps_the_existing_file(tmp_path):
    class DataDependent(nn.Module):
        def forward(self, x):
            return x if x.sum().item() > 0 else -x

    target = tmp_path / "student.onnx"
    target.write_bytes(b"older")

    with pytest.raises(BadArtifact, match="cannot be exported"):
        export_onnx(DataDependent(), PARTS, SIZE, target, [])

    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"older"]


def test_check_batches_have_small_large_and_odd_sizes():
    shapes = [batch.shape for batch in check_batches([some_images(3000, 200)], SIZE)]

    assert len({shape[1:3] for shape in shapes}) == len(shapes) == 5
    assert {shape[0] for shape in shapes} >= {1, 2}
    assert min(min(shape[1:3]) for shape in shapes) < 8 < SIZE < max(max(shape[1:3]) for shape in shapes) <= 1024
    assert [batch.shape for batch in check_batches([], SIZE)]


def test_newer_foreign_and_damaged_files_raise(exported, tmp_path):
    def with_metadata(**changes):
        model = onnx.load(exported)
        for prop in list(model.metadata_props):
            name = prop.key.removeprefix("partshot.")
            if name in changes:
                prop.value = changes[name]
        path = tmp_path / "other.onnx"
        onnx.save(model, path)
        return path

    with pytest.raises(BadArtifact, match="newer partshot"):
        ExportedModel(with_metadata(format=str(FORMAT + 1)))
    with pytest.raises(BadArtifact, match="damaged"):
        ExportedModel(with_metadata(parts="{"))
    foreign = onnx.load(exported)
    del foreign.metadata_props[:]
    onnx.save(foreign, tmp_path / "foreign.onnx")
    with pytest.raises(BadArtifact, match="that partshot did not export"):
        ExportedModel(tmp_path / "foreign.onnx")
    for name, blob in {"cut": exported.read_bytes()[:900], "empty": b"", "text": b"no model at all"}.items():
        (tmp_path / name).write_bytes(blob)
        with pytest.raises(BadArtifact, match=name):
            ExportedModel(tmp_path / name)
    with pytest.raises(BadArtifact, match="missing.onnx"):
        ExportedModel(tmp_path / "missing.onnx")
    with pytest.raises(BadArtifact, match="folder"):
        ExportedModel(tmp_path)


def test_the_same_network_is_exported_once(net, tmp_path, monkeypatch):
    path = export_onnx(net, PARTS, SIZE, tmp_path / "student.onnx")
    with monkeypatch.context() as patch:
        patch.setattr("partshot.export._to_onnx", lambda *_: pytest.fail("exported again"))
        assert export_onnx(net, PARTS, SIZE, path) == path
        for other in (
            {"net": Offset(net, [0.0, 0.0, 1.0]).eval()},
            {"parts": PartSet.of("a", "b", "c")},
            {"native": 9},
        ):
            with pytest.raises(pytest.fail.Exception, match="exported again"):
                export_onnx(**{"net": net, "parts": PARTS, "size": SIZE, "path": path, **other})
    # A truncated file is written again.
    path.write_bytes(path.read_bytes()[:100])
    assert ExportedModel(export_onnx(net, PARTS, SIZE, path)).source
