"""pretrain: from a folder of unlabeled images to a representation on disk."""

import hashlib
import os
import shutil
import warnings
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from partshot import __version__
from partshot.artifact import Artifact, inside, replacing_file, standing
from partshot.catalog import PRETEXTS, lookup
from partshot.data.images import list_images, read_stack
from partshot.data.symmetry import one_sided
from partshot.errors import BadArtifact, BadRecipe, DiskFull
from partshot.evenly import evenly
from partshot.nets.resnet import ResNetTrunk
from partshot.objective import Objective
from partshot.pretext.stylegan2 import StyleGAN2, StyleGAN2Recipe
from partshot.progress import Ticker
from partshot.recipe import Recipe
from partshot.recipe import preset as row_of
from partshot.represent.resnet import ResNet
from partshot.toy.dataset import draw
from partshot.train.loop import LoopRecipe, run_loop

DEFAULT = "small-folder"
# MoCo's default on a GPU; hours without one.
LONG = "small-folder-long"
# The default that starts from a trained generator.
FURTHER = "further"
# Images for BatchNorm's statistics; more change nothing.
CALIBRATED_ON = 256
# Presets that train on toy images: kind, how many, seed.
_FACES = "faces", 10_000, 7
TOY_PRESETS = {"toy-face-64": _FACES, "toy-face-64-further": _FACES}
# Share of a run after which resolution no longer grows.
_GROWN = 0.9
# Images across and down in a grid of samples.
GRID = 8, 4
# Trained representations kept on a shelf, of 45 to 250 MB each.
SHELVED = 10
# Files, and bytes of each, that identify a folder.
_LOOKED_INTO = 64, 1 << 20


class PretrainOptions(Recipe):
    """How `pretrain` trains.

    size: side of the images in pixels; kimg: horizon in thousands of images seen; batch: images per step; each replaces
    the preset's. devices: GPUs or processes that share the work. leave_out: files of the folder that are no images,
    such as masks. shelf: a folder of trained representations, whatever their `out`: one of the same settings and images
    is taken from there instead of trained, and what is trained now is added. start: a trained generator's folder to
    start from instead of random initialization; net and size are then its own, and resolution does not grow.
    """

    size: int | None = None
    kimg: float | None = None
    batch: int | None = None
    seed: int = 0
    devices: int = 1
    leave_out: tuple[Path, ...] = ()
    shelf: Path | None = None
    start: Path | None = None


_DEFAULTS = PretrainOptions()


def pretrain(
    pretext: str,
    images: Path | str | None,
    out: Path | str,
    preset: str | None = None,
    options: PretrainOptions = _DEFAULTS,
    quiet: bool = False,
    **changes,
) -> Path:
    """Trains a pretext on a folder of images; returns out/representation, for `open_representation`.

    pretext: a name of `catalog.PRETEXTS`. images: the folder; None for a preset that makes toy images (TOY_PRESETS).
    preset: a row of the pretext's table; None takes DEFAULT. changes: options by name. Images that cannot be read are
    left out with a warning. A generator writes sample grids to out/samples/. Resumes a stopped training.

    Raises BadImage for a folder without images, BadRecipe for an invalid setting, BadArtifact when `out` holds a run of
    other settings or images.
    """
    options, images = options.changed(**changes), None if images is None else Path(images)
    start = None
    if options.start is not None:
        start = Artifact.load(inside(options.start, "representation"), kind="representation")
        _refuse_start(options.start, start.card, pretext, options.size)
    recipe = _recipe(pretext, preset, options, start)
    if images is None and preset not in TOY_PRESETS:
        raise BadRecipe(f"--images is missing; only these presets make their own images: {', '.join(TOY_PRESETS)}")
    paths = [] if images is None else list_images(images, options.leave_out)
    source = f"toys {TOY_PRESETS[preset]}" if images is None else _listing(paths)
    since = "" if start is None else f"/{start.card['sha256']}"
    fingerprint = hashlib.sha256(f"{recipe.fingerprint}/{options.seed}/{source}{since}".encode()).hexdigest()[:12]
    folder = Path(out) / "representation"
    if standing(folder).exists():
        Artifact.load(folder, kind="representation", fingerprint=fingerprint)
        return folder
    place = None if options.shelf is None else options.shelf / f"{fingerprint}-{_contents(paths)}"
    earlier = None if place is None else _shelved(place, fingerprint)
    if earlier is not None:
        return earlier.save(folder)

    stack = _toy_images(preset, recipe.size, quiet) if images is None else _read(paths, recipe.size)
    if isinstance(recipe, StyleGAN2Recipe) and one_sided(stack):
        recipe = recipe.changed(flip=False)
    objective = lookup(PRETEXTS, pretext, "pretext")(stack, recipe, options.seed)
    if start is not None:
        objective.start_from({name: torch.from_numpy(np.array(tensor)) for name, tensor in start.tensors.items()})
    loop = LoopRecipe(kimg=recipe.kimg, batch=recipe.batch, seed=options.seed, devices=options.devices)
    show = partial(_show, Path(out) / "samples") if isinstance(objective, StyleGAN2) else None
    # With the recipe as it is used: whether objects face one way is determined from the images.
    used = f"{fingerprint}-{recipe.fingerprint}"
    run_loop(objective, loop, Path(out), f"{pretext} on {len(stack)} images", used, quiet=quiet, show=show)
    trained = _artifact(objective, pretext, recipe, stack, {"fingerprint": fingerprint}, start)
    trained.save(folder)
    if place is not None:
        _put_on_shelf(trained, place)
    return folder


def _recipe(pretext: str, preset: str | None, options: PretrainOptions, start: Artifact | None) -> Recipe:
    if start is None:
        return resolve(pretext, preset, options.size, options.kimg, options.batch)
    recipe = resolve(pretext, preset or FURTHER, None, options.kimg, options.batch)
    return recipe.changed(net=start.card["net"], size=start.card["shape"]["resolution"], grow=())


def _artifact(
    objective: Objective, pretext: str, recipe: Recipe, stack: np.ndarray, card: dict, start: Artifact | None
) -> Artifact:
    """The trained representation, with all that `open_representation` needs."""
    title = f"{pretext} {recipe.net}"
    card = {"net": recipe.net, "title": title, "pretext": pretext, "images": len(stack), **card}
    card |= recipe.model_dump(mode="json")
    if start is not None:
        card["started_from"] = start.card["title"]
    tensors = objective.trained()
    if isinstance(objective, StyleGAN2):
        card["shape"] = objective.shape.model_dump(mode="json")
        tensors = {f"generator.{k}": v for k, v in tensors.items()} | objective.discriminator_state()
        kept = {name: tensor.cpu().numpy() for name, tensor in tensors.items()}
    else:
        # Only MoCo's recipe has the setting; importing its class here would load lightly for every pretext.
        kept = _calibrated(recipe.net, title, tensors, stack, getattr(recipe, "components", 0))
    return Artifact("representation", card, kept)


def _read(paths: Sequence[Path], size: int) -> np.ndarray:
    stack = read_stack(paths, size, skip_corrupt=True)
    stack.warn_of_skipped()
    return stack.images


def _toy_images(preset: str, size: int, quiet: bool) -> np.ndarray:
    kind, count, seed = TOY_PRESETS[preset]
    images = np.empty((count, size, size, 3), np.uint8)
    with Ticker(f"generate {kind}", count, 0, quiet) as ticker:
        for i in range(count):
            images[i] = draw(kind, size, seed, i)[0]
            ticker.tick(i + 1)
    return images


def _show(folder: Path, objective: StyleGAN2, seen: int) -> None:
    """Writes a grid of generated images as folder/IMAGES_SEEN.png."""
    side = GRID[0] * objective.recipe.size, GRID[1] * objective.recipe.size
    images = objective.samples(GRID[0] * GRID[1])
    rows = images.reshape(GRID[1], GRID[0], *images.shape[1:]).swapaxes(1, 2)
    grid = Image.fromarray(rows.reshape(rows.shape[0] * rows.shape[1], -1, 3)).resize(side, Image.Resampling.NEAREST)
    with replacing_file(folder / f"{seen:09d}.png") as path:
        grid.save(path)


def resolve(
    pretext: str,
    preset: str | None = None,
    size: int | None = None,
    kimg: float | int | None = None,
    batch: int | None = None,
) -> Recipe:
    """The recipe that `pretrain` would train by, for showing it beforehand; arguments and errors as there."""
    row = row_of(lookup(PRETEXTS, pretext, "pretext").PRESETS, preset or DEFAULT, f"pretext '{pretext}'")
    given = {key: value for key, value in {"size": size, "kimg": kimg, "batch": batch}.items() if value is not None}
    if size is not None and isinstance(row, StyleGAN2Recipe):
        given["grow"] = _growing(row.grow, size)
    return row.changed(**given)


def _growing(grow: tuple[tuple[int, float], ...], size: int) -> tuple[tuple[int, float], ...]:
    """A preset's growth schedule for another size: each added side takes half of the remaining run."""
    sides = [(side, until) for side, until in grow if side < size]
    while sides and 2 * sides[-1][0] < size:
        side, until = sides[-1]
        sides.append((2 * side, until + (_GROWN - until) / 2))
    return tuple(sides)


def _refuse_start(start: Path, card: dict, pretext: str, size: int | None) -> None:
    """BadRecipe where a run cannot start from the representation of that card."""
    if not isinstance(resolve(pretext), StyleGAN2Recipe):
        raise BadRecipe(f"--start is only for stylegan1 and stylegan2, not for {pretext}; leave it out")
    if "shape" not in card or card.get("pretext") != pretext:
        raise BadRecipe(f"{start}: contains {card['title']}; --start takes what `partshot pretrain {pretext}` wrote")
    side = card["shape"]["resolution"]
    if size not in (None, side):
        raise BadRecipe(f"{start}: generates {side} px, which differs from --size {size}; leave --size out")


def _listing(paths: Sequence[Path]) -> str:
    """Names and sizes of files: enough to notice another folder without reading every image."""
    return "\n".join(f"{path.name} {path.stat().st_size}" for path in paths)


def _contents(paths: Sequence[Path]) -> str:
    """12 hex digits of some files' contents: names and sizes alone are equal for bitmaps of one size."""
    digest, (files, most) = hashlib.sha256(__version__.encode()), _LOOKED_INTO
    for path in paths[:: max(1, len(paths) // files)]:
        with suppress(OSError), path.open("rb") as file:
            digest.update(file.read(most))
    return digest.hexdigest()[:12]


def _shelved(place: Path, fingerprint: str) -> Artifact | None:
    try:
        found = Artifact.load(place, kind="representation", fingerprint=fingerprint)
    except BadArtifact:  # missing or damaged: trained again
        return None
    with suppress(OSError):
        os.utime(place)
    return found


def _put_on_shelf(trained: Artifact, place: Path) -> None:
    """Keeps it, removing those used longest ago. Warns where it cannot be written."""
    try:
        shutil.rmtree(place, ignore_errors=True)
        trained.save(place)
        shelved = sorted(place.parent.iterdir(), key=lambda other: other.stat().st_mtime_ns)
        for other in shelved[:-SHELVED]:
            shutil.rmtree(other, ignore_errors=True)
    except (OSError, DiskFull) as error:
        warnings.warn(f"the trained representation is not kept for other runs ({error})", stacklevel=2)


def _calibrated(
    net: str, title: str, tensors: dict[str, torch.Tensor], images: np.ndarray, components: int
) -> dict[str, np.ndarray]:
    """The trunk with recomputed BatchNorm statistics, and its principal components, as arrays.

    images: uint8 [n, s, s, 3]. components: how many of each stage, 0 for all channels.

    In training the statistics came from augmented crops and the first convolution's own stride; `represent.resnet`
    computes features of whole images at another stride.
    """
    trunk = ResNetTrunk(net)
    trunk.load_state_dict(tensors)
    some = evenly(images, CALIBRATED_ON)
    plain = torch.from_numpy(some).permute(0, 3, 1, 2).float() / 127.5 - 1
    read = ResNet(trunk, title, components).calibrate(plain).fit_components(plain)
    return {name.removeprefix("trunk."): tensor.numpy() for name, tensor in read.state_dict().items()}
