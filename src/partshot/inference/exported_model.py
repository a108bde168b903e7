"""ExportedModel: an exported student as it runs without torch, from one ONNX file.

Knows the file's inputs, outputs and the notes it carries (parts, size, version), and refuses what is not such a file
or not the whole of it. Refuses to know torch, folders and PNGs.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime

from partshot.errors import BadArtifact, BadParts
from partshot.machine import available_cores
from partshot.parts import PartSet

INPUT = "images"
OUTPUTS = ("labels", "confidence")
FORMAT = 1
"""Raised when a file of a newer partshot can no longer be run by an older one."""

_ONLY_ERRORS = 3  # onnxruntime's own warnings speak of graphs and threads, to nobody who runs a model


def notes(parts: PartSet, size: int, version: str, squashed: bool = True, native: int | None = None) -> dict[str, str]:
    """What the file says about itself: texts by name, for the ONNX metadata; `ExportedModel` reads them back.

    The arguments are those of `export.export_onnx`.
    """
    known = {} if native is None else {"partshot.native": str(native)}
    return {
        **known,
        "partshot.aspect": "squashed" if squashed else "kept",
        "partshot.format": str(FORMAT),
        "partshot.version": version,
        "partshot.parts": json.dumps(parts.to_dict()),
        "partshot.size": str(size),
    }


class ExportedModel:
    """path: the ONNX file. threads: cores that one prediction may use; 0 = all that this process has.

    parts: the PartSet of its labels. size: long side in pixels of what the net works on. squashed: whether that is a
    square whatever the image's aspect, as in files of older versions. native: the usual long side of the images that
    it learned from, None where the file does not say. sha256: of the file, hex. version: of the partshot that wrote it.

    Raises BadArtifact when the file is missing, truncated, no ONNX, or not exported by partshot.
    """

    def __init__(self, path: Path | str, threads: int = 0):
        path = Path(path)
        blob = _read(path)
        self.sha256 = hashlib.sha256(blob).hexdigest()
        self._session = _session(path, blob, threads or available_cores())
        meta = self._session.get_modelmeta().custom_metadata_map
        self.parts, self.size, self.version, self.native = _read_notes(path, meta)
        self.squashed = meta.get("partshot.aspect") != "kept"

    def predict(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Labels and confidence of images of one size.

        images: uint8 [b, h, w, 3] RGB. Returns labels, uint8 [b, h, w], ids of `parts`; and confidence,
        uint8 [b, h, w], the probability of that label times 255. Safe to call from several threads.
        """
        labels, confidence = self._session.run(OUTPUTS, {INPUT: np.ascontiguousarray(images)})
        return labels, confidence


def _read(path: Path) -> bytes:
    if path.is_dir():
        raise BadArtifact(f"{path}: is a folder; give the ONNX file itself, or make one with: partshot export")
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadArtifact(f"{path}: cannot be read ({error.strerror}); give an ONNX file") from error


def _session(path: Path, blob: bytes, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ONLY_ERRORS
    options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(blob, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a class of its own for each of a dozen ways to refuse a file
        raise BadArtifact(f"{path}: no ONNX model, truncated, or too new for onnxruntime; export it again") from error


def _read_notes(path: Path, meta: Mapping[str, str]) -> tuple[PartSet, int, str, int | None]:
    if "partshot.format" not in meta:
        raise BadArtifact(f"{path}: an ONNX model, but not one of partshot's; make one with: partshot export")
    try:
        if int(meta["partshot.format"]) > FORMAT:
            raise BadArtifact(f"{path}: exported by a newer partshot ({meta['partshot.version']}); upgrade partshot")
        parts = PartSet.from_dict(json.loads(meta["partshot.parts"]), source=str(path))
        native = int(meta["partshot.native"]) if "partshot.native" in meta else None
        return parts, int(meta["partshot.size"]), meta["partshot.version"], native
    except (KeyError, ValueError, BadParts) as error:
        raise BadArtifact(f"{path}: its notes are damaged ({error}); export it again") from error
