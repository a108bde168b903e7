"""FIR resampling against scipy, and its second derivatives."""

import numpy as np
import pytest
import torch
from scipy import signal

from partshot.ops.fir import TAPS, downsample, smooth, upsample

KERNEL = np.outer(TAPS, TAPS) / sum(TAPS) ** 2


@pytest.fixture
def maps():
    return torch.randn(2, 3, 6, 10, generator=torch.Generator().manual_seed(0))


def full_convolution(x: torch.Tensor, kernel: np.ndarray) -> np.ndarray:
    """All positions at which kernel and map overlap."""
    return np.stack([[signal.convolve2d(m, kernel, mode="full") for m in one] for one in x.numpy()])


def test_smooth_equals_scipy(maps):
    full = full_convolution(maps, KERNEL)
    np.testing.assert_allclose(smooth(maps, 3), full, atol=1e-6)
    np.testing.assert_allclose(smooth(maps, 1, gain=4.0), 4 * full[:, :, 2:-2, 2:-2], atol=1e-6)


def test_upsample_inserts_zeros_and_filters(maps):
    b, c, h, w = maps.shape
    dilated = torch.zeros(b, c, 2 * h, 2 * w)
    dilated[:, :, ::2, ::2] = maps
    full = 4 * full_convolution(dilated, KERNEL)
    np.testing.assert_allclose(upsample(maps), full[:, :, 1:-2, 1:-2], atol=1e-6)
    for row, column in ((0, 0), (1, 2)):
        line = signal.upfirdn(np.array(TAPS) / sum(TAPS) * 2, maps[row, column, 3].numpy(), up=2)
        across = torch.zeros(1, 1, 5, w)
        across[0, 0, :] = maps[row, column, 3]
        np.testing.assert_allclose(upsample(across)[0, 0, 4], line[1 : 2 * w + 1], atol=1e-6)


def test_downsample_filters_and_keeps_every_other_pixel(maps):
    np.testing.assert_allclose(downsample(maps), full_convolution(maps, KERNEL)[:, :, 2:-2:2, 2:-2:2], atol=1e-6)


def test_constants_are_kept_except_at_the_border():
    flat = torch.ones(1, 1, 8, 8)
    torch.testing.assert_close(upsample(flat)[:, :, 2:-2, 2:-2], torch.ones(1, 1, 12, 12))
    torch.testing.assert_close(downsample(flat)[:, :, 1:-1, 1:-1], torch.ones(1, 1, 2, 2))


def test_second_derivatives():
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    for resample in (upsample, downsample):
        assert torch.autograd.gradgradcheck(lambda x, f=resample: f(x) ** 2, [x])
