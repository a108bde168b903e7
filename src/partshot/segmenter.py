"""Segmenter: the few-shot model, a head on a frozen representation, fitted to a few labeled images.

It follows scikit-learn's conventions: `predict` before `fit` raises NotFitted, and a second `fit` starts from scratch.
A saved segmenter predicts the same after loading, bit for bit. The distilled network is student.py's `Student`.
"""

import hashlib
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from partshot.artifact import Artifact, strip_prefix
from partshot.catalog import HEADS, lookup
from partshot.data.images import resize_image
from partshot.data.shots import Shots
from partshot.data.soft_labels import SoftLabels
from partshot.errors import NotFitted
from partshot.heads.ensemble import Ensemble
from partshot.ops.disagreement import image_score, keep_by_score, vote_with_uncertainty
from partshot.ops.images import as_tensors, as_uint8
from partshot.ops.letterbox import letterbox
from partshot.ops.precision import best_device
from partshot.ops.uncrop import remove_letterbox
from partshot.parts import IGNORE, PartSet
from partshot.pyramid import Pyramid
from partshot.represent.choose import rebuild, tensors_of
from partshot.represent.spec import Latents, Representation
from partshot.student import (
    ASPECT_KEPT,
    BATCH,
    SQUASHED,
    HasPredict,
    Prediction,
    autocast_bf16,
    batches,
    load_weights,
    predictions_from_logits,
    soft_labels,
)
from partshot.train.fit_head import device_of
from partshot.train.fit_points import FitPoints
from partshot.train.fitting import Fit, fit_presets, fitter, recipe_kind, refuse_misfit

# Style mixing in `fit`: restyled copies of the shots in all, the first seed of their styles (no other module uses seeds
# from there on), and the bytes that all features may take.
_STYLES, _FIRST_STYLE_SEED, _MAX_FEATURE_BYTES = 24, 2_000_000, 1 << 30

# A head fitted to local features (FitPoints) predicts at the resolution of the finest map, and at 1/4 of the image's
# side or more.
_POINTS_STRIDE = 4

DISCARD_SHARE = 0.1
"""Share of generated images to discard, those with the most ensemble disagreement; as in DDPM-segmentation."""


class Segmenter:
    """A head on a frozen representation, both on the fastest device of this machine.

    representation: computes the features. parts: the classes. head: a name of `catalog.HEADS`.
    size: side of the square to which images are resized. recipe: how the head is fitted; None takes "fast" of
    `fit_presets(head)`.

    fitted: the fingerprint of the last fit, empty before it. squashed: whether images are squashed to squares, as by
    versions before letterboxing; otherwise they are letterboxed.
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

    def __repr__(self) -> str:
        state = "fitted" if self.fitted else "not fitted"
        spec = self.representation.spec.name
        return f"Segmenter({spec}, head={self.head_name}, size={self.size}, parts={len(self.parts)}, {state})"

    @property
    def device(self) -> torch.device:
        """The device of the representation and the head."""
        return device_of(self.representation)

    def make_head(self) -> nn.Module:
        """A new, unfitted head for this representation and these parts."""
        return lookup(HEADS, self.head_name, "head")(self.representation.spec.channels, len(self.parts))

    def fit(self, shots: Shots, quiet: bool = False, latents: Latents | None = None) -> "Segmenter":
        """Fits a new head to the shots; an earlier fit is discarded.

        latents: the shots' latents, if the representation is a generator. The shots are then generated from them, and
        restyled copies are added (style mixing), which helps most with the fewest labels (LOG.md).
        """
        examples, features = shots, None
        if latents is not None:
            examples, features = self._with_restyled(shots, latents)
        fit = fitter(self.recipe)
        self.head_ = fit(self.make_head(), self.representation, examples, self.recipe, self.size, quiet, features)
        self.fitted, self.squashed = self.fingerprint(shots), False
        return self

    def fingerprint(self, shots: Shots) -> str:
        """12 hex digits of everything that determines a fit to these shots, except floating-point summation order.

        `fitted` is the fingerprint of the last fit.
        """
        given = (self.representation.spec.fingerprint, self.head_name, self.size, self.recipe.fingerprint)
        aspect = "/letterboxed" if shots.oblong else ""
        return hashlib.sha256(f"{given}/{shots.fingerprint}{aspect}".encode()).hexdigest()[:12]

    def predict(self, images: Sequence[np.ndarray], latents: Latents | None = None) -> list[Prediction]:
        """One Prediction per image, uint8 [h, w, 3], of any size. Raises NotFitted before `fit`.

        latents: the images' latents, if the representation is a generator and they are known.
        """
        self._fitted_head()
        if latents is None:
            return [prediction for batch in batches(images) for prediction in self._predict_batch(batch)]
        features = self._features_of_latents(latents)
        sizes = [image.shape[:2] for image in images]
        return [self._predictions(features[i : i + 1], [size])[0] for i, size in enumerate(sizes)]

    def soft_labels(self, images: np.ndarray, progress: Callable[[int], None] = lambda done: None) -> SoftLabels:
        """Soft labels of a stack, uint8 [n, s, s, 3], at half its size, for distillation.

        Computed in bf16 where the device supports it, since they are stored as bytes anyway.
        """
        return soft_labels(self._logits, images, self.size, self.device, progress)

    def generate(
        self,
        seeds: Sequence[int],
        min_probability: float = 0.0,
        progress: Callable[[int], None] = lambda done: None,
        discard: float = DISCARD_SHARE,
        second: HasPredict | None = None,
    ) -> Shots:
        """Synthetic images of these seeds with the head's pseudo-labels (auto-shot, ReGAN).

        The representation must be a generator. min_probability: pixels whose most probable part has a lower probability
        get label 255 (ignore). progress: called with the number of images done. discard: share of the images to
        discard, those with the most disagreement of an ensemble's members (DatasetGAN); no other head discards any.
        second: a model whose probabilities are averaged with the head's. Computed in bf16 where the device supports it,
        which rounds a few colors differently. Raises NotFitted before `fit`.
        """
        self._fitted_head()
        images, labels, scores = [], [], []
        for first in range(0, len(seeds), BATCH):
            latents = self.representation.sample(seeds[first : first + BATCH])
            batch, ids, probabilities, disagreement = self._generate_batch(latents)
            if disagreement is not None:
                scores.append(image_score(disagreement))
            if second is not None:
                other = np.stack([prediction.probabilities for prediction in second.predict(batch)])
                probabilities = (probabilities + torch.from_numpy(other).to(probabilities)) / 2
                ids = probabilities.argmax(1)
            ids = torch.where(probabilities.amax(1) >= min_probability, ids, IGNORE)
            images += batch
            labels += list(ids.byte().cpu().numpy())
            progress(len(images))
        names = tuple(f"seed {seed}" for seed in seeds)
        shots = Shots(images=tuple(images), labels=tuple(labels), names=names, parts=self.parts)
        return shots.subset(keep_by_score(torch.cat(scores), discard).tolist()) if scores else shots

    def save(self, folder: Path | str) -> Path:
        """Writes everything that prediction needs, including the representation."""
        card = {
            "head": self.head_name,
            "size": self.size,
            "aspect": SQUASHED if self.squashed else ASPECT_KEPT,
            "parts": self.parts.to_dict(),
            "representation": self.representation.card(),
            "recipe": self.recipe.model_dump(mode="json"),
            "recipe_kind": type(self.recipe).__name__,
            "fingerprint": self.fitted,
        }
        tensors = {f"head.{k}": v.cpu().numpy() for k, v in self._fitted_head().state_dict().items()}
        tensors |= {f"representation.{k}": v for k, v in tensors_of(self.representation).items()}
        return Artifact("segmenter", card, tensors).save(folder)

    @classmethod
    def load(cls, folder: Path | str) -> "Segmenter":
        """Reads what `save` wrote. Raises BadArtifact if it is no segmenter or incomplete."""
        stored = Artifact.load(folder, kind="segmenter")
        card = stored.card
        representation = rebuild(card["representation"], strip_prefix(stored.tensors, "representation."))
        parts = PartSet.from_dict(card["parts"], str(folder))
        # Older versions wrote no recipe_kind, because each head had only one.
        default_kind = type(fit_presets(card["head"])["fast"]).__name__
        kind = recipe_kind(card.get("recipe_kind", default_kind), str(folder))
        found = cls(representation, parts, card["head"], card["size"], kind.parse(card["recipe"], str(folder)))
        found.head_ = load_weights(found.make_head(), strip_prefix(stored.tensors, "head."), folder).to(found.device)
        found.fitted, found.squashed = card["fingerprint"], card.get("aspect") != ASPECT_KEPT
        return found

    def _logits(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of images [b, 3, size, size]."""
        return self._fitted_head()(self._features(images))

    def _with_restyled(self, shots: Shots, latents: Latents) -> tuple[Shots, Pyramid]:
        """The shots and copies in other styles, with their features."""
        own = self._features_of_latents(latents)
        limit = _MAX_FEATURE_BYTES // sum(m.nbytes for m in own.maps)
        copies = max(0, min(math.ceil(_STYLES / len(shots)), limit))
        starts = [_FIRST_STYLE_SEED + i * len(shots) for i in range(copies)]
        seeds = [range(start, start + len(shots)) for start in starts]
        pyramids = [own, *(self._features_of_latents(self.representation.mix_styles(latents, some)) for some in seeds)]
        maps = tuple(torch.cat(level) for level in zip(*(p.maps for p in pyramids), strict=True))
        names = tuple(f"{name}, style {i}" for i in range(copies + 1) for name in shots.names)
        examples = Shots(shots.images * (copies + 1), shots.labels * (copies + 1), names, shots.parts)
        return examples, Pyramid(maps, own.image_size)

    def _features_of_latents(self, latents: Latents) -> Pyramid:
        with torch.no_grad():
            slices = [latents[first : first + BATCH] for first in range(0, len(latents), BATCH)]
            pyramids = [self.representation.synthesize(some)[1] for some in slices]
        maps = tuple(torch.cat(level) for level in zip(*(p.maps for p in pyramids), strict=True))
        return Pyramid(maps, pyramids[0].image_size)

    def _generate_batch(
        self, latents: Latents
    ) -> tuple[list[np.ndarray], torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Images, label ids [b, h, w], probabilities [b, k, h, w], and an ensemble's disagreement [b, h, w]."""
        head = self._fitted_head()
        with torch.no_grad(), autocast_bf16(latents.ws.device):
            generated, pyramid = self.representation.synthesize(latents)
            if isinstance(head, Ensemble):
                ids, probabilities, disagreement = vote_with_uncertainty(head.members(pyramid))
            else:
                probabilities, disagreement = head(pyramid).float().softmax(1), None
                ids = probabilities.argmax(1)
        return list(as_uint8(generated)), ids, probabilities, disagreement

    @torch.no_grad()
    def _features(self, images: torch.Tensor) -> Pyramid:
        """The features that the head receives.

        A head fitted to points predicts on a coarser grid, and its logits are upsampled later: at every pixel of 256 px
        it would take as long as the features. Its features are computed in bf16 where the device supports it, as in
        `fit`.
        """
        if not isinstance(self.recipe, FitPoints):
            return self.representation.features(images)
        with autocast_bf16(images.device):
            pyramid = self.representation.features(images)
        finest = pyramid.maps[0].shape[2:]
        size = tuple(max(f, s // _POINTS_STRIDE) for f, s in zip(finest, pyramid.image_size, strict=True))
        return Pyramid(pyramid.maps, size)

    def _fitted_head(self) -> nn.Module:
        if self.head_ is None:
            raise NotFitted("this Segmenter has not been fitted; call fit(shots) first, or load a fitted one")
        return self.head_

    def _predict_batch(self, images: Sequence[np.ndarray]) -> list[Prediction]:
        """Predictions for a few images, which share a forward pass."""
        resize = resize_image if self.squashed else letterbox
        resized = np.stack([resize(image, self.size) for image in images])
        pyramid = self._features(as_tensors(resized).to(self.device))
        return self._predictions(pyramid, [image.shape[:2] for image in images])

    @torch.no_grad()
    def _predictions(self, pyramid: Pyramid, sizes: Sequence[tuple[int, int]]) -> list[Prediction]:
        head, square = self._fitted_head(), None if self.squashed else self.size
        if isinstance(head, Ensemble):
            # One image at a time, since the predictions of all members are in memory at once.
            members = (head.members(pyramid[i : i + 1])[:, 0] for i in range(len(sizes)))
            return [_ensemble_prediction(one, size, square) for one, size in zip(members, sizes, strict=True)]
        return predictions_from_logits(head(pyramid).float().cpu(), sizes, square)


def _ensemble_prediction(members: torch.Tensor, size: tuple[int, int], square: int | None) -> Prediction:
    # members: probabilities [m, k, h, w], resized to the image's size one member at a time.
    resized = (remove_letterbox(one[None], size, square) for one in members)
    labels, probabilities, disagreement = (found.cpu() for found in vote_with_uncertainty(resized))
    uncertainty = disagreement / max(1e-9, math.log(min(members.shape[:2])))
    return Prediction(labels[0].numpy(), probabilities[0].numpy(), uncertainty[0].clamp(0, 1).numpy())


def __getattr__(name: str):
    if name == "Student":
        message = "import Student from partshot or partshot.student; partshot.segmenter.Student will be removed"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        from partshot.student import Student

        return Student
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
