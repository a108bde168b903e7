import torch
import torch.nn.functional as F

from partshot.ops.sampling import grid_sample


def images_and_grid() -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 5, 4, generator=rng, dtype=torch.float64, requires_grad=True)
    return images, torch.rand(2, 6, 7, 2, generator=rng, dtype=torch.float64) * 2.6 - 1.3


def test_equals_torchs_grid_sample():
    images, grid = images_and_grid()
    expected = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    found = grid_sample(images, grid)
    assert torch.equal(found, expected)
    weights = torch.randn_like(found)
    gradients = [torch.autograd.grad((x * weights).sum(), images)[0] for x in (found, expected)]
    assert torch.allclose(*gradients)


def test_first_and_second_derivatives_against_finite_differences():
    images, grid = images_and_grid()
    assert torch.autograd.gradcheck(lambda x: grid_sample(x, grid).square(), images)
    assert torch.autograd.gradgradcheck(lambda x: grid_sample(x, grid).square(), images)
