"""fit: from a few labelled pictures and a representation to a few-shot teacher on disk, in seconds."""

import json
from pathlib import Path

from partshot.artifact import replacing_file
from partshot.data.images import list_images, read_stack
from partshot.data.shots import Shots, find_pairs, load_shots
from partshot.data.symmetry import one_sided
from partshot.evaluate import Score, score_confusion
from partshot.recipe import preset as row_of
from partshot.represent.cache import open_store
from partshot.represent.choose import cached, open_representation
from partshot.represent.spec import Representation
from partshot.represent.stylegan import StyleGAN
from partshot.segmenter import Segmenter
from partshot.tasks.sample import latents_of
from partshot.train.fit_ensemble import FitEnsemble, fit_presets, fitter
from partshot.train.fit_head import FitHead, leave_one_out
from partshot.train.progress import say

HEAD = "cnn-s"
REPRESENTATION = "random+position"
# Leaving out more groups than this says little more and costs a fit each.
_FOLDS = 5


def fit(
    images: Path,
    labels: Path,
    out: Path,
    representation: str = REPRESENTATION,
    head: str = HEAD,
    preset: str = "fast",
    size: int = 128,
    seed: int = 0,
    rgb_masks: bool = False,
    quiet: bool = False,
    cache: bool = True,
) -> Path:
    """Fits a head to the labelled pictures; returns out/segmenter.

    images, labels: see data.shots.load_shots. representation: a name of represent.choose, or the folder of a
    pretrained one; "+position" behind either adds the map of positions. head: a name of catalog.HEADS. preset: a row
    of train.fit_head.PRESETS, or for an ensemble of train.fit_ensemble.PRESETS. size: side of the square that pictures
    are resized to; a generator has its own. With two or more shots, out/leave_one_out.json holds the estimate from them
    alone, but for a generator. cache: take features from earlier fits, whatever their labels, and keep them for later
    ones (represent/cache.py).
    """
    shots = load_shots(labels, images, rgb_masks=rgb_masks)
    masks = [pair.mask for pair in find_pairs(labels, images)]
    pictures = read_stack(list_images(images, leave_out=masks), 64, skip_corrupt=True).images
    recipe = row_of(fit_presets(head), preset).changed(seed=seed)
    if isinstance(recipe, FitHead):
        recipe = facing_fit(recipe, one_sided(pictures))
    store = open_store(cache)
    found = cached(open_representation(representation), store)
    latents = None
    if isinstance(found, StyleGAN):
        # Inverted pictures are read once; an augmented one would have to be inverted anew in every step.
        recipe = recipe.changed(augment=None) if isinstance(recipe, FitHead) else recipe
        size = found.size
        latents = latents_of(found, shots, images, quiet)
    teacher = Segmenter(found, shots.parts, head, size, recipe).fit(shots, quiet, latents)
    # Leaving out would invert every picture once per fold.
    estimate = None if isinstance(found, StyleGAN) else estimated(found, head, shots, recipe, size, quiet)
    if store is not None and store.found + store.extracted:
        say(f"features: {store}", quiet)
    told = Path(out) / "leave_one_out.json"
    told.unlink(missing_ok=True)
    if estimate is not None:
        with replacing_file(told) as path:
            path.write_text(json.dumps(estimate.to_dict(), indent=1), encoding="utf-8")
        say(f"left-out shots: mean IoU {estimate.miou_nan:.3f} ({told.name})", quiet)
    return teacher.save(Path(out) / "segmenter")


def facing_fit(recipe: FitHead, faces_one_way: bool) -> FitHead:
    """The recipe, without mirroring for things that face one way."""
    if recipe.augment is None or not faces_one_way:
        return recipe
    return recipe.model_copy(update={"augment": recipe.augment.changed(flip=False)})


def estimated(
    representation: Representation,
    head: str,
    shots: Shots,
    recipe: FitHead | FitEnsemble,
    size: int,
    quiet: bool = True,
) -> Score | None:
    """What leaving out one shot (or a fifth of them) at a time says of a head; None with a single shot."""
    if len(shots) < 2:
        return None
    maker = Segmenter(representation, shots.parts, head, size, recipe)
    counts = leave_one_out(
        maker.make_head, representation, shots, recipe, size, folds=_FOLDS, quiet=quiet, fit=fitter(recipe)
    )
    return score_confusion(counts, shots.parts)
