"""The datasets of benchmark tables: labeled images to sample shots from, labeled test images, and unlabeled images.

There are two kinds: synthetic toys by name ("toy-face"), and folders of images with masks, optionally with their splits
in split.json. Every method of a table gets the same Dataset.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from partshot.artifact import replacing_file
from partshot.benchmark.kshot import Splits
from partshot.data.images import list_images, read_stack
from partshot.data.shots import Shots, find_pairs, load_shots
from partshot.errors import BadLabels, BadRecipe, nearest
from partshot.evenly import evenly
from partshot.progress import Ticker
from partshot.toy.dataset import toy_shots, writing_toy

TOYS = {"toy-face": "faces", "toy-car": "cars", "toy-horse": "horses"}

# Maximum number of unlabeled images for training students. In the time that a row takes, a student would see each of
# a larger number hardly twice.
MOST_IMAGES = 700
# Number of toys in the pool of labeled images, the test set and the unlabeled set, and the seeds of each.
_POOL, _TEST, _UNLABELED = 300, 100, 1000
_POOL_SEED, _TEST_SEED, _UNLABELED_SEED = 32, 33, 31
# Side of the toys in pixels: that of the embedded generator.
_TOY_SIZE = 64


@dataclass(frozen=True)
class Dataset:
    """Labeled images for training and test, and unlabeled images.

    name: for file names. title: for people. pool: labeled images that shots are sampled from. splits: which shots; None
    samples them by seed. test: labeled images on which methods are scored. unlabeled: the folder of unlabeled images.
    left_out: files in that folder that are not used, such as masks and test images. toy: True for the synthetic toy of
    that name. near: the unlabeled images that come from the same collection as the labeled ones, if there are also
    images from another collection.
    """

    name: str
    title: str
    pool: Shots
    test: Shots
    splits: Splits | None
    unlabeled: Path
    left_out: tuple[Path, ...] = ()
    toy: bool = False
    near: tuple[Path, ...] = ()

    @cached_property
    def fingerprint(self) -> str:
        """12 hex digits that change with pool, test, splits, and the names and sizes of the unlabeled images."""
        paths = list_images(self.unlabeled, leave_out=self.left_out)
        files = [f"{path.name} {path.stat().st_size}" for path in paths]
        state = f"{self.name}/{self.pool.fingerprint}/{self.test.fingerprint}/{self.splits}/{files}"
        return hashlib.sha256(state.encode()).hexdigest()[:12]

    def images(self, size: int) -> np.ndarray:
        """At most MOST_IMAGES unlabeled images, uint8 [n, size, size, 3].

        `near` comes first and is subsampled evenly if it is too large; the rest is subsampled evenly from the others.
        """
        near = evenly(self.near, MOST_IMAGES)
        paths, room = list_images(self.unlabeled, leave_out=(*self.left_out, *near)), MOST_IMAGES - len(near)
        return read_stack([*near, *evenly(paths, room)], size, skip_corrupt=True).images


def open_dataset(data: str, work: Path, quiet: bool = False) -> Dataset:
    """Opens a toy by name, or a folder. work: folder to which the unlabeled images are written or linked.

    A folder has images/, masks/ and classes.json, and may have unlabeled/ and split.json: {"train": [stems], "val":
    [stems], "fewshot": {k: {seed: [stems]}}}. Without split.json every fourth labeled image is a test image. The
    unlabeled images are all images that are not test images, without their masks, and those in unlabeled/.

    Raises BadRecipe if `data` is neither, BadLabels if the folder has fewer than four labeled images or a split that
    does not fit its images.
    """
    if data in TOYS:
        return _toy(data, work, quiet)
    folder = Path(data)
    if not folder.is_dir():
        raise BadRecipe(f"--data {data}: neither a folder nor a toy; {nearest(data, TOYS)}")
    return _pack(folder, work)


def toy_images(name: str, work: Path, quiet: bool = False) -> Path:
    """The folder of a toy's unlabeled images; missing ones are generated."""
    out = work / "images" / name
    with Ticker(f"generate {name}", _UNLABELED, 0, quiet) as ticker:
        for i, _ in enumerate(writing_toy(TOYS[name], _UNLABELED, _TOY_SIZE, out, _UNLABELED_SEED)):
            ticker.tick(i + 1)
    return out / "images"


def _toy(name: str, work: Path, quiet: bool) -> Dataset:
    pool = toy_shots(TOYS[name], _TOY_SIZE, _POOL, _POOL_SEED)
    test = toy_shots(TOYS[name], _TOY_SIZE, _TEST, _TEST_SEED)
    title = f"synthetic {TOYS[name]} of {_TOY_SIZE} px"
    return Dataset(name, title, pool, test, None, toy_images(name, work, quiet), toy=True)


def _pack(folder: Path, work: Path) -> Dataset:
    # With the folder given explicitly, images without a mask are allowed.
    images = folder / "images" if (folder / "images").is_dir() else folder
    pairs = {pair.name: pair for pair in find_pairs(folder, images)}
    split, splits = _split(folder, list(pairs))
    pool, test = (load_shots(folder, images, names=split[part]) for part in ("train", "val"))
    test_images, masks = [pairs[name].image for name in split["val"]], [pair.mask for pair in pairs.values()]
    name, more = folder.resolve().name, folder / "unlabeled"
    unlabeled, left_out, near = test_images[0].parent, (*test_images, *masks), ()
    if more.is_dir():
        own = {f"train-{path.name}": path for path in list_images(unlabeled, leave_out=left_out)}
        others = {f"unlabeled-{path.name}": path for path in list_images(more)}
        unlabeled, left_out = _linked(own | others, work / "images", name), ()
        near = tuple(unlabeled / target for target in own)
    title = f"{name}, {len(test)} test images"
    return Dataset(name, title, pool, test, splits or None, unlabeled, left_out, near=near)


def _linked(paths: Mapping[str, Path], folder: Path, name: str) -> Path:
    """Makes a folder with hard links to these files (or copies) under these names; its name depends on the files."""
    state = "".join(f"{target} {(stat := path.stat()).st_size} {stat.st_mtime_ns}\n" for target, path in paths.items())
    out = folder / f"{name}-{hashlib.sha256(state.encode()).hexdigest()[:8]}"
    out.mkdir(parents=True, exist_ok=True)
    for target, path in paths.items():
        try:
            os.link(path.resolve(), out / target)
        except FileExistsError:
            continue
        except OSError:  # another file system, or one without hard links
            with replacing_file(out / target) as temporary:
                shutil.copyfile(path, temporary)
    return out


def _split(folder: Path, stems: list[str]) -> tuple[dict[str, list[str]], Splits]:
    """Stems of the pool ("train") and of the test images ("val"), and the few-shot splits."""
    path = folder / "split.json"
    if not path.is_file():
        if len(stems) < 4:
            raise BadLabels(
                f"{folder}: only {len(stems)} labeled images; must be at least 4, since some are for testing"
            )
        return {"train": [stem for i, stem in enumerate(stems) if i % 4], "val": stems[::4]}, {}
    try:
        split = json.loads(path.read_text(encoding="utf-8"))
        train, val = list(split["train"]), list(split["val"])
        fewshot = split.get("fewshot", {})
        splits = {int(k): {int(s): tuple(v) for s, v in by.items()} for k, by in fewshot.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadLabels(f'{path}: not a split ({error}); write {{"train": [stems], "val": [stems]}}') from error
    missing = [stem for stem in [*train, *val] if stem not in stems]
    if missing:
        raise BadLabels(f"{path}: lists '{missing[0]}', which has no mask; {nearest(missing[0], stems[:20])}")
    both = sorted(set(train) & set(val))
    if both or not train or not val:
        what = f"'{both[0]}' is in both train and val" if both else "train or val is empty"
        raise BadLabels(f"{path}: {what}; both must list images and have none in common")
    return {"train": train, "val": val}, splits
