"""Windows: a large image read piece by piece, each at the scale of the images that a student learned from.

Windows of one size overlap by half; what each says counts most in its middle, by a smooth weight. They are read one
row after the other, and only the votes of the rows that later windows still reach are kept, so that memory goes with
the image's width, not with its pixels. Several scales are read side by side, and their votes are averaged. Knows
arrays and any function from images to labels and confidence; refuses to know files, options and networks.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from PIL import Image

Reader = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Images, uint8 [b, h, w, 3], to labels, uint8 [b, h, w], and each label's probability times 255, uint8 [b, h, w]."""

_BATCH = 8
_BAND = 64  # rows of the image that are decided at once
# Votes are kept at the image's own scale, but no finer than so many pixels for each that the network sees.
_FINEST = 2


def read_in_windows(
    read: Reader, image: np.ndarray, windows: Sequence[int], classes: int, reads: int
) -> tuple[np.ndarray, np.ndarray]:
    """Labels and confidence of an image, uint8 [h, w, 3]: uint8 [h, w] each.

    windows: sides of the windows in pixels of the image, one for each scale at which it is read; along a side of the
    image that is shorter, they are as long as that. classes: how many labels there are. reads: the long side at which
    the network sees a window. Confidence is the share of the votes, weighted by their own confidence, times 255.
    """
    height, width = image.shape[:2]
    scales = [_Scale(read, image, window, classes, reads) for window in windows]
    labels, confidence = np.empty((2, height, width), np.uint8)
    for top in range(0, height, _BAND):
        rows = slice(top, min(top + _BAND, height))
        votes = scales[0].rows(rows)
        for other in scales[1:]:
            votes += other.rows(rows)
        labels[rows] = votes.argmax(0)
        confidence[rows] = np.rint(votes.max(0) * (255 / len(scales)))
    return labels, confidence


def starts(length: int, window: int) -> list[int]:
    """Where windows begin along a side: evenly, overlapping by half or a little more, the last at the very end."""
    if window >= length:
        return [0]
    steps = -(-2 * (length - window) // window)
    return [round(i * (length - window) / steps) for i in range(steps + 1)]


class _Scale:
    """One scale's votes, made from top to bottom as they are asked for.

    Votes live on a grid of their own, the image's or a coarser one, [classes, rows, columns].
    """

    def __init__(self, read: Reader, image: np.ndarray, window: int, classes: int, reads: int):
        self.read, self.image, self.classes = read, image, classes
        shrink = min(1.0, _FINEST * reads / window)
        self.size = tuple(max(1, round(side * shrink)) for side in image.shape[:2])
        self.window = tuple(min(side, max(1, round(window * shrink))) for side in self.size)
        self.finished = self._finished()
        self.kept, self.first = np.empty((classes, 0, self.size[1]), np.float32), 0

    def rows(self, rows: slice) -> np.ndarray:
        """Votes, float32 [classes, rows, width], of some rows of the image below those asked for before."""
        above, below, down = _between(np.arange(rows.start, rows.stop), self.image.shape[0], self.size[0])
        while self.first + self.kept.shape[1] <= below[-1]:
            self.kept = np.concatenate([self.kept[:, max(0, above[0] - self.first) :], next(self.finished)], 1)
            self.first = max(self.first, above[0])
        votes = _mix(self.kept, above - self.first, below - self.first, down[:, None], 1)
        if self.size[1] == self.image.shape[1]:
            return votes
        left, right, across = _between(np.arange(self.image.shape[1]), self.image.shape[1], self.size[1])
        return _mix(votes, left, right, across, 2)

    def _finished(self) -> Iterator[np.ndarray]:
        """Blocks of rows that no further window reaches."""
        tops, weight = starts(self.size[0], self.window[0]), _hill(self.window[0])
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
        lefts, weight = starts(self.size[1], width), _hill(width)
        votes, total = np.zeros((self.classes, height, self.size[1]), np.float32), np.zeros(self.size[1], np.float32)
        for first in range(0, len(lefts), _BATCH):
            several = lefts[first : first + _BATCH]
            labels, sure = self.read(np.stack([strip[:, left : left + width] for left in several]))
            for left, ids, share in zip(several, labels, sure, strict=True):
                here = votes[:, :, left : left + width]
                for part in np.unique(ids):
                    here[part] += np.where(ids == part, share * weight, 0)
                total[left : left + width] += weight * 255
        return votes / total

    def _strip(self, top: int) -> np.ndarray:
        """The image's rows under a row of windows, at the votes' scale."""
        if self.size == self.image.shape[:2]:
            return self.image[top : top + self.window[0]]
        stretch = self.image.shape[0] / self.size[0]
        begin, end = top * stretch, (top + self.window[0]) * stretch
        # Some more rows on both sides, over which antialiasing averages.
        first, last = max(0, int(begin - 2 * stretch)), min(self.image.shape[0], int(end + 2 * stretch) + 1)
        box = (0, begin - first, self.image.shape[1], min(end, self.image.shape[0]) - first)
        part = Image.fromarray(self.image[first:last])
        return np.array(part.resize((self.size[1], self.window[0]), Image.Resampling.BILINEAR, box))


def _hill(length: int) -> np.ndarray:
    """Weights along a window: highest in the middle, and above zero at the ends, where an image may end, too."""
    place = (np.arange(length) + 0.5) / length
    return (np.sin(np.pi * place) ** 2 + 1e-3).astype(np.float32)


def _between(places: np.ndarray, length: int, other: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For pixels of a side, the two nearest of the same side in `other` pixels, and the second's share."""
    at = np.clip((places + 0.5) * (other / length) - 0.5, 0, other - 1)
    low = np.floor(at).astype(int)
    return low, np.minimum(low + 1, other - 1), (at - low).astype(np.float32)


def _mix(votes: np.ndarray, low: np.ndarray, high: np.ndarray, share: np.ndarray, axis: int) -> np.ndarray:
    first = np.take(votes, low, axis)
    return first + (np.take(votes, high, axis) - first) * share
