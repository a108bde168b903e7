"""ExportedModel: runs an exported student from one ONNX file with onnxruntime; torch is not needed.

The file's ONNX metadata holds the parts, the input size and the version. Files that are damaged or were not exported by
partshot are refused.
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
SOURCE = "partshot.source"
"""Metadata key: fingerprint of the network that was exported."""
FORMAT = 1
"""Version of the file format; increased when older versions of partshot cannot run new files."""

_ONLY_ERRORS = 3  # log level; onnxruntime's warnings are about graphs and threads, and do not help users


def model_metadata(
    parts: PartSet, size: int, version: str, squashed: bool = True, native: int | None = None
) -> dict[str, str]:
    """The ONNX metadata that `ExportedModel` reads. Arguments as in `export.export_onnx`."""
    optional = {} if native is None else {"partshot.native": str(native)}
    return {
        **optional,
        "partshot.aspect": "squashed" if squashed else "kept",
        "partshot.format": str(FORMAT),
        "partshot.version": version,
        "partshot.parts": json.dumps(parts.to_dict()),
        "partshot.size": str(size),
    }


class ExportedModel:
    """An exported student. path: the ONNX file. threads: per prediction; 0 = all cores available to this process.

    parts: the PartSet of its labels. size: long side of the network's input in pixels. squashed: whether the input is
    always a square, as in files of older versions; otherwise the aspect ratio is kept. native: typical long side of the
    original training images in pixels, None if the file does not have it. sha256: of the file, hex. version: of the
    partshot that exported it. source: fingerprint of the network that was exported, "" if the file does not have it.

    Raises BadArtifact if the file is missing, truncated, not ONNX, or not exported by partshot.
    """

    def __init__(self, path: Path | str, threads: int = 0):
        path = Path(path)
        blob = _read(path)
        self.sha256 = hashlib.sha256(blob).hexdigest()
        self._session = _session(path, blob, threads or available_cores())
        meta = self._session.get_modelmeta().custom_metadata_map
        self.parts, self.size, self.version, self.native = _read_metadata(path, meta)
        self.squashed = meta.get("partshot.aspect") != "kept"
        self.source = meta.get(SOURCE, "")
        self.path = path

    def __repr__(self) -> str:
        return f"ExportedModel({str(self.path)!r}, size={self.size}, parts={len(self.parts)})"

    def predict(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Labels and confidence of images of the same size.

        images: uint8 [b, h, w, 3] RGB. Returns labels, uint8 [b, h, w], ids of `parts`; and confidence,
        uint8 [b, h, w], the probability of the predicted label times 255. Thread-safe.
        """
        labels, confidence = self._session.run(OUTPUTS, {INPUT: np.ascontiguousarray(images)})
        return labels, confidence


def _read(path: Path) -> bytes:
    if path.is_dir():
        inside = next(iter(sorted(path.glob("*.onnx"), key=lambda file: file.name != "student.onnx")), None)
        cure = f"give {inside}" if inside else f"create an ONNX file with: partshot export {path} student.onnx"
        raise BadArtifact(f"{path}: is a folder; {cure}")
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
    except Exception as error:  # onnxruntime raises many different exception classes
        raise BadArtifact(
            f"{path}: not an ONNX model, truncated, or too new for onnxruntime; export it again"
        ) from error


def _read_metadata(path: Path, meta: Mapping[str, str]) -> tuple[PartSet, int, str, int | None]:
    if "partshot.format" not in meta:
        raise BadArtifact(f"{path}: an ONNX model that partshot did not export; create one with: partshot export")
    try:
        if int(meta["partshot.format"]) > FORMAT:
            raise BadArtifact(f"{path}: exported by a newer partshot ({meta['partshot.version']}); upgrade partshot")
        parts = PartSet.from_dict(json.loads(meta["partshot.parts"]), source=str(path))
        native = int(meta["partshot.native"]) if "partshot.native" in meta else None
        return parts, int(meta["partshot.size"]), meta["partshot.version"], native
    except (KeyError, ValueError, BadParts) as error:
        raise BadArtifact(f"{path}: its metadata is damaged ({error}); export it again") from error
