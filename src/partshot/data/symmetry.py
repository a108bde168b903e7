"""Does a folder of images look the same in a mirror? Museum ants all face left; cells face nowhere.

Mirroring doubles the labels of things that may face either way and ruins those of things that always face the same
way, and one labeled image cannot tell which. The unlabeled ones can: when their mean differs from its own mirror
image by more than chance, the things are one-sided.
"""

import numpy as np

# Share of the images' own deviation by which the mean may differ from its mirror. Measured: drawn faces .01, blood
# cells .02, cars from all sides and drawn horses .00; museum ants .16.
LIMIT = 0.08

# Few images of anything lean to one side by chance: what as many, mirrored at random, would do but once in a hundred.
_TRIALS, _RARE = 200, 0.99


def asymmetry(images: np.ndarray, side: int = 16) -> float:
    """How far the mean image is from its mirror image, in units of the images' deviation; 0 is symmetrical.

    images: uint8 [n, s, s, 3]. The mean's own chance error (1/sqrt(n)) is taken off, so that a few images of
    anything do not look one-sided.
    """
    small = _layout(images, side)
    mean = small.mean(0)
    deviation = float(np.sqrt((small - mean).var(0).mean())) + 1e-6
    apart = float(np.mean((mean - mean[:, ::-1]) ** 2)) / 2
    return float(np.sqrt(max(0.0, apart - deviation**2 / len(images)))) / deviation


def one_sided(images: np.ndarray) -> bool:
    """Whether the images' things face one way, so that mirrored ones would be wrong."""
    return asymmetry(images) > LIMIT and _beyond_chance(_layout(images))


def _layout(images: np.ndarray, side: int = 16) -> np.ndarray:
    """The images in gray, about `side` pixels a side, each around its own mean."""
    step = max(1, images.shape[1] // side)
    cut = images.shape[1] // step * step
    gray = images[:, :cut, :cut].mean(3, dtype=np.float32)
    small = gray.reshape(len(gray), cut // step, step, cut // step, step).mean((2, 4))
    # Images of one thing differ in overall brightness; where it lies in the frame is what counts.
    return small - small.mean((1, 2), keepdims=True)


def _beyond_chance(small: np.ndarray) -> bool:
    """Whether the mean leans further than with images mirrored at random, as symmetrical things might have been."""
    leaning = (small - small[:, :, ::-1]).reshape(len(small), -1)
    signs = np.random.default_rng(0).choice(np.array([-1, 1], np.float32), (_TRIALS, len(small)))
    by_chance = np.square(signs @ leaning).sum(1)
    return float(np.square(leaning.sum(0)).sum()) > float(np.quantile(by_chance, _RARE)) * (1 + 1e-3)
