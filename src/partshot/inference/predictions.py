"""A folder of predictions: what lies where, which model wrote it, and from when on it counts as done.

Knows the manifest that lets a stopped prediction go on and keeps masks drawn by hand safe. Refuses to know how anything
is predicted.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from partshot.artifact import replacing_file
from partshot.errors import BadImage, BadLabels
from partshot.inference.reading import Reading
from partshot.parts import PartSet

MANIFEST = "predictions.json"

# File times advance in ticks of some milliseconds; waiting one out makes every older file older than the manifest.
_TICK_SECONDS = 0.02


@dataclass(frozen=True)
class Author:
    """Who predicts: sha256 names the model, version the partshot that made it, parts what its labels mean."""

    sha256: str
    version: str
    parts: PartSet


@dataclass(frozen=True)
class Places:
    """Where the results of an image go: out/STEM.png, out/overlays/STEM.jpg, out/confidence/STEM.png."""

    out: Path
    overlays: bool
    confidence: bool

    def labels(self, image: Path) -> Path:
        return self.out / f"{image.stem}.png"

    def overlay(self, image: Path) -> Path:
        return self.out / "overlays" / f"{image.stem}.jpg"

    def sureness(self, image: Path) -> Path:
        return self.out / "confidence" / f"{image.stem}.png"

    def done(self, image: Path, since: int) -> bool:
        """Whether all that is wanted of an image was written after `since` (ns) and after the image itself."""
        wanted = [self.labels(image)]
        wanted += [self.overlay(image)] if self.overlays else []
        wanted += [self.sureness(image)] if self.confidence else []
        oldest = max(since, image.stat().st_mtime_ns)
        return all(p.is_file() and p.stat().st_mtime_ns >= oldest for p in wanted)


def claim(places: Places, author: Author, images: Sequence[Path], overwrite: bool, reading: Reading) -> dict:
    """Makes the folder this author's; the manifest says since when (ns, by the folder's own clock) its files are.

    Raises BadImage where the folder is a file or holds the images, BadLabels where it holds masks of others.
    """
    out = places.out
    if out.exists() and not out.is_dir():
        raise BadImage(f"{out}: is a file; give a folder for the masks")
    if out.exists() and out.resolve() == images[0].parent.resolve():
        raise BadImage(f"{out}: holds the images themselves; give another folder for the masks")
    manifest = _read_manifest(out / MANIFEST)
    if manifest is None and not overwrite:
        _refuse_foreign_masks(places, images)
    read_so = {"sha256": author.sha256, "reading": reading.to_dict()}
    if manifest is None or overwrite or not _same_reading(manifest, read_so):
        time.sleep(_TICK_SECONDS)
        with replacing_file(out / MANIFEST) as temporary:
            manifest = {**read_so, "partshot": author.version, "since": temporary.stat().st_mtime_ns}
            temporary.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    write_json(out / "classes.json", author.parts.to_dict())
    return manifest


def _same_reading(manifest: dict, wanted: dict) -> bool:
    # One of an older version says nothing of windows: it read everything whole.
    known = {"reading": Reading().to_dict(), **manifest}
    return all(known[key] == value for key, value in wanted.items())


def _read_manifest(path: Path) -> dict | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return {**values, "sha256": str(values["sha256"]), "since": int(values["since"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _refuse_foreign_masks(places: Places, images: Sequence[Path]) -> None:
    # Masks drawn by hand are the most valuable files there are.
    for image in images:
        mask = places.labels(image)
        if mask.exists():
            raise BadLabels(
                f"{mask}: was not predicted by partshot; choose another --out, or replace it by --overwrite"
            )


def write_json(path: Path, values: dict) -> None:
    """Writes plain values, whole or not at all."""
    with replacing_file(path) as temporary:
        temporary.write_text(json.dumps(values, indent=1), encoding="utf-8")
