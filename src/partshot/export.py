"""Export: a student as one ONNX file that needs nothing beside it, refused unless onnxruntime agrees with torch.

The file takes images as they come, uint8 of any size, and gives labels of that size: resizing, normalization and
argmax are inside, so that no program that uses it can do them differently. Knows torch's exporter and the gate every
file must pass. Refuses to know how the net was trained.
"""

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
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
from partshot.inference.exported_model import INPUT, OUTPUTS, ExportedModel, notes
from partshot.nets.student import STRIDE
from partshot.parts import PartSet

# What the gate lets pass: float32 sums in another order turn a tie here and there, and nothing more.
_LEAST_AGREEMENT = 0.999
_LARGEST_STEP = 2  # of 255, in confidence
_LARGEST_EDGE = 1024  # of the images that the gate compares: larger ones test the same resizing, slowly


class Served(nn.Module):
    """A net with everything around it that turns images into labels: the graph that is exported.

    net: float [b, 3, h', w'] in [-1, 1] -> logits [b, k, h", w"]. size: of what it is given: the long side, where the
    aspect is kept (letterbox.input_size), else both sides.
    """

    def __init__(self, net: nn.Module, size: int, squashed: bool = True):
        super().__init__()
        self.net, self.size, self.squashed = net, size, squashed

    def forward(
        self, images: UInt8[torch.Tensor, "b h w 3"]
    ) -> tuple[UInt8[torch.Tensor, "b h w"], UInt8[torch.Tensor, "b h w"]]:
        """Labels, and confidence: the probability of the label, times 255."""
        height, width = images.shape[1], images.shape[2]
        pixels = images.permute(0, 3, 1, 2).float()
        size = (self.size, self.size) if self.squashed else self._reading_size(height, width)
        resized = interpolate(pixels, size=size, mode="bilinear", antialias=True)
        logits = interpolate(self.net(resized / 127.5 - 1), size=(height, width), mode="bilinear", align_corners=False)
        # Softmax and then its maximum, but five times faster in onnxruntime: the largest term of the sum is exp(0).
        confidence = 1 / (logits - logits.amax(1, keepdim=True)).exp().sum(1)
        return logits.argmax(1).to(torch.uint8), (confidence * 255).round().to(torch.uint8)

    def _reading_size(self, height, width):
        """letterbox.input_size as a part of the graph."""
        longest = torch.sym_max(height, width)

        def rounded(side):
            steps = (2 * side * self.size + STRIDE * longest) // (2 * STRIDE * longest)
            # By way of a number: carried on as a formula of the image's sides, it makes exporting twice as slow.
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
    """Writes a net as one ONNX file, whole or not at all.

    net: float [b, 3, h', w'] in [-1, 1] -> logits [b, len(parts), ., .] at any size; it is not changed. It is given
    squares of `size` if `squashed`, else what letterbox.input_size says for a long side of `size`.
    sample: images uint8 [h, w, 3] of the kind it is for; the gate compares on them and on noise. native: the usual
    long side of the images that it learned from, which the file tells whoever has much larger ones.

    The file: input "images" uint8 [b, h, w, 3] RGB; outputs "labels" uint8 [b, h, w], ids of `parts`, and "confidence"
    uint8 [b, h, w], the label's probability times 255; b, h and w are free. Images are resized with antialiasing,
    as by Pillow, and logits are resized back.

    Raises BadArtifact, and leaves nothing behind, when the net cannot be exported or onnxruntime does not compute what
    torch does; MissingExtra when the exporter's libraries are missing.
    """
    path = Path(path)
    served = Served(copy.deepcopy(net).cpu().float().to(memory_format=torch.contiguous_format), size, squashed)
    blob = _to_onnx(served.eval(), notes(parts, size, partshot.__version__, squashed, native), path)
    with replacing_file(path) as temporary:
        temporary.write_bytes(blob)
        _compare(served, ExportedModel(temporary), comparisons(sample, size), path)
    return path


def comparisons(sample: Sequence[np.ndarray], size: int) -> list[np.ndarray]:
    """Batches uint8 [b, h, w, 3] of several sizes and lengths for the gate: larger, smaller and odd ones, and noise."""
    noise = np.random.default_rng(0).integers(0, 256, (size + 13, 2 * size + 1, 3), dtype=np.uint8)
    first, *others = [_thinned(image) for image in sample[:3]] or [noise]
    height, width = first.shape[:2]
    crop = first[: height * 2 // 3 + 1, : width // 2 + 1]
    return [
        resize_images((first, *others, noise), size),
        first[None],
        np.stack([crop, crop[:, ::-1]]),
        first[None, :5, :3],
        noise[None],
    ]


def _thinned(image: np.ndarray) -> np.ndarray:
    step = -(-max(image.shape[:2]) // _LARGEST_EDGE)
    return image[::step, ::step]


def _to_onnx(served: Served, metadata: dict[str, str], path: Path) -> bytes:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingExtra(f"exporting to ONNX needs {error.name}; run: pip install 'partshot[train]'") from error
    free = torch.export.Dim.DYNAMIC
    # Two images, with three unlike edges: torch would take a 1, or two equal sizes, for constants of the net.
    example = torch.zeros(2, served.size + 5, served.size + 3, 3, dtype=torch.uint8)
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                served,
                (example,),
                dynamo=True,
                dynamic_shapes={"images": {0: free, 1: free, 2: free}},
                input_names=[INPUT],
                output_names=list(OUTPUTS),
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # the exporter raises whatever the net's own code runs into
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise BadArtifact(
            f"{path}: this net cannot be exported to ONNX ({reason[0]}); choose another student"
        ) from error
    program.model.metadata_props.update(metadata)
    return program.model_proto.SerializeToString()


def _compare(served: Served, shipped: ExportedModel, batches: Sequence[np.ndarray], path: Path) -> None:
    for batch in batches:
        with torch.inference_mode():
            labels, confidence = (out.numpy() for out in served(torch.from_numpy(np.ascontiguousarray(batch))))
        found_labels, found_confidence = shipped.predict(batch)
        differing = int((labels != found_labels).sum())
        step = int(np.abs(confidence.astype(int) - found_confidence).max())
        # One pixel may tie in an image of fewer than a thousand.
        if differing > max(1, (1 - _LEAST_AGREEMENT) * labels.size) or step > _LARGEST_STEP:
            shape = "x".join(map(str, batch.shape))
            raise BadArtifact(
                f"{path}: not written: at {shape} onnxruntime disagrees with torch on {differing} of {labels.size} "
                f"labels and by {step}/255 in confidence; choose another student or update onnxruntime"
            )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # The exporter reports its own steps, fallbacks and deprecations on three ways at once.
    silenced = logging.getLogger("torch.onnx"), logging.getLogger("onnxscript")
    levels = [logger.level for logger in silenced]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in silenced:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(silenced, levels, strict=True):
                logger.setLevel(level)
