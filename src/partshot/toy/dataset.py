"""Drawn faces, cars and horses with exact parts: tests, docs and the demo need no download.

Image i depends on its kind, the seed and i alone, never on the count, and is the same drawing at any size. Knows the
kinds and how a folder of them is laid out; how a thing looks is in the file named after it.
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

# The ids that the drawing files paint with are places in these rows.
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
"""faces has ReGAN's ten classes; faces-lr is the same images with left and right eye, eyebrow and ear apart."""

SIZES = (32, 512)
"""Smallest and largest side in pixels: below, an eye is less than a pixel; above, the drawings lack detail."""


def toy_parts(kind: str) -> PartSet:
    """The parts of a kind of toy; BadRecipe with the nearest kind when there is none."""
    if kind not in _NAMES:
        raise BadRecipe(f"unknown toy '{kind}'; {nearest(kind, KINDS)}")
    return PartSet.of(*_NAMES[kind])


def draw(kind: str, size: int, seed: int, index: int) -> tuple[np.ndarray, np.ndarray]:
    """One toy: its image, uint8 [size, size, 3] RGB, and its exact labels, uint8 [size, size], ids of `toy_parts`.

    size: pixels per side, 32 to 512. seed, index: at least 0; together they decide everything, whatever the size
    (but for the sensor's noise, which is per pixel). Raises BadRecipe for an unknown kind or values out of range.
    """
    artist = _artist(kind, size)
    if seed < 0 or index < 0:
        raise BadRecipe(f"toy seed {seed}, index {index}: both start at 0")
    return artist(np.random.default_rng([seed, index]), size)


def toy_shots(kind: str, size: int, count: int, seed: int = 0, start: int = 0) -> Shots:
    """Toys start .. start + count - 1 as labeled shots in memory; see `draw`."""
    drawn = [draw(kind, size, seed, i) for i in range(start, start + count)]
    return Shots(
        images=tuple(image for image, _ in drawn),
        labels=tuple(labels for _, labels in drawn),
        names=tuple(_name(i) for i in range(start, start + count)),
        parts=toy_parts(kind),
    )


def write_toy(kind: str, count: int, size: int, folder: Path | str, seed: int = 0) -> Path:
    """Writes toys 0 .. count - 1 to folder/images/00000.png, folder/masks/00000.png and folder/classes.json.

    Each file is written whole or not at all, and what is already there is kept, so a stopped run goes on where it
    was, and a larger count adds to a smaller one. Raises BadRecipe when the folder holds anything else, DiskFull.
    """
    for _ in writing_toy(kind, count, size, folder, seed):
        pass
    return Path(folder)


def writing_toy(kind: str, count: int, size: int, folder: Path | str, seed: int = 0) -> Iterator[Path]:
    """`write_toy` one image at a time: yields the path of each once it and its mask are there."""
    folder, parts = Path(folder), toy_parts(kind)
    _artist(kind, size)
    if count < 1 or seed < 0:
        raise BadRecipe(f"toy count {count}, seed {seed}: at least 1 image, and seeds start at 0")
    _refuse_others(kind, size, folder, seed)
    _write(folder / "classes.json", dumps(parts.to_dict(), indent=1).encode())
    for i in range(count):
        image_path, mask_path = _paths(folder, i)
        if not (image_path.exists() and mask_path.exists()):
            image, labels = draw(kind, size, seed, i)
            write_labels(mask_path, labels, parts)
            _write(image_path, _png(image))
        yield image_path


def _artist(kind: str, size: int) -> Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]:
    artist = lookup(_DRAW, kind, "toy")
    if not SIZES[0] <= size <= SIZES[1]:
        raise BadRecipe(f"toy size {size}: choose {SIZES[0]} to {SIZES[1]} pixels")
    return artist


def _name(index: int) -> str:
    return f"{index:05d}"


def _paths(folder: Path, index: int) -> tuple[Path, Path]:
    return folder / "images" / f"{_name(index)}.png", folder / "masks" / f"{_name(index)}.png"


def _refuse_others(kind: str, size: int, folder: Path, seed: int) -> None:
    """Images that another kind, size or seed left, or that are somebody's own, are neither mixed in nor replaced."""
    cure = "choose an empty folder, or the kind, size and seed it was drawn with"
    classes = folder / "classes.json"
    if classes.exists() and PartSet.load(classes) != toy_parts(kind):
        raise BadRecipe(f"{classes} is not of toy {kind}; {cure}")
    there = sorted((folder / "images").glob("[!.]*")) if (folder / "images").is_dir() else []
    if not there:
        return
    first = there[0]
    ours = first.suffix == ".png" and first.stem.isdecimal()
    if not ours or not np.array_equal(read_image(first), draw(kind, size, seed, int(first.stem))[0]):
        raise BadRecipe(f"{first} is no image of toy {kind}, size {size}, seed {seed}; {cure}")


def _png(image: np.ndarray) -> bytes:
    blob = io.BytesIO()
    Image.fromarray(image).save(blob, "PNG", compress_level=3)  # drawn noise hardly compresses: spend no time on it
    return blob.getvalue()


def _write(path: Path, content: bytes) -> None:
    with replacing_file(path) as temporary:
        temporary.write_bytes(content)
