"""Edge refinement: labels of a network that works at a lower resolution, moved onto the edges of the image itself.

Each label's probability is filtered with the color image as guide, by the guided filter (He, Sun and Tang, "Guided
Image Filtering", TPAMI 35(6), 2013), in its fast form (He and Sun, "Fast Guided Filter", arXiv:1505.00996): linear
models are fitted to means of blocks and applied at full resolution. Images are filtered in tiles that look far enough
beyond themselves to give what the whole image would; those that see one label are skipped. So memory holds the result
and one tile. Knows arrays; refuses to know files, options and networks.
"""

import numpy as np
from PIL import Image

# Chosen in LOG.md (2026-11-28): blocks have the side of one of the network's pixels, windows 3 x 3 blocks, and the
# guide counts as flat where its variance in a window is below the last.
_RADIUS = 1
_EPSILON = 1e-4
_SMALLEST, _LARGEST = 2, 32  # side of a block in pixels: less costs time and gains less, more makes tiles large
_TILE, _FEWEST = 128, 16  # side of a tile: in pixels, but no fewer than so many blocks
_PAIRS = [(a, b) for a in range(3) for b in range(a, 3)]


def refine(
    image: np.ndarray, labels: np.ndarray, confidence: np.ndarray, factor: int | float, tile: int = _TILE
) -> tuple[np.ndarray, np.ndarray]:
    """Labels and confidence of an image, uint8 [h, w] each, moved onto its edges.

    image: uint8 [h, w, 3]. labels, confidence: uint8 [h, w], as `ExportedModel.predict` returns them. factor: pixels of
    the image for each that the network saw, along a side; up to 1, labels and confidence are returned as they are.
    tile: side of the pieces in pixels, which changes memory and time and, but for rounding, nothing else.

    What is filtered is each label's confidence where it is the label, and 0 elsewhere; the largest wins. Pixels whose
    label changes get its filtered confidence, all others keep theirs.
    """
    if factor <= 1:
        return labels, confidence
    block = max(_SMALLEST, min(_LARGEST, round(factor)))
    reach = (2 * _RADIUS + 1) * block  # means of models that are fitted to means, and interpolation
    side = max(_FEWEST, tile // block) * block
    found, sure = labels.copy(), confidence.copy()
    height, width = labels.shape
    for top in range(0, height, side):
        for left in range(0, width, side):
            inner = slice(top, min(top + side, height)), slice(left, min(left + side, width))
            outer = tuple(slice(max(0, one.start - reach), one.stop + reach) for one in inner)
            present = np.flatnonzero(np.bincount(labels[outer].ravel()))
            if len(present) > 1:
                shares = _shares(image[outer], labels[outer], confidence[outer], present, block)
                winner, share = _winners(image[inner], present, shares, _cells(inner, outer, block))
                changed = winner != labels[inner]
                found[inner] = winner
                sure[inner][changed] = share[changed]
    return found, sure


def linear_models(guide: np.ndarray, values: np.ndarray, radius: int, epsilon: float) -> np.ndarray:
    """The guided filter's linear models of values in colors: a pixel's is the mean of those of all windows around it.

    guide I: float32 [3, h, w] in [0, 1]. values p: float32 [k, h, w]. Windows have 2 * radius + 1 pixels a side, fewer
    at the image's border. Returns float32 [k, 4, h, w], three slopes and an offset: filtered, p is
    (slopes * guide).sum(1) + offset. In a window a = (cov(I) + epsilon)^-1 cov(I, p) and b = mean(p) - a mean(I): the
    paper's equations for color guides, 14 to 16 in the numbering of the authors' code.
    """
    pairs = [guide[a] * guide[b] for a, b in _PAIRS]
    mean = _box(np.concatenate([guide, pairs]), radius)
    color, cov = mean[:3], {pair: mean[3 + i] - mean[pair[0]] * mean[pair[1]] for i, pair in enumerate(_PAIRS)}
    inverse = _inverse(cov, epsilon)
    models = np.empty((len(values), 4, *values.shape[1:]), np.float32)
    for model, value in zip(models, values, strict=True):
        several = _box(np.concatenate([guide * value, value[None]]), radius)
        along = several[:3] - color * several[3]
        for a in range(3):
            model[a] = sum(inverse[min(a, b), max(a, b)] * along[b] for b in range(3))
        model[3] = several[3] - (model[:3] * color).sum(0)
        model[:] = _box(model, radius)
    return models


def _shares(guide, labels, confidence, present, block):
    """Linear models of the confidence of each label that is present, float32 [labels, 4, rows, columns of blocks]."""
    values = [np.where(labels == part, confidence, 0).astype(np.float32) / 255 for part in present]
    colors = [np.asarray(Image.fromarray(guide).reduce(block), np.float32)[..., i] / 255 for i in range(3)]
    means = [np.asarray(Image.fromarray(value).reduce(block)) for value in values]
    return linear_models(np.stack(colors), np.stack(means), _RADIUS, _EPSILON)


def _winners(image, present, models, box):
    """A tile's labels and their filtered confidence; label by label, so that few maps of its size are held."""
    colors = [image[..., i].astype(np.float32) / 255 for i in range(3)]
    best, winner = np.full(image.shape[:2], -np.inf, np.float32), np.zeros(image.shape[:2], np.uint8)
    for part, model in zip(present, models, strict=True):
        *slopes, share = (_enlarged(one, image.shape[:2], box) for one in model)
        for slope, color in zip(slopes, colors, strict=True):
            share = share + slope * color
        winner[share > best] = part
        best = np.maximum(best, share)
    return winner, np.rint(best.clip(0, 1) * 255).astype(np.uint8)


def _cells(inner, outer, block):
    """Left, top, right and bottom of a tile, in blocks of what lies around it."""
    (rows, columns), (top, left) = inner, (one.start for one in outer)
    edges = (columns.start - left, rows.start - top, columns.stop - left, rows.stop - top)
    return tuple(edge / block for edge in edges)


def _enlarged(values: np.ndarray, size: tuple[int, int], box: tuple[float, ...]) -> np.ndarray:
    return np.asarray(Image.fromarray(values).resize(size[::-1], Image.Resampling.BILINEAR, box))


def _box(maps: np.ndarray, radius: int) -> np.ndarray:
    """Means over windows of 2 * radius + 1 pixels a side, or of what of them lies inside, float32 [..., h, w]."""
    height, width = maps.shape[-2:]
    padded = np.pad(maps, [(0, 0)] * (maps.ndim - 2) + [(radius, radius)] * 2)
    rows = sum(padded[..., i : i + height, :] for i in range(2 * radius + 1))
    sums = sum(rows[..., i : i + width] for i in range(2 * radius + 1))
    down, across = (
        np.minimum(np.arange(n) + radius + 1, n) - np.arange(n).clip(radius) + radius for n in (height, width)
    )
    return sums * (1 / (down[:, None] * across)).astype(np.float32)


def _inverse(cov: dict, epsilon: float) -> dict:
    """Of symmetric 3 x 3 matrices, one for each pixel, with epsilon added to the diagonal: by their adjugates."""
    xx, yy, zz = (cov[i, i] + epsilon for i in range(3))
    xy, xz, yz = cov[0, 1], cov[0, 2], cov[1, 2]
    found = {
        (0, 0): yy * zz - yz * yz,
        (0, 1): xz * yz - xy * zz,
        (0, 2): xy * yz - xz * yy,
        (1, 1): xx * zz - xz * xz,
        (1, 2): xy * xz - xx * yz,
        (2, 2): xx * yy - xy * xy,
    }
    scale = 1 / (xx * found[0, 0] + xy * found[0, 1] + xz * found[0, 2])
    return {pair: values * scale for pair, values in found.items()}
