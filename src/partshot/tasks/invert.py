"""invert: from which latents a generator draws given images, how near it comes, and which ones it cannot draw.

Batch by batch, each kept on disk as soon as it is found, so that a stopped run goes on where it was.
"""

import csv
import hashlib
import io
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from partshot.artifact import read_card, replacing_file, standing
from partshot.data.images import list_images, read_stack
from partshot.errors import BadRecipe
from partshot.nets.perceptual import load_lpips
from partshot.ops.images import as_tensors, as_uint8
from partshot.recipe import preset as row_of
from partshot.report import write_sheet
from partshot.represent.invert import PRESETS, poorly_inverted
from partshot.represent.spec import Latents
from partshot.represent.stylegan import StyleGAN, load_stylegan
from partshot.train.progress import Ticker

# Columns of the sheet.
_SHOWN = 12


@dataclass(frozen=True)
class Inversions:
    """out: the folder. errors: name -> distance between an image and what its latent draws. astray: names of those
    that do not invert. skipped: file and reason of those that could not be read."""

    out: Path
    errors: dict[str, float]
    astray: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        lines = [f"written: {self.out}", f"mean distance {np.mean(list(self.errors.values())):.4f}"]
        if self.astray:
            lines.append(f"{len(self.astray)} of {len(self.errors)} do not invert: {', '.join(self.astray)}")
        lines += [f"{name} skipped: {reason}" for name, reason in self.skipped]
        return "\n".join(lines)


def invert(
    generator: Path | None,
    images: Path,
    out: Path,
    preset: str = "fast",
    steps: int | None = None,
    lpips: Path | None = None,
    batch: int = 16,
    quiet: bool = False,
) -> Inversions:
    """Projects every image of a folder; writes out/images (what is drawn), latents, inversion.csv and inversion.png.

    generator: what `partshot pretrain stylegan2` (or 1) wrote; None takes the embedded one. preset: a row of
    represent.invert.PRESETS; steps replaces its own. lpips: a safetensors file with LPIPS' weights; None measures in
    the eyes of the generator's discriminator. batch: images at a time. Raises BadImage for a folder without images,
    BadArtifact for what is no generator or no LPIPS, BadRecipe for a setting that cannot be.
    """
    if batch < 1:
        raise BadRecipe(f"batch {batch} given; 1 or more images are inverted at a time")
    recipe = row_of(PRESETS, preset)
    recipe = recipe if steps is None else recipe.changed(steps=steps)
    found = load_stylegan(generator, recipe=recipe)
    distance, eyes = found.distance(), "discriminator"
    if lpips is not None:
        distance, eyes = load_lpips(lpips), f"LPIPS {_digest_of(lpips.read_bytes())}"
    paths, out = list_images(images), Path(out)
    stack = read_stack(paths, found.size, skip_corrupt=True)
    unread = {path for path, _ in stack.skipped}
    names = [path.stem for path in paths if path not in unread]

    several, errors, worst = [], [], []
    with Ticker("invert", len(names) * recipe.steps, 0, quiet) as ticker:
        for first in range(0, len(names), batch):
            several, told = stack.images[first : first + batch], names[first : first + batch]
            folder = out / "batches" / f"{first:06d}"
            card = {"names": told, "made": _digest(found, recipe, eyes, several)}
            if not (standing(folder).exists() and read_card(folder).get("made") == card["made"]):
                tell = partial(_tell, ticker, first * recipe.steps, len(told))
                done = found.invert(as_tensors(several), distance, tell)
                card |= {"errors": done.errors.tolist(), "worst": done.initial_errors.tolist()}
                done.latents.save(folder, card)
            kept = read_card(folder)
            several.append(Latents.load(folder))
            errors, worst = errors + kept["errors"], worst + kept["worst"]
            ticker.tick((first + len(told)) * recipe.steps)

    drawn = _drawn(found, several)
    for name, image in zip(names, drawn, strict=True):
        with replacing_file(out / "images" / f"{name}.png") as path:
            Image.fromarray(image).save(path)
    lost = poorly_inverted(torch.tensor(errors), torch.tensor(worst)).tolist()
    _write_table(out / "inversion.csv", names, errors, worst, lost)
    # The worst first: there is nothing to look at in the others.
    order = np.argsort(-np.array(errors) / np.array(worst))[:_SHOWN]
    write_sheet(out / "inversion.png", list(stack.images[order]), {"images": None, "what is drawn": list(drawn[order])})
    Latents.join(several).save(out / "latents", {"names": names, "errors": errors, "eyes": eyes})
    shutil.rmtree(out / "batches")
    return Inversions(
        out,
        dict(zip(names, errors, strict=True)),
        tuple(name for name, gone in zip(names, lost, strict=True) if gone),
        tuple((path.name, reason) for path, reason in stack.skipped),
    )


def _tell(ticker: Ticker, before: int, batch: int, step: int) -> None:
    ticker.tick(before + batch * step)


def _digest(generator: StyleGAN, recipe, eyes: str, images: np.ndarray) -> str:
    return _digest_of(f"{generator.weights}/{recipe.fingerprint}/{eyes}".encode() + images.tobytes())


def _digest_of(blob: bytes) -> str:
    return hashlib.sha256(blob).hexdigest()[:12]


def _drawn(generator: StyleGAN, several: Sequence[Latents]) -> np.ndarray:
    with torch.no_grad():
        return np.concatenate([as_uint8(generator.synthesize(latents)[0]) for latents in several])


def _write_table(path: Path, names, errors, worst, lost) -> None:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["image", "distance", "share_of_mean_image", "inverts"])
    for name, error, far, gone in zip(names, errors, worst, lost, strict=True):
        table.writerow([name, f"{error:.5f}", f"{error / far:.3f}", "no" if gone else "yes"])
    with replacing_file(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")
