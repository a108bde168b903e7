"""Shots: the few labeled images, each with its mask, and random subsets of k shots for few-shot protocols.

Reads several folder layouts of images and masks and validates every pair before training: any bad shot is an error,
since there are only a few. Depends on NumPy and Pillow, not on torch.
"""

import difflib
import hashlib
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from partshot.data.images import IMAGE_SUFFIXES, exif_swaps_axes, list_images, read_image, resize_images
from partshot.data.labels import count_ids, read_labels, read_palette
from partshot.errors import BadLabels, size_text
from partshot.ops.letterbox import letterbox_labels
from partshot.parts import IGNORE, PartSet, default_color

_THREADS = 4


class Pair(NamedTuple):
    """Paths of an image and its mask; name: their common stem."""

    name: str
    image: Path
    mask: Path


@dataclass(frozen=True)
class Shots:
    """k labeled images at their original sizes.

    images: k arrays uint8 [h, w, 3] RGB. labels: k arrays uint8 [h, w], ids of `parts`, 255 = ignore.
    names: one per shot, for messages and reports. parts: the PartSet the ids belong to.

    Raises BadLabels when the counts differ, a mask has another size than its image, or an id is outside `parts`.
    """

    images: tuple[np.ndarray, ...]
    labels: tuple[np.ndarray, ...]
    names: tuple[str, ...]
    parts: PartSet

    def __post_init__(self):
        if not len(self.images) == len(self.labels) == len(self.names):
            raise BadLabels(f"{len(self.images)} images, {len(self.labels)} labels and {len(self.names)} names given")
        for name, image, labels in zip(self.names, self.images, self.labels, strict=True):
            if labels.shape != image.shape[:2]:
                raise BadLabels(
                    f"labels of '{name}' are {size_text(labels.shape)} but its image is {size_text(image.shape[:2])}"
                )
            known = labels[labels != IGNORE]
            if known.size and known.max() >= len(self.parts):
                raise BadLabels(
                    f"labels of '{name}' contain id {known.max()}, but the parts have ids 0 to {len(self.parts) - 1}"
                )

    def __len__(self) -> int:
        return len(self.names)

    def subset(self, indices: Sequence[int]) -> "Shots":
        """The shots at these indices, in this order."""
        return Shots(
            images=tuple(self.images[i] for i in indices),
            labels=tuple(self.labels[i] for i in indices),
            names=tuple(self.names[i] for i in indices),
            parts=self.parts,
        )

    @property
    def fingerprint(self) -> str:
        """12 hex digits, equal exactly when images, labels, names and parts are equal."""
        digest = hashlib.sha256(f"{self.names}/{self.parts.to_dict()}".encode())
        for array in (*self.images, *self.labels):
            digest.update(f"{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:12]

    @property
    def native(self) -> int:
        """The median long side of the images, in pixels."""
        return int(np.median([max(image.shape[:2]) for image in self.images]))

    def folds(self, most: int) -> list[list[int]]:
        """The indices that each of at most `most` folds of a cross-validation leaves out; no folds of one shot."""
        count = min(most, len(self)) if len(self) > 1 else 0
        return [list(range(fold, len(self), count)) for fold in range(count)]

    def without(self, indices: Sequence[int]) -> "Shots":
        """The shots that are not at these indices."""
        return self.subset([i for i in range(len(self)) if i not in indices])

    def sample(self, k: int, seed: int) -> "Shots":
        """The first k shots of a random permutation by the seed, so samples of the same seed are nested.

        Sampling ignores the masks, so a small sample can lack a part, see `present`. Raises BadLabels when there are
        fewer than k shots.
        """
        if not 1 <= k <= len(self):
            raise BadLabels(f"k = {k}, but there are {len(self)} labeled images; choose 1 to {len(self)}")
        return self.subset(np.random.default_rng(seed).permutation(len(self))[:k].tolist())

    def present(self) -> tuple[int, ...]:
        """The ids that occur in any mask, sorted, without ignore."""
        counts = sum((count_ids(labels) for labels in self.labels), np.zeros(256, np.int64))
        return tuple(int(i) for i in np.flatnonzero(counts[:IGNORE]))

    def stack(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """All shots letterboxed to squares: images uint8 [k, size, size, 3], labels uint8 [k, size, size].

        The aspect ratio is kept (letterbox.py); the padding is 255 in the labels.
        """
        images = resize_images(self.images, size)
        return images, np.stack([letterbox_labels(labels, size) for labels in self.labels])

    @property
    def oblong(self) -> bool:
        """Whether any image is not square, so that letterboxing and squashing differ."""
        return any(image.shape[0] != image.shape[1] for image in self.images)


def load_shots(
    labels: Path | str,
    images: Path | str | None = None,
    parts: PartSet | None = None,
    names: Sequence[str] | None = None,
    rgb_masks: bool = False,
    leave_out: Iterable[Path] = (),
) -> Shots:
    """Reads labeled images from disk.

    labels, images, leave_out: folders of masks and images and excluded files, see `find_pairs`.
    parts: the PartSet. By default it comes from classes.json in the masks' folder or its parent, or else from the ids
    and the palette of the masks. names: only these stems, in this order. rgb_masks: convert RGB masks by the parts'
    exact colors.

    Raises BadLabels, BadImage or BadParts for the first error found.
    """
    return load_pairs(find_pairs(labels, images, names, leave_out), parts, rgb_masks)


def load_pairs(pairs: Sequence[Pair], parts: PartSet | None = None, rgb_masks: bool = False) -> Shots:
    """Reads the labeled images that `find_pairs` matched; arguments and errors as for `load_shots`."""
    parts = parts or find_parts(pairs[0].mask.parent)
    with ThreadPoolExecutor(_THREADS) as pool:
        read = list(pool.map(lambda pair: read_pair(pair, parts, rgb_masks), pairs))
    shots = Shots(
        images=tuple(image for image, _ in read),
        labels=tuple(ids for _, ids in read),
        names=tuple(pair.name for pair in pairs),
        parts=parts or _parts_from_masks([ids for _, ids in read], pairs),
    )
    _refuse_single_class(shots, pairs[0].mask.parent)
    return shots


def find_pairs(
    labels: Path | str,
    images: Path | str | None = None,
    names: Sequence[str] | None = None,
    leave_out: Iterable[Path] = (),
) -> list[Pair]:
    """Matches images and masks by stem.

    Layouts: masks NAME.png in `labels` and images NAME.* in `images` (other images there are unlabeled); a folder with
    images/ and masks/; or NAME.png next to NAME.jpg (or another image format) in one folder.
    Without `images`, every image needs a mask.
    names: only these stems, in this order. leave_out: files in `images` to exclude, such as other masks.

    Raises BadLabels when there is no mask, or when an image or a mask of a pair is missing (the message names the most
    similar stem); BadImage when two images share a stem.
    """
    mask_folder, image_folder = _folders(Path(labels), Path(images) if images else None)
    masks = mask_files(labels)
    found = _images(image_folder, mask_folder, masks, leave_out)
    if not masks:
        raise BadLabels(
            f"{mask_folder}: contains no mask (*.png); save the mask of each labeled image there, as NAME.png "
            "for the image NAME.jpg"
        )
    for name in names or ():
        if name not in masks:
            raise BadLabels(f"'{name}' has no mask in {mask_folder}; {_closest(name, masks)}add {name}.png")
    if not set(masks) & set(found) and mask_folder.resolve() == image_folder.resolve():
        raise BadLabels(f"{mask_folder}: contains no mask beside an image: each PNG counts as a mask; give --labels")
    for name in names or masks:
        if name not in found:
            raise BadLabels(
                f"mask {masks[name]} has no image in {image_folder}; "
                f"{_closest(name, found)}add the image or remove the mask"
            )
    unlabeled = sorted(set(found) - set(masks))
    if unlabeled and images is None and names is None:
        raise BadLabels(
            f"image {found[unlabeled[0]]} has no mask in {mask_folder}; {_closest(unlabeled[0], masks)}"
            "label it, or move unlabeled images to a folder of their own"
        )
    return [Pair(name, found[name], masks[name]) for name in names or masks]


def mask_files(labels: Path | str) -> dict[str, Path]:
    """The masks in a folder or in its subfolder masks/, by stem; BadLabels when the folder is missing."""
    folder, _ = _folders(Path(labels), None)
    return {p.stem: p for p in sorted(folder.iterdir()) if p.suffix.lower() == ".png" and p.name[0] != "."}


def _folders(labels: Path, images: Path | None) -> tuple[Path, Path]:
    # The folder of the masks and the folder of the images.
    if not labels.is_dir():
        raise BadLabels(f"{labels}: no such folder; give a folder of masks")
    masks = labels / "masks" if (labels / "masks").is_dir() else labels
    same = images is None or images.resolve() == labels.resolve()
    if same:
        return masks, labels / "images" if (labels / "images").is_dir() else masks
    return masks, images


def _images(folder: Path, mask_folder: Path, masks: dict[str, Path], leave_out: Iterable[Path] = ()) -> dict[str, Path]:
    # Images by stem, from `folder` and from the masks' folder, so that a folder of labeled pairs can be used with a
    # folder of unlabeled images. If both have a stem, the image in `folder` is used.
    same = folder.resolve() == mask_folder.resolve()
    beside = {p for p in mask_folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.name[0] != "."}
    left_out = [*masks.values(), *(leave_out if same else ())]
    found = {p.stem: p for p in list_images(mask_folder, left_out)} if beside - set(masks.values()) else {}
    if same:
        return found
    for stem, path in found.items():
        if stem not in masks:
            raise BadLabels(
                f"{path} is in the folder of masks but has no mask {stem}.png; if it is a mask, save it as an "
                "8-bit indexed PNG (value = id; JPEG would change ids), else move it to the folder of images"
            )
    return {**found, **{p.stem: p for p in list_images(folder, leave_out)}}


def read_pair(pair: Pair, parts: PartSet | None = None, rgb: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Reads an image, uint8 [h, w, 3], and its mask, uint8 [h, w].

    parts, rgb: as in `read_labels`. Raises BadImage or BadLabels, also when the sizes differ.
    """
    image, labels = read_image(pair.image), read_labels(pair.mask, parts, rgb)
    if labels.shape != image.shape[:2]:
        hint = "export it at the image's size"
        if labels.shape == image.shape[1::-1] and exif_swaps_axes(pair.image):
            hint = "it lacks the rotation in the image's EXIF: rotate the mask the same way"
        given, needed = size_text(labels.shape), size_text(image.shape[:2])
        raise BadLabels(f"mask {pair.mask} is {given} pixels, but its image {pair.image} is {needed}; {hint}")
    return image, labels


def find_parts(folder: Path) -> PartSet | None:
    """The PartSet of a folder of masks, from its or its parent's classes.json; None when there is neither."""
    path = find_classes_json(folder)
    return None if path is None else PartSet.load(path)


def find_classes_json(folder: Path) -> Path | None:
    """The classes.json of a folder of masks or of its parent; None when there is neither."""
    return next((path for path in (folder / "classes.json", folder.parent / "classes.json") if path.is_file()), None)


def _parts_from_masks(masks: list[np.ndarray], pairs: list[Pair]) -> PartSet:
    counts = sum((count_ids(labels) for labels in masks), np.zeros(256, np.int64))
    ids = [int(i) for i in np.flatnonzero(counts[:IGNORE])]
    if ids and len(ids) <= ids[-1] and ids != [*range(1, ids[-1] + 1)]:
        missing = next(i for i in range(ids[-1]) if i not in ids)
        raise BadLabels(
            f"{pairs[0].mask.parent}: the masks contain ids {_joined(ids)}, and no classes.json names id {missing}; "
            'write one: {"classes": [{"id": 0, "name": "background"}, ...]}'
        )
    count = ids[-1] + 1 if ids else 1
    if count > 2:
        warnings.warn(
            f"{pairs[0].mask.parent}: no classes.json, so the parts are called part 1 to part {count - 1}; to name "
            'them, write one: {"classes": [{"id": 0, "name": "background"}, ...]}',
            stacklevel=1,
        )
    palette = read_palette(pairs[0].mask)[:count]
    usable = len(palette) == count == len(set(palette))
    return PartSet(
        names=("background", *(f"part {i}" for i in range(1, count))),
        colors=palette if usable else tuple(default_color(i) for i in range(count)),
    )


def _refuse_single_class(shots: Shots, folder: Path) -> None:
    ids = shots.present()
    if len(ids) >= 2:
        return
    ignored = any((labels == IGNORE).any() for labels in shots.labels)
    if ids == (0,) and ignored:
        raise BadLabels(f"{folder}: the masks contain only 0 and 255, and 255 means ignore; write the part as 1")
    what = f"'{shots.parts.names[ids[0]]}'" if ids else "ignored pixels (255)"
    raise BadLabels(f"{folder}: the masks contain only {what}; label at least two classes, background included")


def _closest(name: str, known: dict[str, Path]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"nearest: {known[close[0]].name}; " if close else ""


def _joined(ids: list[int]) -> str:
    return ", ".join(str(i) for i in ids[:8]) + (", ..." if len(ids) > 8 else "")
