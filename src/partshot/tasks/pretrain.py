"""pretrain: from a folder of unlabelled pictures to a representation on disk.

One verb; what is trained is the pretext's affair, how a run goes on after a kill is the loop's.
"""

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from partshot.artifact import Artifact, standing
from partshot.catalog import PRETEXTS, lookup
from partshot.data.images import list_images, read_stack
from partshot.nets.resnet import ResNetTrunk
from partshot.recipe import Recipe
from partshot.recipe import preset as row_of
from partshot.represent.resnet import ResNet
from partshot.train.loop import LoopRecipe, run_loop

DEFAULT = "small-folder"
# BatchNorm's statistics settle long before; more pictures would only cost time.
CALIBRATED_ON = 256


def pretrain(
    pretext: str,
    images: Path,
    out: Path,
    preset: str | None = None,
    size: int | None = None,
    kimg: float | int | None = None,
    batch: int | None = None,
    seed: int = 0,
    devices: int = 1,
    quiet: bool = False,
) -> Path:
    """Trains a pretext on a folder of pictures; returns out/representation, for `open_representation("resnet", ...)`.

    pretext: a name of `catalog.PRETEXTS`. preset: a row of its table; None takes DEFAULT. size: side of the
    pictures in pixels; kimg: horizon in thousands of pictures seen; batch: pictures per step; each replaces the
    preset's. Pictures that cannot be read are left out, and a warning names them.

    Running it again goes on where it stopped, and returns at once when it was done. Raises BadImage for a folder
    without pictures, BadRecipe for a setting that cannot be, BadArtifact when `out` holds a run of other settings or
    pictures.
    """
    recipe = resolve(pretext, preset, size, kimg, batch)
    paths = list_images(images)
    fingerprint = hashlib.sha256(f"{recipe.fingerprint}/{seed}/{_listing(paths)}".encode()).hexdigest()[:12]
    folder = Path(out) / "representation"
    if standing(folder).exists():
        Artifact.load(folder, kind="representation", fingerprint=fingerprint)
        return folder

    stack = read_stack(paths, recipe.size, skip_corrupt=True)
    if stack.skipped:
        first, reason = stack.skipped[0]
        warnings.warn(f"{len(stack.skipped)} pictures are left out; first: {first.name}: {reason}", stacklevel=2)
    game = lookup(PRETEXTS, pretext, "pretext")(stack.images, recipe, seed)
    loop = LoopRecipe(kimg=recipe.kimg, batch=recipe.batch, seed=seed, devices=devices)
    run_loop(game, loop, Path(out), f"{pretext} on {len(stack.images)} pictures", fingerprint, quiet=quiet)

    title = f"{pretext} {recipe.net}"
    card = {
        "net": recipe.net,
        "title": title,
        "pretext": pretext,
        "pictures": len(stack.images),
        "fingerprint": fingerprint,
        **recipe.model_dump(mode="json"),
    }
    tensors = _as_it_is_read(recipe.net, title, game.trained(), stack.images)
    return Artifact("representation", card, tensors).save(folder)


def resolve(
    pretext: str,
    preset: str | None = None,
    size: int | None = None,
    kimg: float | int | None = None,
    batch: int | None = None,
) -> Recipe:
    """The recipe that `pretrain` would train by, for showing it beforehand; arguments and errors as there."""
    row = row_of(lookup(PRETEXTS, pretext, "pretext").PRESETS, preset or DEFAULT)
    given = {"size": size, "kimg": kimg, "batch": batch}
    return row.changed(**{key: value for key, value in given.items() if value is not None})


def _listing(paths: Sequence[Path]) -> str:
    """Names and sizes of files: enough to notice another folder without reading every picture."""
    return "\n".join(f"{path.name} {path.stat().st_size}" for path in paths)


def _as_it_is_read(net: str, title: str, tensors: dict[str, torch.Tensor], pictures: np.ndarray) -> dict:
    """The trunk with BatchNorm's statistics taken anew, as arrays.

    In training they came from augmented crops and the first convolution's own stride; `represent.resnet` shows the
    trunk whole pictures at another one.
    """
    trunk = ResNetTrunk(net)
    trunk.load_state_dict(tensors)
    some = pictures[:: max(1, len(pictures) // CALIBRATED_ON)][:CALIBRATED_ON]
    plain = torch.from_numpy(some).permute(0, 3, 1, 2).float() / 127.5 - 1
    ResNet(trunk, title).calibrate(plain)
    return {name: tensor.numpy() for name, tensor in trunk.state_dict().items()}
