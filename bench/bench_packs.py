"""Few-shot segmentation of real pictures: white blood cells and museum ants, every method on the same draws.

Reads the packs under PARTSHOT_DATA (default ../shared/data); nothing of them is written. Measured on `val` at the
masks' own size, mean over classes with background, pooled over the pictures, over five draws of k = 1, 5, 10 labels.
Rows are written down as they come: run it again to go on. A run of some packs, ks or seeds prints what there is; the
one that completes all of them writes bench/results/packs.{md,json}.

    python bench/bench_packs.py [--packs wbc,ants] [--ks 1,5,10] [--seeds 0,1,2,3,4] [--jobs 2]
"""

import argparse
import hashlib
import json
import os
import time
from pathlib import Path

import numpy as np
import torch

from partshot.data.images import list_images, read_stack
from partshot.data.shots import load_shots
from partshot.evaluate import Row, kshot, table_to_dict, table_to_markdown, tabulate
from partshot.represent.choose import open_representation
from partshot.tasks.compare import Contest
from partshot.tasks.distill import TRUSTED, facing
from partshot.tasks.fit import HEAD, REPRESENTATION, facing_fit
from partshot.train.distill_recipe import PRESETS, Distill
from partshot.train.fit_head import PRESETS as FIT_PRESETS
from partshot.train.journal import Journal, read_journal
from partshot.workers import workers

PACKS, KS, SEEDS = ("wbc", "ants"), (1, 5, 10), (0, 1, 2, 3, 4)
SIZE = 128
DATA = Path(os.environ.get("PARTSHOT_DATA", "../shared/data"))
WHAT = "mIoU on `val` at the masks' own size, background included; mean and deviation over the draws."
RESULTS = Path(__file__).parent / "results"
# Thousands of shots per student: about four and eight minutes on one core. wbc's three classes are learnt sooner.
KIMG = {"wbc": 9, "ants": 18}
UNLABELLED = 700
# The few-shot head is a matter of seconds: 600 augmented pictures.
FIT = FIT_PRESETS["fast"].changed(images=600)


def main() -> None:
    """Measures what is missing, then writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packs", type=names, default=PACKS)
    parser.add_argument("--ks", type=numbers, default=KS)
    parser.add_argument("--seeds", type=numbers, default=SEEDS)
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="processes, of one thread each")
    parser.add_argument("--out", type=Path, default=Path("bench/work/packs"))
    args = parser.parse_args()
    # Whole seeds first, so that a run that is cut short has complete ones to show.
    todo = [(pack, k, seed, args.out) for seed in args.seeds for pack in args.packs for k in args.ks]
    with workers(args.jobs) as pool:
        for done in [pool.submit(measure, *one) for one in todo]:
            done.result()
    report(args.out)


def names(text: str) -> tuple[str, ...]:
    """Of an option with commas between."""
    return tuple(text.split(","))


def numbers(text: str) -> tuple[int, ...]:
    """Of an option with commas between."""
    return tuple(map(int, text.split(",")))


def measure(pack: str, k: int, seed: int, out: Path) -> None:
    """All methods on one draw of a pack."""
    torch.set_num_threads(1)
    split = json.loads((DATA / pack / "split.json").read_text())
    pool, test = (load_shots(DATA / pack, names=split[part]) for part in ("train", "val"))
    pictures = unlabelled(pack, split, SIZE)
    recipe = facing(recipe_of(pack), pictures)
    fit = facing_fit(FIT, not recipe.augment.flip)
    folder = folder_of(pack, k, seed, out)
    contest = Contest(folder, pictures, open_representation(REPRESENTATION), recipe, HEAD, fit, seed=seed, quiet=True)
    draws = {int(k): {int(s): names for s, names in by.items()} for k, by in split["fewshot"].items()}
    journal = Journal(folder / "rows.jsonl")
    journal.rewind(0)

    def keep(row: Row) -> None:
        journal.write(row.to_dict())
        told = f"{row.method:13s} {row.score.miou:.3f} {row.fit_seconds:4.0f} s"
        print(f"{pack} k={k} seed={seed} {told} {time.strftime('%H:%M')}", flush=True)

    kshot(contest.methods(), pool, test, [k], [seed], draws, keep, read_rows(folder))


def recipe_of(pack: str) -> Distill:
    """How a pack's students are trained, but for mirroring."""
    return PRESETS["default"].changed(size=SIZE, kimg=KIMG[pack])


def folder_of(pack: str, k: int, seed: int, out: Path) -> Path:
    """Where one draw of a pack is worked on; other recipes work elsewhere, so that no table mixes two."""
    state = f"{recipe_of(pack).fingerprint}/{FIT.fingerprint}/{HEAD}/{REPRESENTATION}/{TRUSTED}"
    return out / f"{pack}-{hashlib.sha256(state.encode()).hexdigest()[:8]}" / f"{k}-{seed}"


def read_rows(folder: Path) -> list[Row]:
    """Rows of one draw that were written so far."""
    return [Row.from_dict(line) for line in read_journal(folder / "rows.jsonl")]


def unlabelled(pack: str, split: dict, size: int) -> np.ndarray:
    """The pack's unlabelled pictures; where it has none, its train pictures without their masks."""
    folder = DATA / pack / "unlabeled"
    if folder.is_dir():
        paths = list_images(folder)
        paths = paths[:: max(1, len(paths) // UNLABELLED)][:UNLABELLED]
    else:
        wanted = set(split["train"])
        paths = [path for path in list_images(DATA / pack / "images") if path.stem in wanted]
    return read_stack(paths, size, skip_corrupt=True).images


def report(out: Path) -> None:
    """Prints the table of all rows there are; writes bench/results/packs.{json,md} when every draw is measured."""
    tables, text = {}, ["# Few labels on real pictures", "", WHAT, ""]
    whole = True
    for pack in PACKS:
        rows = [row for k in KS for seed in SEEDS for row in read_rows(folder_of(pack, k, seed, out))]
        if not rows:
            whole = False
            continue
        methods = {row.method for row in rows}
        whole = whole and len(rows) == len(methods) * len(KS) * len(SEEDS)
        table = tabulate(rows)
        tables[pack] = table_to_dict(table)
        draws = ", ".join(str(seed) for seed in sorted({row.seed for row in rows}))
        text += [f"## {pack}", "", f"Draws {draws}; {KIMG[pack]} kimg at {SIZE} px.", "", table_to_markdown(table), ""]
    print("\n".join(text))
    if whole:
        stamp = {"torch": torch.__version__, "size": SIZE, "kimg": KIMG, "day": time.strftime("%Y-%m-%d")}
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "packs.md").write_text("\n".join(text), encoding="utf-8")
        (RESULTS / "packs.json").write_text(json.dumps({"card": stamp, "tables": tables}, indent=1), encoding="utf-8")
    last = {p: {m: {k: round(c["miou"], 3) for k, c in by.items()} for m, by in t.items()} for p, t in tables.items()}
    print(json.dumps(last))


if __name__ == "__main__":
    main()
