"""PartSet: the part classes of one object category: ids, names, colors and left-right pairs.

Id 0 is the background; 255 means "ignore" and is not a class. The colors form the palette of indexed PNG masks. The
pairs are the ids that are swapped when an image is flipped horizontally.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from partshot.errors import BadParts, nearest

IGNORE = 255
"""Label of pixels that are excluded from training and evaluation."""

# The background is black; the other hues are distinguishable in print and with common forms of color blindness.
COLORS = (
    (0, 0, 0), (230, 60, 60), (60, 200, 80), (70, 110, 250), (250, 220, 40), (200, 90, 220), (60, 220, 220),
    (250, 140, 40), (150, 150, 160), (160, 90, 40), (255, 170, 190), (20, 120, 110), (170, 255, 120), (90, 40, 140),
    (128, 128, 0), (255, 255, 255),
)  # fmt: skip

_SIDE = re.compile(r"(?<![a-z])(left|right|l|r)(?![a-z])", re.IGNORECASE)
_TWIN = {"left": "right", "right": "left", "l": "r", "r": "l"}


@dataclass(frozen=True)
class PartSet:
    """The part classes of an object category.

    names: one per part, index = id; names[0] is the background.
    colors: one RGB triple in 0..255 per part, for palettes and overlays.
    mirror: pairs of ids that are swapped when an image is flipped horizontally (left eye, right eye).

    Raises BadParts if names repeat, if there are more than 255 parts, or if a mirror pair contains an unknown id.
    """

    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...] = ()
    mirror: tuple[tuple[int, int], ...] = ()

    def __post_init__(self):
        if not 1 <= len(self.names) <= IGNORE:
            raise BadParts(f"{len(self.names)} parts; a PartSet has 1 to {IGNORE}, background included")
        repeated = sorted({n for n in self.names if self.names.count(n) > 1})
        if repeated:
            raise BadParts(f"part name '{repeated[0]}' occurs twice; part names must be unique")
        if not self.colors:
            object.__setattr__(self, "colors", tuple(default_color(i) for i in range(len(self.names))))
        if len(self.colors) != len(self.names):
            raise BadParts(f"{len(self.colors)} colors for {len(self.names)} parts; give one color each, or none")
        for name, color in zip(self.names, self.colors, strict=True):
            if len(color) != 3 or any(not 0 <= c <= 255 for c in color):
                raise BadParts(f"color {list(color)} of part '{name}' is not an RGB triple in 0..255")
        seen = [i for pair in self.mirror for i in pair]
        if len(seen) != len(set(seen)) or any(not 0 <= i < len(self.names) for i in seen):
            raise BadParts(f"mirror pairs {list(self.mirror)} must name each known id at most once")

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def of(cls, *names: str) -> "PartSet":
        """A PartSet with default colors and mirror pairs derived from the names."""
        return cls(names=tuple(names), mirror=propose_mirror_pairs(names))

    def id_of(self, name: str) -> int:
        """The id of a part by name; raises BadParts with the nearest name if it is unknown."""
        if name not in self.names:
            raise BadParts(f"unknown part '{name}'; {nearest(name, self.names)}")
        return self.names.index(name)

    def mirrored_ids(self) -> list[int]:
        """For each id, its id in a horizontally flipped image."""
        ids = list(range(len(self)))
        for a, b in self.mirror:
            ids[a], ids[b] = b, a
        return ids

    def palette(self) -> bytes:
        """768-byte palette for an indexed PNG: the parts' colors, then gray for all other ids, including 255."""
        table = bytearray(bytes((128, 128, 128)) * 256)
        for i, color in enumerate(self.colors):
            table[3 * i : 3 * i + 3] = bytes(color)
        return bytes(table)

    def to_dict(self) -> dict:
        """Plain values for JSON, the input of `from_dict`."""
        rows = [
            {"id": i, "name": n, "color": list(c)} for i, (n, c) in enumerate(zip(self.names, self.colors, strict=True))
        ]
        return {"ignore_index": IGNORE, "classes": rows, "mirror": [list(p) for p in self.mirror]}

    @classmethod
    def from_dict(cls, values: dict, source: str = "classes.json") -> "PartSet":
        """A PartSet from the values of `to_dict`; without a "mirror" entry, pairs are derived from the names."""
        try:
            rows = sorted(values["classes"], key=lambda row: row["id"])
            names = tuple(str(row["name"]) for row in rows)
            ids = [row["id"] for row in rows]
            colors = tuple(_triple(row["color"]) if "color" in row else default_color(i) for i, row in enumerate(rows))
            mirror = values.get("mirror")
            pairs = propose_mirror_pairs(names) if mirror is None else tuple((int(a), int(b)) for a, b in mirror)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadParts(
                f'{source}: needs {{"classes": [{{"id": 0, "name": "background"}}, ...]}}; "color", if given, is '
                '[r, g, b], and "mirror" a list of pairs of ids'
            ) from error
        if ids != list(range(len(ids))):
            raise BadParts(f"{source}: ids are {ids}; they must be 0, 1, 2, ... without gaps")
        try:
            return cls(names=names, colors=colors, mirror=pairs)
        except BadParts as error:
            raise BadParts(f"{source}: {error}") from error

    @classmethod
    def load(cls, path: Path | str) -> "PartSet":
        """Reads a classes.json; raises BadParts with the file's name if it is missing or invalid."""
        path = Path(path)
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return cls.from_dict(values if isinstance(values, dict) else {}, source=str(path))
        except FileNotFoundError as error:
            raise BadParts(f"{path}: no such file; write one with the parts' ids and names") from error
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise BadParts(f"{path}: not JSON ({error}); see the format in docs/labels.md") from error
        except OSError as error:
            raise BadParts(f"{path}: cannot be read ({error.strerror}); check the path") from error


def default_color(part: int) -> tuple[int, int, int]:
    """Default color of a part id; beyond the table, Pascal VOC's palette (bit pattern)."""
    if part < len(COLORS):
        return COLORS[part]
    rgb = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            rgb[channel] |= ((part >> (3 * bit + channel)) & 1) << (7 - bit)
    return tuple(rgb)


def _triple(color) -> tuple[int, int, int]:
    red, green, blue = color
    return int(red), int(green), int(blue)


def propose_mirror_pairs(names) -> tuple[tuple[int, int], ...]:
    """Pairs of ids whose names differ only in left/right (or a separate l/r), such as "left eye" and "right eye"."""
    at = {name.lower(): i for i, name in enumerate(names)}
    by_plain_name = {name.replace("_", " "): i for name, i in at.items()}
    pairs = set()
    for name, i in at.items():
        twin = _SIDE.sub(lambda m: _TWIN[m.group().lower()], name.replace("_", " "))
        j = by_plain_name.get(twin)
        if j is not None and j != i:
            pairs.add((min(i, j), max(i, j)))
    return tuple(sorted(pairs))
