"""Segmenter and Student: what is fitted, asked for predictions, saved and loaded.

A Segmenter is a representation with a head, fitted to a few shots in seconds: the few-shot teacher. A Student is one
fast network, distilled. Both follow scikit-learn's contract: `predict` before `fit` raises NotFitted, fitting twice is
fitting once, and what is saved predicts the same to the last bit. Neither knows folders of images or commands.
"""

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from partshot.artifact import Artifact, strip_prefix
from partshot.catalog import HEADS, lookup
from partshot.data.images import resize_image, resize_images
from partshot.data.shots import Shots
from partshot.data.soft_labels import SoftLabels
from partshot.errors import BadArtifact, NotFitted
from partshot.heads.ensemble import Ensemble
from partshot.nets.student import STRIDE, FlipTTA, Offset, build_student
from partshot.ops.decision import overlap_offsets
from partshot.ops.disagreement import entropy, image_score, keep_by_score, verdict
from partshot.ops.images import as_tensors, as_uint8
from partshot.ops.letterbox import letterbox, reading_size
from partshot.ops.precision import best_device, native_bf16
from partshot.ops.uncrop import uncropped
from partshot.parts import IGNORE, PartSet
from partshot.pyramid import Pyramid
from partshot.represent.choose import rebuild, tensors_of
from partshot.represent.spec import Latents, Representation
from partshot.train.fit_head import device_of
from partshot.train.fit_points import FitPoints
from partshot.train.fitting import Fit, fit_presets, fitter, recipe_kind, refuse_misfit

# Images per forward pass: enough to keep two cores busy, few enough for 512 px pyramids in 2 GB.
_BATCH = 8
# What a card says of images that are no squares; cards without a word are of versions that squashed them.
_KEPT, _SQUASHED = "kept", "squashed"
_BILINEAR = Image.Resampling.BILINEAR
# Copies of drawn shots in other styles, in all, and how much room their features may take.
_STYLES, _STYLES_FROM, _MOST_BYTES = 24, 2_000_000, 1 << 30

# A head of points answers at the finest map's size, and at this part of the image's side or more.
_COARSE = 4

# How many unlabeled images decide from which probability a class is predicted, and every how many pixels of a side.
_DECIDED_ON, _DECIDED_AT = 80, 120

DOUBTED = 0.1
"""Share of drawn images that are left out where an ensemble's members disagree; the default of DDPM-segmentation."""


@dataclass(frozen=True)
class Prediction:
    """One image's answer, at the image's own size.

    labels: uint8 [h, w], part ids. probabilities: float32 [k, h, w], summing to 1 over the parts.
    uncertainty: float32 [h, w], entropy of the probabilities over its largest possible value, 0..1.
    An ensemble's labels are its members' majority, its probabilities their mean, and its uncertainty is their
    Jensen-Shannon divergence over its largest possible value: log k, or of fewer members than parts log m.
    """

    labels: np.ndarray
    probabilities: np.ndarray
    uncertainty: np.ndarray


class Segmenter:
    """A representation with a head, both where this machine computes best.

    representation: reads the images. parts: what the head tells apart. head: a name of `catalog.HEADS`.
    size: side of the square that images are resized to before they are read. recipe: how the head is fitted; None
    takes "fast" of `fit_presets(head)`. fitted: the fingerprint of the last fit, empty before it. squashed: whether
    images are squashed to squares, as fits of older versions were; else they are letterboxed.
    """

    def __init__(
        self,
        representation: Representation,
        parts: PartSet,
        head: str = "cnn-s",
        size: int = 128,
        recipe: Fit | None = None,
    ):
        recipe = recipe or fit_presets(head)["fast"]
        refuse_misfit(head, recipe)
        self.representation, self.parts, self.head_name = representation.to(best_device()), parts, head
        self.size, self.recipe = size, recipe
        self.head_: nn.Module | None = None
        self.fitted, self.squashed = "", False

    @property
    def device(self) -> torch.device:
        """Where images are read and labeled."""
        return device_of(self.representation)

    def make_head(self) -> nn.Module:
        """An unfitted head for this representation and these parts."""
        return lookup(HEADS, self.head_name, "head")(self.representation.spec.channels, len(self.parts))

    def fit(self, shots: Shots, quiet: bool = False, latents: Latents | None = None) -> "Segmenter":
        """Fits the head to the shots, forgetting an earlier fit.

        latents: from which the representation, a Generator, draws the shots; they are read in other styles, too, which
        is worth most where labels are fewest (LOG.md).
        """
        shown, read = shots, None
        if latents is not None:
            shown, read = self._restyled(shots, latents)
        fit = fitter(self.recipe)
        self.head_ = fit(self.make_head(), self.representation, shown, self.recipe, self.size, quiet, read)
        self.fitted, self.squashed = self.fingerprint(shots), False
        return self

    def fingerprint(self, shots: Shots) -> str:
        """12 hex digits of all that decides what fitting to these shots gives, but for the order of a machine's sums.

        `fitted` is that of the shots it was last fitted to.
        """
        given = (self.representation.spec.fingerprint, self.head_name, self.size, self.recipe.fingerprint)
        aspect = "/letterboxed" if shots.oblong else ""
        return hashlib.sha256(f"{given}/{shots.fingerprint}{aspect}".encode()).hexdigest()[:12]

    def predict(self, images: Sequence[np.ndarray], latents: Latents | None = None) -> list[Prediction]:
        """One Prediction per image, uint8 [h, w, 3], of any sizes. Raises NotFitted before `fit`.

        latents: from which the representation, a Generator, draws the images, where they are known already.
        """
        self._head()
        if latents is None:
            return [one for several in _chunks(images) for one in self._answered(several)]
        read = self._read(latents)
        return [one for i, image in enumerate(images) for one in self._answers(read[i : i + 1], [image.shape[:2]])]

    def soft_labels(self, images: np.ndarray, progress: Callable[[int], None] = lambda done: None) -> SoftLabels:
        """Soft labels of a stack, uint8 [n, s, s, 3], at half its size, for a student to start from.

        In bf16 where the device has it, since they are kept as bytes anyway.
        """
        return _soft_labels(self._shared, images, self.size, self.device, progress)

    def generate(
        self,
        seeds: Sequence[int],
        sure: float = 0.0,
        progress: Callable[[int], None] = lambda done: None,
        doubted: float = DOUBTED,
        second: "Student | None" = None,
    ) -> Shots:
        """Images that the representation, a Generator, draws of these seeds, labeled by the head (auto-shot, ReGAN).

        sure: pixels whose likeliest part is less probable than this are 255. doubted: share of the images, those on
        which an ensemble's members disagree most, that is left out (DatasetGAN); other heads have none and leave out
        none. second: a student that is asked, too; what both say counts by its mean. In bf16 where the device has it,
        which rounds a color here and there. Raises NotFitted before `fit`.
        """
        head, images, labels, scores = self._head(), [], [], []
        for first in range(0, len(seeds), _BATCH):
            latents = self.representation.sample(seeds[first : first + _BATCH])
            with torch.no_grad(), _autocast(latents.ws.device):
                drawn, pyramid = self.representation.synthesize(latents)
                if isinstance(head, Ensemble):
                    ids, shares, disagreement = verdict(head.members(pyramid))
                    scores.append(image_score(disagreement))
                else:
                    shares = head(pyramid).float().softmax(1)
                    ids = shares.argmax(1)
            batch = list(as_uint8(drawn))
            if second is not None:
                said = np.stack([one.probabilities for one in second.predict(batch)])
                shares = (shares + torch.from_numpy(said).to(shares)) / 2
                ids = shares.argmax(1)
            ids = torch.where(shares.amax(1) >= sure, ids, IGNORE)
            images += batch
            labels += list(ids.byte().cpu().numpy())
            progress(len(images))
        names = tuple(f"seed {seed}" for seed in seeds)
        shots = Shots(images=tuple(images), labels=tuple(labels), names=names, parts=self.parts)
        return shots.subset(keep_by_score(torch.cat(scores), doubted).tolist()) if scores else shots

    def save(self, folder: Path | str) -> Path:
        """Writes everything a prediction needs, the representation included."""
        card = {
            "head": self.head_name,
            "size": self.size,
            "aspect": _SQUASHED if self.squashed else _KEPT,
            "parts": self.parts.to_dict(),
            "representation": self.representation.card(),
            "recipe": self.recipe.model_dump(mode="json"),
            "recipe_kind": type(self.recipe).__name__,
            "fingerprint": self.fitted,
        }
        tensors = {f"head.{k}": v.cpu().numpy() for k, v in self._head().state_dict().items()}
        tensors |= {f"representation.{k}": v for k, v in tensors_of(self.representation).items()}
        return Artifact("segmenter", card, tensors).save(folder)

    @classmethod
    def load(cls, folder: Path | str) -> "Segmenter":
        """Reads what `save` wrote; BadArtifact when it is not one or not whole."""
        stored = Artifact.load(folder, kind="segmenter")
        card = stored.card
        representation = rebuild(card["representation"], strip_prefix(stored.tensors, "representation."))
        parts = PartSet.from_dict(card["parts"], str(folder))
        # Earlier versions wrote no kind: each head had one.
        usual = type(fit_presets(card["head"])["fast"]).__name__
        kind = recipe_kind(card.get("recipe_kind", usual), str(folder))
        found = cls(representation, parts, card["head"], card["size"], kind.parse(card["recipe"], str(folder)))
        found.head_ = _loaded(found.make_head(), strip_prefix(stored.tensors, "head."), folder).to(found.device)
        found.fitted, found.squashed = card["fingerprint"], card.get("aspect") != _KEPT
        return found

    def _shared(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of images of this size."""
        return self._head()(self._seen(images))

    def _restyled(self, shots: Shots, latents: Latents) -> tuple[Shots, Pyramid]:
        """The shots and copies of them in other styles, with their features."""
        own = self._read(latents)
        room = _MOST_BYTES // sum(m.nbytes for m in own.maps)
        copies = max(0, min(math.ceil(_STYLES / len(shots)), room))
        # Seeds that nothing else draws.
        seeds = [range(_STYLES_FROM + i * len(shots), _STYLES_FROM + (i + 1) * len(shots)) for i in range(copies)]
        pyramids = [own, *(self._read(self.representation.mix_styles(latents, some)) for some in seeds)]
        maps = tuple(torch.cat(level) for level in zip(*(p.maps for p in pyramids), strict=True))
        names = tuple(f"{name}, style {i}" for i in range(copies + 1) for name in shots.names)
        shown = Shots(shots.images * (copies + 1), shots.labels * (copies + 1), names, shots.parts)
        return shown, Pyramid(maps, own.image_size)

    def _read(self, latents: Latents) -> Pyramid:
        with torch.no_grad():
            read = [self.representation.synthesize(latents[i : i + _BATCH])[1] for i in range(0, len(latents), _BATCH)]
        maps = tuple(torch.cat(level) for level in zip(*(p.maps for p in read), strict=True))
        return Pyramid(maps, read[0].image_size)

    @torch.no_grad()
    def _seen(self, images: torch.Tensor) -> Pyramid:
        """What the head is shown of images. One fitted to points answers on a coarser grid, which is enlarged later.

        It was fitted in bf16's features where the device has them, too; its answers at every pixel of 256 px would take
        as long as reading them.
        """
        if not isinstance(self.recipe, FitPoints):
            return self.representation.features(images)
        with _autocast(images.device):
            pyramid = self.representation.features(images)
        finest = pyramid.maps[0].shape[2:]
        return Pyramid(
            pyramid.maps, tuple(max(f, s // _COARSE) for f, s in zip(finest, pyramid.image_size, strict=True))
        )

    def _head(self) -> nn.Module:
        if self.head_ is None:
            raise NotFitted("this Segmenter has not been fitted; call fit(shots) first, or load a fitted one")
        return self.head_

    def _answered(self, images: Sequence[np.ndarray]) -> list[Prediction]:
        """The answers to a few images, read together."""
        fitted = np.stack([(resize_image if self.squashed else letterbox)(image, self.size) for image in images])
        pyramid = self._seen(as_tensors(fitted).to(self.device))
        return self._answers(pyramid, [image.shape[:2] for image in images])

    @torch.no_grad()
    def _answers(self, pyramid: Pyramid, sizes: Sequence[tuple[int, int]]) -> list[Prediction]:
        head, square = self._head(), None if self.squashed else self.size
        if isinstance(head, Ensemble):
            # One by one, since every member's opinion is there at once.
            return [_agreed(head.members(pyramid[i : i + 1])[:, 0], size, square) for i, size in enumerate(sizes)]
        return _separate(head(pyramid).float().cpu(), sizes, square)


class Student:
    """One fast network with what it takes to use it.

    net: float [b, 3, h, w] in [-1, 1] -> logits [b, k, h, w], in evaluation mode. name: of its architecture, for
    `nets.student.build_student`. size: side of the images it was trained on. card: plain JSON values on how.
    flip_tta: whether it reads images in a mirror, too. squashed: whether it knows images squashed to squares, as
    students of older versions do; else it reads them with their aspect. native: the usual long side, in pixels, of the
    images that it learned from, before they were resized; None where nobody knows. offsets: added to the logits of each
    class, so that masks overlap best (ops/decision.py); None adds none.
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
        offsets: Sequence[float] | None = None,
    ):
        self.net, self.name, self.parts, self.size = net.eval(), name, parts, size
        self.offsets = offsets
        self.card, self.flip_tta, self.squashed, self.native = card or {}, flip_tta, squashed, native

    def predict(self, images: Sequence[np.ndarray]) -> list[Prediction]:
        """One Prediction per image, uint8 [h, w, 3], of any sizes."""
        return [one for several in _chunks(images) for one in self._seen(several)]

    @property
    def reads(self) -> int:
        """Long side of the images that it reads: a quarter larger than in training, in whole strides.

        Networks see more at a size somewhat above that of their training (Touvron et al. 2019); measured in LOG.md.
        """
        return self.size * 5 // 4 // STRIDE * STRIDE

    @property
    def fitted(self) -> str:
        """The fingerprint of its training; empty where nobody told it."""
        return self.card.get("fingerprint", "")

    def decide(self, images: np.ndarray, lean: Sequence[float], temperature: float) -> "Student":
        """The student with offsets for the largest expected overlap, found on some of a stack, uint8 [n, s, s, 3].

        lean, temperature: see ops.decision.overlap_offsets.
        """
        some = resize_images(images[:: max(1, len(images) // _DECIDED_ON)][:_DECIDED_ON], self.reads)
        batches = (as_tensors(some[first : first + _BATCH]) for first in range(0, len(some), _BATCH))
        step, self.offsets = max(1, self.reads // _DECIDED_AT), None
        logits = torch.cat([self._logits(batch)[:, :, ::step, ::step] for batch in batches])
        self.offsets = tuple(overlap_offsets(logits, torch.tensor(lean), temperature).tolist())
        return self

    def soft_labels(self, images: np.ndarray, progress: Callable[[int], None] = lambda done: None) -> SoftLabels:
        """Soft labels of a stack, uint8 [n, s, s, 3], at half its size, for a more compact student to learn from."""
        return _soft_labels(self.reader, images, self.reads, torch.device("cpu"), progress)

    @property
    def reader(self) -> nn.Module:
        """What looks at images of that size: the net, or the net and its mirror image, with the offsets."""
        net = FlipTTA(self.net, self.parts.mirrored_ids()) if self.flip_tta else self.net
        return (net if self.offsets is None else Offset(net, self.offsets)).eval()

    def save(self, folder: Path | str) -> Path:
        """Writes the network and its card."""
        aspect = _SQUASHED if self.squashed else _KEPT
        card = {"student": self.name, "size": self.size, "aspect": aspect, "parts": self.parts.to_dict(), **self.card}
        card |= {"mirrored": True} if self.flip_tta else {}
        card |= {} if self.native is None else {"native": self.native}
        card |= {} if self.offsets is None else {"offsets": list(self.offsets)}
        return Artifact("student", card, {k: v.numpy() for k, v in self.net.state_dict().items()}).save(folder)

    @classmethod
    def load(cls, folder: Path | str, fingerprint: str | None = None) -> "Student":
        """Reads what `save` wrote; BadArtifact when it is not one, not whole, or of another recipe."""
        stored = Artifact.load(folder, kind="student", fingerprint=fingerprint)
        parts = PartSet.from_dict(stored.card["parts"], str(folder))
        net = _loaded(build_student(stored.card["student"], len(parts)), stored.tensors, folder)
        known = {k: stored.card[k] for k in ("fingerprint", "recipe") if k in stored.card}
        flip_tta, squashed = stored.card.get("mirrored", False), stored.card.get("aspect") != _KEPT
        native, offsets = stored.card.get("native"), stored.card.get("offsets")
        given = (stored.card["size"], known, flip_tta, squashed, native, offsets)
        return cls(net, stored.card["student"], parts, *given)

    def _seen(self, images: Sequence[np.ndarray]) -> list[Prediction]:
        """The answers to a few images: those that are read at one size together."""
        alike, found = defaultdict(list), [None] * len(images)
        for i, image in enumerate(images):
            shape = (self.reads, self.reads) if self.squashed else reading_size(*image.shape[:2], self.reads)
            alike[shape].append(i)
        for (height, width), several in alike.items():
            resized = [Image.fromarray(images[i]).resize((width, height), _BILINEAR) for i in several]
            logits = self._logits(as_tensors(np.stack([np.array(image) for image in resized])))
            answers = _separate(logits, [images[i].shape[:2] for i in several])
            for i, answer in zip(several, answers, strict=True):
                found[i] = answer
        return found

    def _logits(self, images: torch.Tensor) -> torch.Tensor:
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.no_grad(), _autocast(images.device):
            return self.reader(images).float()


def _soft_labels(
    net: Callable[[torch.Tensor], torch.Tensor],
    images: np.ndarray,
    size: int,
    device: torch.device,
    progress: Callable[[int], None],
) -> SoftLabels:
    """A network's soft labels of a stack at half the stack's size; the network is given squares of `size`."""
    kept, half = [], images.shape[1] // 2
    for first in range(0, len(images), _BATCH):
        several = as_tensors(images[first : first + _BATCH]).to(device)
        if several.shape[2] != size:
            several = F.interpolate(several, size=(size, size), mode="bilinear", antialias=True)
        with torch.no_grad(), _autocast(device):
            logits = net(several).float()
        logits = F.interpolate(logits, size=(half, half), mode="bilinear", align_corners=False)
        kept.append(SoftLabels.of(logits.softmax(1).cpu()))
        progress(min(first + _BATCH, len(images)))
    return SoftLabels.join(kept)


def _autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=native_bf16(device))


def _chunks(images: Sequence[np.ndarray]) -> Iterator[Sequence[np.ndarray]]:
    return (images[first : first + _BATCH] for first in range(0, len(images), _BATCH))


def _separate(logits: torch.Tensor, sizes: Sequence[tuple[int, int]], square: int | None = None) -> list[Prediction]:
    return [_prediction(one, size, square) for one, size in zip(logits.split(1), sizes, strict=True)]


def _prediction(logits: torch.Tensor, size: tuple[int, int], square: int | None) -> Prediction:
    logits = uncropped(logits, size, square)[0]
    shares = logits.softmax(0)
    doubt = entropy(shares, 0) / max(1e-9, math.log(len(shares)))
    return Prediction(logits.argmax(0).byte().numpy(), shares.numpy(), doubt.clamp(0, 1).numpy())


def _agreed(members: torch.Tensor, size: tuple[int, int], square: int | None) -> Prediction:
    # Probabilities [m, k, h, w], brought to the image's size one member at a time.
    resized = (uncropped(one[None], size, square) for one in members)
    labels, shares, disagreement = (found.cpu() for found in verdict(resized))
    doubt = disagreement / max(1e-9, math.log(min(members.shape[:2])))
    return Prediction(labels[0].numpy(), shares[0].numpy(), doubt[0].clamp(0, 1).numpy())


def _loaded(net: nn.Module, tensors, folder) -> nn.Module:
    try:
        net.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in tensors.items()})
    except RuntimeError as error:
        raise BadArtifact(f"{folder}: its tensors do not fit its card; delete it and run again") from error
    return net.eval()
