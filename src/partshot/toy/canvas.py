"""The canvas: an image and its exact mask, painted by the same strokes.

Every shape that belongs to a part is drawn twice: antialiased into the image, and with hard edges into the mask,
where the part's id is the gray value. Coordinates are the unit square, so that a drawing is the same at any size.
Knows shapes, colors, paints and textures; refuses to know what is drawn.
"""

import colorsys
import math
from contextlib import contextmanager

import numpy as np
import skia

Color = tuple[float, float, float]
"""Red, green, blue in [0, 1]."""

Scalar = float | int

_SMOOTH = skia.SamplingOptions(skia.CubicResampler.Mitchell())
_FABRIC = skia.SamplingOptions(skia.FilterMode.kLinear, skia.MipmapMode.kLinear)


def hsv(hue: float, saturation: float, value: float) -> Color:
    """A color from hue (turns, any real), saturation and value in [0, 1]."""
    return colorsys.hsv_to_rgb(hue % 1.0, min(max(saturation, 0.0), 1.0), min(max(value, 0.0), 1.0))


def mix(a: Color, b: Color, t: float) -> Color:
    """The color between a (t = 0) and b (t = 1)."""
    return a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t, a[2] + (b[2] - a[2]) * t


def lit(color: Color, amount: float) -> Color:
    """The color toward white (amount in 0..1) or toward black (amount in -1..0)."""
    return mix(color, (1.0, 1.0, 1.0), amount) if amount > 0 else mix(color, (0.0, 0.0, 0.0), -amount)


def any_color(rng: np.random.Generator) -> Color:
    """Any color a thing may have: grays, muted and strong ones."""
    return hsv(rng.uniform(), rng.uniform() ** 1.3, rng.uniform(0.12, 0.98))


def turned(points: np.ndarray, angle: float) -> np.ndarray:
    """Points [n, 2] turned by an angle (radians, clockwise as the image is seen) about the origin."""
    c, s = math.cos(angle), math.sin(angle)
    return points @ np.array([[c, s], [-s, c]])


def _argb(color: Color, alpha: float) -> int:
    r, g, b = color
    return int(255 * alpha + 0.5) << 24 | int(255 * r + 0.5) << 16 | int(255 * g + 0.5) << 8 | int(255 * b + 0.5)


# Shapes


def polygon(points) -> skia.Path:
    """A closed path of straight lines through points [n, 2]."""
    path = skia.Path()
    path.addPoly([skia.Point(x, y) for x, y in np.asarray(points, float).tolist()], True)
    return path


def closed(points) -> skia.Path:
    """A smooth closed curve through points [n, 2] (Catmull-Rom)."""
    p = np.asarray(points, float)
    ring = np.concatenate([p[-1:], p, p[:2]])
    tangent = (ring[2:] - ring[:-2]) / 6
    end = ring[2:-1]
    path = _cubics(p, p + tangent[:-1], end - tangent[1:], end)
    path.close()
    return path


def curve(points) -> skia.Path:
    """A smooth open curve through points [n, 2] (Catmull-Rom), for lines; or through each row of [rows, n, 2]."""
    p = np.asarray(points, float)
    path = skia.Path()
    for row in p if p.ndim == 3 else (p,):
        third = _along(row) / 3
        _cubics(row[:-1], (row + third)[:-1], (row - third)[1:], row[1:], path)
    return path


def _along(p: np.ndarray) -> np.ndarray:
    """The direction of an open line at each of its points: central differences, one-sided at the ends."""
    step = p[1:] - p[:-1]
    return np.concatenate([step[:1], (step[1:] + step[:-1]) / 2, step[-1:]])


def _cubics(start, first, second, end, path: skia.Path | None = None) -> skia.Path:
    path = skia.Path() if path is None else path
    path.moveTo(*start[0].tolist())
    for six in np.concatenate([first, second, end], axis=1).tolist():
        path.cubicTo(*six)
    return path


def limb(points, widths) -> skia.Path:
    """A smooth tapered band along points [n, 2], of one width for each point; its ends are rounded."""
    p, half = np.asarray(points, float), np.asarray(widths, float)[:, None] / 2
    along = _along(p)
    along /= np.maximum(np.hypot(along[:, :1], along[:, 1:]), 1e-6)
    across = along[:, ::-1] * (-1.0, 1.0)
    tips = p[0] - along[0] * half[0], p[-1] + along[-1] * half[-1]
    return closed(np.vstack([tips[0], p + across * half, tips[1], (p - across * half)[::-1]]))


def oval(x: Scalar, y: Scalar, rx: Scalar, ry: Scalar) -> skia.Path:
    """An ellipse with half axes rx and ry about (x, y)."""
    path = skia.Path()
    path.addOval(skia.Rect(x - rx, y - ry, x + rx, y + ry))
    return path


def box(left: Scalar, top: Scalar, right: Scalar, bottom: Scalar) -> skia.Path:
    """An upright rectangle."""
    path = skia.Path()
    path.addRect(skia.Rect(left, top, right, bottom))
    return path


def boxes(corners, width: float, height: float) -> skia.Path:
    """Upright rectangles of one size with their upper left corners at [n, 2]."""
    path = skia.Path()
    for x, y in corners:
        path.addRect(skia.Rect(x, y, x + width, y + height))
    return path


# Paints


def flat(color: Color, alpha: float = 1.0, blur: float = 0.0) -> skia.Paint:
    """One color; blur (sigma, in the units being drawn in) makes soft shadows and lights, for images only."""
    paint = skia.Paint(Color=_argb(color, alpha), AntiAlias=True)
    if blur:
        paint.setMaskFilter(skia.MaskFilter.MakeBlur(skia.kNormal_BlurStyle, blur))
    return paint


def fade(start, end, first: Color, second: Color, alphas=(1.0, 1.0)) -> skia.Paint:
    """A linear gradient from the first color at point `start` to the second at point `end`."""
    colors = [_argb(first, alphas[0]), _argb(second, alphas[1])]
    shader = skia.GradientShader.MakeLinear([skia.Point(*map(float, start)), skia.Point(*map(float, end))], colors)
    return skia.Paint(Shader=shader, AntiAlias=True)


def glow(x: float, y: float, radius: float, color: Color, alpha: float) -> skia.Paint:
    """A round spot that fades to nothing at its radius."""
    colors = [_argb(color, alpha), _argb(color, 0.0)]
    return skia.Paint(Shader=skia.GradientShader.MakeRadial(skia.Point(x, y), radius, colors), AntiAlias=True)


def tile(pixels: np.ndarray, width: float, angle: float = 0.0, alpha: float = 1.0) -> skia.Paint:
    """A fabric: float pixels [h, w, 3] in [0, 1] repeated, each repetition `width` units wide, turned by `angle`."""
    matrix = skia.Matrix().setScale(width / pixels.shape[1], width / pixels.shape[1])
    matrix.postRotate(math.degrees(angle))
    return _texture(pixels, skia.TileMode.kRepeat, _FABRIC, matrix, alpha)


def clouds(pixels: np.ndarray, alpha: float = 1.0) -> skia.Paint:
    """A smooth texture: a coarse float grid [h, w, 3] in [0, 1] stretched over the unit square."""
    matrix = skia.Matrix().setScale(1 / pixels.shape[1], 1 / pixels.shape[0])
    return _texture(pixels, skia.TileMode.kMirror, _SMOOTH, matrix, alpha)


def _texture(pixels, mode, sampling, matrix, alpha) -> skia.Paint:
    rgba = np.full((*pixels.shape[:2], 4), 255, np.uint8)
    rgba[..., :3] = np.clip(pixels * 255 + 0.5, 0, 255)
    image = skia.Image.fromarray(rgba, colorType=skia.kRGBA_8888_ColorType)
    paint = skia.Paint(Shader=image.makeShader(mode, mode, sampling, matrix), AntiAlias=True)
    paint.setAlphaf(alpha)
    return paint


class Canvas:
    """A square image of `size` pixels and its mask, both drawn on in the unit square (y grows downward)."""

    def __init__(self, size: int):
        self.size = size
        self._pixels = np.zeros((size, size, 4), np.uint8)
        self._ids = np.zeros((size, size), np.uint8)
        color = skia.ImageInfo.Make(size, size, skia.kRGBA_8888_ColorType, skia.kOpaque_AlphaType)
        gray = skia.ImageInfo.Make(size, size, skia.kGray_8_ColorType, skia.kOpaque_AlphaType)
        self._image = skia.Surface.MakeRasterDirect(color, self._pixels, 4 * size)
        self._mask = skia.Surface.MakeRasterDirect(gray, self._ids, size)
        self._canvases = (self._image.getCanvas(), self._mask.getCanvas())
        for canvas in self._canvases:
            canvas.scale(size, size)

    def paint(self, path: skia.Path, paint: skia.Paint, part: int | None = None) -> None:
        """Fills a path; part: the id its pixels get in the mask, or None when they keep theirs (light, details)."""
        image, mask = self._canvases
        image.drawPath(path, paint)
        if part is not None:
            mask.drawPath(path, skia.Paint(Color=0xFF000000 | part * 0x010101, AntiAlias=False))

    def line(self, path: skia.Path, width: float, color: Color, alpha: float = 1.0, blur: float = 0.0) -> None:
        """Splits along a path, in the image only."""
        paint = flat(color, alpha, blur)
        paint.setStyle(skia.Paint.kStroke_Style)
        paint.setStrokeWidth(width)
        paint.setStrokeCap(skia.Paint.kRound_Cap)
        paint.setStrokeJoin(skia.Paint.kRound_Join)
        self._canvases[0].drawPath(path, paint)

    def wash(self, paint: skia.Paint, blend: skia.BlendMode = skia.BlendMode.kSrcOver) -> None:
        """Covers the whole clip with a paint, in the image only: backdrops and light."""
        paint.setBlendMode(blend)
        self._canvases[0].drawPaint(paint)

    @contextmanager
    def moved(self, x: Scalar, y: Scalar, scale_x: float = 1.0, scale_y: float | None = None, angle: float = 0.0):
        """Inside the block, (0, 0) is at (x, y), turned by `angle` (radians) and scaled; a negative scale mirrors."""
        for canvas in self._canvases:
            canvas.save()
            canvas.translate(x, y)
            canvas.rotate(math.degrees(angle))
            canvas.scale(scale_x, scale_x if scale_y is None else scale_y)
        yield
        for canvas in self._canvases:
            canvas.restore()

    @contextmanager
    def clipped(self, path: skia.Path):
        """Inside the block, only what lies within the path is painted, in image and mask."""
        for canvas, smooth in zip(self._canvases, (True, False), strict=True):
            canvas.save()
            canvas.clipPath(path, skia.ClipOp.kIntersect, smooth)
        yield
        for canvas in self._canvases:
            canvas.restore()

    def develop(
        self, rng: np.random.Generator, gain: np.ndarray, blur: float, noise: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """The finished image, uint8 [size, size, 3], and its mask of part ids, uint8 [size, size].

        gain: the light, float32 [size, size, 3], that every pixel is multiplied with. blur: the lens, a sigma as a
        fraction of the image's side. noise: the sensor, a standard deviation in gray levels, independent for each
        pixel, so the only thing that differs between sizes.
        """
        if blur * self.size > 0.3:  # at 0.3 pixels a Gaussian leaves a pixel's neighbors half a percent
            self._blur(blur * self.size)
        image = self._pixels[..., :3] * gain
        image += rng.standard_normal(image.shape, dtype=np.float32) * np.float32(noise) + np.float32(0.5)
        return np.clip(image, 0, 255, out=image).astype(np.uint8), self._ids

    def _blur(self, sigma: float) -> None:
        image = self._image.makeImageSnapshot()
        canvas = self._canvases[0]
        canvas.resetMatrix()
        filtered = skia.Paint(ImageFilter=skia.ImageFilters.Blur(sigma, sigma, skia.TileMode.kClamp))
        canvas.drawImage(image, 0, 0, paint=filtered)
