"""timm encoders: only local weights, any image size, and no code executed from a file."""

import pickle

import pytest
import safetensors.torch
import torch

from partshot.errors import BadArtifact, BadImage, BadRecipe
from partshot.nets.timm_nets import build_net
from partshot.represent.choose import rebuild, tensors_of
from partshot.represent.timm_encoder import TimmEncoder, read_weights, timm_representation

# Small examples of both kinds in timm.
CONV, VIT = "resnet10t", "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def vit():
    return TimmEncoder(VIT, build_net(VIT))


@pytest.fixture(scope="module")
def conv():
    return TimmEncoder(CONV, build_net(CONV))


def some_images(height, width):
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_a_transformer_gives_four_blocks_at_any_size(vit):
    assert vit.spec.channels == (192,) * 4 and vit.spec.strides == (16,) * 4
    assert [m.shape for m in vit.features(some_images(32, 80)).maps] == [(1, 192, 2, 5)] * 4
    # 40 rows are not a multiple of 16: images are resized to 32 rows, so that the map covers the whole image.
    assert vit.features(some_images(40, 80)).maps[0].shape == (1, 192, 2, 5)


def test_tokens_are_at_the_position_of_their_patches(vit):
    image = some_images(64, 64)
    changed = image.clone()
    changed[:, :, 48:, :16] = 1
    before, after = vit.features(image).maps[0], vit.features(changed).maps[0]
    moved = (before - after).norm(dim=1)[0]
    assert moved.argmax() == 3 * 4 + 0


@pytest.mark.parametrize(
    ("name", "patch", "prefix"),
    [
        ("vit_small_patch14_dinov2", 14, 1),
        ("vit_small_patch14_reg4_dinov2", 14, 5),
        ("vit_small_patch16_dinov3", 16, 5),
        ("vit_base_patch16_siglip_224", 16, 0),
    ],
)
def test_class_and_register_tokens_are_not_part_of_a_map(name, patch, prefix):
    """The token of a changed patch changes most; this shows that the grid starts after class and register tokens."""
    torch.manual_seed(0)
    found = TimmEncoder(name, build_net(name))
    assert found.net.num_prefix_tokens == prefix and found.spec.strides == (patch,) * 4
    image = some_images(3 * patch, 5 * patch)
    changed = image.clone()
    changed[:, :, 2 * patch :, patch : 2 * patch] *= -1

    before, after = found.features(image).maps, found.features(changed).maps

    for one, other in zip(before, after, strict=True):
        assert one.shape[2:] == (3, 5)
        assert (one - other).norm(dim=1)[0].argmax() == 2 * 5 + 1
    # For patches of 14 px, 128 px are resized to 126, and the map covers the whole image.
    assert found.features(some_images(128, 128)).maps[0].shape[2] == round(128 / patch)


def test_a_convolutional_net_gives_all_stages(conv):
    levels = conv.features(some_images(64, 96)).maps
    assert tuple(m.shape[1] for m in levels) == conv.spec.channels
    assert tuple(64 // m.shape[2] for m in levels) == conv.spec.strides == (2, 4, 8, 16, 32)


def test_small_images_are_rejected(vit):
    with pytest.raises(BadImage, match="smaller than one pixel"):
        vit.features(some_images(8, 8))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_local_weights_are_loaded_exactly(tmp_path, conv, suffix):
    path = tmp_path / f"weights{suffix}"
    tensors = {**conv.net.state_dict(), "fc.weight": torch.zeros(10, 512)}
    if suffix == ".pth":
        torch.save({"state_dict": {f"module.{k}": v for k, v in tensors.items()}, "epoch": 3}, path)
    else:
        safetensors.torch.save_file(tensors, path)
    loaded = timm_representation(f"{CONV}@{path}")
    assert loaded.spec == conv.spec


def test_random_initialization_gives_a_warning():
    with pytest.warns(UserWarning, match="randomly initialized; nothing is downloaded"):
        timm_representation(CONV)


def test_saved_and_rebuilt_is_the_same(conv):
    again = rebuild(conv.card(), tensors_of(conv))
    assert again.spec == conv.spec


def test_invalid_weight_files_are_rejected(tmp_path, conv):
    class Evil:
        def __reduce__(self):
            return (print, ("this must never run",))

    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"a": Evil()}))
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00")
    torch.save([1, 2, 3], tmp_path / "list.pth")
    for name in ("evil.pth", "empty.pth", "cut.safetensors", "list.pth", "missing.pth"):
        with pytest.raises(BadArtifact, match=name):
            read_weights(tmp_path / name)
    safetensors.torch.save_file({"conv1.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(BadArtifact, match="another net"):
        timm_representation(f"{CONV}@{tmp_path / 'other.safetensors'}")


def test_a_net_for_one_image_size_is_rejected():
    with pytest.raises(BadRecipe, match="any size"):
        TimmEncoder("hiera_tiny_224", build_net("hiera_tiny_224"))
