"""The page around a report's sections: skeleton, style, colors of parts and methods, and images within a budget.

An image is embedded once, as a style rule; its masks lie over it as small indexed PNGs with a transparent background,
so the reader can fade them in and out. Pages ask for nothing from outside and hold no script. Knows how a page is put
together and kept small. Refuses to know what sections say.
"""

import base64
import hashlib
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from PIL import Image

from partshot import __version__
from partshot.artifact import replacing_file
from partshot.parts import IGNORE, PartSet

LIMIT = 3_000_000
"""Bytes that a report should stay below, so that it can be mailed and opened on a phone."""

# Longest side of an image in pixels, its JPEG quality, and the share of each gallery that is shown. Pages are tried in
# this order until one is small enough; the first is sharp on a dense screen at the width a tile has on a desk.
_LADDER = (
    (320, 82, 1.0),
    (240, 80, 1.0),
    (176, 75, 1.0),
    (128, 68, 1.0),
    (128, 60, 0.5),
    (96, 50, 0.1),
)

_SERIES = 8  # colors of methods in style.css

_IGNORED = (150, 150, 150, 170)
_WRONG = (255, 0, 110, 255)  # no part's color, and seen on gray by everyone


@runtime_checkable
class Section(Protocol):
    """One part of a report. `html` gives the markup below the heading; "" leaves the section out."""

    heading: str

    def html(self, page: "Page") -> str: ...


class Page:
    """What sections share while one page is put together.

    parts: the parts, for names and colors. side: longest side of an image in pixels. quality: of its JPEG.
    share: of each gallery, how much is shown, 0..1.
    """

    def __init__(self, parts: PartSet, side: int = 320, quality: int = 82, share: float = 1.0):
        self.parts, self.side, self.quality, self.share = parts, side, quality, share
        self.rules: dict[str, str] = {}
        self._series: dict[str, int] = {}

    def photo(self, image: np.ndarray) -> str:
        """The class that has an image, uint8 [h, w, 3], as its background; equal images are embedded once."""
        small = _fit(image, self.side, Image.Resampling.LANCZOS)
        name = "p" + hashlib.sha256(np.ascontiguousarray(image)).hexdigest()[:10]
        if name not in self.rules:
            blob = io.BytesIO()
            small.save(blob, "JPEG", quality=self.quality, optimize=True)
            self.rules[name] = f".{name}{{background-image:url({_data('jpeg', blob)})}}"
        return name

    def mask(self, labels: np.ndarray) -> str:
        """Labels, uint8 [h, w], as the address of a PNG in the parts' colors: background clear, ignored pixels gray."""
        colors = [(*color, 255) for color in self.parts.colors]
        colors[0] = (0, 0, 0, 0)
        last = len(colors)
        return self._layer(np.where(labels == IGNORE, last, labels), [*colors, _IGNORED])

    def wrong(self, wrong: np.ndarray, ignored: np.ndarray) -> str:
        """Wrong pixels, bool [h, w], as the address of a PNG; ignored ones are gray."""
        return self._layer(np.where(ignored, 2, wrong), [(0, 0, 0, 0), _WRONG, _IGNORED])

    def heat(self, values: np.ndarray) -> str:
        """Values in 0..1, float [h, w], as the address of a PNG from clear to red."""
        steps = np.rint(np.clip(np.nan_to_num(values), 0, 1) * 15)
        return self._layer(steps, [(255, 210 - 14 * i, 40 - 2 * i, 17 * i) for i in range(16)])

    def color_of(self, method: str) -> str:
        """The color of a method, the same in every table and chart of the page."""
        return f"var(--s{self._series.setdefault(method, len(self._series)) % _SERIES})"

    def swatch(self, part: int) -> str:
        """A small square in a part's color."""
        r, g, b = self.parts.colors[part]
        return f'<i class="swatch" style="background:rgb({r},{g},{b})"></i>'

    def legend(self) -> str:
        """The parts with their colors, background left out since it is never painted."""
        names = (f"<span>{self.swatch(i)}{escape(n)}</span>" for i, n in enumerate(self.parts.names) if i)
        return f'<div class="legend">{"".join(names)}</div>'

    def _layer(self, ids: np.ndarray, colors: Sequence[tuple[int, int, int, int]]) -> str:
        small = _fit(ids.astype(np.uint8), self.side, Image.Resampling.NEAREST)
        small.putpalette([channel for color in colors for channel in color[:3]])
        blob = io.BytesIO()
        small.save(blob, "PNG", optimize=True, transparency=bytes(color[3] for color in colors))
        return _data("png", blob)


def write_report(path: Path | str, title: str, parts: PartSet, sections: Sequence[Section], lead: str = "") -> Path:
    """Writes one self-contained HTML file, whole or not at all.

    title, lead: the head of the page and one line below it. sections: in the order in which they are to be read; those
    with nothing to show are left out. All text is escaped. Images are made smaller, and in the end fewer, until the
    file is below `LIMIT` bytes. Raises DiskFull when the disk cannot take it.
    """
    path = Path(path)
    for side, quality, share in _LADDER:
        text = _render(Page(parts, side, quality, share), title, lead, sections).encode()
        if len(text) <= LIMIT:
            break
    with replacing_file(path) as temporary:
        temporary.write_bytes(text)
    return path


def number(value: float | None) -> str:
    """An IoU for people: three decimals, a dash for what does not exist."""
    return "–" if value is None or np.isnan(value) else f"{value:.3f}"


def _render(page: Page, title: str, lead: str, sections: Sequence[Section]) -> str:
    bodies = [(section.heading, section.html(page)) for section in sections]
    bodies = [(heading, body) for heading, body in bodies if body]
    links = "".join(f'<a href="#s{i}">{escape(heading)}</a>' for i, (heading, _) in enumerate(bodies))
    cards = "".join(
        f'<section id="s{i}"><h2>{escape(heading)}</h2>{body}</section>' for i, (heading, body) in enumerate(bodies)
    )
    style = Path(__file__).with_name("style.css").read_text(encoding="utf-8") + "".join(page.rules.values())
    return _SKELETON.format(
        title=escape(title),
        style=style,
        lead=f'<p class="lead">{escape(lead)}</p>' if lead else "",
        links=links,
        fader=_FADER if page.rules else "",
        cards=cards,
        version=escape(__version__),
    )


def _fit(array: np.ndarray, side: int, how: Image.Resampling) -> Image.Image:
    image = Image.fromarray(array)
    ratio = side / max(image.size)
    if ratio >= 1:
        return image
    return image.resize(tuple(max(1, round(n * ratio)) for n in image.size), how)


def _data(kind: str, blob: io.BytesIO) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(blob.getvalue()).decode()}"


# Radio buttons and :has() instead of a script: a report may be mailed on, and its policy then allows no script at all.
_FADER = """<fieldset class="fader"><legend>masks</legend>
<label><input type="radio" name="mix" id="mix0">off</label>
<label><input type="radio" name="mix" id="mix1" checked>over</label>
<label><input type="radio" name="mix" id="mix2">full</label></fieldset>"""

_SKELETON = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title><style>{style}</style></head><body>
<header><h1>{title}</h1>{lead}</header>
<nav><div>{links}</div>{fader}</nav>
<main>{cards}</main>
<footer>partshot {version}. IoU (intersection over union) of a part: of all pixels that are the part or were taken for
it, the share that is both. 1 is perfect, 0 is never right.</footer>
</body></html>
"""
