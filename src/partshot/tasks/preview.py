"""preview: first masks of a folder within a minute, by a frozen pretrained encoder, before the student is trained.

A small head is fitted to the labeled images and predicts the folder, evenly spaced images first, until the
time is up. The student's masks and report replace these.
"""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

import partshot
from partshot.data.images import read_image, read_stack
from partshot.data.labels import write_labels
from partshot.data.shots import Shots
from partshot.errors import BadImage
from partshot.evenly import evenly
from partshot.inference.predictions import MANIFEST, ModelInfo, OutputPaths, prepare_folder
from partshot.inference.settings import InferenceOptions
from partshot.progress import Ticker
from partshot.report import Example, Gallery, Headline, shots_gallery, write_report
from partshot.represent.encoders import default_encoder
from partshot.segmenter import Segmenter
from partshot.tasks.fit import frozen_segmenter

EXPECTED_SECONDS = 50.0
"""Usual duration of a preview, for plans."""

_SECONDS = 45.0  # for prediction; with the fit, about a minute
# Longest side of an image and its mask in memory. The input size of the encoder is represent.choose.working_size.
_LARGEST = 512
_BATCH, _SPREAD, _SHOWN = 8, 16, 12
_FITTED_TO = 100  # images that principal components are fitted to


@dataclass(frozen=True)
class Preview:
    """written: masks, of so many images. seconds: since it began. segmenter: what predicted them."""

    written: int
    images: int
    seconds: float
    segmenter: Segmenter

    def __str__(self) -> str:
        rest = "" if self.written == self.images else f" of {self.images}"
        return f"first masks of {self.written}{rest} images, which the student's masks will replace"


def is_due(out: Path) -> bool:
    """Whether a run begins with a preview: `out` holds no masks yet, and a pretrained encoder is on this machine."""
    return not (out / "masks" / MANIFEST).exists() and default_encoder() is not None


def preview(shots: Shots, images: Sequence[Path], out: Path, title: str, seed: int, quiet: bool) -> Preview:
    """Writes out/masks and out/report.html for as many images as there is time for.

    Raises BadLabels when out/masks holds masks that partshot did not predict.
    """
    began = time.monotonic()
    places = OutputPaths(out / "masks", False, False)
    some = evenly(images, _FITTED_TO)
    segmenter = frozen_segmenter(shots, lambda side: read_stack(some, side, skip_corrupt=True).images, seed)
    author = ModelInfo(f"preview {segmenter.fitted}", partshot.__version__, shots.parts)
    prepare_folder(places, author, images, False, InferenceOptions())
    # Every sixteenth image first, so that a preview of a part covers the whole folder.
    ordered = [path for first in range(_SPREAD) for path in images[first::_SPREAD]]
    shown: list[Example] = []
    written = 0
    with ThreadPoolExecutor() as pool, Ticker("preview", len(images), 0, quiet) as ticker:
        until = time.monotonic() + _SECONDS
        for first in range(0, len(ordered), _BATCH):
            if time.monotonic() > until:
                break
            several = [one for one in pool.map(read_small, ordered[first : first + _BATCH]) if one is not None]
            labels = [one.labels for one in segmenter.predict([image for _, image, _ in several])]
            writing = [
                pool.submit(_write, places.labels(path), found, size, shots)
                for (path, _, size), found in zip(several, labels, strict=True)
            ]
            [one.result() for one in writing]
            written += len(several)
            ticker.tick(min(first + _BATCH, len(ordered)))
            if len(shown) < _SHOWN:
                pairs = zip(several, labels, strict=True)
                shown += [Example(path.stem, image, prediction=found) for (path, image, _), found in pairs]
    result = Preview(written, len(images), time.monotonic() - began, segmenter)
    _report(result, shots, shown[:_SHOWN], out, title)
    return result


def read_small(path: Path) -> tuple[Path, np.ndarray, tuple[int, int]] | None:
    """The image, shrunk to at most _LARGEST, and its own size; None if it cannot be read, which `predict` reports."""
    try:
        image = read_image(path)
    except BadImage:
        return None
    size = image.shape[:2]
    shrink = _LARGEST / max(size)
    if shrink < 1:
        small = tuple(max(1, round(side * shrink)) for side in reversed(size))
        image = np.array(Image.fromarray(image).resize(small, Image.Resampling.BILINEAR))
    return path, image, size


def _write(path: Path, labels: np.ndarray, size: tuple[int, int], shots: Shots) -> None:
    if labels.shape != size:
        labels = np.array(Image.fromarray(labels).resize(size[::-1], Image.Resampling.NEAREST))
    write_labels(path, labels, shots.parts)


def _report(found: Preview, shots: Shots, shown: Sequence[Example], out: Path, title: str) -> None:
    labeled = "one labeled image" if len(shots) == 1 else f"{len(shots)} labeled images"
    sentence = (
        f"Preview, after {found.seconds:.0f} s, from {labeled}: {found.written} of {found.images} images have a first "
        "mask. The student is being trained; its masks and its report replace these."
    )
    sections = [Headline(sentence), shots_gallery(shots), Gallery("First predictions", shown, prediction="preview")]
    write_report(out / "report.html", f"Preview: {title}", shots.parts, sections)
