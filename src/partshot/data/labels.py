"""Reads and writes masks: one part id per pixel, stored as 8-bit indexed PNG with the parts' colors as palette.

255 means ignore. The EXIF rotation of a mask is not applied. Files whose ids are not certain are errors whose messages
tell how to export them: JPEG changes ids, RGB holds colors, and programs decode 4-bit gray in two ways.
"""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from partshot.artifact import replacing_file
from partshot.errors import BadLabels, BadParts
from partshot.parts import IGNORE, PartSet

# Pixels per call of np.bincount, which converts each to eight bytes.
_CHUNK = 2**20

_EXPORT = "save it as an 8-bit indexed PNG (value = id)"


def read_labels(path: Path | str, parts: PartSet | None = None, rgb: bool = False) -> np.ndarray:
    """Reads a mask as uint8 [h, w]: the id of each pixel, 255 = ignore.

    Accepts PNGs that are indexed, 8-bit gray, 1-bit (0 and 1), or 16-bit with ids up to 255.
    parts: if given, ids outside it are errors. rgb: convert RGB masks with `labels_from_rgb`, which needs `parts`.

    Raises BadLabels with the file name when it is missing, empty, damaged, no PNG, RGB without `rgb`, or holds an id
    outside `parts`.
    """
    path = Path(path)
    mask = _open(path)
    if mask.mode in ("RGB", "RGBA"):
        colors = np.array(mask.convert("RGB"))
        _refuse_transparency(path, mask)
        labels = _from_colors(path, colors, parts, rgb)
    else:
        labels = _from_ids(path, mask)
    if parts is not None:
        _refuse_unknown(path, labels, parts)
    return labels


def write_labels(path: Path | str, labels: np.ndarray, parts: PartSet) -> Path:
    """Writes labels, uint8 [h, w], atomically as an 8-bit indexed PNG with the parts' palette.

    Raises BadLabels when an id is outside `parts`, DiskFull when the disk is full.
    """
    path = Path(path)
    if labels.dtype != np.uint8 or labels.ndim != 2:
        raise BadLabels(f"mask {path}: the labels must be uint8 [h, w], not {labels.dtype} {list(labels.shape)}")
    _refuse_unknown(path, labels, parts)
    mask = Image.fromarray(np.ascontiguousarray(labels)).convert("L")
    mask.putpalette(parts.palette())
    blob = io.BytesIO()
    mask.save(blob, "PNG")
    with replacing_file(path) as temporary:
        # Encoded in memory first, since Pillow's file writing loses the errno of a full disk.
        temporary.write_bytes(blob.getvalue())
    return path


def resize_labels(labels: np.ndarray, size: int) -> np.ndarray:
    """Resizes labels, uint8 [h, w], to uint8 [size, size] by nearest neighbor, without keeping the aspect ratio.

    The sampling grid is that of `images.resize_image`, so an image and its labels stay aligned.
    """
    return np.array(Image.fromarray(labels).resize((size, size), Image.Resampling.NEAREST))


def labels_from_rgb(rgb: np.ndarray, parts: PartSet, source: str = "mask") -> np.ndarray:
    """Converts a mask in the parts' colors, uint8 [h, w, 3], to labels, uint8 [h, w]; colors must match exactly.

    The gray that `write_labels` uses for ignored pixels becomes 255, unless a part has this color.
    source: name of the mask in error messages. Raises BadLabels for a color that no part has, with the color and its
    pixel count (antialiased edges make hundreds); BadParts when two parts share a color.
    """
    ids = _ids_by_color(parts)
    packed = _pack(rgb)
    labels = np.full(packed.shape, IGNORE, np.uint8)
    known = np.zeros(packed.shape, bool)
    for color, part in ids.items():
        match = packed == color
        labels[match] = part
        known |= match
    if not known.all():
        colors, counts = np.unique(packed[~known], return_counts=True)
        most = int(counts.argmax())
        more = f" and {len(colors) - 1} other colors" if len(colors) > 1 else ""
        raise BadLabels(
            f"{source} contains color {_unpack(int(colors[most]))} ({_pixels(int(counts[most]))}){more}, which no part "
            "has; export it without smoothing, or correct the colors in classes.json"
        )
    return labels


def read_palette(path: Path | str) -> tuple[tuple[int, int, int], ...]:
    """The colors of an indexed mask, by id; empty when the mask has no palette."""
    mask = _open(Path(path))
    flat = mask.getpalette("RGB") if mask.mode == "P" else None
    return tuple(tuple(flat[i : i + 3]) for i in range(0, len(flat), 3)) if flat else ()


def count_ids(labels: np.ndarray) -> np.ndarray:
    """Number of pixels of each value 0..255: int64 [256]."""
    flat, counts = labels.ravel(), np.zeros(256, np.int64)
    for first in range(0, flat.size, _CHUNK):
        counts += np.bincount(flat[first : first + _CHUNK], minlength=256)
    return counts


def _open(path: Path) -> Image.Image:
    if not path.is_file():
        raise BadLabels(f"mask {path}: no such file; check the path")
    if path.stat().st_size == 0:
        raise BadLabels(f"mask {path} is empty (0 bytes); export it again")
    try:
        with Image.open(path) as mask:
            if mask.format != "PNG":
                lossy = ", which changes ids" if mask.format in ("JPEG", "MPO", "WEBP") else ""
                raise BadLabels(f"mask {path} is {mask.format}{lossy}; {_EXPORT}")
            if mask.is_animated:
                raise BadLabels(f"mask {path} is animated; {_EXPORT}")
            few_bits = str(mask.tile[0][3]) in ("L;2", "L;4")
            mask.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadLabels(f"mask {path} is over the limit against decompression bombs ({error})") from error
    except (BadLabels, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise nearly every kind of exception on damaged bytes
        why = "no known image format" if isinstance(error, Image.UnidentifiedImageError) else f"damaged: {error}"
        raise BadLabels(f"mask {path} cannot be read ({why}); export it again") from error
    if few_bits:
        # Pillow and most viewers scale 2- and 4-bit gray to 0..255; labeling tools store unscaled ids.
        raise BadLabels(f"mask {path} is gray with less than 8 bits, which programs decode in two ways; {_EXPORT}")
    return mask


def _from_ids(path: Path, mask: Image.Image) -> np.ndarray:
    if mask.mode in ("LA", "PA"):
        _refuse_transparency(path, mask)
        return np.array(mask.getchannel(0))
    if mask.mode not in ("P", "L", "1") and not mask.mode.startswith("I"):
        raise BadLabels(f"mask {path} has mode {mask.mode}; {_EXPORT}")
    values = np.array(mask)
    if values.max() > IGNORE or values.min() < 0:
        raise BadLabels(f"mask {path} is 16-bit and contains id {values.max()}, but ids go to {IGNORE}; {_EXPORT}")
    return values.astype(np.uint8)


def _from_colors(path: Path, colors: np.ndarray, parts: PartSet | None, rgb: bool) -> np.ndarray:
    if rgb:
        if parts is None:
            raise BadLabels(f"mask {path} is RGB, but no classes.json gives the parts' colors; write one")
        return labels_from_rgb(colors, parts, source=f"mask {path}")
    if np.array_equal(colors[..., 0], colors[..., 1]) and np.array_equal(colors[..., 0], colors[..., 2]):
        raise BadLabels(
            f"mask {path} is RGB with three equal channels, not one channel of ids; {_EXPORT} or as 8-bit gray"
        )
    if parts is None:
        raise BadLabels(
            f"mask {path} is RGB, not one channel of ids; {_EXPORT}, or write a classes.json with the parts' colors "
            "and add --rgb-masks"
        )
    known = np.isin(_pack(colors), list(_ids_by_color(parts)))
    if known.all():
        raise BadLabels(f"mask {path} is RGB; its colors are those of classes.json: add --rgb-masks")
    unknown = tuple(int(c) for c in colors[~known][0])
    raise BadLabels(
        f"mask {path} is RGB, not one channel of ids; {_EXPORT}, or give its colors, such as {unknown}, to the "
        "parts in classes.json and add --rgb-masks"
    )


def _refuse_transparency(path: Path, mask: Image.Image) -> None:
    if "A" in mask.mode and mask.getchannel("A").getextrema()[0] < 255:
        raise BadLabels(f"mask {path} is partly transparent; fill it and {_EXPORT}")


def _refuse_unknown(path: Path, labels: np.ndarray, parts: PartSet) -> None:
    counts = count_ids(labels)[:IGNORE]
    unknown = np.flatnonzero(counts[len(parts) :]) + len(parts)
    if unknown.size:
        raise BadLabels(
            f"mask {path} contains id {unknown[0]} ({_pixels(int(counts[unknown[0]]))}), but the parts have ids 0 to "
            f"{len(parts) - 1}; correct the mask or add the part to classes.json"
        )


def _pixels(count: int) -> str:
    return f"{count} pixel{'' if count == 1 else 's'}"


def _ids_by_color(parts: PartSet) -> dict[int, int]:
    ids: dict[int, int] = {}
    for part, color in enumerate(parts.colors):
        twin = ids.setdefault(_pack_one(color), part)
        if twin != part:
            raise BadParts(
                f"parts '{parts.names[twin]}' and '{parts.names[part]}' share the color {color}; "
                "RGB masks need a color for each"
            )
    ids.setdefault(_pack_one(tuple(parts.palette()[3 * IGNORE :])), IGNORE)
    return ids


def _pack(colors: np.ndarray) -> np.ndarray:
    wide = colors.astype(np.uint32)
    return (wide[..., 0] << 16) | (wide[..., 1] << 8) | wide[..., 2]


def _pack_one(color: tuple[int, int, int]) -> int:
    return (color[0] << 16) | (color[1] << 8) | color[2]


def _unpack(packed: int) -> tuple[int, int, int]:
    return packed >> 16, (packed >> 8) & 255, packed & 255
