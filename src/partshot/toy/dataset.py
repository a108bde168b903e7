"""Toy data sets: drawn faces, cars and horses with pixel-exact labels, so tests, docs and the demo need no download.

Image i depends only on its kind, the seed and i, not on the count, and is the same drawing at any size. This module
holds the kinds, their part names and the folder layout; faces.py, cars.py and horses.py draw. Needs skia (extra
"train") to draw.
"""

import io
from collections.abc import Callable, Iterator
from json import dumps
from pathlib import Path

import numpy as np
from PIL import Image

from partshot.artifact import replacing_file
from partshot.catalog import lookup
from partshot.data.images import read_image
from partshot.data.labels import write_labels
from partshot.data.shots import Shots
from partshot.errors import BadRecipe, nearest
from partshot.parts import PartSet

_DRAW = {
    "faces": "partshot.toy.faces:draw_face",
    "faces-lr": "partshot.toy.faces:draw_face_lr",
    "cars": "partshot.toy.cars:draw_car",
    "horses": "partshot.toy.horses:draw_horse",
}

# Id -> part name; the drawing modules use these ids.
_NAMES = {
    "faces": ("background", "face", "hair", "eyes", "eyebrows", "nose", "mouth", "ears", "neck", "clothes"),
    "faces-lr": (
        "background", "face", "hair", "left eye", "right eye", "left eyebrow", "right eyebrow", "nose", "mouth",
        "left ear", "right ear", "neck", "clothes",
    ),
    "cars": ("background", "body", "wheel", "window", "light", "plate"),
    "horses": ("background", "head", "neck and torso", "legs", "tail"),
}  # fmt: skip

KINDS = tuple(_DRAW)
"""faces has the ten classes of ReGAN. faces-lr has the same images, with left and right eyes, eyebrows and ears as
separate classes."""

SIZES = (32, 512)
"""Smallest and largest side in pixels. Below, an eye is smaller than a pixel; above, the drawings lack detail."""


def toy_parts(kind: str) -> PartSet:
    """The PartSet of a kind of toy; BadRecipe names the nearest kind when the kind is unknown."""
    if kind not in _NAMES:
        raise BadRecipe(f"unknown toy '{kind}'; {nearest(kind, KINDS)}")
    return PartSet.of(*_NAMES[kind])


def draw(kind: str, size: int, seed: int, index: int) -> tuple[np.ndarray, np.ndarray]:
    """One toy: its image, uint8 [size, size, 3] RGB, and its exact labels, uint8 [size, size], ids of `toy_parts`.

    size: pixels per side, 32 to 512. seed, index: at least 0. They determine the drawing, which is the same at every
    size except for the per-pixel sensor noise. Raises BadRecipe for an unknown kind or values out of range.
    """
    draw_function = _draw_function(kind, size)
    if seed < 0 or index < 0:
        raise BadRecipe(f"toy seed {seed}, index {index}: both start at 0")
    return draw_function(np.random.default_rng([seed, index]), size)


def toy_shots(kind: str, size: int, count: int, seed: int = 0, start: int = 0) -> Shots:
    """Toy images start .. start + count - 1 as labeled shots in memory; see `draw`."""
    drawn = [draw(kind, size, seed, i) for i in range(start, start + count)]
    return Shots(
        images=tuple(image for image, _ in drawn),
        labels=tuple(labels for _, labels in drawn),
        names=tuple(_name(i) for i in range(start, start + count)),
        parts=toy_parts(kind),
    )


def write_toy(kind: str, count: int, size: int, folder: Path | str, seed: int = 0) -> Path:
    """Writes toy images 0 .. count - 1 to folder/images/00000.png, folder/masks/00000.png and folder/classes.json.

    Files are written atomically and existing files are kept, so an interrupted run can be resumed, and a larger count
    adds to a smaller one. Raises BadRecipe when the folder holds other images or classes, DiskFull when the disk is
    full.
    """
    for _ in writing_toy(kind, count, size, folder, seed):
        pass
    return Path(folder)


def writing_toy(kind: str, count: int, size: int, folder: Path | str, seed: int = 0) -> Iterator[Path]:
    """`write_toy` as a generator: yields the path of each image once it and its mask are written."""
    folder, parts = Path(folder), toy_parts(kind)
    _draw_function(kind, size)
    if count < 1:
        raise BadRecipe(f"--count {count}: must be 1 or more")
    if seed < 0:
        raise BadRecipe(f"--seed {seed}: must be 0 or more")
    _refuse_other_images(kind, size, folder, seed)
    _write(folder / "classes.json", dumps(parts.to_dict(), indent=1).encode())
    for i in range(count):
        image_path, mask_path = _paths(folder, i)
        if not (image_path.exists() and mask_path.exists()):
            image, labels = draw(kind, size, seed, i)
            write_labels(mask_path, labels, parts)
            _write(image_path, _png(image))
        yield image_path


def _draw_function(kind: str, size: int) -> Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]:
    draw_function = lookup(_DRAW, kind, "toy")
    if not SIZES[0] <= size <= SIZES[1]:
        raise BadRecipe(f"--size {size}: must be {SIZES[0]} to {SIZES[1]} pixels")
    return draw_function


def _name(index: int) -> str:
    return f"{index:05d}"


def _paths(folder: Path, index: int) -> tuple[Path, Path]:
    return folder / "images" / f"{_name(index)}.png", folder / "masks" / f"{_name(index)}.png"


def _refuse_other_images(kind: str, size: int, folder: Path, seed: int) -> None:
    """Raises BadRecipe when the folder holds images of another kind, size or seed, or images that are no toys."""
    hint = "choose an empty folder, or the kind, size and seed of the images in it"
    classes = folder / "classes.json"
    if classes.exists() and PartSet.load(classes) != toy_parts(kind):
        raise BadRecipe(f"{classes}: has other classes than toy {kind}; {hint}")
    there = sorted((folder / "images").glob("[!.]*")) if (folder / "images").is_dir() else []
    if not there:
        return
    first = there[0]
    ours = first.suffix == ".png" and first.stem.isdecimal()
    if not ours or not np.array_equal(read_image(first), draw(kind, size, seed, int(first.stem))[0]):
        raise BadRecipe(f"{first}: is not the image of toy {kind} of size {size} and seed {seed}; {hint}")


def _png(image: np.ndarray) -> bytes:
    blob = io.BytesIO()
    Image.fromarray(image).save(blob, "PNG", compress_level=3)  # noise hardly compresses at higher levels
    return blob.getvalue()


def _write(path: Path, content: bytes) -> None:
    with replacing_file(path) as temporary:
        temporary.write_bytes(content)
