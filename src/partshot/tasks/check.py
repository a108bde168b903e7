"""check: scores the exported student on masks that the user held out (`run --check-masks`).

The masks are of images of the same folder, which stay among the unlabeled ones. All masks are read before any training,
so that an error in one is reported at once.
"""

import hashlib
import math
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from partshot.artifact import write_json
from partshot.data.images import list_images
from partshot.data.labels import read_labels
from partshot.data.shots import Pair, find_classes_json, mask_files, read_pair
from partshot.errors import BadLabels, BadParts
from partshot.metrics import Score, score
from partshot.parts import IGNORE, PartSet
from partshot.tasks.estimate import standard_error
from partshot.tasks.predict import predict

_THREADS = 4


@dataclass(frozen=True)
class Checked:
    """score: of the images with a check mask, pooled. error: bootstrap standard error of its mean IoU; NaN
    with one image."""

    score: Score
    error: float

    @property
    def images(self) -> int:
        """How many images were scored: those with a labeled pixel."""
        return len(self.score.per_image)

    @property
    def miou(self) -> float:
        """Mean IoU over the parts that occur, background included, 0..1."""
        return self.score.miou_nan

    @property
    def per_part(self) -> dict[str, float]:
        """IoU, 0..1, of the parts that occur in the masks or are predicted there."""
        return self.score.occurring

    @property
    def absent(self) -> tuple[str, ...]:
        """Names of the parts that neither occur nor are predicted."""
        return self.score.absent

    def to_dict(self) -> dict:
        """Plain values for JSON; an error of NaN is None."""
        error = None if math.isnan(self.error) else self.error
        return {"miou": self.miou, "error": error, "images": self.images, "score": self.score.to_dict()}


def check_pairs(
    folder: Path | str, images: Path | str, labeled: Sequence[Pair], parts: PartSet, rgb_masks: bool = False
) -> list[Pair]:
    """The held-out masks and their images, each read once to check that it can be scored.

    folder: the held-out masks, NAME.png; may be the images' own folder. labeled, parts: of the labels that the student
    learns from.

    Raises BadLabels when there is no mask, the image of one is missing or labeled, one cannot be read or has another
    size than its image, or no pixel is labeled in any; BadParts for a classes.json that names other parts; BadImage.
    """
    masks = mask_files(folder)
    if not masks:
        raise BadLabels(
            f"--check-masks {folder}: contains no mask (*.png); save the held-out masks there, as NAME.png "
            "for the image NAME.jpg"
        )
    _refuse_other_parts(next(iter(masks.values())).parent, parts, labeled)
    learned = {pair.name: pair.mask for pair in labeled}
    found = {path.stem: path for path in list_images(images, leave_out=[*masks.values(), *learned.values()])}
    for name, mask in masks.items():
        if name in learned:
            raise BadLabels(
                f"check mask {mask}: its image is labeled in {learned[name].parent}, too, and a student is not "
                "checked on its training images; remove one of the two masks"
            )
        if name not in found:
            raise BadLabels(f"check mask {mask}: no image '{name}' in {images}; add the image or remove the mask")
    pairs = [Pair(name, found[name], mask) for name, mask in masks.items()]
    with ThreadPoolExecutor(_THREADS) as pool:
        known = list(pool.map(lambda pair: bool((read_pair(pair, parts, rgb_masks)[1] != IGNORE).any()), pairs))
    if not any(known):
        raise BadLabels(f"--check-masks {folder}: no pixel of any mask is labeled (all are 255); label some")
    return pairs


def check(
    pairs: Sequence[Pair], model: Path, parts: PartSet, out: Path, rgb_masks: bool = False, quiet: bool = False
) -> Checked:
    """Scores an exported student on the pairs of `check_pairs`, at the masks' own sizes; writes out/check.json.

    model: the ONNX file.
    """
    names, wanted = [pair.name for pair in pairs], {pair.image for pair in pairs}
    folder = pairs[0].image.parent
    others = [path for path in folder.iterdir() if path not in wanted]
    with tempfile.TemporaryDirectory() as temporary:
        predict(model, folder, temporary, quiet=quiet, leave_out=others, window="off")

        def truths() -> Iterator[np.ndarray]:
            return (read_labels(pair.mask, parts, rgb_masks) for pair in pairs)

        def predictions() -> Iterator[np.ndarray]:
            return (read_labels(Path(temporary) / f"{name}.png", parts) for name in names)

        # Read twice, to hold only one mask in memory.
        result = score(truths(), predictions(), parts, names)
        found = Checked(result, standard_error(truths(), predictions(), len(parts)))
    state = {"student": hashlib.sha256(model.read_bytes()).hexdigest(), "masks": str(pairs[0].mask.parent)}
    write_json(out / "check.json", {**state, **found.to_dict()})
    return found


def _refuse_other_parts(folder: Path, parts: PartSet, labeled: Sequence[Pair]) -> None:
    path = find_classes_json(folder)
    if path is not None and (theirs := PartSet.load(path).names) != parts.names:
        raise BadParts(
            f"{path}: names the parts {', '.join(theirs)}, but those of the masks in {labeled[0].mask.parent} are "
            f"{', '.join(parts.names)}; use one classes.json for both"
        )
