"""Forest: a random forest over filters and position, the answer users reach for today and the row to beat.

What ilastik, Labkit and scikit-image's own tutorial do: for each pixel, color and what a bank of filters sees around
it at several scales, then trees. Position is added, since the images show one kind of thing, mostly aligned.
Knows filters and trees. Refuses to know tensors, representations and unlabeled images: it learns from the labeled
pixels alone.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image
from skimage.color import rgb2lab
from skimage.feature import multiscale_basic_features
from sklearn.ensemble import RandomForestClassifier

from partshot.data.shots import Shots
from partshot.errors import BadLabels, NotFitted
from partshot.ops.letterbox import Box, letterbox
from partshot.parts import IGNORE, PartSet

_SIGMAS = 4  # 1, 2, 4 and 8 px: a texture, an edge, a part, and what a part is next to
_LARGEST_SIGMA = 8
_PIXELS = 60_000  # drawn from the shots; past it the fit only gets slower
# Trees on a tenth of those pixels each disagree more, together judge better (ants, one shot: .28 to .32) and are fast.
_SHARE_A_TREE = 0.1
_LEAST_A_TREE = 1_000
_TREES = 100
_SMALLEST_LEAF = 5
_SHARE_OF_FEATURES = 0.2  # of all features, tried at each split: +1 to 2 points of mIoU over the usual square root


class Forest:
    """parts: what to tell apart. size: edge in pixels of the squares it looks at. seed: draws pixels and trees.

    Same shots and seed, same forest, on any number of cores.
    """

    def __init__(self, parts: PartSet, size: int = 128, seed: int = 0):
        self.parts, self.size, self.seed = parts, size, seed
        self.trees: RandomForestClassifier | None = None

    def fit(self, shots: Shots) -> "Forest":
        """Learns from the labeled pixels of the shots and forgets any earlier fit.

        A part that no shot shows stays known and is never predicted. Raises BadLabels when no pixel is labeled.
        """
        images, labels = shots.stack(self.size)
        rng = np.random.default_rng(self.seed)
        chosen = draw_pixels(labels.ravel(), _PIXELS, rng)
        if not chosen.size:
            raise BadLabels(f"none of the pixels of {len(shots)} shots is labeled (all are {IGNORE}); label some")
        of_image, pixel = np.divmod(chosen, self.size**2)
        features = np.concatenate(
            [pixel_features(image).reshape(self.size**2, -1)[pixel[of_image == i]] for i, image in enumerate(images)]
        )
        self.trees = RandomForestClassifier(
            n_estimators=_TREES,
            class_weight="balanced",
            min_samples_leaf=_SMALLEST_LEAF,
            max_features=_SHARE_OF_FEATURES,
            max_samples=min(1.0, max(_SHARE_A_TREE, _LEAST_A_TREE / len(chosen))),
            n_jobs=-1,
            random_state=self.seed,
        )
        self.trees.fit(features, labels.ravel()[chosen])
        return self

    def predict(self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> list[np.ndarray]:
        """The labels of images uint8 [h, w, 3], each uint8 [h, w] at its image's own size.

        Raises NotFitted before `fit`.
        """
        native = (_enlarge(self._probabilities(image), *image.shape[:2]) for image in images)
        return [probabilities.argmax(0).astype(np.uint8) for probabilities in native]

    def _probabilities(self, image: np.ndarray) -> Float32[np.ndarray, "k _ _"]:
        if self.trees is None:
            raise NotFitted("the forest has not been fitted; call fit(shots) before predict")
        features = pixel_features(letterbox(image, self.size))
        known = self.trees.predict_proba(features.reshape(self.size**2, -1))
        probabilities = np.zeros((len(self.parts), self.size, self.size), np.float32)
        probabilities[self.trees.classes_] = known.T.reshape(-1, self.size, self.size)
        return Box.of(*image.shape[:2], self.size).cut(probabilities)


def pixel_features(image: UInt8[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "h w f"]:
    """What the forest knows about each pixel of one image.

    Six channels, RGB and Lab in about 0..1; of each the value itself, and at sigma 1, 2, 4 and 8 px the Gaussian blur,
    the strength of its edges (Sobel) and the two eigenvalues of its Hessian; differences of neighboring blurs (blobs);
    and the row and column in 0..1.
    """
    height, width = image.shape[:2]
    rgb = image.astype(np.float32) / 255
    channels = np.concatenate([rgb, rgb2lab(rgb) / 100], axis=-1).astype(np.float32)
    filtered = multiscale_basic_features(
        channels, sigma_min=1, sigma_max=_LARGEST_SIGMA, num_sigma=_SIGMAS, channel_axis=-1, workers=1
    )
    # Channels are the outer order, then sigmas, then blur, edges and the two eigenvalues.
    blurs = filtered.reshape(height, width, channels.shape[-1], _SIGMAS, -1)[..., 0]
    blobs = np.diff(blurs, axis=-1).reshape(height, width, -1)
    rows, columns = np.mgrid[:height, :width]
    position = np.stack([rows / height, columns / width], axis=-1)
    return np.concatenate([channels, filtered, blobs, position], axis=-1, dtype=np.float32)


def draw_pixels(labels: UInt8[np.ndarray, " n"], most: int, rng: np.random.Generator) -> np.ndarray:
    """Sorted places of at most `most` labeled pixels, int64 [m].

    Each pixel's chance goes with one over the square root of its class's count, between the image's own shares and
    equal ones: an eye keeps its few pixels while a background keeps its variety.
    """
    labeled = np.flatnonzero(labels != IGNORE)
    if len(labeled) <= most:
        return labeled
    counts = np.bincount(labels[labeled], minlength=256)
    chances = 1 / np.sqrt(counts[labels[labeled]])
    return np.sort(rng.choice(labeled, most, replace=False, p=chances / chances.sum()))


def _enlarge(probabilities: np.ndarray, height: int, width: int) -> np.ndarray:
    # Probabilities, not labels, are resized: borders stay smooth at the image's own size.
    maps = [Image.fromarray(p).resize((width, height), Image.Resampling.BILINEAR) for p in probabilities]
    return np.stack([np.asarray(p) for p in maps])
