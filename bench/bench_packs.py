"""Few-shot segmentation of real images: blood cells, museum ants and cars; all methods get the same labeled images.

Reads the packs under PARTSHOT_DATA (default ../shared/data) and does not write to them. Scores are mean IoU on `val` at
the masks' own size, background included, pooled over the images, for splits of k = 1, 5, 10 labeled images. Each row is
saved as soon as it is measured: run it again to resume. The page also lists rows that earlier versions measured with
the same protocol, with their date.

    python bench/bench_packs.py [--packs wbc,ants] [--ks 1,5,10] [--splits 0,1,2] [--rows ROW,ROW] [--jobs 2]
    python bench/bench_packs.py --equal-time
"""

import argparse
import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from bench_rows import DATA, RESULTS, commit_rows, names, numbers, own_rows, read_rows
from partshot.benchmark.baselines import predictor
from partshot.benchmark.datasets import Dataset, open_dataset
from partshot.benchmark.kshot import Row, kshot, table_to_dict, tabulate
from partshot.data.shots import Shots
from partshot.represent.choose import POSITION
from partshot.represent.encoders import ENCODERS
from partshot.tasks.fit import ENCODER_LEVELS, frozen_segmenter
from partshot.tasks.train_student import Training, train_student, without_flips
from partshot.train.distill_recipe import PRESETS, Distill
from partshot.train.fit_points import PRESETS as POINTS
from partshot.train.forest import Forest
from partshot.train.journal import Journal
from partshot.train.student_choice import student_recipe
from partshot.workers import workers

PACKS, KS, SPLITS = ("wbc", "ants", "carparts"), (1, 5, 10), (0, 1, 2, 3, 4)
ENCODER = "efficientnet-lite0"
LIGHT = f"light-{ENCODER}"
UNTRAINED = f"light-{ENCODERS[ENCODER].net}"
WHAT = (
    "mIoU on `val` at the masks' own size, background included; mean and standard deviation over the splits, in "
    "brackets the median seconds of a fit, with two fits at a time on two cores and other processes running. Rows with "
    "a date were measured on that day by the version of that day."
)
# The usual long side of a pack's images in pixels, which determines the student's size.
_NATIVE = {"wbc": 128, "ants": 256, "carparts": 256}
# Thousands of labeled images for training the student without a pretrained encoder: about as long as the pretrained
# student's training, and as many as on 2026-11-21.
_FAST_UNET_KIMG = {"wbc": 9, "ants": 18, "carparts": 18}
# The split of the table of equal time.
EQUAL_TIME_K, EQUAL_TIME_SPLIT = 5, 0
EQUAL_TIME = RESULTS / "rows" / "equal_time.json"
# Tables of earlier versions: day -> file.
EARLIER = {"2026-11-21": RESULTS / "packs-2026-11-21.json"}
_TITLES = {
    "linear": "linear head",
    "random": "head on a randomly initialized network",
    "forest": "random forest on filters",
}
# Rows of `partshot bench representations`: the default student, and a U-Net with a MoCo encoder, trained on a GPU.
TABLES, TABLES_DAY = RESULTS / "tables", "2026-11-26"
_OF_TABLES = {"mean teacher, unet-resnet18 of moco": "MoCo student, U-Net, GPU", "mean teacher": "mean teacher, GPU"}


def main() -> None:
    """Measures missing rows, then writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packs", type=names, default=PACKS)
    parser.add_argument("--ks", type=numbers, default=KS)
    parser.add_argument("--splits", type=numbers, default=SPLITS)
    parser.add_argument("--rows", type=names, default=("pretrained student", "pretrained frozen", "random student"))
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="processes, of one thread each")
    parser.add_argument("--equal-time", action="store_true", help="measure all rows of the second table, in one run")
    parser.add_argument("--out", type=Path, default=Path("bench/work/packs"))
    args = parser.parse_args()
    if args.equal_time:
        out = args.out / "equal-time"
        todo = [(pack, EQUAL_TIME_K, EQUAL_TIME_SPLIT, row) for row in ROWS for pack in PACKS]
        # Earlier rows were timed under another load.
        measure_all(todo, out, args.jobs, own_rows)
        commit_equal_time(out)
    else:
        # One split after the other, so that a stopped run has complete splits to show.
        order = [(row, split) for row in args.rows for split in args.splits]
        todo = [(pack, k, split, row) for row, split in order for pack in args.packs for k in args.ks]
        measure_all(todo, args.out, args.jobs, rows_of)
    report(args.out)


def measure_all(
    todo: list[tuple[str, int, int, str]], out: Path, jobs: int, known: Callable[[Path], list[Row]]
) -> None:
    """Measures (pack, k, split, row), as many at a time as there are jobs. known: the rows of a folder."""
    with workers(jobs) as pool:
        for done in [pool.submit(measure, *one, out, known(folder_of(*one, out))) for one in todo]:
            done.result()


def measure(pack: str, k: int, split: int, row: str, out: Path, known: list[Row]) -> None:
    """Measures one method on one split of a pack, unless its row is known."""
    torch.set_num_threads(1)
    dataset = open_dataset(str(DATA / pack), out / "fields", quiet=True)
    folder = folder_of(pack, k, split, row, out)
    journal = Journal(folder / "rows.jsonl")
    journal.repair()

    def keep(result: Row) -> None:
        journal.write(result.to_dict())
        line = f"{result.method} {result.score.miou:.3f} {result.fit_seconds:.0f} s {time.strftime('%H:%M')}"
        print(f"{pack} k={k} split={split} {line}", flush=True)

    method = {row: ROWS[row](dataset, pack, folder, split)}
    kshot(method, dataset.pool, dataset.test, [k], [split], dataset.splits, keep, known)


def _student(name: str, recipe_of: Callable[[str], Distill], with_images: bool = True) -> Callable:
    def method(dataset: Dataset, pack: str, folder: Path, split: int) -> Callable[[Shots], object]:
        recipe = recipe_of(pack)
        images = dataset.images(recipe.size)
        recipe = without_flips(recipe, images)

        def fit(shots: Shots):
            given = images if with_images else None
            return predictor(train_student(shots, recipe, folder / "student", given, Training(name), quiet=True))

        return fit

    return method


def _frozen(dataset: Dataset, pack: str, folder: Path, split: int) -> Callable[[Shots], object]:
    # Loaded before the fit is timed, at the encoder's image size.
    images = dataset.images(256)
    name = f"{ENCODER}{ENCODER_LEVELS}{POSITION}"
    return lambda shots: predictor(frozen_segmenter(shots, lambda side: images, name=name))


def _forest(dataset: Dataset, pack: str, folder: Path, split: int) -> Callable[[Shots], object]:
    return lambda shots: Forest(shots.parts, seed=split).fit(shots).predict


def pretrained_recipe(pack: str) -> Distill:
    """The pretrained student's recipe, at a size that fits the pack's images."""
    return student_recipe(None, "pretrained", _NATIVE[pack])


RECIPES: dict[str, Callable[[str], Distill]] = {
    "pretrained student": pretrained_recipe,
    "random student": lambda pack: pretrained_recipe(pack).changed(encoder_lr_factor=1, frozen_stride=0),
    "mean teacher": lambda pack: PRESETS["default"].changed(kimg=_FAST_UNET_KIMG[pack]),
    "supervised": lambda pack: PRESETS["supervised"].changed(kimg=_FAST_UNET_KIMG[pack]),
}
"""How the students are trained: name -> pack -> recipe."""

ROWS: dict[str, Callable] = {
    "pretrained student": _student(LIGHT, RECIPES["pretrained student"]),
    "pretrained frozen": _frozen,
    "random student": _student(UNTRAINED, RECIPES["random student"]),
    "mean teacher": _student("fast-unet", RECIPES["mean teacher"]),
    "supervised": _student("fast-unet", RECIPES["supervised"], with_images=False),
    "forest": _forest,
}
"""The methods: name -> (dataset, pack, folder, split) -> shots -> predictor."""


def folder_of(pack: str, k: int, split: int, row: str, out: Path) -> Path:
    """The folder of one method on one split. It depends on the recipe, so that no table mixes different recipes."""
    state = RECIPES[row](pack).fingerprint if row in RECIPES else ""
    if row == "pretrained frozen":
        state = f"{POINTS['fast'].fingerprint}{ENCODER_LEVELS}"
    digest = hashlib.sha256(f"{row}/{state}/{ENCODER}".encode()).hexdigest()[:8]
    return out / f"{pack}-{row.replace(' ', '-')}-{digest}" / f"{k}-{split}"


def rows_of(folder: Path) -> list[Row]:
    """The row of one method on one split, measured here or in an earlier run that committed it; or none."""
    k, split = map(int, folder.name.split("-"))
    return [row for row in read_rows(folder, committed_rows(folder)) if (row.k, row.seed) == (k, split)]


def committed_rows(folder: Path) -> Path:
    """The committed file of all rows of one method, pack and recipe."""
    return RESULTS / "rows" / f"{folder.parent.name}.jsonl"


def report(out: Path) -> None:
    """Prints the tables of all rows measured so far and writes them to bench/results/packs.{json,md}."""
    tables, text = {}, ["# Few labels on real images", "", WHAT, ""]
    for pack in PACKS:
        rows = []
        for row in ROWS:
            found = [r for k in KS for s in SPLITS for r in rows_of(folder_of(pack, k, s, row, out))]
            if found:
                commit_rows(found, committed_rows(folder_of(pack, KS[0], SPLITS[0], row, out)))
            rows += found
        if not rows:
            continue
        table = {method: _cells(by_k, rows, method) for method, by_k in table_to_dict(tabulate(rows)).items()}
        tables[pack] = table | _earlier(pack)
        text += [f"## {pack}", "", _markdown(tables[pack]), "", *_equal_time(pack)]
    print("\n".join(text))
    RESULTS.mkdir(exist_ok=True)
    card = {"torch": torch.__version__, "day": time.strftime("%Y-%m-%d"), "recipe": PRESETS["pretrained"].model_dump()}
    (RESULTS / "packs.md").write_text("\n".join(text), encoding="utf-8")
    (RESULTS / "packs.json").write_text(json.dumps({"card": card, "tables": tables}, indent=1), encoding="utf-8")
    last = {p: {m: {k: round(c["miou"], 3) for k, c in by.items()} for m, by in t.items()} for p, t in tables.items()}
    print(json.dumps(last))


def _cells(by_k: dict, rows: list[Row], method: str) -> dict:
    """Adds the median seconds of a fit to the cells of a method."""
    return {
        k: cell | {"seconds": float(np.median([r.fit_seconds for r in rows if r.method == method and str(r.k) == k]))}
        for k, cell in by_k.items()
    }


def commit_equal_time(out: Path) -> None:
    """Writes the rows of the second table: pack -> method -> mIoU and seconds."""
    found = {}
    for pack in PACKS:
        rows = [row for name in ROWS for row in own_rows(folder_of(pack, EQUAL_TIME_K, EQUAL_TIME_SPLIT, name, out))]
        found[pack] = {row.method: {"miou": row.score.miou, "seconds": row.fit_seconds} for row in rows}
    EQUAL_TIME.write_text(json.dumps(found, indent=1), encoding="utf-8")


def _equal_time(pack: str) -> list[str]:
    """The second table of a pack: one split, all methods in one run, with trainings of about the same time."""
    found = json.loads(EQUAL_TIME.read_text()).get(pack) if EQUAL_TIME.exists() else None
    if not found:
        return []
    title = f"Students trained for about the same time, k = {EQUAL_TIME_K}, split {EQUAL_TIME_SPLIT}:"
    rows = [f"| {method} | {cell['miou']:.3f} | {cell['seconds']:.0f} |" for method, cell in found.items()]
    return [title, "", "| | mIoU | seconds of a fit |", "|---|---|---|", *rows, ""]


def _earlier(pack: str) -> dict:
    """Rows that earlier versions measured: method and day -> k -> cell."""
    found = {}
    for day, path in EARLIER.items():
        table = json.loads(path.read_text())["tables"].get(pack, {})
        found |= {
            f"{_TITLES.get(method, method)} ({day})": by_k
            for method, by_k in table.items()
            if method not in ("head", "student")
        }
    table = json.loads((TABLES / f"representations-{pack}.json").read_text())["table"]
    found |= {f"{name} ({TABLES_DAY})": table[method] for method, name in _OF_TABLES.items() if method in table}
    if pack == "carparts":
        found[f"{_TITLES['forest']} ({TABLES_DAY})"] = table["forest"]
    return found


def _markdown(table: dict) -> str:
    best = {str(k): max((by[str(k)]["miou"] for by in table.values() if str(k) in by), default=0) for k in KS}
    lines = ["| mIoU | " + " | ".join(f"k = {k}" for k in KS) + " |", "|---|" + "---|" * len(KS)]
    for method, by_k in table.items():
        lines.append(f"| {method} | " + " | ".join(_cell(by_k.get(str(k)), best[str(k)]) for k in KS) + " |")
    return "\n".join(lines)


def _cell(cell: dict | None, best: float) -> str:
    if cell is None:
        return "-"
    text = f"{cell['miou']:.3f} ± {cell['miou_std']:.3f}"
    text = f"**{text}**" if cell["miou"] == best else text
    splits = "" if cell["seeds"] == len(SPLITS) else f"{cell['seeds']} split{'s' if cell['seeds'] > 1 else ''}"
    seconds = f"{cell['seconds']:.0f} s" if "seconds" in cell else ""
    details = ", ".join(filter(None, (splits, seconds)))
    return f"{text} ({details})" if details else text


if __name__ == "__main__":
    main()
