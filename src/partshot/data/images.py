"""Reads images as uint8 RGB arrays [h, w, 3], and writes label overlays.

Handles the modes, bit depths, EXIF rotations and size limits of the common formats; a file that cannot be read is a
BadImage whose message names the reason. Needs no torch: arrays, not tensors, and no normalization.
"""

import contextlib
import io
import os
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from partshot.artifact import replacing_file
from partshot.errors import BadImage, BadLabels, size_text
from partshot.ops.letterbox import letterbox
from partshot.parts import IGNORE, PartSet
from partshot.progress import SHOW_AFTER, Ticker

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm", ".jp2")

# Pillow detects the format by content, not by suffix; this list excludes formats that run other programs (EPS runs
# Ghostscript).
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000")
_ORIENTATION = 0x0112  # EXIF tag; 5 to 8 swap height and width
_BIT_DEPTHS = (8, 10, 12, 14, 16)  # bit depths that cameras and microscopes store in 16-bit files

# Opacity of the parts' colors in overlays.
_TINT = 0.5

# _refuse_bomb raises BadImage for images over the limit, so Pillow's warning would be a duplicate.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)


@dataclass(frozen=True)
class Stack:
    """Images letterboxed to squares of one size (letterbox.py), aspect ratio kept.

    images: uint8 [n, size, size, 3] RGB. paths: their n files, in the requested order.
    skipped: the files that could not be read, each with a one-line reason.
    """

    images: np.ndarray
    paths: tuple[Path, ...]
    skipped: tuple[tuple[Path, str], ...]

    def warn_of_skipped(self) -> None:
        """Warns of skipped files with their number and the reason for the first."""
        if self.skipped:
            _, reason = self.skipped[0]
            count = "1 image is" if len(self.skipped) == 1 else f"{len(self.skipped)} images are"
            warnings.warn(f"{count} left out; first: {reason}", stacklevel=3)


def list_images(folder: Path | str, leave_out: Iterable[Path] = ()) -> list[Path]:
    """The image files of a folder (not of its subfolders), sorted by name, without hidden files.

    leave_out: image files to exclude, such as masks in the same folder; the folder may be spelled in another way.
    Raises BadImage when the folder is missing or holds no image, or when two images share a stem, since their outputs
    (NAME.png) would be the same file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise BadImage(f"{folder}: no such folder; give a folder of images")
    left_out = _names_in(folder, leave_out)
    paths = sorted(
        p
        for p in folder.iterdir()
        if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".") and p.name not in left_out and p.is_file()
    )
    if not paths:
        raise BadImage(f"{folder}: contains no image ({', '.join(IMAGE_SUFFIXES)}); give a folder that does")
    by_stem: dict[str, Path] = {}
    for path in paths:
        twin = by_stem.setdefault(path.stem, path)
        if twin is not path:
            raise BadImage(
                f"{folder}: {twin.name} and {path.name} share a name; rename one, or if one is the other's mask, "
                "keep masks in a folder of their own"
            )
    return paths


def _names_in(folder: Path, paths: Iterable[Path]) -> set[str]:
    # The names of those of the files that lie in the folder, also if a path is relative or contains a link.
    names: dict[Path, set[str]] = {}
    for path in map(Path, paths):
        names.setdefault(path.parent, set()).add(path.name)
    return set().union(*(some for parent, some in names.items() if parent.resolve() == folder.resolve()))


def read_image(path: Path | str) -> np.ndarray:
    """Reads an image as uint8 [h, w, 3] RGB, with the EXIF rotation applied.

    Gray, palette, CMYK and 1-bit images become RGB; transparent images are composited on white. 16-bit gray is scaled
    to 0..255 from the smallest usual bit depth (8, 10, 12, 14 or 16) that holds its maximum, so that 12-bit microscopy
    in a 16-bit file is not black. Floats must be in 0..1 or 0..255. Of an animation or a multi-page file, the first
    frame is read, with a warning.

    Raises BadImage when the file is missing, empty, damaged, or larger than Pillow's limit against decompression
    bombs (`PIL.Image.MAX_IMAGE_PIXELS`).
    """
    image, frames = _decode(Path(path))
    if frames:
        warnings.warn(f"{path}: contains several frames; the first one is used", stacklevel=2)
    return np.array(image)


def image_size(path: Path | str) -> tuple[int, int]:
    """Height and width of an image after EXIF rotation, from the file header; BadImage when it cannot be read."""
    with _opened(Path(path)) as image:
        return image.size if _swaps_axes(image) else image.size[::-1]


@contextlib.contextmanager
def pixel_limit(megapixels: int | float) -> Iterator[None]:
    """A context in which images of up to `megapixels` are read (Pillow's limit against decompression bombs)."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = int(megapixels * 1e6)
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def resize_image(image: np.ndarray, size: int) -> np.ndarray:
    """Resizes an image, uint8 [h, w, 3], to uint8 [size, size, 3] without keeping the aspect ratio.

    Bilinear with half-pixel centers, antialiased when shrinking: like `torch.nn.functional.interpolate` with
    `antialias=True`, but rounded to uint8.
    """
    return np.array(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))


def resize_images(images: Iterable[np.ndarray], size: int) -> np.ndarray:
    """Letterboxes images to squares (`letterbox.letterbox`) and stacks them: uint8 [n, size, size, 3]."""
    return np.stack([letterbox(image, size) for image in images])


def read_stack(paths: Sequence[Path], size: int, skip_corrupt: bool = False) -> Stack:
    """Reads images with several threads and letterboxes them to squares of one size (letterbox.py), in one array.

    On a terminal, a progress bar appears after two seconds.

    JPEGs much larger than `size` are decoded at reduced size (at least twice `size`), which is many times faster; the
    result differs from a full decode by about one gray level. Memory: the result and one image per thread.

    skip_corrupt: skip images that cannot be read and list them in `skipped`; otherwise the first one raises BadImage.
    Raises BadImage when no image could be read.
    """
    images = np.empty((len(paths), size, size, 3), np.uint8)

    def fill(row: int) -> tuple[bool, str]:
        try:
            image, frames = _decode(Path(paths[row]), near=size)
        except BadImage as error:
            if not skip_corrupt:
                raise
            return False, str(error)
        images[row] = letterbox(image, size)
        return frames, ""

    outcomes: list[tuple[bool, str]] = []
    ticker = Ticker("read images", len(paths), 0, not sys.stderr.isatty(), SHOW_AFTER)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool, ticker:
        for outcome in pool.map(fill, range(len(paths))):
            outcomes.append(outcome)
            ticker.tick(len(outcomes))

    animated = [Path(p).name for p, (frames, _) in zip(paths, outcomes, strict=True) if frames]
    if animated:
        names = ", ".join(animated[:3]) + (", ..." if len(animated) > 3 else "")
        warnings.warn(f"{len(animated)} images contain several frames; the first is used ({names})", stacklevel=2)
    skipped = tuple((Path(p), reason) for p, (_, reason) in zip(paths, outcomes, strict=True) if reason)
    kept = [row for row, (_, reason) in enumerate(outcomes) if not reason]
    if not kept:
        raise BadImage(f"none of {len(paths)} images can be read" + (f"; first: {skipped[0][1]}" if skipped else ""))
    for to, row in enumerate(kept):  # in place, since a copy would double the memory
        if to != row:
            images[to] = images[row]
    return Stack(images[: len(kept)], tuple(Path(paths[row]) for row in kept), skipped)


def exif_swaps_axes(path: Path | str) -> bool:
    """Whether the EXIF rotation of an image swaps its height and width."""
    with Image.open(path, formats=_FORMATS) as image:
        return _swaps_axes(image)


def _swaps_axes(image: Image.Image) -> bool:
    return image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)


def overlay(image: np.ndarray, labels: np.ndarray, parts: PartSet) -> np.ndarray:
    """An image with its parts tinted and outlined in their colors, uint8 [h, w, 3].

    image: uint8 [h, w, 3]. labels: uint8 [h, w]; the background is not tinted, ignored pixels (255) are gray.
    The tint has an opacity of 0.5. Outlines are opaque; their width grows with the image size.
    Raises BadLabels when the sizes differ or an id is outside the PartSet.
    """
    if labels.shape != image.shape[:2]:
        given, needed = size_text(labels.shape), size_text(image.shape[:2])
        raise BadLabels(f"labels are {given} but their image is {needed}; make them the same size")
    outside = labels[(labels >= len(parts)) & (labels != IGNORE)]
    if outside.size:
        raise BadLabels(
            f"labels contain id {outside.max()}, but the parts have ids 0 to {len(parts) - 1}; use their own PartSet"
        )
    colors = np.frombuffer(parts.palette(), np.uint8).reshape(256, 3)[labels]
    tinted = labels > 0
    out = image.copy()
    out[tinted] = np.rint((1 - _TINT) * image[tinted] + _TINT * colors[tinted])
    edge = tinted & _edges(labels, thickness=max(1, round(max(labels.shape) / 400)))
    out[edge] = colors[edge]
    return out


def write_overlay(path: Path | str, image: np.ndarray, labels: np.ndarray, parts: PartSet) -> Path:
    """Writes `overlay` atomically as .jpg or .png; BadImage for other suffixes, DiskFull when the disk is full."""
    path = Path(path)
    formats = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG"}
    if path.suffix.lower() not in formats:
        raise BadImage(f"{path}: overlays are written as .jpg or .png; choose one of these suffixes")
    blob = io.BytesIO()
    rendered = Image.fromarray(overlay(image, labels, parts))
    # No chroma subsampling (0), which would blur one-pixel outlines.
    options = {"quality": 92, "subsampling": 0} if formats[path.suffix.lower()] == "JPEG" else {}
    rendered.save(blob, formats[path.suffix.lower()], **options)
    with replacing_file(path) as temporary:
        # Encoded in memory first, since Pillow's file writing loses the errno of a full disk.
        temporary.write_bytes(blob.getvalue())
    return path


def _decode(path: Path, near: int | None = None) -> tuple[Image.Image, bool]:
    # The image as RGB with the EXIF rotation applied, and whether more frames follow the first. near: JPEGs may be
    # decoded at reduced size, but at least twice this size.
    with _opened(path) as image:
        # MPO is a camera's JPEG followed by a preview or a depth map, not an animation.
        frames = image.format != "MPO" and getattr(image, "is_animated", False)
        if near is not None:
            image.draft(None, (2 * near, 2 * near))
        image.load()
        # After load, because Pillow rotates a TIFF while loading it and then drops the tag. In place, because a copy of
        # a very large image takes half a gigabyte.
        ImageOps.exif_transpose(image, in_place=True)
        return _rgb(path, image), frames


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    # Opens an image and reads its header. Any error in the file, here or in the caller's block, becomes a BadImage.
    if not path.is_file():
        raise BadImage(f"{path}: no such file; check the path")
    if path.stat().st_size == 0:
        raise BadImage(f"{path}: is empty (0 bytes); copy it again or delete it")
    try:
        with Image.open(path, formats=_FORMATS) as image:
            _refuse_bomb(path, image.width * image.height)
            yield image
    except BadImage:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        _refuse_bomb(path, int(re.search(r"(\d+) pixels", str(error))[1]))
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly every kind of exception on damaged bytes
        if isinstance(error, PermissionError):
            raise BadImage(f"{path}: may not be read; change its permissions") from error
        why = "no known image format" if isinstance(error, Image.UnidentifiedImageError) else f"damaged: {error}"
        raise BadImage(f"{path}: cannot be read ({why}); replace it or delete it") from error


def _refuse_bomb(path: Path, pixels: int) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    if limit is None or pixels <= limit:
        return
    raise BadImage(
        f"{path}: {pixels / 1e6:.3g} megapixels, over the limit of {limit / 1e6:.3g} against decompression bombs; "
        "scale it down, or if you trust it, raise the limit: predict --max-megapixels, PIL.Image.MAX_IMAGE_PIXELS"
    )


def _rgb(path: Path, image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return _from_integers(path, np.asarray(image))
    if image.mode == "F":
        return _from_floats(path, np.asarray(image))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_integers(path: Path, values: np.ndarray) -> Image.Image:
    top, bottom = int(values.max()), int(values.min())
    depth = next((bits for bits in _BIT_DEPTHS if top < 2**bits), None)
    if depth is None or bottom < 0:
        raise BadImage(f"{path}: contains values from {bottom} to {top}; export it with 8 or 16 bits a channel")
    gray = np.rint(values * (255 / (2**depth - 1))).astype(np.uint8)
    return Image.fromarray(gray).convert("RGB")


def _from_floats(path: Path, values: np.ndarray) -> Image.Image:
    top, bottom = values.max(), values.min()
    if not (bottom >= 0 and top <= 255):  # also refuses NaN
        raise BadImage(f"{path}: contains values from {bottom:g} to {top:g}; scale them to 0..1 or to 8 or 16 bits")
    gray = np.rint(values * (255 if top <= 1 else 1)).astype(np.uint8)
    return Image.fromarray(gray).convert("RGB")


def _edges(labels: np.ndarray, thickness: int) -> np.ndarray:
    # Pixels with another label within `thickness` steps along a row or a column.
    edge = np.zeros(labels.shape, bool)
    for step in range(1, thickness + 1):
        across, down = labels[:, step:] != labels[:, :-step], labels[step:] != labels[:-step]
        edge[:, step:] |= across
        edge[:, :-step] |= across
        edge[step:] |= down
        edge[:-step] |= down
    return edge
