"""pretrain: from a folder of unlabeled images to a representation on disk.

One verb; what is trained is the pretext's affair, how a run goes on after a kill is the loop's.
"""

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
from partshot.nets.resnet import ResNetTrunk
from partshot.pretext.stylegan2 import StyleGAN2, StyleGAN2Recipe
from partshot.recipe import Recipe
from partshot.recipe import preset as row_of
from partshot.represent.resnet import ResNet
from partshot.toy.dataset import draw
from partshot.train.loop import LoopRecipe, run_loop
from partshot.train.progress import Ticker

DEFAULT = "small-folder"
# What MoCo takes on a GPU; hours without one.
LONG = "small-folder-long"
# When it starts from a trained generator.
FURTHER = "further"
# BatchNorm's statistics settle long before; more images would only cost time.
CALIBRATED_ON = 256
# Presets whose images are drawn: kind, how many, seed of the toy.
_FACES = "faces", 10_000, 7
GENERATED = {"toy-face-64": _FACES, "toy-face-64-further": _FACES}
# Share of a run after which nothing grows any more.
_GROWN = 0.9
# Images across and down in a grid of samples.
GRID = 8, 4
# Trained representations on a shelf, of 45 to 250 MB each.
SHELVED = 10
# Files of a folder that are looked into, and bytes of each, to tell it from others.
_LOOKED_INTO = 64, 1 << 20


def pretrain(
    pretext: str,
    images: Path | None,
    out: Path,
    preset: str | None = None,
    size: int | None = None,
    kimg: float | int | None = None,
    batch: int | None = None,
    seed: int = 0,
    devices: int = 1,
    quiet: bool = False,
    leave_out: Sequence[Path] = (),
    shelf: Path | None = None,
    start: Path | None = None,
) -> Path:
    """Trains a pretext on a folder of images; returns out/representation, for `open_representation`.

    pretext: a name of `catalog.PRETEXTS`. images: the folder; None for a preset that draws its own (GENERATED).
    preset: a row of the pretext's table; None takes DEFAULT. size: side of the images in pixels; kimg: horizon in
    thousands of images seen; batch: images per step; each replaces the preset's. leave_out: files of the folder
    that are no images, such as masks. Images that cannot be read are left out, and a warning names them. A pretext
    that makes images shows some in out/samples/. shelf: a folder of what was trained for any `out`; what these
    settings made of these images before is taken from there and not trained, what is trained now is put there.
    start: a trained generator's folder to begin with instead of chance; the net and the size are then its own, and
    nothing grows.

    Running it again goes on where it stopped, and returns at once when it was done. Raises BadImage for a folder
    without images, BadRecipe for a setting that cannot be, BadArtifact when `out` holds a run of other settings or
    images.
    """
    begun = None if start is None else Artifact.load(inside(Path(start), "representation"), kind="representation")
    if begun is None:
        recipe = resolve(pretext, preset, size, kimg, batch)
    else:
        _refuse_start(Path(start), begun.card, pretext, size)
        recipe = resolve(pretext, preset or FURTHER, None, kimg, batch)
        recipe = recipe.changed(net=begun.card["net"], size=begun.card["shape"]["resolution"], grow=())
    if images is None and preset not in GENERATED:
        raise BadRecipe(f"--images is missing; only these presets draw their own images: {', '.join(GENERATED)}")
    paths = [] if images is None else list_images(images, leave_out)
    source = f"drawn {GENERATED[preset]}" if images is None else _listing(paths)
    since = "" if begun is None else f"/{begun.card['sha256']}"
    fingerprint = hashlib.sha256(f"{recipe.fingerprint}/{seed}/{source}{since}".encode()).hexdigest()[:12]
    folder = Path(out) / "representation"
    if standing(folder).exists():
        Artifact.load(folder, kind="representation", fingerprint=fingerprint)
        return folder
    place = None if shelf is None else Path(shelf) / f"{fingerprint}-{_contents(paths)}"
    earlier = None if place is None else _shelved(place, fingerprint)
    if earlier is not None:
        return earlier.save(folder)

    stack = _drawn(preset, recipe.size, quiet) if images is None else _read(paths, recipe.size)
    if isinstance(recipe, StyleGAN2Recipe) and one_sided(stack):
        recipe = recipe.changed(flip=False)
    game = lookup(PRETEXTS, pretext, "pretext")(stack, recipe, seed)
    if begun is not None:
        game.start_from({name: torch.from_numpy(np.array(tensor)) for name, tensor in begun.tensors.items()})
    loop = LoopRecipe(kimg=recipe.kimg, batch=recipe.batch, seed=seed, devices=devices)
    show = partial(_show, Path(out) / "samples") if isinstance(game, StyleGAN2) else None
    # With the recipe as it is played: whether things face one way is read off the images, not off their names.
    played = f"{fingerprint}-{recipe.fingerprint}"
    run_loop(game, loop, Path(out), f"{pretext} on {len(stack)} images", played, quiet=quiet, show=show)

    title = f"{pretext} {recipe.net}"
    card = {
        "net": recipe.net,
        "title": title,
        "pretext": pretext,
        "images": len(stack),
        "fingerprint": fingerprint,
        **recipe.model_dump(mode="json"),
    }
    if begun is not None:
        card["started_from"] = begun.card["title"]
    tensors = game.trained()
    if isinstance(game, StyleGAN2):
        card["shape"] = game.shape.model_dump(mode="json")
        tensors = {f"generator.{k}": v for k, v in tensors.items()} | game.judge()
        kept = {name: tensor.cpu().numpy() for name, tensor in tensors.items()}
    else:
        # Only MoCo's recipe has the setting; naming its class here would load lightly for every pretext.
        kept = _as_it_is_read(recipe.net, title, tensors, stack, getattr(recipe, "components", 0))
    trained = Artifact("representation", card, kept)
    trained.save(folder)
    if place is not None:
        _put_on_shelf(trained, place)
    return folder


def _read(paths: Sequence[Path], size: int) -> np.ndarray:
    stack = read_stack(paths, size, skip_corrupt=True)
    if stack.skipped:
        first, reason = stack.skipped[0]
        warnings.warn(f"{len(stack.skipped)} images are left out; first: {first.name}: {reason}", stacklevel=3)
    return stack.images


def _drawn(preset: str, size: int, quiet: bool) -> np.ndarray:
    kind, count, seed = GENERATED[preset]
    drawn = np.empty((count, size, size, 3), np.uint8)
    with Ticker(f"draw {kind}", count, 0, quiet) as ticker:
        for i in range(count):
            drawn[i] = draw(kind, size, seed, i)[0]
            ticker.tick(i + 1)
    return drawn


def _show(folder: Path, game: StyleGAN2, seen: int) -> None:
    """A grid of what a generator makes, as folder/IMAGES_SEEN.png."""
    side = GRID[0] * game.recipe.size, GRID[1] * game.recipe.size
    images = game.samples(GRID[0] * GRID[1])
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
    row = row_of(lookup(PRETEXTS, pretext, "pretext").PRESETS, preset or DEFAULT)
    given = {key: value for key, value in {"size": size, "kimg": kimg, "batch": batch}.items() if value is not None}
    if size is not None and isinstance(row, StyleGAN2Recipe):
        given["grow"] = _growing(row.grow, size)
    return row.changed(**given)


def _growing(grow: tuple[tuple[int, float], ...], size: int) -> tuple[tuple[int, float], ...]:
    """How a preset grows to another size: sides that it does not name share half of what is left of the run."""
    sides = [(side, until) for side, until in grow if side < size]
    while sides and 2 * sides[-1][0] < size:
        side, until = sides[-1]
        sides.append((2 * side, until + (_GROWN - until) / 2))
    return tuple(sides)


def _refuse_start(start: Path, card: dict, pretext: str, size: int | None) -> None:
    """BadRecipe where a run cannot start from the representation of that card."""
    if not isinstance(resolve(pretext), StyleGAN2Recipe):
        raise BadRecipe(f"--start is for stylegan1 and stylegan2, and {pretext} was asked for; leave it out")
    if "shape" not in card or card.get("pretext") != pretext:
        raise BadRecipe(f"{start}: holds {card['title']}; --start takes what `partshot pretrain {pretext}` wrote")
    side = card["shape"]["resolution"]
    if size not in (None, side):
        raise BadRecipe(f"{start}: draws {side} px, and --size {size} was given; leave --size out")


def _listing(paths: Sequence[Path]) -> str:
    """Names and sizes of files: enough to notice another folder without reading every image."""
    return "\n".join(f"{path.name} {path.stat().st_size}" for path in paths)


def _contents(paths: Sequence[Path]) -> str:
    """12 hex digits of some of the files: files of one format and size, such as bitmaps, all have one listing."""
    digest, (files, most) = hashlib.sha256(__version__.encode()), _LOOKED_INTO
    for path in paths[:: max(1, len(paths) // files)]:
        with suppress(OSError), path.open("rb") as file:
            digest.update(file.read(most))
    return digest.hexdigest()[:12]


def _shelved(place: Path, fingerprint: str) -> Artifact | None:
    try:
        found = Artifact.load(place, kind="representation", fingerprint=fingerprint)
    except BadArtifact:  # not there, half thrown out, or damaged: trained anew
        return None
    with suppress(OSError):
        os.utime(place)
    return found


def _put_on_shelf(trained: Artifact, place: Path) -> None:
    """Puts it there in the place of those used longest ago; a shelf that takes nothing costs a training, no error."""
    try:
        shutil.rmtree(place, ignore_errors=True)
        trained.save(place)
        shelved = sorted(place.parent.iterdir(), key=lambda other: other.stat().st_mtime_ns)
        for other in shelved[:-SHELVED]:
            shutil.rmtree(other, ignore_errors=True)
    except (OSError, DiskFull) as error:
        warnings.warn(f"what was trained is not kept for other runs ({error})", stacklevel=2)


def _as_it_is_read(
    net: str, title: str, tensors: dict[str, torch.Tensor], images: np.ndarray, components: int
) -> dict[str, np.ndarray]:
    """The trunk with BatchNorm's statistics taken anew, and the principal components that are read of it, as arrays.

    images: uint8 [n, s, s, 3]. components: how many of each stage, 0 for all channels.

    In training the statistics came from augmented crops and the first convolution's own stride; `represent.resnet`
    shows the trunk whole images at another one.
    """
    trunk = ResNetTrunk(net)
    trunk.load_state_dict(tensors)
    some = images[:: max(1, len(images) // CALIBRATED_ON)][:CALIBRATED_ON]
    plain = torch.from_numpy(some).permute(0, 3, 1, 2).float() / 127.5 - 1
    read = ResNet(trunk, title, components).calibrate(plain).fit_components(plain)
    return {name.removeprefix("trunk."): tensor.numpy() for name, tensor in read.state_dict().items()}
