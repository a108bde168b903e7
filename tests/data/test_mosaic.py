import pytest
import torch

from partshot.data.mosaic import Mosaic, backgrounds, mosaic
from partshot.errors import BadRecipe
from partshot.train.distill_recipe import PRESETS


def batch(count: int = 6, size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """Gray-green ground (0), a white part (1) in the middle, and a frame that nobody labeled (255, black)."""
    labels = torch.zeros(count, size, size, dtype=torch.long)
    labels[:, 8:24, 8:24] = 1
    labels[:, :2] = 255
    colors = torch.tensor([[-0.2, 0.2, -0.2], [1.0, 1, 1], [-1.0, -1, -1]])
    return colors[torch.where(labels == 255, 2, labels)].permute(0, 3, 1, 2), labels


def test_labels_are_pasted_where_their_image_is():
    images, labels = batch()
    recipe = Mosaic(share=1)
    out, ids = mosaic(images, labels, recipe, torch.Generator().manual_seed(0))

    assert out.shape == images.shape and ids.shape == labels.shape and ids.dtype == labels.dtype
    white = (out > 0.9).all(1)
    assert white.float().mean() > 0.02 and (ids[white] == 1).float().mean() > 0.97
    green = (out[:, 1] - out[:, 0] > 0.35) & (out[:, 1] < 0.25)
    assert (ids[green] == 0).float().mean() > 0.97
    # At other places and sizes than before.
    assert len({int((one == 1).sum()) for one in ids}) > 3


def test_the_same_chance_gives_the_same_mosaics_and_no_share_none():
    images, labels = batch()
    one, other = (mosaic(images, labels, Mosaic(), torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
    same, ids = mosaic(images, labels, Mosaic(share=0), torch.Generator().manual_seed(3))
    assert torch.equal(same, images) and torch.equal(ids, labels)


def test_backgrounds_show_nothing_of_the_parts():
    images, labels = batch()
    ground = backgrounds(images, labels)
    torch.testing.assert_close(ground, torch.tensor([-0.2, 0.2, -0.2])[:, None, None].expand_as(ground))
    nothing = backgrounds(images, torch.ones_like(labels))
    assert torch.isfinite(nothing).all()


def test_a_first_student_learns_from_single_images():
    recipe = PRESETS["auto-shot-many"]
    assert recipe.mosaic is not None and recipe.self_training_round().mosaic is None
    assert PRESETS["default"].changed(mosaic=False).fingerprint == PRESETS["default"].fingerprint
    with pytest.raises(BadRecipe, match="the smallest, 2, is above the largest"):
        Mosaic.parse({"smallest": 2})
