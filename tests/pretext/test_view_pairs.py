"""What pretexts with two views share: sampled images, point features, and the measure of collapse."""

import pytest
import torch

from partshot.pretext.view_pairs import embedding_std, normalize, point_features, sample_pairs


def test_embedding_std_is_0_for_collapsed_embeddings_and_1_for_isotropic_ones():
    assert embedding_std(torch.ones(8, 16) + 1e-6 * torch.randn(8, 16)) < 1e-4
    assert abs(embedding_std(torch.randn(512, 64)) - 1) < 0.05


def test_point_features_of_all_maps():
    fine = torch.arange(16.0).view(1, 1, 4, 4)
    coarse = torch.tensor([[[[100.0, 200], [300, 400]]]])
    points = torch.tensor([[[-0.75, -0.75], [0.25, -0.75], [0.75, 0.75]]])  # centers of cells of the fine map

    features = point_features((fine, coarse), points)

    torch.testing.assert_close(features[:, 0], torch.tensor([0.0, 2.0, 15.0]))
    torch.testing.assert_close(features[:, 1], torch.tensor([100.0, 175.0, 400.0]))


def test_points_of_one_image_are_consecutive():
    flat = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 1, 4, 4)
    features = point_features((flat,), torch.zeros(3, 5, 2))
    assert features[:, 0].tolist() == [0.0] * 5 + [1.0] * 5 + [2.0] * 5


@pytest.mark.parametrize("images", [8, 20])
def test_images_are_repeated_only_if_there_are_too_few(images):
    gray = torch.arange(0, 160, 20, dtype=torch.uint8)
    marked = gray.view(8, 1, 1, 1).expand(8, 32, 32, 3)

    views = sample_pairs(marked, images, 24, 0.2, 0.0, torch.Generator().manual_seed(0), torch.device("cpu"))

    assert views.first.shape == views.second.shape == (images, 3, 24, 24)
    for view in (views.first, views.second):
        counts = torch.bincount((view.mean((1, 2, 3)) * 255 / 20).round().long(), minlength=8)
        assert counts.sum() == images and counts.min() >= images // 8 and counts.max() <= -(-images // 8)


def test_normalization_is_imagenets():
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    images = normalize(torch.cat([mean, torch.ones(1, 3, 1, 1)]))
    torch.testing.assert_close(images[0].flatten(), torch.zeros(3))
    torch.testing.assert_close(
        images[1].flatten(), torch.tensor([0.515, 0.544, 0.594]) / torch.tensor([0.229, 0.224, 0.225])
    )
