"""sample: generated images to label by hand, with their latents beside them.

The latents, noise included, are in a folder of their own, whose card holds the images' names. An image that differs
from what its latent generates (renamed, resized, edited) is refused, so that labels always belong to its features.
"""

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from partshot.artifact import read_card, replacing_file, standing
from partshot.data.images import resize_images
from partshot.data.shots import Shots, load_shots
from partshot.errors import BadArtifact, BadRecipe
from partshot.ops.images import as_tensors, as_uint8
from partshot.progress import Ticker, print_status
from partshot.represent.spec import Generator, Latents
from partshot.represent.stylegan import EMBEDDED, load_stylegan

_BATCH = 16
# Largest difference in gray levels: PNGs are rounded, and other machines round differently.
_ROUNDING = 2


def sample(
    generator: Path | None, out: Path, count: int = 10, seed: int = 0, psi: float | int = 1.0, quiet: bool = False
) -> Path:
    """Generates `count` images of the seeds seed, seed + 1, ...; returns out/images, beside which lie out/latents.

    generator: what `partshot pretrain stylegan2` (or stylegan1) wrote; None takes the embedded one.
    psi: truncation; below 1, images are more alike and look better. Raises BadArtifact when the folder holds no
    generator, or `out` other samples.
    """
    if count < 1:
        raise BadRecipe(f"--count {count}: must be 1 or more")
    if not math.isfinite(psi):
        raise BadRecipe(f"--psi {psi}: must be a finite number; 0 gives the mean image, 1 does not truncate")
    found = load_stylegan(generator, psi=psi)
    seeds, several = range(seed, seed + count), []
    names = [sample_name(s, float(psi)) for s in seeds]
    # Written last, so that a folder with latents is complete.
    card = {"names": names, "psi": float(psi)}
    if standing(out / "latents").exists():
        before = read_card(out / "latents")
        if before.get("generator") != found.weights or {key: before.get(key) for key in card} != card:
            raise BadArtifact(
                f"{out}: contains samples of other seeds, another psi or another generator; choose another --out"
            )
        if all((out / "images" / f"{name}.png").exists() for name in names):
            return out / "images"
    with Ticker("generate samples", count, 0, quiet) as ticker:
        for first in range(0, count, _BATCH):
            latents = found.sample(seeds[first : first + _BATCH])
            with torch.no_grad():
                images = as_uint8(found.synthesize(latents)[0])
            for name, image in zip(names[first:], images, strict=False):
                with replacing_file(out / "images" / f"{name}.png") as path:
                    Image.fromarray(image).save(path)
            several.append(latents)
            ticker.tick(min(first + _BATCH, count))
    Latents.join(several).save(out / "latents", card)
    return out / "images"


def latents_of(generator: Generator, shots: Shots, images: Path | None = None, quiet: bool = True) -> Latents:
    """Latents of shots: those beside the images, or else those found by inversion.

    images: the folder that `sample` returned, or a copy with latents/ beside it. quiet: do not announce an inversion,
    which takes seconds an image. Raises BadArtifact when a shot has no latent or is not what its latent generates.
    """
    folder = None if images is None else Path(images).parent / "latents"
    if folder is None or not folder.is_dir():
        print_status(
            "no latents/ of `partshot sample` beside the images, so they are inverted first (seconds per image)", quiet
        )
        return generator.latents(as_tensors(resize_images(shots.images, generator.size)))
    latents, known = Latents.load(folder), {name: i for i, name in enumerate(read_card(folder)["names"])}
    unknown = [name for name in shots.names if name not in known]
    if unknown:
        raise BadArtifact(f"{folder}: contains no latent of '{unknown[0]}'; label images that `partshot sample` wrote")
    chosen = latents[torch.tensor([known[name] for name in shots.names])]
    _refuse_others(generator, chosen, shots, str(images))
    return chosen


def embedded_shots() -> Shots:
    """Ten faces of the embedded generator with masks by an annotator network, in the order in which to label them.

    The mean face is first; each next face shows most of what the faces before it do not.
    """
    shots = load_shots(EMBEDDED / "masks", EMBEDDED / "images")
    return shots.subset([shots.names.index(name) for name in read_card(EMBEDDED)["faces"]])


def sample_name(seed: int, psi: float = 1.0) -> str:
    """The name of the image of a seed and a truncation: "000170", or "000170-psi0.5" where psi is not 1."""
    return f"{seed:06d}" if psi == 1 else f"{seed:06d}-psi{str(psi).removesuffix('.0')}"


def latents_of_names(generator: Generator, shots: Shots) -> Latents:
    """Latents of shots that are named by `sample_name`.

    Raises BadArtifact for another name, and for an image that differs from the one of its name.
    """
    several = []
    for name in shots.names:
        seed, _, psi = name.partition("-psi")
        try:
            several.append(generator.sample([int(seed)], float(psi or 1)))
        except ValueError as error:
            raise BadArtifact(
                f"labeled images: '{name}' is not the name of a sample; keep the names that `partshot sample` gave"
            ) from error
    latents = Latents.join(several)
    _refuse_others(generator, latents, shots, "labeled images")
    return latents


def _refuse_others(generator: Generator, latents: Latents, shots: Shots, where: str) -> None:
    with torch.no_grad():
        images, _ = generator.synthesize(latents)
    for name, made, image in zip(shots.names, as_uint8(images), shots.images, strict=True):
        same = made.shape == image.shape
        if not same or np.abs(made.astype(int) - image.astype(int)).max() > _ROUNDING:
            raise BadArtifact(
                f"{where}: '{name}' is not the image that its latent generates; restore it, or sample again"
            )
