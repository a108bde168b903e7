"""The HTML page of a report: skeleton, style, colors of parts and methods, and embedded images within a size limit.

Each image is embedded once, as a CSS rule. Masks are overlaid as small indexed PNGs with a transparent background, so
their opacity can be changed. Pages load no external resources and contain no scripts.
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
"""Target size of a report in bytes, small enough for e-mail and phones."""

# Longest side of an image in pixels, JPEG quality, and share of each gallery that is shown. Tried in this order until
# the page is small enough; the first is sharp on a high-resolution desktop display.
_SIZES = (
    (320, 82, 1.0),
    (240, 80, 1.0),
    (176, 75, 1.0),
    (128, 68, 1.0),
    (128, 60, 0.5),
    (96, 50, 0.1),
)

_METHOD_COLORS = 8  # --s0 to --s7 in style.css

_IGNORED = (150, 150, 150, 170)
_WRONG = (255, 0, 110, 255)  # not the color of any part, and visible on gray with any color vision


@runtime_checkable
class Section(Protocol):
    """A section of a report. `html` returns the markup below the heading; if it is "", the section is left out."""

    heading: str

    def html(self, page: "Page") -> str: ...


class Page:
    """Settings and embedded images that the sections of a page share.

    parts: for names and colors. side: longest side of an embedded image in pixels. quality: its JPEG quality.
    share: share of each gallery that is shown, 0..1.
    """

    def __init__(self, parts: PartSet, side: int = 320, quality: int = 82, share: float = 1.0):
        self.parts, self.side, self.quality, self.share = parts, side, quality, share
        self.rules: dict[str, str] = {}
        self._series: dict[str, int] = {}

    def photo(self, image: np.ndarray) -> str:
        """The CSS class with this image, uint8 [h, w, 3], as background; identical images are embedded once."""
        resized = _fit(image, self.side, Image.Resampling.LANCZOS)
        name = "p" + hashlib.sha256(np.ascontiguousarray(image)).hexdigest()[:10]
        if name not in self.rules:
            blob = io.BytesIO()
            resized.save(blob, "JPEG", quality=self.quality, optimize=True)
            self.rules[name] = f".{name}{{background-image:url({_data('jpeg', blob)})}}"
        return name

    def mask(self, labels: np.ndarray) -> str:
        """Data URL of labels, uint8 [h, w], as a PNG: background transparent, ignored pixels gray."""
        colors = [(*color, 255) for color in self.parts.colors]
        colors[0] = (0, 0, 0, 0)
        last = len(colors)
        return self._layer(np.where(labels == IGNORE, last, labels), [*colors, _IGNORED])

    def wrong(self, wrong: np.ndarray, ignored: np.ndarray) -> str:
        """Data URL of wrong pixels, bool [h, w], as a PNG; ignored pixels are gray."""
        return self._layer(np.where(ignored, 2, wrong), [(0, 0, 0, 0), _WRONG, _IGNORED])

    def heat(self, values: np.ndarray) -> str:
        """Data URL of a heat map, float [h, w] in 0..1, as a PNG from transparent to red."""
        steps = np.rint(np.clip(np.nan_to_num(values), 0, 1) * 15)
        return self._layer(steps, [(255, 210 - 14 * i, 40 - 2 * i, 17 * i) for i in range(16)])

    def color_of(self, method: str) -> str:
        """The CSS color of a method, the same in every table and chart of the page."""
        return f"var(--s{self._series.setdefault(method, len(self._series)) % _METHOD_COLORS})"

    def swatch(self, part: int) -> str:
        """HTML of a small square in a part's color."""
        r, g, b = self.parts.colors[part]
        return f'<i class="swatch" style="background:rgb({r},{g},{b})"></i>'

    def legend(self) -> str:
        """HTML of a legend: the parts and their colors, except the background, which is transparent."""
        names = (f"<span>{self.swatch(i)}{escape(n)}</span>" for i, n in enumerate(self.parts.names) if i)
        return f'<div class="legend">{"".join(names)}</div>'

    def _layer(self, ids: np.ndarray, colors: Sequence[tuple[int, int, int, int]]) -> str:
        resized = _fit(ids.astype(np.uint8), self.side, Image.Resampling.NEAREST)
        resized.putpalette([channel for color in colors for channel in color[:3]])
        blob = io.BytesIO()
        resized.save(blob, "PNG", optimize=True, transparency=bytes(color[3] for color in colors))
        return _data("png", blob)


def write_report(path: Path | str, title: str, parts: PartSet, sections: Sequence[Section], lead: str = "") -> Path:
    """Writes one self-contained HTML file atomically.

    title, lead: the page's title and one line below it. sections: in order; empty ones are left out. All text is
    escaped. If the file exceeds `LIMIT` bytes, images are made smaller, then fewer are shown. Raises DiskFull when the
    disk is full.
    """
    path = Path(path)
    for side, quality, share in _SIZES:
        text = _render(Page(parts, side, quality, share), title, lead, sections).encode()
        if len(text) <= LIMIT:
            break
    with replacing_file(path) as temporary:
        temporary.write_bytes(text)
    return path


def number(value: float | None) -> str:
    """Formats an IoU: three decimals, or a dash for None and NaN."""
    return "–" if value is None or np.isnan(value) else f"{value:.3f}"


def _render(page: Page, title: str, lead: str, sections: Sequence[Section]) -> str:
    bodies = [(section.heading, section.html(page)) for section in sections]
    bodies = [(heading, html) for heading, html in bodies if html]
    links = "".join(f'<a href="#s{i}">{escape(heading)}</a>' for i, (heading, _) in enumerate(bodies))
    body = "".join(
        f'<section id="s{i}"><h2>{escape(heading)}</h2>{html}</section>' for i, (heading, html) in enumerate(bodies)
    )
    style = Path(__file__).with_name("style.css").read_text(encoding="utf-8") + "".join(page.rules.values())
    return _SKELETON.format(
        title=escape(title),
        style=style,
        lead=f'<p class="lead">{escape(lead)}</p>' if lead else "",
        links=links,
        fader=_FADER if page.rules else "",
        body=body,
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


# Radio buttons and :has() instead of a script: the page's Content-Security-Policy forbids scripts.
_FADER = """<fieldset class="fader"><legend>masks</legend>
<label><input type="radio" name="mix" id="mix0">off</label>
<label><input type="radio" name="mix" id="mix1" checked>overlay</label>
<label><input type="radio" name="mix" id="mix2">opaque</label></fieldset>"""

_SKELETON = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title><style>{style}</style></head><body>
<header><h1>{title}</h1>{lead}</header>
<nav><div>{links}</div>{fader}</nav>
<main>{body}</main>
<footer>partshot {version}. IoU (intersection over union) of a part: the number of pixels that are both labeled and
predicted as the part, divided by the number labeled or predicted as it. 1 is perfect, 0 means no overlap.</footer>
</body></html>
"""
