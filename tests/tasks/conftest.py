"""A generator that was never trained, on disk: its pictures are blobs."""

import pytest
import torch

from partshot.artifact import Artifact
from partshot.nets.stylegan2 import Critic, Generator, Shape
from partshot.represent.choose import tensors_of
from partshot.represent.stylegan import StyleGAN


@pytest.fixture(scope="session")
def blobs(tmp_path_factory):
    """Makes one of a side in pixels and returns its folder."""

    def make(side: int):
        torch.manual_seed(0)
        shape = Shape(resolution=side, z_dim=8, w_dim=8, mapping_layers=2, channel_base=8 * side, channel_max=16)
        found = StyleGAN(Generator(shape), Critic(shape))
        card = {"title": "blobs", "pretext": "stylegan2", "shape": shape.model_dump(mode="json")}
        return Artifact("representation", card, tensors_of(found)).save(tmp_path_factory.mktemp("made") / "blobs")

    return make
