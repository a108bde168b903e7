"""Student: the distilled network, with prediction, saving and loading; also `Prediction` and helpers of `segmenter`.

A saved student predicts the same after loading, bit for bit.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from partshot.artifact import Artifact
from partshot.data.images import resize_images
from partshot.data.soft_labels import SoftLabels
from partshot.errors import BadArtifact
from partshot.evenly import evenly
from partshot.nets.student import STRIDE, FlipTTA, Offset, build_student
from partshot.ops.decision import overlap_offsets
from partshot.ops.disagreement import entropy
from partshot.ops.images import as_tensors
from partshot.ops.letterbox import input_size
from partshot.ops.precision import native_bf16
from partshot.ops.uncrop import remove_letterbox
from partshot.parts import PartSet

BATCH = 8
"""Images per forward pass: enough to keep two cores busy, few enough for 512 px pyramids in 2 GB."""

ASPECT_KEPT, SQUASHED = "kept", "squashed"
"""Values of "aspect" in card.json. Cards without the key are from older versions, which squashed images to squares."""

# fit_offsets uses at most this many images and reduces their logits to about this many pixels per side.
_OFFSET_IMAGES, _OFFSET_SIDE = 80, 120


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image, at the image's own size.

    labels: uint8 [h, w], part ids. probabilities: float32 [k, h, w], summing to 1 over the parts.
    uncertainty: float32 [h, w], entropy of the probabilities divided by its maximum (log k), 0..1.
    For an ensemble, labels are the majority vote of the members, probabilities are their mean, and uncertainty is their
    Jensen-Shannon divergence divided by its maximum: log k, or log m for m < k members.
    """

    labels: np.ndarray
    probabilities: np.ndarray
    uncertainty: np.ndarray


@runtime_checkable
class HasPredict(Protocol):
    """A Student or Segmenter."""

    def predict(self, images: Sequence[np.ndarray]) -> list[Prediction]: ...


class Student:
    """A distilled network with the settings needed for inference.

    net: float [b, 3, h, w] in [-1, 1] -> logits [b, k, h, w], in evaluation mode. name: the architecture, as for
    `nets.student.build_student`. size: side of the training images in pixels. card: further JSON values for card.json.
    flip_tta: whether to average the logits of the image and of its horizontal flip (flip test-time augmentation).
    squashed: whether images are squashed to squares, as for students of older versions; otherwise their aspect ratio is
    kept. native: the typical long side, in pixels, of the original training images before resizing; None if unknown.

    offsets: logit adjustment, one value per class, that maximizes the expected overlap of the masks (ops/decision.py).
    It is set by `fit_offsets` or `load`; None adds nothing.
    """

    def __init__(
        self,
        net: nn.Module,
        name: str,
        parts: PartSet,
        size: int,
        card: dict | None = None,
        flip_tta: bool = False,
        squashed: bool = False,
        native: int | None = None,
    ):
        self.net, self.name, self.parts, self.size = net.eval(), name, parts, size
        self.card, self.flip_tta, self.squashed, self.native = card or {}, flip_tta, squashed, native
        self.offsets: Sequence[float] | None = None

    def __repr__(self) -> str:
        return f"Student({self.name}, size={self.size}, parts={len(self.parts)})"

    def predict(self, images: Sequence[np.ndarray]) -> list[Prediction]:
        """One Prediction per image, uint8 [h, w, 3], of any size."""
        return [prediction for batch in batches(images) for prediction in self._predict_batch(batch)]

    @property
    def input_size(self) -> int:
        """Long side of the network's input: 5/4 of the training size, rounded down to a multiple of the stride.

        Networks are more accurate at a test resolution somewhat above the training resolution (Touvron et al. 2019);
        measured in LOG.md.
        """
        return self.size * 5 // 4 // STRIDE * STRIDE

    @property
    def fitted(self) -> str:
        """The fingerprint of its training; empty if unknown."""
        return self.card.get("fingerprint", "")

    @property
    def inference_net(self) -> nn.Module:
        """The network used for inference: `net`, with flip TTA and offsets if set."""
        net = FlipTTA(self.net, self.parts.mirrored_ids()) if self.flip_tta else self.net
        return (net if self.offsets is None else Offset(net, self.offsets)).eval()

    def fit_offsets(self, images: np.ndarray, logit_adjustment: Sequence[float], temperature: float) -> "Student":
        """Sets `offsets` to those with the largest expected overlap on a subset of a stack, uint8 [n, s, s, 3].

        logit_adjustment, temperature: second and third argument of `ops.decision.overlap_offsets`. Returns the student.
        """
        subset = resize_images(evenly(images, _OFFSET_IMAGES), self.input_size)
        inputs = (as_tensors(batch) for batch in batches(subset))
        step, self.offsets = max(1, self.input_size // _OFFSET_SIDE), None
        logits = torch.cat([self._logits(batch)[:, :, ::step, ::step] for batch in inputs])
        self.offsets = tuple(overlap_offsets(logits, torch.tensor(logit_adjustment), temperature).tolist())
        return self

    def soft_labels(self, images: np.ndarray, progress: Callable[[int], None] = lambda done: None) -> SoftLabels:
        """Soft labels of a stack, uint8 [n, s, s, 3], at half its size, to distill a smaller student."""
        return soft_labels(self.inference_net, images, self.input_size, torch.device("cpu"), progress)

    def save(self, folder: Path | str) -> Path:
        """Writes the network and its card."""
        aspect = SQUASHED if self.squashed else ASPECT_KEPT
        card = {"student": self.name, "size": self.size, "aspect": aspect, "parts": self.parts.to_dict(), **self.card}
        card |= {"mirrored": True} if self.flip_tta else {}
        card |= {} if self.native is None else {"native": self.native}
        card |= {} if self.offsets is None else {"offsets": list(self.offsets)}
        return Artifact("student", card, {k: v.numpy() for k, v in self.net.state_dict().items()}).save(folder)

    @classmethod
    def load(cls, folder: Path | str, fingerprint: str | None = None) -> "Student":
        """Reads what `save` wrote. Raises BadArtifact if it is no student, incomplete, or has another fingerprint."""
        stored = Artifact.load(folder, kind="student", fingerprint=fingerprint)
        parts = PartSet.from_dict(stored.card["parts"], str(folder))
        net = load_weights(build_student(stored.card["student"], len(parts)), stored.tensors, folder)
        card = {k: stored.card[k] for k in ("fingerprint", "recipe") if k in stored.card}
        flip_tta, squashed = stored.card.get("mirrored", False), stored.card.get("aspect") != ASPECT_KEPT
        settings = (stored.card["size"], card, flip_tta, squashed, stored.card.get("native"))
        student = cls(net, stored.card["student"], parts, *settings)
        student.offsets = stored.card.get("offsets")
        return student

    def _predict_batch(self, images: Sequence[np.ndarray]) -> list[Prediction]:
        """Predictions for a few images; those with the same input shape share a forward pass."""
        by_shape, predictions = defaultdict(list), [None] * len(images)
        for i, image in enumerate(images):
            side = self.input_size
            shape = (side, side) if self.squashed else input_size(*image.shape[:2], side)
            by_shape[shape].append(i)
        for (height, width), indices in by_shape.items():
            resized = [Image.fromarray(images[i]).resize((width, height), Image.Resampling.BILINEAR) for i in indices]
            logits = self._logits(as_tensors(np.stack([np.array(image) for image in resized])))
            found = predictions_from_logits(logits, [images[i].shape[:2] for i in indices])
            for i, prediction in zip(indices, found, strict=True):
                predictions[i] = prediction
        return predictions

    def _logits(self, images: torch.Tensor) -> torch.Tensor:
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.no_grad(), autocast_bf16(images.device):
            return self.inference_net(images).float()


def soft_labels(
    net: Callable[[torch.Tensor], torch.Tensor],
    images: np.ndarray,
    size: int,
    device: torch.device,
    progress: Callable[[int], None],
) -> SoftLabels:
    """A network's soft labels of a stack, uint8 [n, s, s, 3], at half the stack's size.

    net: images in [-1, 1], resized to squares of `size` -> logits. progress: called with the number of images done.
    """
    found, half = [], images.shape[1] // 2
    for first in range(0, len(images), BATCH):
        batch = as_tensors(images[first : first + BATCH]).to(device)
        if batch.shape[2] != size:
            batch = F.interpolate(batch, size=(size, size), mode="bilinear", antialias=True)
        with torch.no_grad(), autocast_bf16(device):
            logits = net(batch).float()
        logits = F.interpolate(logits, size=(half, half), mode="bilinear", align_corners=False)
        found.append(SoftLabels.of(logits.softmax(1).cpu()))
        progress(min(first + BATCH, len(images)))
    return SoftLabels.join(found)


def autocast_bf16(device: torch.device) -> torch.autocast:
    """bf16 autocast where the device has native bf16; otherwise disabled."""
    return torch.autocast(device.type, torch.bfloat16, enabled=native_bf16(device))


def batches(images: Sequence[np.ndarray] | np.ndarray) -> Iterator[Sequence[np.ndarray] | np.ndarray]:
    """Consecutive slices of at most BATCH images."""
    return (images[first : first + BATCH] for first in range(0, len(images), BATCH))


def predictions_from_logits(
    logits: torch.Tensor, sizes: Sequence[tuple[int, int]], square: int | None = None
) -> list[Prediction]:
    """One Prediction per image. logits: [b, k, s, t]. sizes: height and width of each image.

    square: side of the square that images were letterboxed to; None if they fill the network's input.
    """
    return [_prediction(one, size, square) for one, size in zip(logits.split(1), sizes, strict=True)]


def _prediction(logits: torch.Tensor, size: tuple[int, int], square: int | None) -> Prediction:
    logits = remove_letterbox(logits, size, square)[0]
    probabilities = logits.softmax(0)
    uncertainty = entropy(probabilities, 0) / max(1e-9, math.log(len(probabilities)))
    return Prediction(logits.argmax(0).byte().numpy(), probabilities.numpy(), uncertainty.clamp(0, 1).numpy())


def load_weights(net: nn.Module, tensors: Mapping[str, np.ndarray], folder: Path | str) -> nn.Module:
    """The network with these tensors, in evaluation mode. Raises BadArtifact if they do not match it."""
    try:
        net.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in tensors.items()})
    except RuntimeError as error:
        raise BadArtifact(f"{folder}: its tensors do not fit its card; delete it and run again") from error
    return net.eval()
