"""ONNX export: writes a network as one self-contained ONNX file, after checking that onnxruntime agrees with torch.

The model takes uint8 images of any size and returns labels of that size: resizing, normalization and argmax are part
of the graph, so that all programs that use the file do them in the same way.
"""

import contextlib
import copy
import hashlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import nn
from torch.nn.functional import interpolate

import partshot
from partshot.artifact import replacing_file
from partshot.data.images import resize_images
from partshot.errors import BadArtifact, MissingExtra
from partshot.inference.exported_model import INPUT, OUTPUTS, SOURCE, ExportedModel, model_metadata
from partshot.nets.student import STRIDE
from partshot.parts import PartSet

# Tolerances of the check: another order of float32 sums changes few near-ties.
_MIN_AGREEMENT = 0.999  # share of equal labels
_MAX_CONFIDENCE_ERROR = 2  # of 255
_MAX_SIDE = 1024  # of the images in the check; larger ones test the same resizing, but slowly


class ExportWrapper(nn.Module):
    """The exported graph: a network with preprocessing (resizing, normalization) and postprocessing (argmax).

    net: float [b, 3, h', w'] in [-1, 1] -> logits [b, k, h", w"]. size: side of its square input if `squashed`;
    otherwise the long side of the input, whose aspect ratio is kept (letterbox.input_size).
    """

    def __init__(self, net: nn.Module, size: int, squashed: bool = True):
        super().__init__()
        self.net, self.size, self.squashed = net, size, squashed

    def forward(
        self, images: UInt8[torch.Tensor, "b h w 3"]
    ) -> tuple[UInt8[torch.Tensor, "b h w"], UInt8[torch.Tensor, "b h w"]]:
        """Labels, and confidence: the probability of the label times 255."""
        height, width = images.shape[1], images.shape[2]
        pixels = images.permute(0, 3, 1, 2).float()
        size = (self.size, self.size) if self.squashed else self._reading_size(height, width)
        resized = interpolate(pixels, size=size, mode="bilinear", antialias=True)
        logits = interpolate(self.net(resized / 127.5 - 1), size=(height, width), mode="bilinear", align_corners=False)
        # The maximum of the softmax, but five times faster in onnxruntime: the largest term of the sum is exp(0).
        confidence = 1 / (logits - logits.amax(1, keepdim=True)).exp().sum(1)
        return logits.argmax(1).to(torch.uint8), (confidence * 255).round().to(torch.uint8)

    def _reading_size(self, height, width):
        """letterbox.input_size as part of the graph."""
        longest = torch.sym_max(height, width)

        def rounded(side):
            steps = (2 * side * self.size + STRIDE * longest) // (2 * STRIDE * longest)
            # .item() makes it a new symbolic integer; as an expression of the image's sides, export is twice as slow.
            steps = torch.scalar_tensor(steps, dtype=torch.int64).clamp(min=1).item()
            torch._check(steps >= 1)
            torch._check(steps <= self.size // STRIDE)
            return steps * STRIDE

        return rounded(height), rounded(width)


def export_onnx(
    net: nn.Module,
    parts: PartSet,
    size: int,
    path: Path | str,
    sample: Sequence[np.ndarray] = (),
    squashed: bool = True,
    native: int | None = None,
) -> Path:
    """Writes a network as one ONNX file, atomically, unless the file is an export of the same network already.

    net: float [b, 3, h', w'] in [-1, 1] -> logits [b, len(parts), ., .] at any size; it is not modified. Its input is a
    square of `size` if `squashed`, otherwise of the size that letterbox.input_size returns for a long side of `size`.
    sample: images uint8 [h, w, 3] of the domain; the check uses them and noise. native: typical long side of the
    original training images in pixels, from which `predict` derives the windows for large images.

    The file: input "images" uint8 [b, h, w, 3] RGB; outputs "labels" uint8 [b, h, w], ids of `parts`, and "confidence"
    uint8 [b, h, w], the label's probability times 255; b, h and w are dynamic. Images are resized with antialiasing,
    as in Pillow, and logits are resized back.

    Raises BadArtifact, and writes no file, if the network cannot be exported or onnxruntime's results differ from
    torch's; MissingExtra if the exporter's libraries are missing.
    """
    path = Path(path)
    wrapped = ExportWrapper(copy.deepcopy(net).cpu().float().to(memory_format=torch.contiguous_format), size, squashed)
    metadata = model_metadata(parts, size, partshot.__version__, squashed, native)
    metadata[SOURCE] = _fingerprint(wrapped, metadata)
    if _is_exported(path, metadata[SOURCE]):
        return path
    blob = _to_onnx(wrapped.eval(), metadata, path)
    with replacing_file(path) as temporary:
        temporary.write_bytes(blob)
        _compare(wrapped, ExportedModel(temporary), check_batches(sample, size), path)
    return path


def _fingerprint(wrapped: ExportWrapper, metadata: Mapping[str, str]) -> str:
    """Hex digits, equal for the same layers, weights and metadata."""
    digest = hashlib.sha256(f"{wrapped}/{sorted(metadata.items())}".encode())
    # With buffers that a state dict leaves out, such as class offsets.
    for name, tensor in (*wrapped.named_parameters(), *wrapped.named_buffers()):
        digest.update(name.encode() + tensor.detach().numpy().tobytes())
    return digest.hexdigest()[:16]


def _is_exported(path: Path, fingerprint: str) -> bool:
    try:
        return path.is_file() and ExportedModel(path).source == fingerprint
    except BadArtifact:
        return False


def check_batches(sample: Sequence[np.ndarray], size: int) -> list[np.ndarray]:
    """Batches uint8 [b, h, w, 3] for the check: several batch sizes; large, small and odd image sizes; and noise."""
    noise = np.random.default_rng(0).integers(0, 256, (size + 13, 2 * size + 1, 3), dtype=np.uint8)
    first, *others = [_subsampled(image) for image in sample[:3]] or [noise]
    height, width = first.shape[:2]
    crop = first[: height * 2 // 3 + 1, : width // 2 + 1]
    return [
        resize_images((first, *others, noise), size),
        first[None],
        np.stack([crop, crop[:, ::-1]]),
        first[None, :5, :3],
        noise[None],
    ]


def _subsampled(image: np.ndarray) -> np.ndarray:
    step = -(-max(image.shape[:2]) // _MAX_SIDE)
    return image[::step, ::step]


def _to_onnx(wrapped: ExportWrapper, metadata: dict[str, str], path: Path) -> bytes:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingExtra(f"ONNX export needs {error.name}; run: pip install 'partshot[train]'") from error
    dynamic = torch.export.Dim.DYNAMIC
    # Three different dimensions, none of them 1: torch.export would treat a 1, or equal dimensions, as constants.
    example = torch.zeros(2, wrapped.size + 5, wrapped.size + 3, 3, dtype=torch.uint8)
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                wrapped,
                (example,),
                dynamo=True,
                dynamic_shapes={"images": {0: dynamic, 1: dynamic, 2: dynamic}},
                input_names=[INPUT],
                output_names=list(OUTPUTS),
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # any exception of the network's own code
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise BadArtifact(
            f"{path}: this network cannot be exported to ONNX ({reason[0]}); choose another student"
        ) from error
    program.model.metadata_props.update(metadata)
    return program.model_proto.SerializeToString()


def _compare(wrapped: ExportWrapper, exported: ExportedModel, batches: Sequence[np.ndarray], path: Path) -> None:
    for batch in batches:
        with torch.inference_mode():
            labels, confidence = (out.numpy() for out in wrapped(torch.from_numpy(np.ascontiguousarray(batch))))
        found_labels, found_confidence = exported.predict(batch)
        differing = int((labels != found_labels).sum())
        error = int(np.abs(confidence.astype(int) - found_confidence).max())
        # Images of fewer than 1000 pixels may have one different label.
        if differing > max(1, (1 - _MIN_AGREEMENT) * labels.size) or error > _MAX_CONFIDENCE_ERROR:
            shape = "x".join(map(str, batch.shape))
            raise BadArtifact(
                f"{path}: not written: at {shape} onnxruntime disagrees with torch on {differing} of {labels.size} "
                f"labels and by {error}/255 in confidence; choose another student or update onnxruntime"
            )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the exporter, which reports progress and deprecations by print, logging and warnings."""
    loggers = logging.getLogger("torch.onnx"), logging.getLogger("onnxscript")
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
