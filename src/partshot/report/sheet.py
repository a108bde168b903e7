"""A contact sheet: images in columns, what different eyes see in them in rows, as one PNG.

Knows layout only; the tinting is `data.images.overlay`'s.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from partshot.artifact import replacing_file
from partshot.data.images import overlay, resize_image
from partshot.data.labels import resize_labels
from partshot.parts import PartSet

_GAP, _TITLE, _SIDE = 4, 20, 128


def write_sheet(
    path: Path | str,
    images: Sequence[np.ndarray],
    rows: Mapping[str, Sequence[np.ndarray] | None],
    parts: PartSet | None = None,
) -> Path:
    """Writes the sheet, whole or not at all; returns its path.

    images: uint8 [h, w, 3] each. rows: title -> labels, uint8 [h, w] per image, with which the images are tinted in
    the colors of `parts`; or other images, uint8 [h, w, 3]; or None for the bare images.
    """
    step = _SIDE + _GAP
    sheet = Image.new("RGB", (len(images) * step + _GAP, len(rows) * (step + _TITLE) + _GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
    for row, (title, views) in enumerate(rows.items()):
        top = row * (step + _TITLE) + _GAP
        draw.text((_GAP, top), title, fill="black", font=font)
        for column, image in enumerate(images):
            seen = None if views is None else views[column]
            tile = resize_image(image if seen is None or seen.ndim == 2 else seen, _SIDE)
            if seen is not None and seen.ndim == 2:
                tile = overlay(tile, resize_labels(seen, _SIDE), parts)
            sheet.paste(Image.fromarray(tile), (column * step + _GAP, top + _TITLE))
    blob = io.BytesIO()
    sheet.save(blob, "PNG", optimize=True)
    with replacing_file(Path(path)) as temporary:
        temporary.write_bytes(blob.getvalue())
    return Path(path)
