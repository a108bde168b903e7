import pytest
import torch

from partshot.data.mosaic import Mosaic, backgrounds, mosaic
from partshot.errors import BadRecipe
from partshot.train.distill_recipe import PRESETS


def batch(count: int = 6, size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """A gray-green background (0), a white part (1) in the middle, and an unlabeled stripe (255, black)."""
    labels = torch.zeros(count, size, size, dtype=torch.long)
    labels[:, 8:24, 8:24] = 1
    labels[:, :2] = 255
    colors = torch.tensor([[-0.2, 0.2, -0.2], [1.0, 1, 1], [-1.0, -1, -1]])
    return colors[torch.where(labels == 255, 2, labels)].permute(0, 3, 1, 2), labels


def test_labels_are_pasted_with_their_images():
    images, labels = batch()
    recipe = Mosaic(probability=1)
    out, ids = mosaic(images, labels, recipe, torch.Generator().manual_seed(0))

    assert out.shape == images.shape and ids.shape == labels.shape and ids.dtype == labels.dtype
    white = (out > 0.9).all(1)
    assert white.float().mean() > 0.02 and (ids[white] == 1).float().mean() > 0.97
    green = (out[:, 1] - out[:, 0] > 0.35) & (out[:, 1] < 0.25)
    assert (ids[green] == 0).float().mean() > 0.97
    # Positions and sizes differ.
    assert len({int((one == 1).sum()) for one in ids}) > 3


def test_the_seed_determines_the_mosaics_and_probability_0_changes_nothing():
    images, labels = batch()
    one, other = (mosaic(images, labels, Mosaic(), torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
    same, ids = mosaic(images, labels, Mosaic(probability=0), torch.Generator().manual_seed(3))
    assert torch.equal(same, images) and torch.equal(ids, labels)


def test_parts_are_inpainted_in_backgrounds():
    images, labels = batch()
    background = backgrounds(images, labels)
    torch.testing.assert_close(background, torch.tensor([-0.2, 0.2, -0.2])[:, None, None].expand_as(background))
    without = backgrounds(images, torch.ones_like(labels))
    assert torch.isfinite(without).all()


def test_the_self_training_round_uses_no_mosaics():
    recipe = PRESETS["auto-shot-many"]
    assert recipe.mosaic is not None and recipe.self_training_round().mosaic is None
    assert PRESETS["default"].changed(mosaic=False).fingerprint == PRESETS["default"].fingerprint


def test_older_setting_names_are_read_and_the_order_is_checked():
    older = Mosaic.parse({"share": 0.5, "most": 2, "smallest": 0.5, "largest": 1.5})
    assert older == Mosaic(probability=0.5, max_images=2, min_scale=0.5, max_scale=1.5)
    for name in ("smallest", "min_scale"):
        with pytest.raises(BadRecipe, match="min_scale 2 is above max_scale 1.6"):
            Mosaic.parse({name: 2})
