import torch
import torch.nn.functional as F

from partshot.ops.sampling import sampled


def images_and_places() -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 5, 4, generator=rng, dtype=torch.float64, requires_grad=True)
    return images, torch.rand(2, 6, 7, 2, generator=rng, dtype=torch.float64) * 2.6 - 1.3


def test_it_is_grid_sample():
    images, grid = images_and_places()
    expected = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    found = sampled(images, grid)
    assert torch.equal(found, expected)
    weights = torch.randn_like(found)
    gradients = [torch.autograd.grad((x * weights).sum(), images)[0] for x in (found, expected)]
    assert torch.allclose(*gradients)


def test_its_gradient_and_the_gradients_gradient_are_those_of_finite_differences():
    images, grid = images_and_places()
    assert torch.autograd.gradcheck(lambda x: sampled(x, grid).square(), images)
    assert torch.autograd.gradgradcheck(lambda x: sampled(x, grid).square(), images)
