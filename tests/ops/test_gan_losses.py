"""GAN losses against their formulas, and penalties against finite differences."""

import math

import torch
from torch import nn

from partshot.ops.gan_losses import discriminator_loss, generator_loss, path_lengths, r1_penalty


def test_losses_are_those_of_the_paper():
    real, fake = torch.tensor([2.0, -1.0]), torch.tensor([0.5, -3.0])
    sigmoid = torch.sigmoid
    expected = -sigmoid(real).log().mean() - (1 - sigmoid(fake)).log().mean()
    torch.testing.assert_close(discriminator_loss(real, fake), expected)
    torch.testing.assert_close(generator_loss(fake), -sigmoid(fake).log().mean())


def smooth_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 4 * 4, 1)).double()


def test_r1_against_finite_differences():
    net, images = smooth_net(), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    step, slopes = 1e-5, torch.zeros_like(images)
    with torch.no_grad():
        for i in range(images[0].numel()):
            moved = torch.zeros_like(images).flatten(1)
            moved[:, i] = step
            moved = moved.view_as(images)
            slopes.flatten(1)[:, i] = ((net(images + moved) - net(images - moved)) / (2 * step))[:, 0]
    x = images.clone().requires_grad_()
    penalty = r1_penalty(net(x)[:, 0], x, gamma=3.0)
    torch.testing.assert_close(penalty.double(), 1.5 * slopes.square().sum((1, 2, 3)).mean(), rtol=1e-5, atol=0)
    penalty.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in list(net.parameters())[:-1])


def test_path_length_against_finite_differences():
    torch.manual_seed(0)
    mix = torch.randn(5, 3 * 4 * 4, dtype=torch.float64)

    def generate(ws):
        return (torch.sin(ws) @ mix).sum(1).view(-1, 3, 4, 4)

    ws, noise = torch.randn(2, 3, 5, dtype=torch.float64), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    slopes, step = torch.zeros_like(ws), 1e-5
    for i in range(3 * 5):
        moved = torch.zeros_like(ws).flatten(1)
        moved[:, i] = step
        moved = moved.view_as(ws)
        slope = (generate(ws + moved) - generate(ws - moved)) / (2 * step)
        slopes.flatten(1)[:, i] = (slope * noise).sum((1, 2, 3)) / math.sqrt(16)
    x = ws.clone().requires_grad_()
    lengths = path_lengths(generate(x), x, noise)
    torch.testing.assert_close(lengths.double(), slopes.square().sum(2).mean(1).sqrt(), rtol=1e-4, atol=1e-6)
    lengths.sum().backward()
    assert x.grad.abs().sum() > 0
