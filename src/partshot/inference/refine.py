"""Edge refinement: aligns labels that were predicted at a lower resolution with the edges of the image.

The probability of each label is filtered with the color image as guide by the guided filter (He, Sun and Tang, "Guided
Image Filtering", TPAMI 35(6), 2013), in its fast version (He and Sun, "Fast Guided Filter", arXiv:1505.00996): linear
models are fitted to block means and applied at full resolution. The image is filtered in tiles with enough context to
get the same result as without tiles; tiles with a single label are skipped. Memory holds the result and one tile.
"""

import numpy as np
from PIL import Image

# Chosen in LOG.md (2026-11-28): a block is one pixel of the network's input, a filter window is 3 x 3 blocks, and the
# guide is treated as flat where its variance in a window is below epsilon.
_RADIUS = 1
_EPSILON = 1e-4
_MIN_BLOCK, _MAX_BLOCK = (
    2,
    32,
)  # side of a block in pixels; smaller ones are slower for little gain, larger need large tiles
_TILE, _MIN_BLOCKS = 128, 16  # side of a tile in pixels, and its minimum in blocks
_PAIRS = [(a, b) for a in range(3) for b in range(a, 3)]


def refine(
    image: np.ndarray, labels: np.ndarray, confidence: np.ndarray, factor: int | float, tile: int = _TILE
) -> tuple[np.ndarray, np.ndarray]:
    """Labels and confidence of an image, uint8 [h, w] each, aligned with its edges.

    image: uint8 [h, w, 3]. labels, confidence: uint8 [h, w], as `ExportedModel.predict` returns them. factor: image
    pixels per pixel of the network's input, along a side; if it is at most 1, the arguments are returned unchanged.
    tile: side of the tiles in pixels; it affects memory, time and rounding only.

    The filter input for a label is the confidence where this label is predicted, and 0 elsewhere. The label with the
    largest filtered value is chosen. Pixels whose label changes get the filtered confidence, the others keep theirs.
    """
    if factor <= 1:
        return labels, confidence
    block = max(_MIN_BLOCK, min(_MAX_BLOCK, round(factor)))
    context = (2 * _RADIUS + 1) * block  # two box filters, and interpolation
    side = max(_MIN_BLOCKS, tile // block) * block
    new_labels, new_confidence = labels.copy(), confidence.copy()
    height, width = labels.shape
    for top in range(0, height, side):
        for left in range(0, width, side):
            inner = slice(top, min(top + side, height)), slice(left, min(left + side, width))
            outer = tuple(slice(max(0, one.start - context), one.stop + context) for one in inner)
            present = np.flatnonzero(np.bincount(labels[outer].ravel()))
            if len(present) > 1:
                models = _label_models(image[outer], labels[outer], confidence[outer], present, block)
                best, value = _argmax(image[inner], present, models, _box_in_blocks(inner, outer, block))
                changed = best != labels[inner]
                new_labels[inner] = best
                new_confidence[inner][changed] = value[changed]
    return new_labels, new_confidence


def linear_models(guide: np.ndarray, values: np.ndarray, radius: int, epsilon: float) -> np.ndarray:
    """The guided filter's linear models: at each pixel, the mean of the models of all windows that contain it.

    guide I: float32 [3, h, w] in [0, 1]. values p: float32 [k, h, w]. Windows have 2 * radius + 1 pixels per side,
    fewer at the image's border. Returns float32 [k, 4, h, w], three slopes and an offset: the filtered p is
    (slopes * guide).sum(1) + offset. In a window, a = (cov(I) + epsilon)^-1 cov(I, p) and b = mean(p) - a mean(I): the
    paper's equations for color guides, 14 to 16 in the numbering of the authors' code.
    """
    pairs = [guide[a] * guide[b] for a, b in _PAIRS]
    mean = _box(np.concatenate([guide, pairs]), radius)
    color, cov = mean[:3], {pair: mean[3 + i] - mean[pair[0]] * mean[pair[1]] for i, pair in enumerate(_PAIRS)}
    inverse = _inverse(cov, epsilon)
    models = np.empty((len(values), 4, *values.shape[1:]), np.float32)
    for model, value in zip(models, values, strict=True):
        means = _box(np.concatenate([guide * value, value[None]]), radius)
        cov_value = means[:3] - color * means[3]
        for a in range(3):
            model[a] = sum(inverse[min(a, b), max(a, b)] * cov_value[b] for b in range(3))
        model[3] = means[3] - (model[:3] * color).sum(0)
        model[:] = _box(model, radius)
    return models


def _label_models(guide, labels, confidence, present, block):
    """Linear models of the confidence of each present label, float32 [labels, 4, rows, columns], in blocks."""
    values = [np.where(labels == part, confidence, 0).astype(np.float32) / 255 for part in present]
    colors = [np.asarray(Image.fromarray(guide).reduce(block), np.float32)[..., i] / 255 for i in range(3)]
    means = [np.asarray(Image.fromarray(value).reduce(block)) for value in values]
    return linear_models(np.stack(colors), np.stack(means), _RADIUS, _EPSILON)


def _argmax(image, present, models, box):
    """A tile's labels and their filtered confidence; one label at a time, to save memory."""
    colors = [image[..., i].astype(np.float32) / 255 for i in range(3)]
    best, label = np.full(image.shape[:2], -np.inf, np.float32), np.zeros(image.shape[:2], np.uint8)
    for part, model in zip(present, models, strict=True):
        *slopes, value = (_upsampled(one, image.shape[:2], box) for one in model)
        for slope, color in zip(slopes, colors, strict=True):
            value = value + slope * color
        label[value > best] = part
        best = np.maximum(best, value)
    return label, np.rint(best.clip(0, 1) * 255).astype(np.uint8)


def _box_in_blocks(inner, outer, block):
    """Left, top, right and bottom of a tile within its context, in blocks."""
    (rows, columns), (top, left) = inner, (one.start for one in outer)
    edges = (columns.start - left, rows.start - top, columns.stop - left, rows.stop - top)
    return tuple(edge / block for edge in edges)


def _upsampled(values: np.ndarray, size: tuple[int, int], box: tuple[float, ...]) -> np.ndarray:
    return np.asarray(Image.fromarray(values).resize(size[::-1], Image.Resampling.BILINEAR, box))


def _box(maps: np.ndarray, radius: int) -> np.ndarray:
    """Box filter: means over windows of 2 * radius + 1 pixels per side, cropped at the border, float32 [..., h, w]."""
    height, width = maps.shape[-2:]
    padded = np.pad(maps, [(0, 0)] * (maps.ndim - 2) + [(radius, radius)] * 2)
    rows = sum(padded[..., i : i + height, :] for i in range(2 * radius + 1))
    sums = sum(rows[..., i : i + width] for i in range(2 * radius + 1))
    down, across = (
        np.minimum(np.arange(n) + radius + 1, n) - np.arange(n).clip(radius) + radius for n in (height, width)
    )
    return sums * (1 / (down[:, None] * across)).astype(np.float32)


def _inverse(cov: dict, epsilon: float) -> dict:
    """Inverses of symmetric 3 x 3 matrices, one per pixel, with epsilon added to the diagonal, by their adjugates."""
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
