"""Tests whether the images of a folder are symmetric under horizontal flips, to decide on flip augmentation.

Flip augmentation doubles the labeled data for objects that face either way (such as cells) and harms objects that
always face the same way (the museum ants all face left). One labeled image cannot show which is the case. The unlabeled
images can: if their mean image differs from its flip by more than expected at random, the objects are one-sided.
"""

import numpy as np

# Threshold for the difference between the mean image and its flip, in standard deviations of the images. Measured: toy
# faces .01, blood cells .02, cars from all sides and toy horses .00; museum ants .16.
LIMIT = 0.08

# Images are compared at about this size.
_SIDE = 16

# Randomization test against random asymmetry of few images: the number of trials with random flips, and the quantile of
# their asymmetry that the images must exceed.
_TRIALS, _QUANTILE = 200, 0.99


def asymmetry(images: np.ndarray) -> float:
    """Difference between the mean image and its flip, in units of the images' standard deviation; 0 is symmetric.

    images: uint8 [n, s, s, 3]. The standard error of the mean (1/sqrt(n)) is subtracted, so that few images do not
    appear one-sided.
    """
    return _asymmetry(_downscaled(images))


def one_sided(images: np.ndarray) -> bool:
    """Whether the objects in the images face one way, so that flip augmentation would be wrong."""
    small = _downscaled(images)
    return _asymmetry(small) > LIMIT and _significant(small)


def _downscaled(images: np.ndarray) -> np.ndarray:
    """The images in gray, downscaled to about _SIDE pixels per side, each minus its mean."""
    step = max(1, images.shape[1] // _SIDE)
    cut = images.shape[1] // step * step
    gray = images[:, :cut, :cut].mean(3, dtype=np.float32)
    small = gray.reshape(len(gray), cut // step, step, cut // step, step).mean((2, 4))
    # Overall brightness differs between images; only the layout matters.
    return small - small.mean((1, 2), keepdims=True)


def _asymmetry(small: np.ndarray) -> float:
    """`asymmetry` of downscaled images."""
    mean = small.mean(0)
    deviation = float(np.sqrt((small - mean).var(0).mean())) + 1e-6
    difference = float(np.mean((mean - mean[:, ::-1]) ** 2)) / 2
    return float(np.sqrt(max(0.0, difference - deviation**2 / len(small)))) / deviation


def _significant(small: np.ndarray) -> bool:
    """Whether the mean is more asymmetric than with randomly flipped images (randomization test)."""
    differences = (small - small[:, :, ::-1]).reshape(len(small), -1)
    signs = np.random.default_rng(0).choice(np.array([-1, 1], np.float32), (_TRIALS, len(small)))
    random = np.square(signs @ differences).sum(1)
    return float(np.square(differences.sum(0)).sum()) > float(np.quantile(random, _QUANTILE)) * (1 + 1e-3)
