"""How a prediction reads an image: whole, or in windows at the scale of the images that the student learned from.

Knows the options `--window`, `--scale` and `--refine`, what they say of an image of some size, and when that needs a
word of the user's. How windows are read is windows.py's affair, how edges are refined refine.py's.
"""

from dataclasses import dataclass

from partshot.errors import BadRecipe
from partshot.inference.exported_model import ExportedModel

# Images up to so many times as large as those that a student learned from are taken for the same thing, seen closer.
_LARGE = 2
_SMALLEST, _LARGEST = 16, 65_536  # windows' sides in pixels


@dataclass(frozen=True)
class Reading:
    """window: side of the windows in pixels of the image; None is `auto`, 0 is `off`.

    scales: how many times as large as in the labeled images things are taken to be in the windows; several are
    averaged. refined: whether labels are moved onto the image's edges.
    """

    window: int | None = None
    scales: tuple[float, ...] = (1.0,)
    refined: bool = False

    @classmethod
    def parse(cls, window: str | int, scale: str | int | float, refined: bool = False) -> "Reading":
        """From the options: "auto", "off" or pixels, and a number or several with commas between; BadRecipe."""
        names = {"auto": None, "off": 0}
        try:
            side = names[window] if window in names else int(window)
            scales = tuple(float(part) for part in str(scale).split(","))
        except ValueError:
            raise BadRecipe(
                f"window '{window}', scale '{scale}' given; a window is auto, off or a side in pixels, and a scale is "
                "a number, or several as in 0.5,1,2"
            ) from None
        if window not in names and not _SMALLEST <= side <= _LARGEST:
            raise BadRecipe(f"window {side} given; {_SMALLEST} to {_LARGEST} pixels are needed, or auto, or off")
        if not all(0.05 <= one <= 20 for one in scales):
            raise BadRecipe(f"scale '{scale}' given; numbers from 0.05 to 20 are needed")
        if side == 0 and scales != (1.0,):
            raise BadRecipe(f"scale '{scale}' is one of windows, and --window is off; leave one of them out")
        return cls(side, scales, refined)

    def windows(self, model: ExportedModel, height: int, width: int) -> tuple[int, ...]:
        """Sides of the windows of an image, one a scale; none where it is read whole.

        Raises BadRecipe when a scale is asked for and neither option nor model says what it is a scale of.
        """
        if self.window == 0:
            return ()
        side = self.window or model.native
        if side is None:
            if self.scales != (1.0,):
                raise BadRecipe("this model does not say how large its images were; give --window PX beside --scale")
            return ()
        large = max(height, width) > _LARGE * max(side, model.size)
        if self.window is None and self.scales == (1.0,) and not large:
            return ()
        return tuple(max(_SMALLEST, round(side * scale)) for scale in self.scales)

    def factor(self, model: ExportedModel, height: int, width: int) -> float:
        """Pixels of an image, along a side, for each that the model sees of it; in the finest of several scales."""
        return min([max(height, width), *self.windows(model, height, width)]) / model.size

    def to_dict(self) -> dict:
        """Plain values, for the manifest of predictions: an option that is off is left out, as by older versions."""
        refined = {"refined": True} if self.refined else {}
        return {"window": self.window, "scales": list(self.scales), **refined}
