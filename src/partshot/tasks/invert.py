"""invert: projects images into a generator's latent space, and names those that it cannot reproduce.

Each batch is saved as soon as it is done, so that a stopped run resumes.
"""

import csv
import hashlib
import io
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from partshot.artifact import read_card, replacing_file, standing
from partshot.data.images import Stack, list_images, read_stack
from partshot.errors import BadArtifact, BadImage, BadRecipe
from partshot.nets.perceptual import load_lpips
from partshot.ops.images import as_tensors, as_uint8
from partshot.progress import Ticker
from partshot.recipe import preset as row_of
from partshot.report import write_sheet
from partshot.represent.invert import PRESETS, poorly_inverted
from partshot.represent.spec import Latents
from partshot.represent.stylegan import StyleGAN, load_stylegan

# Images on the sheet.
_SHOWN = 12


@dataclass(frozen=True)
class Inversions:
    """out: the folder. errors: name -> distance between an image and its reconstruction. failed: names of images whose
    reconstruction is poor. skipped: file and reason of those that could not be read."""

    out: Path
    errors: dict[str, float]
    failed: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        lines = [f"written: {self.out}", f"mean distance {np.mean(list(self.errors.values())):.4f}"]
        if self.failed:
            lines.append(f"{len(self.failed)} of {len(self.errors)} do not invert: {', '.join(self.failed)}")
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
    """Projects every image of a folder; writes out/images (reconstructions), latents, inversion.csv and inversion.png.

    generator: what `partshot pretrain stylegan2` (or stylegan1) wrote; None takes the embedded one. preset: a row of
    represent.invert.PRESETS; steps replaces its own. lpips: a safetensors file of LPIPS' weights; None measures in the
    features of the generator's discriminator. batch: images at a time. Raises BadImage for a folder without images, or
    one that the reconstructions would be written to; BadArtifact for a file that is no generator or no LPIPS, and for
    an `out` that `sample` wrote; BadRecipe for an invalid setting.
    """
    if batch < 1:
        raise BadRecipe(f"--batch {batch}: must be 1 or more")
    _refuse_to_overwrite(images, out)
    recipe = row_of(PRESETS, preset, "invert")
    recipe = recipe if steps is None else recipe.changed(steps=steps)
    found = load_stylegan(generator, recipe=recipe)
    distance, metric = found.distance(), "discriminator"
    if lpips is not None:
        distance, metric = load_lpips(lpips), f"LPIPS {_digest_of(lpips.read_bytes())}"
    paths, out = list_images(images), Path(out)
    stack = read_stack(paths, found.size, skip_corrupt=True)
    unread = {path for path, _ in stack.skipped}
    names = [path.stem for path in paths if path not in unread]
    made = _digest(found, recipe, metric, stack.images)
    if standing(out / "latents").exists():
        card = read_card(out / "latents")
        if card.get("made") == made and card["names"] == names:
            return _inversions(out, card, stack)

    latents, errors, worst = [], [], []
    with Ticker("invert", len(names) * recipe.steps, 0, quiet) as ticker:
        for first in range(0, len(names), batch):
            chosen, their_names = stack.images[first : first + batch], names[first : first + batch]
            folder = out / "batches" / f"{first:06d}"
            card = {"names": their_names, "made": _digest(found, recipe, metric, chosen)}
            if not (standing(folder).exists() and read_card(folder).get("made") == card["made"]):
                tick = partial(_tick, ticker, first * recipe.steps, len(their_names))
                done = found.invert(as_tensors(chosen), distance, tick)
                card |= {"errors": done.errors.tolist(), "worst": done.initial_errors.tolist()}
                done.latents.save(folder, card)
            kept = read_card(folder)
            latents.append(Latents.load(folder))
            errors, worst = errors + kept["errors"], worst + kept["worst"]
            ticker.tick((first + len(their_names)) * recipe.steps)

    _write_images(out, found, latents, names, stack.images, np.array(errors) / np.array(worst))
    _write_table(out / "inversion.csv", names, errors, worst, _failed(errors, worst))
    card = {"names": names, "errors": errors, "worst": worst, "distance": metric, "made": made}
    # Written last, so that a folder with latents is complete.
    Latents.join(latents).save(out / "latents", card)
    shutil.rmtree(out / "batches")
    return _inversions(out, card, stack)


def _refuse_to_overwrite(images: Path, out: Path) -> None:
    """Raises where reconstructions would replace the images, or latents those of `sample`."""
    if (out / "images").resolve() == images.resolve():
        raise BadImage(f"--out {out}: the reconstructions would replace the images in {images}; choose another --out")
    if standing(out / "latents").exists() and "psi" in read_card(out / "latents"):
        raise BadArtifact(f"--out {out}: contains what `partshot sample` wrote; choose another --out")


def _inversions(out: Path, card: Mapping, stack: Stack) -> Inversions:
    names, errors = card["names"], card["errors"]
    failed = _failed(errors, card["worst"])
    return Inversions(
        out,
        dict(zip(names, errors, strict=True)),
        tuple(name for name, is_failed in zip(names, failed, strict=True) if is_failed),
        tuple((path.name, reason) for path, reason in stack.skipped),
    )


def _failed(errors: Sequence[float], worst: Sequence[float]) -> list[bool]:
    return poorly_inverted(torch.tensor(errors), torch.tensor(worst)).tolist()


def _write_images(
    out: Path,
    generator: StyleGAN,
    latents: Sequence[Latents],
    names: Sequence[str],
    images: np.ndarray,
    far: np.ndarray,
) -> None:
    """Reconstructions, and the sheet of the worst ones. far: relative distances, [n]."""
    with torch.no_grad():
        reconstructed = np.concatenate([as_uint8(generator.synthesize(some)[0]) for some in latents])
    for name, image in zip(names, reconstructed, strict=True):
        with replacing_file(out / "images" / f"{name}.png") as path:
            Image.fromarray(image).save(path)
    worst = np.argsort(-far)[:_SHOWN]
    rows = {"images": None, "reconstructions": list(reconstructed[worst])}
    write_sheet(out / "inversion.png", list(images[worst]), rows)


def _tick(ticker: Ticker, before: int, batch: int, step: int) -> None:
    ticker.tick(before + batch * step)


def _digest(generator: StyleGAN, recipe, metric: str, images: np.ndarray) -> str:
    return _digest_of(f"{generator.weights}/{recipe.fingerprint}/{metric}".encode() + images.tobytes())


def _digest_of(blob: bytes) -> str:
    return hashlib.sha256(blob).hexdigest()[:12]


def _write_table(path: Path, names, errors, worst, failed) -> None:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["image", "distance", "share_of_mean_image", "inverts"])
    for name, error, far, is_failed in zip(names, errors, worst, failed, strict=True):
        table.writerow([name, f"{error:.5f}", f"{error / far:.3f}", "no" if is_failed else "yes"])
    with replacing_file(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")
