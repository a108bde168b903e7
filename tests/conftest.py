"""Fixtures of all tests: a cache of their own, one thread, an untrained generator and an untrained ONNX model."""

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from partshot.artifact import Artifact
from partshot.inference.exported_model import model_metadata
from partshot.nets.stylegan2 import Discriminator, Generator, Shape
from partshot.parts import PartSet
from partshot.represent.choose import tensors_of
from partshot.represent.stylegan import StyleGAN


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """So that no test reads or fills the user's cache; not one for each test, since fixtures of modules run things."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PARTSHOT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def one_thread():
    """So that sums run in one order, whatever the machine, and a forked process needs no threads of its parent."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def blobs(tmp_path_factory):
    """Makes one of a side in pixels and returns its folder."""

    def make(side: int):
        torch.manual_seed(0)
        shape = Shape(resolution=side, z_dim=8, w_dim=8, mapping_layers=2, channel_base=8 * side, channel_max=16)
        found = StyleGAN(Generator(shape), Discriminator(shape))
        card = {"title": "blobs", "pretext": "stylegan2", "shape": shape.model_dump(mode="json")}
        return Artifact("representation", card, tensors_of(found)).save(tmp_path_factory.mktemp("made") / "blobs")

    return make


PARTS = PartSet.of("background", "bright", "hazy")


def write_model(path, channel=0, parts=PARTS):
    """A model whose label says whether a channel is above 127, and whose confidence is the green channel."""
    index = helper.make_tensor("index", TensorProto.INT64, [], [channel])
    green = helper.make_tensor("green", TensorProto.INT64, [], [1])
    half = helper.make_tensor("half", TensorProto.INT32, [], [127])
    nodes = [
        helper.make_node("Gather", ["images", "index"], ["one"], axis=3),
        helper.make_node("Cast", ["one"], ["wide"], to=TensorProto.INT32),
        helper.make_node("Greater", ["wide", "half"], ["above"]),
        helper.make_node("Cast", ["above"], ["labels"], to=TensorProto.UINT8),
        helper.make_node("Gather", ["images", "green"], ["confidence"], axis=3),
    ]
    pixels = ["b", "h", "w"]
    graph = helper.make_graph(
        nodes,
        "model",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, [*pixels, 3])],
        [helper.make_tensor_value_info(name, TensorProto.UINT8, pixels) for name in ("labels", "confidence")],
        [index, green, half],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, model_metadata(parts, 64, "0.1.0"))
    onnx.save(model, path)
    return path


@pytest.fixture
def pixel_model():
    """Writes a model that looks at single pixels: see `write_model`."""
    return write_model
