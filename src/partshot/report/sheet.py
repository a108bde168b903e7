"""Overview sheet as one PNG: one column per image, one row per model or view."""

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
    """Writes the sheet atomically and returns its path.

    images: uint8 [h, w, 3] each. rows: title -> one item per image: labels, uint8 [h, w], which are overlaid on the
    image in the colors of `parts`, or another image, uint8 [h, w, 3]. A row of None shows the images themselves.
    """
    step = _SIDE + _GAP
    sheet = Image.new("RGB", (len(images) * step + _GAP, len(rows) * (step + _TITLE) + _GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
    for row, (title, views) in enumerate(rows.items()):
        top = row * (step + _TITLE) + _GAP
        draw.text((_GAP, top), title, fill="black", font=font)
        for column, image in enumerate(images):
            view = None if views is None else views[column]
            tile = resize_image(image if view is None or view.ndim == 2 else view, _SIDE)
            if view is not None and view.ndim == 2:
                tile = overlay(tile, resize_labels(view, _SIDE), parts)
            sheet.paste(Image.fromarray(tile), (column * step + _GAP, top + _TITLE))
    blob = io.BytesIO()
    sheet.save(blob, "PNG", optimize=True)
    with replacing_file(Path(path)) as temporary:
        temporary.write_bytes(blob.getvalue())
    return Path(path)
