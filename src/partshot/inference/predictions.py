"""The folder of predictions: its file names, and a manifest with the model and settings that wrote it.

The manifest lets an interrupted prediction continue, and protects masks made by hand from being overwritten.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from partshot.artifact import replacing_file, write_json
from partshot.errors import BadImage, BadLabels, BadParts
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
    model or other options. "masks": names of the masks that partshot writes there, those of `images` included. Raises
    BadImage if the folder is a file or contains the images. Raises BadLabels, unless `overwrite`, for a mask of one of
    the images that partshot did not predict; and in a folder without a manifest for any mask, among which predictions
    would be taken for labels, and for a classes.json of other parts.
    """
    out = paths.out
    if out.exists() and not out.is_dir():
        raise BadImage(f"{out}: is a file; give a folder for the masks")
    if out.exists() and out.resolve() == images[0].parent.resolve():
        raise BadImage(f"{out}: contains the images; give another folder for the masks")
    manifest = _read_manifest(out / MANIFEST)
    predicted = _predicted_masks(out, manifest)
    if not overwrite:
        refuse_foreign_masks(paths, images)
        if manifest is None:
            _refuse_other_parts(out / "classes.json", model.parts)
    settings = {"sha256": model.sha256, "reading": options.to_dict()}
    masks = sorted(predicted | {paths.labels(image).name for image in images})
    if manifest is None or overwrite or not _same_settings(manifest, settings):
        time.sleep(_TICK_SECONDS)
        with replacing_file(out / MANIFEST) as temporary:
            since = temporary.stat().st_mtime_ns
            manifest = {**settings, "partshot": model.version, "since": since, "masks": masks}
            temporary.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    elif manifest.get("masks") != masks:
        manifest = {**manifest, "masks": masks}
        write_json(out / MANIFEST, manifest)
    if _read_parts(out / "classes.json") != model.parts:
        write_json(out / "classes.json", model.parts.to_dict())
    return manifest


def _same_settings(manifest: dict, settings: dict) -> bool:
    # Manifests of older versions have no options.
    found = {"reading": InferenceOptions().to_dict(), **manifest}
    return all(found[key] == value for key, value in settings.items())


def _read_manifest(path: Path) -> dict | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        masks = {"masks": [str(name) for name in values["masks"]]} if "masks" in values else {}
        return {**values, "sha256": str(values["sha256"]), "since": int(values["since"]), **masks}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _predicted_masks(out: Path, manifest: dict | None) -> set[str]:
    """Names of the masks that partshot wrote. Manifests of older versions do not have them: all masks count as such."""
    if manifest is None:
        return set()
    return set(manifest.get("masks", (path.name for path in out.glob("*.png"))))


def refuse_foreign_masks(paths: OutputPaths, images: Sequence[Path]) -> None:
    """Raises BadLabels for a mask of one of the images that partshot did not predict: it cannot be regenerated.

    In a folder without a manifest, for any mask: predictions beside it would be taken for labels.
    """
    manifest = _read_manifest(paths.out / MANIFEST)
    predicted = _predicted_masks(paths.out, manifest)
    masks = sorted(paths.out.glob("*.png")) if manifest is None else [paths.labels(image) for image in images]
    for mask in masks:
        if mask.name not in predicted and mask.exists():
            raise BadLabels(
                f"{mask}: was not predicted by partshot; choose another --out, or replace it with --overwrite"
            )


def _refuse_other_parts(path: Path, parts: PartSet) -> None:
    if path.exists() and _read_parts(path) != parts:
        raise BadLabels(
            f"{path}: was not written by partshot, and its parts are not the model's; choose another --out, or replace "
            "it with --overwrite"
        )


def _read_parts(path: Path) -> PartSet | None:
    try:
        return PartSet.load(path)
    except BadParts:
        return None
