"""Sliding-window inference: a large image is predicted in overlapping windows at the scale of the training images.

Windows overlap by half, and their votes are weighted by a smooth function that is highest at the window's center.
Windows are predicted row by row, and only the votes of rows that later windows still cover are kept, so memory, beside
that for image and mask, grows with the image's width only. The votes of several scales are averaged.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from PIL import Image

Predict = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Images, uint8 [b, h, w, 3] -> labels, uint8 [b, h, w], and their probability times 255, uint8 [b, h, w]."""

_BATCH = 8
_BAND = 64  # image rows whose labels are computed at once
# Votes have the image's resolution, but at most this many pixels per pixel of the network's input, along a side.
_MAX_UPSAMPLING = 2


def sliding_window_predict(
    predict: Predict, image: np.ndarray, windows: Sequence[int], classes: int, input_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Labels and confidence of an image, uint8 [h, w, 3]: uint8 [h, w] each.

    windows: side of the windows in pixels of the image, one per scale; windows are cropped to smaller images. classes:
    number of labels. input_size: long side in pixels to which the network resizes a window. Confidence is the weighted
    mean of the windows' votes for the label, each vote being the window's confidence, times 255.
    """
    height, width = image.shape[:2]
    scales = [_Scale(predict, image, window, classes, input_size) for window in windows]
    labels, confidence = np.empty((2, height, width), np.uint8)
    for top in range(0, height, _BAND):
        rows = slice(top, min(top + _BAND, height))
        votes = scales[0].rows(rows)
        for other in scales[1:]:
            votes += other.rows(rows)
        labels[rows] = votes.argmax(0)
        confidence[rows] = np.rint(votes.max(0) * (255 / len(scales)))
    return labels, confidence


# Windows start every half window, so neighbors overlap by half.
STEPS_PER_WINDOW = 2


def window_starts(length: int, window: int) -> list[int]:
    """Start positions of windows along a side: evenly spaced, overlapping by half or slightly more, up to the end."""
    if window >= length:
        return [0]
    steps = -(-STEPS_PER_WINDOW * (length - window) // window)
    return [round(i * (length - window) / steps) for i in range(steps + 1)]


class _Scale:
    """The votes at a single scale, [classes, rows, columns], computed lazily from top to bottom.

    Their resolution is the image's or lower.
    """

    def __init__(self, predict: Predict, image: np.ndarray, window: int, classes: int, input_size: int):
        self.predict, self.image, self.classes = predict, image, classes
        shrink = min(1.0, _MAX_UPSAMPLING * input_size / window)
        self.size = tuple(max(1, round(side * shrink)) for side in image.shape[:2])
        self.window = tuple(min(side, max(1, round(window * shrink))) for side in self.size)
        self.finished = self._finished()
        self.kept, self.first = np.empty((classes, 0, self.size[1]), np.float32), 0

    def rows(self, rows: slice) -> np.ndarray:
        """Votes, float32 [classes, rows, width], for some image rows, which must be below those of earlier calls."""
        above, below, down = _interpolation(np.arange(rows.start, rows.stop), self.image.shape[0], self.size[0])
        while self.first + self.kept.shape[1] <= below[-1]:
            self.kept = np.concatenate([self.kept[:, max(0, above[0] - self.first) :], next(self.finished)], 1)
            self.first = max(self.first, above[0])
        votes = _interpolate(self.kept, above - self.first, below - self.first, down[:, None], 1)
        if self.size[1] == self.image.shape[1]:
            return votes
        left, right, across = _interpolation(np.arange(self.image.shape[1]), self.image.shape[1], self.size[1])
        return _interpolate(votes, left, right, across, 2)

    def _finished(self) -> Iterator[np.ndarray]:
        """Yields blocks of rows that no later window covers."""
        tops, weight = window_starts(self.size[0], self.window[0]), _weights(self.window[0])
        votes = np.zeros((self.classes, self.window[0], self.size[1]), np.float32)
        total = np.zeros(self.window[0], np.float32)
        for top, following in zip(tops, [*tops[1:], self.size[0]], strict=True):
            votes += self._row(top) * weight[:, None]
            total += weight
            done = following - top
            yield votes[:, :done] / total[:done, None]
            votes, total = (np.roll(array, -done, axis) for array, axis in ((votes, 1), (total, 0)))
            votes[:, len(total) - done :], total[len(total) - done :] = 0, 0

    def _row(self, top: int) -> np.ndarray:
        """Votes of one row of windows."""
        (height, width), strip = self.window, self._strip(top)
        lefts, weight = window_starts(self.size[1], width), _weights(width)
        votes, total = np.zeros((self.classes, height, self.size[1]), np.float32), np.zeros(self.size[1], np.float32)
        for first in range(0, len(lefts), _BATCH):
            several = lefts[first : first + _BATCH]
            labels, confidence = self.predict(np.stack([strip[:, left : left + width] for left in several]))
            for left, ids, certainty in zip(several, labels, confidence, strict=True):
                here = votes[:, :, left : left + width]
                for part in np.unique(ids):
                    here[part] += np.where(ids == part, certainty * weight, 0)
                total[left : left + width] += weight * 255
        return votes / total

    def _strip(self, top: int) -> np.ndarray:
        """The image rows covered by a row of windows, at the resolution of the votes."""
        if self.size == self.image.shape[:2]:
            return self.image[top : top + self.window[0]]
        stretch = self.image.shape[0] / self.size[0]
        begin, end = top * stretch, (top + self.window[0]) * stretch
        # A few more rows on both sides, as context for antialiasing.
        first, last = max(0, int(begin - 2 * stretch)), min(self.image.shape[0], int(end + 2 * stretch) + 1)
        box = (0, begin - first, self.image.shape[1], min(end, self.image.shape[0]) - first)
        part = Image.fromarray(self.image[first:last])
        return np.array(part.resize((self.size[1], self.window[0]), Image.Resampling.BILINEAR, box))


def _weights(length: int) -> np.ndarray:
    """Vote weights along a window: sin², highest at the center, above zero at the ends (for the image's border)."""
    position = (np.arange(length) + 0.5) / length
    return (np.sin(np.pi * position) ** 2 + 1e-3).astype(np.float32)


def _interpolation(pixels: np.ndarray, length: int, other: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For linear interpolation from a side of `other` to `length` pixels: both neighbors, and weight of the second."""
    at = np.clip((pixels + 0.5) * (other / length) - 0.5, 0, other - 1)
    low = np.floor(at).astype(int)
    return low, np.minimum(low + 1, other - 1), (at - low).astype(np.float32)


def _interpolate(votes: np.ndarray, low: np.ndarray, high: np.ndarray, weight: np.ndarray, axis: int) -> np.ndarray:
    first = np.take(votes, low, axis)
    return first + (np.take(votes, high, axis) - first) * weight
