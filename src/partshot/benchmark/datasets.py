"""What a table is measured on: labeled images to draw shots from, others to measure on, and plain ones.

Knows two kinds of sources: drawn toys by name ("toy-face"), and a folder of images with masks, whose split.json tells
the splits where there is one. Every method of a table gets the same Field.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from partshot.artifact import replacing_file
from partshot.benchmark.kshot import Splits
from partshot.data.images import list_images, read_stack
from partshot.data.shots import Shots, find_pairs, load_shots
from partshot.errors import BadLabels, BadRecipe, nearest
from partshot.toy.dataset import toy_shots, writing_toy
from partshot.train.progress import Ticker

TOYS = {"toy-face": "faces", "toy-car": "cars", "toy-horse": "horses"}

# Images that students learn from; more would hardly be seen twice in the time a row has.
MOST_IMAGES = 700
# Drawn toys to draw shots from, to measure on, and without labels, and the seeds of each.
_POOL, _HELD_OUT, _PLAIN = 300, 100, 1000
_POOL_SEED, _TEST_SEED, _PLAIN_SEED = 32, 33, 31
# The toys' side in pixels: that of the embedded generator.
_TOY_SIZE = 64


@dataclass(frozen=True)
class Field:
    """name: for files. title: for people. pool: where shots are drawn from; splits: which ones, None where seeds say.

    test: what is measured on. plain: the folder of unlabeled images, and left_out: files there that are not among
    them, such as masks and what is measured on. toy: whether it is the drawn one of that name. near: those of the plain
    images that are of one collection with the labeled ones, where others are of another.
    """

    name: str
    title: str
    pool: Shots
    test: Shots
    splits: Splits | None
    plain: Path
    left_out: tuple[Path, ...] = ()
    toy: bool = False
    near: tuple[Path, ...] = ()

    @cached_property
    def fingerprint(self) -> str:
        """12 hex digits that change with pool, test, splits, and the names and sizes of the plain images."""
        plain = [f"{path.name} {path.stat().st_size}" for path in list_images(self.plain, leave_out=self.left_out)]
        given = f"{self.name}/{self.pool.fingerprint}/{self.test.fingerprint}/{self.splits}/{plain}"
        return hashlib.sha256(given.encode()).hexdigest()[:12]

    def images(self, size: int) -> np.ndarray:
        """At most MOST_IMAGES unlabeled ones, uint8 [n, size, size, 3]: the near ones, and others spread evenly."""
        near = list(_spread(self.near, MOST_IMAGES))
        paths, room = list_images(self.plain, leave_out=(*self.left_out, *near)), MOST_IMAGES - len(near)
        return read_stack([*near, *_spread(paths, room)], size, skip_corrupt=True).images


def open_dataset(data: str, work: Path, quiet: bool = False) -> Field:
    """The Field of a toy's name, or of a folder. work: where a toy's plain images are drawn, or a folder's gathered.

    A folder holds images/ and masks/, classes.json, and may hold unlabeled/ and split.json: {"train": [stems], "val":
    [stems], "fewshot": {k: {seed: [stems]}}}. Without split.json every fourth labeled image is measured on. The
    images that are not measured on are learned from, their masks hidden, and those of unlabeled/ beside them.

    Raises BadRecipe for a name that is neither, BadLabels for a folder with fewer than four labeled images or with a
    split that names others.
    """
    if data in TOYS:
        return _toy(data, work, quiet)
    folder = Path(data)
    if not folder.is_dir():
        raise BadRecipe(f"--data {data}: no such folder, and no toy; {nearest(data, TOYS)}")
    return _pack(folder, work)


def toy_images(name: str, work: Path, quiet: bool = False) -> Path:
    """A folder of a toy's plain images, drawn where they are missing."""
    out = work / "images" / name
    with Ticker(f"draw {name}", _PLAIN, 0, quiet) as ticker:
        for i, _ in enumerate(writing_toy(TOYS[name], _PLAIN, _TOY_SIZE, out, _PLAIN_SEED)):
            ticker.tick(i + 1)
    return out / "images"


def _toy(name: str, work: Path, quiet: bool) -> Field:
    pool = toy_shots(TOYS[name], _TOY_SIZE, _POOL, _POOL_SEED)
    test = toy_shots(TOYS[name], _TOY_SIZE, _HELD_OUT, _TEST_SEED)
    title = f"{TOYS[name]} drawn at {_TOY_SIZE} px"
    return Field(name, title, pool, test, None, toy_images(name, work, quiet), toy=True)


def _pack(folder: Path, work: Path) -> Field:
    # Named, since then images without a mask may lie among the others.
    images = folder / "images" if (folder / "images").is_dir() else folder
    pairs = {pair.name: pair for pair in find_pairs(folder, images)}
    split, splits = _split(folder, list(pairs))
    pool, test = (load_shots(folder, images, names=split[part]) for part in ("train", "val"))
    held_out, masks = [pairs[name].image for name in split["val"]], [pair.mask for pair in pairs.values()]
    name, apart = folder.resolve().name, folder / "unlabeled"
    plain, left_out, near = held_out[0].parent, (*held_out, *masks), ()
    if apart.is_dir():
        own = {f"train-{path.name}": path for path in list_images(plain, leave_out=left_out)}
        others = {f"unlabeled-{path.name}": path for path in list_images(apart)}
        plain, left_out = _gathered(own | others, work / "images", name), ()
        near = tuple(plain / there for there in own)
    title = f"{name}, measured on {len(test)} images"
    return Field(name, title, pool, test, splits or None, plain, left_out, near=near)


def _gathered(paths: Mapping[str, Path], folder: Path, name: str) -> Path:
    """A folder of these files under these names, linked or else copied; of other files it would be another folder."""
    found = "".join(f"{there} {(stat := path.stat()).st_size} {stat.st_mtime_ns}\n" for there, path in paths.items())
    place = folder / f"{name}-{hashlib.sha256(found.encode()).hexdigest()[:8]}"
    place.mkdir(parents=True, exist_ok=True)
    for there, path in paths.items():
        try:
            os.link(path.resolve(), place / there)
        except FileExistsError:
            continue
        except OSError:  # another disk, or one that links nothing
            with replacing_file(place / there) as temporary:
                shutil.copyfile(path, temporary)
    return place


def _spread(paths: Sequence[Path], most: int) -> Sequence[Path]:
    """At most so many of them, evenly over the whole."""
    return paths[:: max(1, len(paths) // max(1, most))][:most]


def _split(folder: Path, stems: list[str]) -> tuple[dict[str, list[str]], Splits]:
    """Stems to draw from ("train") and to measure on ("val"), and the splits."""
    path = folder / "split.json"
    if not path.is_file():
        if len(stems) < 4:
            raise BadLabels(f"{folder}: {len(stems)} labeled images; 4 or more are needed, to measure on some")
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
        raise BadLabels(f"{path}: names '{missing[0]}', which has no mask; {nearest(missing[0], stems[:20])}")
    both = sorted(set(train) & set(val))
    if both or not train or not val:
        what = f"'{both[0]}' is in both train and val" if both else "train or val is empty"
        raise BadLabels(f"{path}: {what}; what is drawn from and what is measured on must be apart, and some of each")
    return {"train": train, "val": val}, splits
