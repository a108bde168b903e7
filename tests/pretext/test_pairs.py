"""What is shared by pretexts of two views: whose images come, what is read where, and the figure against collapse."""

import pytest
import torch

from partshot.pretext.pairs import embedding_std, normalize, point_features, sample_pairs


def test_spread_tells_collapse_from_health():
    assert embedding_std(torch.ones(8, 16) + 1e-6 * torch.randn(8, 16)) < 1e-4
    assert abs(embedding_std(torch.randn(512, 64)) - 1) < 0.05


def test_spots_are_read_from_every_map_at_their_place():
    fine = torch.arange(16.0).view(1, 1, 4, 4)
    coarse = torch.tensor([[[[100.0, 200], [300, 400]]]])
    spots = torch.tensor([[[-0.75, -0.75], [0.25, -0.75], [0.75, 0.75]]])  # middles of cells of the fine map

    read = point_features((fine, coarse), spots)

    torch.testing.assert_close(read[:, 0], torch.tensor([0.0, 2.0, 15.0]))
    torch.testing.assert_close(read[:, 1], torch.tensor([100.0, 175.0, 400.0]))


def test_spots_come_image_after_image():
    flat = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 1, 4, 4)
    read = point_features((flat,), torch.zeros(3, 5, 2))
    assert read[:, 0].tolist() == [0.0] * 5 + [1.0] * 5 + [2.0] * 5


@pytest.mark.parametrize("images", [8, 20])
def test_a_batch_holds_each_image_once_while_there_are_enough(images):
    gray = torch.arange(0, 160, 20, dtype=torch.uint8)
    marked = gray.view(8, 1, 1, 1).expand(8, 32, 32, 3)

    views = sample_pairs(marked, images, 24, 0.2, 0.0, torch.Generator().manual_seed(0), torch.device("cpu"))

    assert views.first.shape == views.second.shape == (images, 3, 24, 24)
    for seen in (views.first, views.second):
        counts = torch.bincount((seen.mean((1, 2, 3)) * 255 / 20).round().long(), minlength=8)
        assert counts.sum() == images and counts.min() >= images // 8 and counts.max() <= -(-images // 8)


def test_images_are_normalized_as_imagenets():
    middle = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    shown = normalize(torch.cat([middle, torch.ones(1, 3, 1, 1)]))
    torch.testing.assert_close(shown[0].flatten(), torch.zeros(3))
    torch.testing.assert_close(
        shown[1].flatten(), torch.tensor([0.515, 0.544, 0.594]) / torch.tensor([0.229, 0.224, 0.225])
    )
