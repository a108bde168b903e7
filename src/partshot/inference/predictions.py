"""The folder of predictions: its file names, and a manifest with the model and settings that wrote it.

The manifest lets an interrupted prediction continue, and protects masks made by hand from being overwritten.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from partshot.artifact import replacing_file, write_json
from partshot.errors import BadImage, BadLabels
from partshot.inference.settings import InferenceOptions
from partshot.parts import PartSet

MANIFEST = "predictions.json"

# File times have a resolution of some milliseconds. After this wait, all earlier files are older than the manifest.
_TICK_SECONDS = 0.02


@dataclass(frozen=True)
class ModelInfo:
    """The model that predicts. sha256: identifies it. version: of the partshot that exported it. parts: its labels."""

    sha256: str
    version: str
    parts: PartSet


@dataclass(frozen=True)
class OutputPaths:
    """Output files of an image: out/STEM.png, out/overlays/STEM.jpg, out/confidence/STEM.png.

    overlays, confidence: whether these are written.
    """

    out: Path
    overlays: bool
    confidence: bool

    def labels(self, image: Path) -> Path:
        return self.out / f"{image.stem}.png"

    def overlay(self, image: Path) -> Path:
        return self.out / "overlays" / f"{image.stem}.jpg"

    def confidence_map(self, image: Path) -> Path:
        return self.out / "confidence" / f"{image.stem}.png"

    def done(self, image: Path, since: int) -> bool:
        """Whether no output file of an image is missing, older than `since` (ns), or older than the image itself."""
        files = [self.labels(image)]
        files += [self.overlay(image)] if self.overlays else []
        files += [self.confidence_map(image)] if self.confidence else []
        oldest = max(since, image.stat().st_mtime_ns)
        return all(p.is_file() and p.stat().st_mtime_ns >= oldest for p in files)


def prepare_folder(
    paths: OutputPaths, model: ModelInfo, images: Sequence[Path], overwrite: bool, options: InferenceOptions
) -> dict:
    """Creates the folder or takes it over for this model and these options, and returns its manifest.

    "since" in the manifest: files written before this time (ns, in the clock of the file system) belong to another
    model or other options. Raises BadImage if the folder is a file or contains the images, and BadLabels if it contains
    masks that partshot did not predict.
    """
    out = paths.out
    if out.exists() and not out.is_dir():
        raise BadImage(f"{out}: is a file; give a folder for the masks")
    if out.exists() and out.resolve() == images[0].parent.resolve():
        raise BadImage(f"{out}: contains the images; give another folder for the masks")
    manifest = _read_manifest(out / MANIFEST)
    if manifest is None and not overwrite:
        _refuse_foreign_masks(paths, images)
    settings = {"sha256": model.sha256, "reading": options.to_dict()}
    if manifest is None or overwrite or not _same_settings(manifest, settings):
        time.sleep(_TICK_SECONDS)
        with replacing_file(out / MANIFEST) as temporary:
            manifest = {**settings, "partshot": model.version, "since": temporary.stat().st_mtime_ns}
            temporary.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    write_json(out / "classes.json", model.parts.to_dict())
    return manifest


def _same_settings(manifest: dict, settings: dict) -> bool:
    # Manifests of older versions have no options.
    found = {"reading": InferenceOptions().to_dict(), **manifest}
    return all(found[key] == value for key, value in settings.items())


def _read_manifest(path: Path) -> dict | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return {**values, "sha256": str(values["sha256"]), "since": int(values["since"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _refuse_foreign_masks(paths: OutputPaths, images: Sequence[Path]) -> None:
    # Never overwrite masks made by hand: they cannot be regenerated.
    for image in images:
        mask = paths.labels(image)
        if mask.exists():
            raise BadLabels(
                f"{mask}: was not predicted by partshot; choose another --out, or replace it with --overwrite"
            )
