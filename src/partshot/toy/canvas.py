"""Canvas for toy images: draws an image and its pixel-exact mask with the same paths.

Each path that belongs to a part is filled twice: antialiased in the image, and without antialiasing in the mask,
where the gray value is the part id. Coordinates are in the unit square, so a drawing is the same at any size.
The module also has helpers for colors, paths and paints (skia's shaders). It draws with skia.
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
_REPEATED = skia.SamplingOptions(skia.FilterMode.kLinear, skia.MipmapMode.kLinear)


def hsv(hue: float, saturation: float, value: float) -> Color:
    """RGB color from hue (any real, period 1) and saturation and value (clipped to [0, 1])."""
    return colorsys.hsv_to_rgb(hue % 1.0, min(max(saturation, 0.0), 1.0), min(max(value, 0.0), 1.0))


def mix(a: Color, b: Color, t: float) -> Color:
    """Linear interpolation between colors a (t = 0) and b (t = 1)."""
    return a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t, a[2] + (b[2] - a[2]) * t


def lighten(color: Color, amount: float) -> Color:
    """The color mixed with white (amount in 0..1) or with black (amount in -1..0, darker)."""
    return mix(color, (1.0, 1.0, 1.0), amount) if amount > 0 else mix(color, (0.0, 0.0, 0.0), -amount)


def random_color(rng: np.random.Generator) -> Color:
    """A random color of an object: gray, muted or saturated."""
    return hsv(rng.uniform(), rng.uniform() ** 1.3, rng.uniform(0.12, 0.98))


def rotated(points: np.ndarray, angle: float) -> np.ndarray:
    """Points [n, 2] rotated about the origin by an angle in radians (clockwise in the image)."""
    c, s = math.cos(angle), math.sin(angle)
    return points @ np.array([[c, s], [-s, c]])


def _argb(color: Color, alpha: float) -> int:
    r, g, b = color
    return int(255 * alpha + 0.5) << 24 | int(255 * r + 0.5) << 16 | int(255 * g + 0.5) << 8 | int(255 * b + 0.5)


# Paths


def polygon(points) -> skia.Path:
    """A closed polygon through points [n, 2]."""
    path = skia.Path()
    path.addPoly([skia.Point(x, y) for x, y in np.asarray(points, float).tolist()], True)
    return path


def closed_curve(points) -> skia.Path:
    """A closed Catmull-Rom spline through points [n, 2]."""
    p = np.asarray(points, float)
    ring = np.concatenate([p[-1:], p, p[:2]])
    tangent = (ring[2:] - ring[:-2]) / 6
    end = ring[2:-1]
    path = _cubics(p, p + tangent[:-1], end - tangent[1:], end)
    path.close()
    return path


def curve(points) -> skia.Path:
    """An open Catmull-Rom spline through points [n, 2], or one through each row of [rows, n, 2]."""
    p = np.asarray(points, float)
    path = skia.Path()
    for row in p if p.ndim == 3 else (p,):
        third = _tangents(row) / 3
        _cubics(row[:-1], (row + third)[:-1], (row - third)[1:], row[1:], path)
    return path


def _tangents(p: np.ndarray) -> np.ndarray:
    """The tangents of a polyline at each point: central differences, one-sided differences at the ends."""
    step = p[1:] - p[:-1]
    return np.concatenate([step[:1], (step[1:] + step[:-1]) / 2, step[-1:]])


def _cubics(start, first, second, end, path: skia.Path | None = None) -> skia.Path:
    path = skia.Path() if path is None else path
    path.moveTo(*start[0].tolist())
    for six in np.concatenate([first, second, end], axis=1).tolist():
        path.cubicTo(*six)
    return path


def tapered_stroke(points, widths) -> skia.Path:
    """The outline of a smooth stroke along points [n, 2] with a width for each point and rounded ends."""
    p, half = np.asarray(points, float), np.asarray(widths, float)[:, None] / 2
    along = _tangents(p)
    along /= np.maximum(np.hypot(along[:, :1], along[:, 1:]), 1e-6)
    across = along[:, ::-1] * (-1.0, 1.0)
    tips = p[0] - along[0] * half[0], p[-1] + along[-1] * half[-1]
    return closed_curve(np.vstack([tips[0], p + across * half, tips[1], (p - across * half)[::-1]]))


def oval(x: Scalar, y: Scalar, rx: Scalar, ry: Scalar) -> skia.Path:
    """An ellipse with semi-axes rx and ry, centered at (x, y)."""
    path = skia.Path()
    path.addOval(skia.Rect(x - rx, y - ry, x + rx, y + ry))
    return path


def rect(left: Scalar, top: Scalar, right: Scalar, bottom: Scalar) -> skia.Path:
    """An axis-aligned rectangle."""
    path = skia.Path()
    path.addRect(skia.Rect(left, top, right, bottom))
    return path


def rects(corners, width: float, height: float) -> skia.Path:
    """Axis-aligned rectangles of equal size; corners [n, 2]: their upper left corners."""
    path = skia.Path()
    for x, y in corners:
        path.addRect(skia.Rect(x, y, x + width, y + height))
    return path


# Paints


def solid(color: Color, alpha: float = 1.0, blur: float = 0.0) -> skia.Paint:
    """A solid color. blur: sigma of a mask filter in user units, for soft shadows and highlights (images only)."""
    paint = skia.Paint(Color=_argb(color, alpha), AntiAlias=True)
    if blur:
        paint.setMaskFilter(skia.MaskFilter.MakeBlur(skia.kNormal_BlurStyle, blur))
    return paint


def linear_gradient(start, end, first: Color, second: Color, alphas=(1.0, 1.0)) -> skia.Paint:
    """A linear gradient from the first color at point `start` to the second at point `end`; alphas: their opacities."""
    colors = [_argb(first, alphas[0]), _argb(second, alphas[1])]
    shader = skia.GradientShader.MakeLinear([skia.Point(*map(float, start)), skia.Point(*map(float, end))], colors)
    return skia.Paint(Shader=shader, AntiAlias=True)


def radial_gradient(x: float, y: float, radius: float, color: Color, alpha: float) -> skia.Paint:
    """A radial gradient from `color` with opacity `alpha` at (x, y) to transparent at `radius`."""
    colors = [_argb(color, alpha), _argb(color, 0.0)]
    return skia.Paint(Shader=skia.GradientShader.MakeRadial(skia.Point(x, y), radius, colors), AntiAlias=True)


def tiled_image(pixels: np.ndarray, width: float, angle: float = 0.0) -> skia.Paint:
    """An image shader that repeats float pixels [h, w, 3] in [0, 1].

    width: of one tile, in user units. angle: rotation in radians.
    """
    matrix = skia.Matrix().setScale(width / pixels.shape[1], width / pixels.shape[1])
    matrix.postRotate(math.degrees(angle))
    return _texture(pixels, skia.TileMode.kRepeat, _REPEATED, matrix, 1.0)


def stretched_image(pixels: np.ndarray, alpha: float = 1.0) -> skia.Paint:
    """An image shader that stretches a coarse float grid [h, w, 3] in [0, 1] smoothly over the unit square."""
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
    """An image of size x size pixels and its mask, both drawn in unit-square coordinates (y points down)."""

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

    def fill(self, path: skia.Path, paint: skia.Paint, part: int | None = None) -> None:
        """Fills a path. part: the id of its pixels in the mask; None leaves the mask unchanged (lighting, details)."""
        image, mask = self._canvases
        image.drawPath(path, paint)
        if part is not None:
            mask.drawPath(path, skia.Paint(Color=0xFF000000 | part * 0x010101, AntiAlias=False))

    def stroke(self, path: skia.Path, width: float, color: Color, alpha: float = 1.0, blur: float = 0.0) -> None:
        """Strokes a path with round caps and joins, in the image only."""
        paint = solid(color, alpha, blur)
        paint.setStyle(skia.Paint.kStroke_Style)
        paint.setStrokeWidth(width)
        paint.setStrokeCap(skia.Paint.kRound_Cap)
        paint.setStrokeJoin(skia.Paint.kRound_Join)
        self._canvases[0].drawPath(path, paint)

    def draw_paint(self, paint: skia.Paint, blend: skia.BlendMode = skia.BlendMode.kSrcOver) -> None:
        """Fills the current clip with a paint, in the image only: backdrops and lighting."""
        paint.setBlendMode(blend)
        self._canvases[0].drawPaint(paint)

    @contextmanager
    def transformed(self, x: Scalar, y: Scalar, scale_x: float = 1.0, scale_y: float | None = None, angle: float = 0.0):
        """A context with another transform: the origin at (x, y), rotated by `angle` (radians) and scaled.

        A negative scale flips. scale_y: scale_x when None.
        """
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
        """A context that clips drawing to the path, in the image and in the mask."""
        for canvas, smooth in zip(self._canvases, (True, False), strict=True):
            canvas.save()
            canvas.clipPath(path, skia.ClipOp.kIntersect, smooth)
        yield
        for canvas in self._canvases:
            canvas.restore()

    def render(
        self, rng: np.random.Generator, gain: np.ndarray, blur: float, noise: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """The finished image, uint8 [size, size, 3], and its mask of part ids, uint8 [size, size].

        gain: illumination, float32 [size, size, 3]; each pixel is multiplied by it. blur: lens blur, a Gaussian sigma
        as a fraction of the image side. noise: sensor noise, a standard deviation in gray levels, independent for each
        pixel; it is the only thing that differs between sizes.
        """
        if blur * self.size > 0.3:  # below 0.3 px, a Gaussian moves at most 0.5 % to a neighbor
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
