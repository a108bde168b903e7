"""InferenceOptions: whole-image or sliding-window inference, and edge refinement.

Parses the options `--window`, `--scale` and `--refine`, and decides the windows for an image of a given size. Sliding
windows are implemented in windows.py, edge refinement in refine.py.
"""

import math
from dataclasses import dataclass

from partshot.errors import BadRecipe
from partshot.inference.exported_model import ExportedModel

# With --window auto, images up to this many times as large as the training images are predicted whole: they are assumed
# to have the same content at a higher resolution.
_LARGE = 2
_MIN_WINDOW, _MAX_WINDOW = 16, 65_536  # side in pixels


@dataclass(frozen=True)
class InferenceOptions:
    """window: side of the windows in pixels of the image; None is `auto`, 0 is `off`.

    scales: size of the objects relative to the training images; each scale multiplies the side of the windows, and the
    votes of several scales are averaged. refined: whether labels are aligned with the image's edges.
    """

    window: int | None = None
    scales: tuple[float, ...] = (1.0,)
    refined: bool = False

    @classmethod
    def parse(cls, window: str | int, scale: str | int | float, refined: bool = False) -> "InferenceOptions":
        """Parses a window ("auto", "off" or pixels) and a scale (a number, or several separated by commas).

        Raises BadRecipe for other values.
        """
        names = {"auto": None, "off": 0}
        try:
            side = names[window] if window in names else int(window)
        except ValueError:
            side = -1
        if window not in names and not _MIN_WINDOW <= side <= _MAX_WINDOW:
            raise BadRecipe(f"--window {window}: must be {_MIN_WINDOW} to {_MAX_WINDOW} pixels, or auto, or off")
        try:
            scales = tuple(float(part) for part in str(scale).split(","))
        except ValueError:
            scales = (math.nan,)
        if not all(0.05 <= one <= 20 for one in scales):
            raise BadRecipe(f"--scale {scale}: must be numbers from 0.05 to 20, separated by commas")
        if side == 0 and scales != (1.0,):
            raise BadRecipe(f"scale '{scale}' needs windows, but --window is off; leave out one of the two options")
        return cls(side, scales, refined)

    def windows(self, model: ExportedModel, height: int, width: int) -> tuple[int, ...]:
        """Side of the windows for each scale, for an image of this size; empty if it is predicted whole.

        Raises BadRecipe if a scale is given, but neither --window nor the model's metadata defines its reference size.
        """
        if self.window == 0:
            return ()
        side = self.window or model.native
        if side is None:
            if self.scales != (1.0,):
                raise BadRecipe("the model file has no training image size; give --window PX together with --scale")
            return ()
        large = max(height, width) > _LARGE * max(side, model.size)
        if self.window is None and self.scales == (1.0,) and not large:
            return ()
        return tuple(max(_MIN_WINDOW, round(side * scale)) for scale in self.scales)

    def factor(self, model: ExportedModel, height: int, width: int) -> float:
        """Downsampling factor: image pixels per pixel of the network's input, along a side, at the finest scale."""
        return min([max(height, width), *self.windows(model, height, width)]) / model.size

    def to_dict(self) -> dict:
        """JSON values for the manifest. `refined` is left out if False, as in manifests of older versions."""
        refined = {"refined": True} if self.refined else {}
        return {"window": self.window, "scales": list(self.scales), **refined}
