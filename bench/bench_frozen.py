"""Small heads on frozen features of real images, with several variants of features and heads; no student.

Reads the packs under PARTSHOT_DATA (default ../shared/data) and does not write to them. Scores are mean IoU on `val` at
the masks' own size, background included, pooled over the images, for five splits of k = 1, 5, 10 labels. Principal
components are computed from the pack's training images without their masks. Each row is saved as soon as it is
measured: run it again to resume. Writes bench/results/frozen.{md,json}.

    python bench/bench_frozen.py [--packs ants] [--ks 5] [--seeds 0,1] [--rows "mlp-s,linear"] [--moco FOLDER]
"""

import argparse
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

from bench_rows import DATA, RESULTS, commit_rows, names, numbers, read_rows
from partshot.benchmark.baselines import predictor
from partshot.benchmark.kshot import Method, Row, kshot, table_to_dict, table_to_markdown, tabulate
from partshot.data.images import list_images, read_stack
from partshot.data.shots import Shots, load_shots
from partshot.data.symmetry import one_sided
from partshot.heads.linear import Linear
from partshot.nets.timm_nets import build_net
from partshot.ops.images import as_tensors
from partshot.parts import PartSet
from partshot.pyramid import Pyramid
from partshot.represent.cache import Store
from partshot.represent.choose import POSITION, cached, open_representation, reduced_on, working_size
from partshot.represent.encoder_table import ENCODERS
from partshot.represent.levels import Levels
from partshot.represent.position import Positioned
from partshot.represent.reduced import components_for
from partshot.represent.spec import Representation
from partshot.represent.timm_encoder import TimmEncoder
from partshot.segmenter import Segmenter
from partshot.tasks.fit import ENCODER_LEVELS, POINTS_HEAD, facing_fit
from partshot.train.fit_head import PRESETS as HEAD_PRESETS
from partshot.train.fit_points import PRESETS, Points, sample_points
from partshot.train.fitting import Fit
from partshot.train.journal import Journal

PACKS, KS, SEEDS = ("ants", "carparts", "wbc"), (1, 5, 10), (0, 1, 2, 3, 4)
WHAT = "mIoU on `val` at the masks' own size, background included; mean and standard deviation over the splits."
ENCODER = "efficientnet-lite0"
FIT = PRESETS["fast"]
# Features are cached, since most rows use the same; so the time of a row is mostly that of fitting its head.
STORE = Path("bench/work/frozen/features")
# Unlabeled images from which principal components are computed.
UNLABELED = 100
# Prototypes per class, and iterations of k-means.
PROTOTYPES, ITERATIONS = 8, 10


@dataclass(frozen=True)
class Features:
    """The features and the head of one row.

    representation: a name of represent.choose, or "untrained..." for the encoder's network with random initialization.
    components: number of principal components of each map; None takes the default of `fit`, 0 takes all channels. size:
    side of the images; None takes `working_size`. head: a name of the catalog, or "prototypes". fit: how it is fitted.
    """

    representation: str = f"{ENCODER}{ENCODER_LEVELS}{POSITION}"
    components: int | None = None
    size: int | None = None
    head: str = POINTS_HEAD
    fit: Fit = FIT


DEFAULT = Features()
ROWS = {
    "mlp-pair": DEFAULT,
    "mlp-s": replace(DEFAULT, head="mlp-s"),
    "linear": replace(DEFAULT, head="linear"),
    "prototypes": replace(DEFAULT, head="prototypes"),
    "random weights": replace(DEFAULT, representation=f"untrained{ENCODER_LEVELS}{POSITION}"),
    "no views": replace(DEFAULT, fit=FIT.changed(views=0)),
    "8 views": replace(DEFAULT, fit=FIT.changed(views=8)),
    "strides 2-32": replace(DEFAULT, representation=f"{ENCODER}{POSITION}"),
    "strides 4-16": replace(DEFAULT, representation=f"{ENCODER}[4-16]{POSITION}"),
    "no position": replace(DEFAULT, representation=f"{ENCODER}{ENCODER_LEVELS}"),
    "16 components": replace(DEFAULT, components=16),
    "32 components": replace(DEFAULT, components=32),
    "64 components": replace(DEFAULT, components=64),
    "all channels": replace(DEFAULT, components=0),
    "384 px": replace(DEFAULT, size=384),
    "128 px": replace(DEFAULT, size=128),
    "cnn-s, 128 px": replace(DEFAULT, size=128, head="cnn-s", fit=HEAD_PRESETS["fast"].changed(images=600)),
    "before": Features(
        f"{ENCODER}{POSITION}", 0, 128, "cnn-s", HEAD_PRESETS["fast"].changed(images=600)
    ),
}  # fmt: skip


def main() -> None:
    """Measures what is missing, then writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packs", type=names, default=PACKS)
    parser.add_argument("--ks", type=numbers, default=KS)
    parser.add_argument("--seeds", type=numbers, default=SEEDS)
    parser.add_argument("--rows", type=names, default=tuple(ROWS), help="names, separated by commas")
    parser.add_argument("--moco", type=Path, help="an encoder pretrained on one pack: two more rows for that pack")
    parser.add_argument("--out", type=Path, default=Path("bench/work/frozen"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    unknown = sorted(set(args.rows) - set(ROWS))
    if unknown:
        parser.error(f"unknown rows {', '.join(unknown)}; known: {', '.join(ROWS)}")
    if args.moco and len(args.packs) != 1:
        parser.error("--moco needs --packs with the one pack that the encoder was pretrained on")
    rows = {name: ROWS[name] for name in args.rows}
    rows |= moco_rows(args.moco) if args.moco else {}
    # One split after the other, so that a stopped run has complete splits to show.
    for seed in args.seeds:
        for pack in args.packs:
            for k in args.ks:
                measure(pack, k, seed, rows, args.out)
    report(args.out, ROWS | rows)


def moco_rows(folder: Path) -> dict[str, Features]:
    """Rows of an encoder pretrained on a folder's images: with the default settings and with those before."""
    old = replace(ROWS["before"], representation=f"{folder}{POSITION}")
    return {"MoCo": replace(DEFAULT, representation=f"{folder}{POSITION}"), "MoCo, before": old}


def measure(pack: str, k: int, seed: int, rows: dict[str, Features], out: Path) -> None:
    """Measures all rows on one split of a pack."""
    split = json.loads((DATA / pack / "split.json").read_text())
    pool, test = (load_shots(DATA / pack, names=split[part]) for part in ("train", "val"))
    splits = {int(k): {int(s): names for s, names in by.items()} for k, by in split["fewshot"].items()}
    for name, features in rows.items():
        folder = folder_of(pack, name, features, out)
        journal = Journal(folder / "rows.jsonl")
        journal.repair()

        def keep(row: Row, journal: Journal = journal) -> None:
            journal.write(row.to_dict())
            line = f"{row.method:16s} {row.score.miou:.3f} fit {row.fit_seconds:4.0f} s"
            print(f"{pack} k={row.k} seed={row.seed} {line} {time.strftime('%H:%M')}", flush=True)

        done = rows_of(pack, folder)
        kshot({name: method(pack, features, seed)}, pool, test, [k], [seed], splits, keep, done)


def method(pack: str, features: Features, seed: int) -> Method:
    """The method of one row, as `kshot.kshot` takes it. Its time is that of a fit with known principal components."""

    def fit(shots: Shots):
        components = components_for(len(shots)) if features.components is None else features.components
        found = opened(pack, features.representation, components, features.size)
        size = features.size or working_size(found)
        recipe = facing_fit(features.fit.changed(seed=seed), one_sided(unlabeled(pack, 64)))
        if features.head == "prototypes":
            fitted = Segmenter(found, shots.parts, "mlp-s", size, recipe)
            fitted.head_ = Prototypes(found, shots.parts, sample_points(found, shots, recipe, size))
        else:
            fitted = Segmenter(found, shots.parts, features.head, size, recipe).fit(shots, quiet=True)
        return predictor(fitted)

    return fit


@lru_cache(maxsize=2)
def opened(pack: str, name: str, components: int, size: int | None) -> Representation:
    """The representation of a row, with principal components computed from the pack's images."""
    found = untrained(name) if name.startswith("untrained") else open_representation(name)
    if components == 0:
        return cached(found, Store(STORE))
    images = as_tensors(unlabeled(pack, size or working_size(found)))
    return cached(reduced_on(found, images, components), Store(STORE))


def untrained(name: str) -> Representation:
    """The encoder's network with random initialization, with the default levels and the position features."""
    torch.manual_seed(0)
    net = ENCODERS[ENCODER].net
    low, high = ENCODER_LEVELS.strip("[]").split("-")
    return Positioned(Levels(TimmEncoder(net, build_net(net)), int(low), int(high)))


@lru_cache
def unlabeled(pack: str, size: int) -> np.ndarray:
    """Some of the pack's training images, evenly spaced, uint8 [n, size, size, 3]."""
    wanted = set(json.loads((DATA / pack / "split.json").read_text())["train"])
    paths = [path for path in list_images(DATA / pack / "images") if path.stem in wanted]
    return read_stack(paths[:: max(1, len(paths) // UNLABELED)][:UNLABELED], size, skip_corrupt=True).images


class Prototypes(nn.Module):
    """Nearest-prototype classifier: the prototypes are k-means centers of each class's points; nothing is trained."""

    reach = 0

    def __init__(self, representation: Representation, parts: PartSet, points: Points):
        super().__init__()
        channels = representation.spec.channels
        self.classes, self.first = len(parts), Linear(channels, len(parts) * PROTOTYPES)
        self.requires_grad_(False)
        centers, features = [], points.features.float()
        for part in range(len(parts)):
            own = features[points.ids == part]
            # A part without labeled points is never the nearest.
            centers.append(k_means(own) if len(own) else torch.full((PROTOTYPES, features.shape[1]), 1e3))
        center = torch.cat(centers)
        for weight, own in zip(self.first.weights, (2 * center).split(channels, 1), strict=True):
            weight.copy_(own)
        self.first.bias.copy_(-center.square().sum(1))

    def forward(self, pyramid: Pyramid) -> torch.Tensor:
        """Negative squared distance to the nearest prototype of each class, plus the pixel's own squared norm."""
        with torch.autocast("cpu", enabled=False):
            return self.first(pyramid.to(torch.float32)).unflatten(1, (self.classes, PROTOTYPES)).amax(2)


def k_means(points: torch.Tensor) -> torch.Tensor:
    """PROTOTYPES centers of points [n, c], initialized with evenly spaced points."""
    centers = points[torch.linspace(0, len(points) - 1, PROTOTYPES).long()].clone()
    for _ in range(ITERATIONS):
        nearest = torch.cdist(points, centers).argmin(1)
        for i in range(PROTOTYPES):
            if (nearest == i).any():
                centers[i] = points[nearest == i].mean(0)
    return centers


def folder_of(pack: str, name: str, features: Features, out: Path) -> Path:
    """The folder of one row of a pack. It depends on the settings, so that no table mixes different ones."""
    state = (
        f"{features.representation}/{features.components}/{features.size}/{features.head}/{features.fit.fingerprint}"
    )
    return out / pack / f"{name.replace(' ', '-')}-{hashlib.sha256(state.encode()).hexdigest()[:8]}"


def rows_of(pack: str, folder: Path) -> list[Row]:
    """The rows measured so far, here or in an earlier run that committed them."""
    return read_rows(folder, committed_rows(pack, folder))


def committed_rows(pack: str, folder: Path) -> Path:
    """The committed file of one row of a pack."""
    return RESULTS / "rows" / f"frozen-{pack}-{folder.name}.jsonl"


def report(out: Path, rows: dict[str, Features]) -> None:
    """Prints the tables of all rows measured so far and writes them to bench/results/frozen.{json,md}."""
    tables, text, whole = {}, ["# Frozen features: variants of features and heads", "", WHAT, ""], True
    for pack in PACKS:
        found = []
        for name, features in rows.items():
            folder = folder_of(pack, name, features, out)
            measured = rows_of(pack, folder)
            if measured:
                commit_rows(measured, committed_rows(pack, folder))
            found += measured
        whole = whole and len(found) >= len(ROWS) * len(KS) * len(SEEDS)
        if not found:
            continue
        table = tabulate(found)
        tables[pack] = table_to_dict(table)
        text += [f"## {pack}", "", f"{counted(found)}", "", table_to_markdown(table), "", seconds(found), ""]
    print("\n".join(text))
    RESULTS.mkdir(exist_ok=True)
    stamp = {"torch": torch.__version__, "day": time.strftime("%Y-%m-%d"), "whole": whole}
    (RESULTS / "frozen.md").write_text("\n".join(text), encoding="utf-8")
    (RESULTS / "frozen.json").write_text(json.dumps({"card": stamp, "tables": tables}, indent=1), encoding="utf-8")
    last = {p: {m: {k: round(c["miou"], 3) for k, c in by.items()} for m, by in t.items()} for p, t in tables.items()}
    print(json.dumps(last))


def counted(rows: Sequence[Row]) -> str:
    """The splits of the table, as text."""
    seeds = sorted({row.seed for row in rows})
    return f"Splits {', '.join(map(str, seeds))}; some rows may have fewer."


def seconds(rows: Sequence[Row]) -> str:
    """Wall time of a fit with five labels for each row, as text."""
    by = {row.method: [r.fit_seconds for r in rows if r.method == row.method and r.k == 5] for row in rows}
    times = [f"{name} {np.mean(found):.0f} s" for name, found in by.items() if found]
    return f"A fit with five labels, wall time: {', '.join(times)}."


if __name__ == "__main__":
    main()
