"""fit: from a few labeled images and a representation to a few-shot teacher on disk."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from partshot.artifact import write_json
from partshot.data.images import list_images, read_stack
from partshot.data.shots import Shots, find_pairs, load_pairs
from partshot.data.symmetry import one_sided
from partshot.errors import BadRecipe
from partshot.evenly import evenly
from partshot.metrics import Score, score_confusion
from partshot.ops.images import as_tensors
from partshot.ops.precision import best_device
from partshot.progress import print_status
from partshot.recipe import Recipe
from partshot.recipe import preset as row_of
from partshot.represent.cache import open_store
from partshot.represent.choose import POSITION, cached, open_representation, reduced_on, working_size
from partshot.represent.encoder_table import encoders_in
from partshot.represent.encoders import default_encoder
from partshot.represent.reduced import COMPONENTS, components_for
from partshot.represent.spec import Representation
from partshot.represent.stylegan import StyleGAN
from partshot.segmenter import Segmenter
from partshot.tasks.sample import latents_of
from partshot.train.fit_ensemble import FitEnsemble
from partshot.train.fit_head import FitHead, cross_validate
from partshot.train.fit_points import FitPoints
from partshot.train.fitting import Fit, fit_presets

F = TypeVar("F", FitHead, FitPoints, FitEnsemble)

HEAD = "cnn-s"
REPRESENTATION = "random+position"
ENCODER_LEVELS = "[4-32]"
"""Levels of a pretrained encoder that are used: finer ones gain nothing, and stride 32 gains .06 mIoU on cars."""
POINTS_HEAD = "mlp-pair"
"""The head on the principal components of a pretrained encoder."""

# Default side in pixels of the square that images are resized to.
_SIZE = 128
# More folds estimate little better and cost a fit each.
_FOLDS = 5
# Unlabeled images that principal components are fitted to; 200 were no better.
_REDUCED_ON = 100
# Images by which it is determined whether objects face one way.
_LOOKED_AT = 300


class FitOptions(Recipe):
    """How `fit` fits.

    preset: a row of the head's `train.fitting.fit_presets`.
    size: side in pixels of the square that images are resized to; None takes 128, for a head that is fitted to points
    `represent.choose.working_size`; a generator has its own. rgb_masks: labels are RGB images in the parts' colors.
    cache: use features that earlier fits computed, whatever their labels, and keep new ones (represent/cache.py).
    """

    preset: str = "fast"
    size: int | None = None
    seed: int = 0
    rgb_masks: bool = False
    cache: bool = True


_DEFAULTS = FitOptions()


def fit(
    images: Path | str,
    labels: Path | str,
    out: Path | str,
    representation: str | None = None,
    head: str | None = None,
    options: FitOptions = _DEFAULTS,
    quiet: bool = False,
    **changes,
) -> Path:
    """Fits a head to the labeled images; returns out/segmenter.

    images, labels: see data.shots.load_shots. representation: a name of represent.choose, or the folder of a pretrained
    one; "+position" appended to either adds position channels. head: a name of catalog.HEADS. None: see
    `teacher_names`. changes: options by name. A head that is fitted to points reads principal components, which are
    fitted to the folder's images. With two or more shots, out/leave_one_out.json holds their cross-validated score,
    except with a generator.
    """
    options, images, labels = options.changed(**changes), Path(images), Path(labels)
    representation, head = teacher_names(representation, head)
    pairs = find_pairs(labels, images)
    shots = load_pairs(pairs, rgb_masks=options.rgb_masks)
    paths = list_images(images, leave_out=[pair.mask for pair in pairs])
    recipe = row_of(fit_presets(head), options.preset, f"head '{head}'").changed(seed=options.seed)
    recipe = facing_fit(recipe, one_sided(read_stack(evenly(paths, _LOOKED_AT), 64, skip_corrupt=True).images))
    store, size = open_store(options.cache), options.size
    found = cached(open_representation(representation), store)
    generates, latents = isinstance(found, StyleGAN), None
    if size is not None and size < 1:
        raise BadRecipe(f"--size {size}: must be 1 or more")
    if generates:
        # Each image is inverted once; augmented images would have to be inverted again in every step.
        recipe = recipe.changed(augment=None) if isinstance(recipe, FitHead) else recipe
        size = found.size
        latents = latents_of(found, shots, images, quiet)
    if isinstance(recipe, FitPoints):
        size = size or working_size(found)
        found = reduced_to(found, paths, size, components_for(len(shots)))
    size = size or _SIZE
    teacher = Segmenter(found, shots.parts, head, size, recipe).fit(shots, quiet, latents)
    # With a generator, every fold would invert every image.
    estimate = None if generates else cross_validated_score(found, head, shots, recipe, size, quiet)
    if store is not None and store.found + store.extracted:
        print_status(f"features: {store}", quiet)
    _write_estimate(Path(out) / "leave_one_out.json", estimate, quiet)
    return teacher.save(Path(out) / "segmenter")


def _write_estimate(path: Path, estimate: Score | None, quiet: bool) -> None:
    path.unlink(missing_ok=True)
    if estimate is None:
        return
    write_json(path, estimate.to_dict())
    print_status(f"cross-validation on the labeled images: mean IoU {estimate.miou_nan:.3f} ({path.name})", quiet)


def teacher_names(representation: str | None = None, head: str | None = None) -> tuple[str, str]:
    """Default representation and head of a few-shot teacher, where none is given.

    The default pretrained encoder on this machine, its levels from stride 4, with position channels; else a randomly
    initialized ResNet. mlp-pair on a pretrained encoder, cnn-s on everything else.
    """
    if representation is None:
        encoder = default_encoder()
        representation = REPRESENTATION if encoder is None else encoder + ENCODER_LEVELS + POSITION
    return representation, head or (POINTS_HEAD if encoders_in(representation) else HEAD)


def frozen_segmenter(
    shots: Shots,
    images: Callable[[int], np.ndarray],
    seed: int = 0,
    sided: bool | None = None,
    name: str | None = None,
    recipe: Fit | None = None,
) -> Segmenter:
    """A frozen pretrained encoder with a small head, fitted to the shots in half a minute.

    images: side in pixels -> unlabeled images, uint8 [n, side, side, 3]; principal components are fitted to about 100
    of them. sided: whether objects face one way; None determines it from these images. name: of the representation;
    None takes that of `teacher_names`. recipe: how the head is fitted; None takes "fast". Raises what
    `open_representation` does.
    """
    name, head = teacher_names(name)
    found = open_representation(name).to(best_device())
    size = working_size(found)
    stack = images(size)
    some = as_tensors(evenly(stack, _REDUCED_ON))
    found = reduced_on(found, some, components_for(len(shots)))
    recipe = (recipe or row_of(fit_presets(head), "fast", f"head '{head}'")).changed(seed=seed)
    recipe = facing_fit(recipe, one_sided(stack) if sided is None else sided)
    return Segmenter(found, shots.parts, head, size, recipe).fit(shots, quiet=True)


def reduced_to(
    representation: Representation, paths: Sequence[Path], size: int, components: int = COMPONENTS
) -> Representation:
    """The representation's principal components, fitted to some of the images, evenly spaced, at that size."""
    if all(representation.spec.shared_scale):
        return representation
    some = read_stack(evenly(paths, _REDUCED_ON), size, skip_corrupt=True).images
    return reduced_on(representation.to(best_device()), as_tensors(some), components)


def facing_fit(recipe: F, faces_one_way: bool) -> F:
    """The recipe, of any kind, without mirroring for objects that face one way."""
    if isinstance(recipe, FitEnsemble) or recipe.augment is None or not faces_one_way:
        return recipe
    return recipe.model_copy(update={"augment": recipe.augment.changed(flip=False)})


def cross_validated_score(
    representation: Representation,
    head: str,
    shots: Shots,
    recipe: Fit,
    size: int,
    quiet: bool = True,
) -> Score | None:
    """Cross-validated score of a head: leave-one-out, or five folds of more shots; None with a single shot."""
    if len(shots) < 2:
        return None

    def fit_to(some: Shots) -> Segmenter:
        return Segmenter(representation, shots.parts, head, size, recipe).fit(some, quiet=True)

    counts = cross_validate(fit_to, shots, folds=_FOLDS, quiet=quiet)
    return score_confusion(counts, shots.parts)
