"""Random forest on pixel features: the baseline of interactive segmentation tools.

As in ilastik, Labkit and scikit-image's tutorial, the features of a pixel are its color and the responses of a filter
bank at several scales. The pixel's position is added, since the images show one kind of object, mostly aligned. The
forest is trained on labeled pixels alone, without torch, representations or unlabeled images.
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

_SIGMAS = 4  # 1, 2, 4 and 8 px: texture, edges, parts, and the surroundings of parts
_LARGEST_SIGMA = 8
_PIXELS = 60_000  # sampled from the shots; more only make the fit slower
# Fraction of those pixels for each tree. A tenth decorrelates the trees, which raises the mIoU (ants, one shot: .28 to
# .32) and saves time.
_MAX_SAMPLES = 0.1
_LEAST_SAMPLES = 1_000
_TREES = 100
_MIN_SAMPLES_LEAF = 5
_MAX_FEATURES = 0.2  # fraction of the features tried at each split: +1 to 2 points of mIoU over the default square root


class Forest:
    """parts: the classes. size: side in pixels of the squares that images are resized to. seed: of pixels and trees.

    The same shots and seed give the same forest on any number of cores.
    """

    def __init__(self, parts: PartSet, size: int = 128, seed: int = 0):
        self.parts, self.size, self.seed = parts, size, seed
        self.trees: RandomForestClassifier | None = None

    def fit(self, shots: Shots) -> "Forest":
        """Fits the forest anew to the labeled pixels of the shots.

        A part that no shot shows is never predicted, but keeps its id. Raises BadLabels when no pixel is labeled.
        """
        images, labels = shots.stack(self.size)
        rng = np.random.default_rng(self.seed)
        chosen = sample_pixels(labels.ravel(), _PIXELS, rng)
        if not chosen.size:
            raise BadLabels(f"none of the pixels of {len(shots)} shots is labeled (all are {IGNORE}); label some")
        index, pixel = np.divmod(chosen, self.size**2)
        features = np.concatenate(
            [pixel_features(image).reshape(self.size**2, -1)[pixel[index == i]] for i, image in enumerate(images)]
        )
        self.trees = RandomForestClassifier(
            n_estimators=_TREES,
            class_weight="balanced",
            min_samples_leaf=_MIN_SAMPLES_LEAF,
            max_features=_MAX_FEATURES,
            max_samples=min(1.0, max(_MAX_SAMPLES, _LEAST_SAMPLES / len(chosen))),
            n_jobs=-1,
            random_state=self.seed,
        )
        self.trees.fit(features, labels.ravel()[chosen])
        return self

    def predict(self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> list[np.ndarray]:
        """The predicted ids of images uint8 [h, w, 3], each uint8 [h, w] at its image's size.

        Raises NotFitted before `fit`.
        """
        native = (_resize(self._probabilities(image), *image.shape[:2]) for image in images)
        return [probabilities.argmax(0).astype(np.uint8) for probabilities in native]

    def _probabilities(self, image: np.ndarray) -> Float32[np.ndarray, "k _ _"]:
        if self.trees is None:
            raise NotFitted("the forest has not been fitted; call fit(shots) before predict")
        features = pixel_features(letterbox(image, self.size))
        predicted = self.trees.predict_proba(features.reshape(self.size**2, -1))
        probabilities = np.zeros((len(self.parts), self.size, self.size), np.float32)
        probabilities[self.trees.classes_] = predicted.T.reshape(-1, self.size, self.size)
        return Box.of(*image.shape[:2], self.size).cut(probabilities)


def pixel_features(image: UInt8[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "h w f"]:
    """The features of each pixel of an image.

    For each of six channels (RGB and Lab, in about 0..1): the value; at sigma 1, 2, 4 and 8 px the Gaussian blur, the
    edge strength (Sobel) and the two eigenvalues of the Hessian; and the differences of consecutive blurs (blobs).
    Then the row and the column, in 0..1.
    """
    height, width = image.shape[:2]
    rgb = image.astype(np.float32) / 255
    channels = np.concatenate([rgb, rgb2lab(rgb) / 100], axis=-1).astype(np.float32)
    filtered = multiscale_basic_features(
        channels, sigma_min=1, sigma_max=_LARGEST_SIGMA, num_sigma=_SIGMAS, channel_axis=-1, workers=1
    )
    # Axes from the outermost: channel, sigma, filter (blur, edges, two eigenvalues).
    blurs = filtered.reshape(height, width, channels.shape[-1], _SIGMAS, -1)[..., 0]
    blobs = np.diff(blurs, axis=-1).reshape(height, width, -1)
    rows, columns = np.mgrid[:height, :width]
    position = np.stack([rows / height, columns / width], axis=-1)
    return np.concatenate([channels, filtered, blobs, position], axis=-1, dtype=np.float32)


def sample_pixels(labels: UInt8[np.ndarray, " n"], most: int, rng: np.random.Generator) -> np.ndarray:
    """Sorted indices of at most `most` labeled pixels, int64 [m].

    Pixels are sampled with weight 1 / sqrt(number of pixels of their class). This is between uniform sampling of pixels
    and of classes: an eye keeps its few pixels, and a background its variety.
    """
    labeled = np.flatnonzero(labels != IGNORE)
    if len(labeled) <= most:
        return labeled
    counts = np.bincount(labels[labeled], minlength=256)
    weights = 1 / np.sqrt(counts[labels[labeled]])
    return np.sort(rng.choice(labeled, most, replace=False, p=weights / weights.sum()))


def _resize(probabilities: np.ndarray, height: int, width: int) -> np.ndarray:
    # Probabilities are resized, not labels, so that borders are smooth at the image's size.
    maps = [Image.fromarray(p).resize((width, height), Image.Resampling.BILINEAR) for p in probabilities]
    return np.stack([np.asarray(p) for p in maps])
